"""What a search may try: for each parameter of a program a list of values or a range, as its `MLproject` says."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import Any, Literal

from infra.errors import ArgumentError
from tasks.program_parameters import Parameter, Value, value_in_file
from tasks.yaml_values import YamlValue, did_you_mean

Kind = Literal["choices", "uniform", "loguniform", "int"]
KINDS: tuple[Kind, ...] = ("choices", "uniform", "loguniform", "int")

EXPECTED = "`choices: [...]`, or `uniform`, `loguniform` or `int: [low, high]`"
MOST_POINTS = 100_000
"""Of a grid."""


@dataclass(frozen=True)
class Dimension:
    """A parameter that is drawn."""

    name: str
    kind: Kind
    values: tuple[Value, ...]
    """The choices, or the lowest and the highest value, both of them allowed."""
    step: float | None = None
    only_if: tuple[tuple[str, Value], ...] = ()
    """It is drawn where these others have these values; elsewhere the program's default stands."""

    def is_drawn(self, others: Mapping[str, Value]) -> bool:
        """Whether it is drawn beside `others`."""
        return all(name in others and others[name] == value for name, value in self.only_if)

    def holds(self, value: Value) -> bool:
        """Whether a search could try this value."""
        if self.kind == "choices":
            return value in self.values
        low, high = self.values
        if isinstance(value, str) or (self.kind == "int" and not float(value).is_integer()):
            return False
        assert not isinstance(low, str)
        assert not isinstance(high, str)
        steps = (value - low) / self.step if self.step else 0
        return low <= value <= high and abs(steps - round(steps)) < 1e-9

    def points(self) -> tuple[Value, ...]:
        """All its values; raises `ArgumentError` for a range without a step."""
        if self.kind == "choices":
            return self.values
        low, high = self.values
        step = self.step or (1 if self.kind == "int" else None)
        if step is None:
            raise ArgumentError(
                f"A grid has no end of values for {self.name}: {self.kind} [{low}, {high}].\n"
                "Give it `choices`, or a `step`, or take another sampler."
            )
        assert not isinstance(low, str)
        assert not isinstance(high, str)
        # As the numbers are written: in binary three steps of 0.3 end short of 0.9.
        first, by = Decimal(str(low)), Decimal(str(step))
        count = int((Decimal(str(high)) - first) / by) + 1
        if count > MOST_POINTS:
            raise ArgumentError(f"{self.name} alone has {count:,} values, too many for a grid.\nGive it a larger step.")
        number = int if self.kind == "int" else float
        return tuple(number(first + position * by) for position in range(count))


Space = tuple[Dimension, ...]
"""In the order in which they are drawn: what another depends on comes first."""


def read_space(given: YamlValue, parameters: Sequence[Parameter]) -> Space:
    """The space that stands in a file; raises `ArgumentError` with what is wrong in it, and where.

    `parameters` are those of the program. One without a parameter `seed` can be given one all the same.
    """
    declared = {one.name: one for one in parameters if one.dataset is None}
    declared.setdefault("seed", Parameter("seed", "int", minimum=0, maximum=2**32 - 1))
    space: list[Dimension] = []
    for name, entry in given.mapping("parameters by their names, each with what is to be tried").items():
        if name not in declared:
            raise entry.wrong(
                f"{name} is no parameter of the program.{did_you_mean(name, declared)} It has: {', '.join(declared)}."
            )
        space.append(_dimension(declared[name], replace(entry, name=name), {one.name: one for one in space}))
    if not space:
        raise given.wrong("the space of a search is empty: name a parameter in it.")
    return tuple(space)


def _dimension(parameter: Parameter, given: YamlValue, above: Mapping[str, Dimension]) -> Dimension:
    fields = given.mapping(EXPECTED)
    given.refuse_unknown((*KINDS, "step", "only_if"), meant={"values": "choices", "range": "uniform", "if": "only_if"})
    kinds = [kind for kind in KINDS if kind in fields]
    if len(kinds) != 1:
        raise given.wrong(f"{parameter.name} has {' and '.join(kinds) or 'nothing to be tried'}, expected {EXPECTED}.")
    kind, entry = kinds[0], fields[kinds[0]]
    if kind == "choices":
        values = [value_in_file(one, parameter) for one in entry.sequence("a list of values")]
        if not values or len(set(values)) < len(values):
            raise entry.wrong(f"choices of {parameter.name} are {'empty' if not values else 'not all different'}.")
    else:
        values = _range(kind, entry, parameter)
    step = None
    if "step" in fields:
        if kind not in ("uniform", "int"):
            raise fields["step"].wrong(f"step of {parameter.name}: only uniform and int have one, and this is {kind}.")
        step = _number(fields["step"], Parameter("step", "int" if kind == "int" else "float"))
        if step <= 0:
            raise fields["step"].expected("a number above 0")
    return Dimension(parameter.name, kind, tuple(values), step, tuple(_conditions(fields.get("only_if"), above)))


def _range(kind: Kind, given: YamlValue, parameter: Parameter) -> list[Value]:
    wanted = ("int", "float") if kind == "int" else ("float",)
    if parameter.type not in wanted:
        meant = " Write int: [low, high]." if parameter.type == "int" else ""
        raise given.wrong(f"{parameter.name} is of type {parameter.type}, of which {kind} draws no value.{meant}")
    ends = given.sequence("two numbers: [low, high]")
    if len(ends) != 2:
        raise given.wrong(f"{given.name} has {len(ends)} numbers, expected two: [low, high].")
    low, high = (_number(end, replace(parameter, type="int" if kind == "int" else "float")) for end in ends)
    if low >= high:
        raise given.wrong(f"{given.name} is [{low}, {high}], expected the lower number first.")
    if kind == "loguniform" and low <= 0:
        raise ends[0].wrong(f"{given.name} begins at {low}, and has a logarithm above 0 only. The values are meant.")
    return [low, high]


def _number(given: YamlValue, parameter: Parameter) -> float:
    value = value_in_file(given, parameter)
    assert isinstance(value, int | float)
    return value


def _conditions(given: YamlValue | None, above: Mapping[str, Dimension]) -> Iterator[tuple[str, Value]]:
    for other, entry in (given.mapping("`{other: value}`") if given else {}).items():
        if other not in above:
            known = ", ".join(above) or "nothing"
            raise entry.wrong(f"only_if names {other}, which is not drawn above it; above it stands {known}.")
        matching = [one for one in above[other].values if str(one) == str(entry.data) or str(one) == entry.text]
        if above[other].kind != "choices" or not matching:
            raise entry.expected(f"one of the choices of {other}")
        yield other, matching[0]


def as_record(space: Space) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(dimension) for dimension in space]


def drawn(space: Space, values: Mapping[str, Value]) -> dict[str, Value]:
    """What of `values` belongs to the space: those of the parameters that are drawn beside the others."""
    found: dict[str, Value] = {}
    for dimension in space:
        if dimension.name in values and dimension.is_drawn(found):
            found[dimension.name] = values[dimension.name]
    return found


def grid(space: Space) -> list[dict[str, Value]]:
    """Every combination; raises `ArgumentError` if there is no end of them."""
    found: list[dict[str, Value]] = [{}]
    for dimension in space:
        points = dimension.points()
        found = [
            {**before, **extra}
            for before in found
            for extra in ([{dimension.name: point} for point in points] if dimension.is_drawn(before) else [{}])
        ]
        if len(found) > MOST_POINTS:
            raise ArgumentError(f"The grid has more than {MOST_POINTS:,} points.\nTake another sampler: --sampler tpe.")
    return found
