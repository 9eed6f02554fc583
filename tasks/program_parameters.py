"""What a program's `MLproject` says of its parameters, and how a value that a person writes is read and checked."""

import math
import re
import urllib.parse
from dataclasses import dataclass, replace

from tasks.yaml_values import YamlValue, closest

Value = str | int | float | bool

TYPES = ("string", "float", "int", "bool", "path", "uri")
"""MLflow itself knows string, float, path and uri, and takes any other word for string."""

_TYPES_MEANT = {"str": "string", "text": "string", "number": "float", "integer": "int", "boolean": "bool", "url": "uri"}
_KEYS = ("type", "default", "min", "max", "choices", "description")
_KEYS_MEANT = {"low": "min", "high": "max", "values": "choices", "enum": "choices", "help": "description"}
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")

DATA_FOLDER = "data_folder"


class WrongValue(Exception):
    """A text that is no value of its parameter; the text says what was expected."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of an entry point."""

    name: str
    type: str = "string"
    """One of `TYPES`."""
    default: Value | None = None
    """None: a value must be given."""
    minimum: float | None = None
    maximum: float | None = None
    """Both are values that are allowed."""
    choices: tuple[Value, ...] = ()
    """If there are any, no other value is allowed."""
    description: str = ""

    @property
    def dataset(self) -> str | None:
        """The name of the data set that this is the folder of: empty for the only one; None if it is no such thing."""
        if self.name == DATA_FOLDER:
            return ""
        return self.name.removeprefix(f"{DATA_FOLDER}_") if self.name.startswith(f"{DATA_FOLDER}_") else None

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return "one of " + ", ".join(map(written, self.choices))
        words = {
            "float": "a number",
            "int": "a whole number",
            "bool": "true or false",
            "uri": "an address such as s3://bucket/folder",
            "path": "a path inside the program's folder",
        }
        bounds = [
            f"{word} {written(bound)}"
            for word, bound in (("at least", self.minimum), ("at most", self.maximum))
            if bound is not None
        ]
        return ", ".join([words.get(self.type, "text"), *bounds])

    def value(self, text: str) -> Value:
        """The value that `text` is; raises `WrongValue` if it is none that is allowed."""
        try:
            value = _parsed(self.type, text)
        except (ValueError, OverflowError):
            raise WrongValue(self.expected) from None
        below = self.minimum is not None and isinstance(value, int | float) and value < self.minimum
        above = self.maximum is not None and isinstance(value, int | float) and value > self.maximum
        if below or above or (self.choices and value not in self.choices):
            raise WrongValue(self.expected)
        return value


def written(value: Value) -> str:
    """A value as the program gets it.

    A whole number stands without a point, for programs that count with it: MLflow has no other type than float for
    them, and hands on the text as it was given. True and false are as MLflow writes them.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)


def _parsed(kind: str, text: str) -> Value:
    """Raises `ValueError` if `text` is no value of this type."""
    if "\0" in text:
        raise ValueError("no argument of a process can hold a NUL")
    if kind == "int" and re.fullmatch(r"\s*[-+]?\d[\d_]*\s*", text):
        return int(text)
    if kind in ("int", "float"):
        number = float(text)
        # 1e3 is a whole number to whoever wrote it.
        if not math.isfinite(number) or (kind == "int" and not (number.is_integer() and abs(number) < 2**53)):
            raise ValueError
        return int(number) if kind == "int" else number
    if kind == "bool":
        word = text.strip().lower()
        if word not in _TRUE + _FALSE:
            raise ValueError
        return word in _TRUE
    if kind == "uri" and not urllib.parse.urlparse(text).scheme:
        raise ValueError
    if kind == "path" and not text:
        raise ValueError
    return text


def read_parameter(name: str, declared: YamlValue) -> Parameter:
    """The parameter that an entry point declares as `name`; raises `ArgumentError` with what is wrong in it, and where.

    It is MLflow's `name: type` or `name: {type: ..., default: ...}`, with `min`, `max`, `choices` and `description`.
    """
    if not re.fullmatch(r"[A-Za-z_][\w -]*", name):
        raise declared.wrong(
            f"the parameter {name!r} has no name that a command can hold in braces: letters, digits, _."
        )
    if declared.is_single:
        return _of_data(Parameter(name, _type(declared)), declared)
    fields = declared.mapping("a type, or a mapping with type and default")
    declared.refuse_unknown(_KEYS, meant=_KEYS_MEANT)
    kind = _type(fields["type"]) if "type" in fields and not fields["type"].is_empty else "string"
    description = fields["description"].words("words in one text") if "description" in fields else ""
    parameter = Parameter(name, kind, description=" ".join(description.split()))
    for key in ("min", "max"):
        if key in fields and kind not in ("int", "float"):
            raise fields[key].wrong(f"{fields[key].name}: only a number has bounds, and its type is {kind}.")
    parameter = replace(
        parameter,
        minimum=_bound(fields.get("min"), parameter),
        maximum=_bound(fields.get("max"), parameter),
    )
    low, high = parameter.minimum, parameter.maximum
    if low is not None and high is not None and low > high:
        raise fields["min"].wrong(f"min of {name} is {written(low)}, above its max, {written(high)}.")
    if "choices" in fields:
        parameter = replace(parameter, choices=_choices(fields["choices"], parameter))
    if "default" in fields and not fields["default"].is_empty:
        parameter = replace(parameter, default=value_in_file(fields["default"], parameter))
    return _of_data(parameter, declared)


def _type(given: YamlValue) -> str:
    if given.text not in TYPES:
        guess = _TYPES_MEANT.get(given.text.lower()) or closest(given.text, TYPES)
        raise given.wrong(
            f"{given.name} is {given.found}, expected a type: {', '.join(TYPES)}."
            + (f" Did you mean {guess}?" if guess else "")
        )
    return given.text


def _bound(given: YamlValue | None, parameter: Parameter) -> float | None:
    if given is None or given.is_empty:
        return None
    bound = value_in_file(given, parameter)
    assert isinstance(bound, int | float)
    return bound


def _choices(given: YamlValue, parameter: Parameter) -> tuple[Value, ...]:
    if parameter.type in ("bool", "path") or parameter.dataset is not None:
        raise given.wrong(f"{given.name}: a parameter of type {parameter.type} has no choices.")
    choices = tuple(value_in_file(entry, parameter) for entry in given.sequence("a list such as [relu, gelu]"))
    if not choices:
        raise given.expected("a list such as [relu, gelu], and not an empty one")
    return choices


def value_in_file(given: YamlValue, parameter: Parameter) -> Value:
    """A value in a file, by its text: what YAML makes of it is refused where it can be taken for something else."""
    if not given.is_single:
        raise given.expected(parameter.expected)
    if parameter.type in ("int", "float") and not given.is_quoted and re.match(r"[-+]?0\d", given.text):
        raise given.wrong(
            f"{given.name} is {given.text}, which is {given.data} to YAML, for it begins with 0.\n"
            f"Write {given.text.lstrip('0') or '0'} or {given.data}."
        )
    if parameter.type == "string" and not given.is_quoted and str(given.data) != given.text:
        raise given.wrong(
            f"{given.name} is {given.text}, which is {str(given.data)!r} to YAML and so to MLflow.\n"
            f"Write it in quotes if that text is meant: '{given.text}'."
        )
    try:
        return parameter.value(given.text)
    except WrongValue as error:
        raise given.expected(str(error)) from None


def _of_data(parameter: Parameter, declared: YamlValue) -> Parameter:
    if parameter.dataset is not None and parameter.type != "path":
        raise declared.wrong(
            f"{parameter.name} is the folder of a data set, and its type is {parameter.type}, expected path."
        )
    return parameter
