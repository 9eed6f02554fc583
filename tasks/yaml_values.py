"""YAML that a person wrote: each value with its text and its line, for YAML reads some words as what they are not.

`1e-4` is text to it, `010` is 8, `on` is true: only the text as it stands tells what was meant.
"""

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra.errors import ArgumentError

_MAPPING = "a mapping, a line `name: value` for each"
_LONGEST_FILE = 1_000_000


@dataclass(frozen=True)
class YamlValue:
    """A value in a YAML file."""

    node: yaml.Node
    file: str
    """The file's name, as it stands before the line in what is said of it."""
    name: str
    """What the value is, in words: `default of epochs`."""

    @property
    def text(self) -> str:
        """A single value as it is written, without quotes; empty for anything else."""
        return str(self.node.value) if isinstance(self.node, yaml.ScalarNode) else ""

    @property
    def is_quoted(self) -> bool:
        """True for text in quotes or in a block."""
        return isinstance(self.node, yaml.ScalarNode) and self.node.style is not None

    @property
    def is_empty(self) -> bool:
        """True for nothing, `~` and `null`."""
        return bool(self.node.tag == "tag:yaml.org,2002:null")

    @property
    def is_single(self) -> bool:
        """True for a word, a number or a text: neither a list nor a mapping, nor nothing."""
        return isinstance(self.node, yaml.ScalarNode) and not self.is_empty

    @property
    def data(self) -> Any:
        """What YAML makes of it, and so MLflow."""
        try:
            return yaml.constructor.SafeConstructor().construct_document(self.node)
        except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
            raise self.wrong(f"{self.name} cannot be read: {error}") from error

    @property
    def found(self) -> str:
        """What is there, in words."""
        if isinstance(self.node, yaml.SequenceNode):
            return "a list"
        if isinstance(self.node, yaml.MappingNode):
            return "a mapping"
        return "nothing" if self.is_empty else repr(self.text)

    def wrong(self, text: str) -> ArgumentError:
        """The error that says `text` of this place."""
        return ArgumentError(f"{self.file}:{self.node.start_mark.line + 1}: {text}")

    def expected(self, what: str) -> ArgumentError:
        """The error that says what was expected here, and what was found."""
        return self.wrong(f"{self.name} is {self.found}, expected {what}.")

    def mapping(self, expected: str = _MAPPING) -> dict[str, "YamlValue"]:
        """The values of a mapping by their keys, these as they are written; a key that stands twice is refused."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.expected(expected)
        yaml.constructor.SafeConstructor().flatten_mapping(self.node)
        values: dict[str, YamlValue] = {}
        for key, node in self.node.value:
            value = YamlValue(node, self.file, f"{key.value} of {self.name}" if self.name else str(key.value))
            if not isinstance(key, yaml.ScalarNode):
                raise self.wrong(f"a key of {self.name or 'the file'} is no word.")
            if key.value in values:
                raise YamlValue(key, self.file, "").wrong(f"{value.name} stands twice.")
            values[key.value] = value
        return values

    def sequence(self, expected: str) -> list["YamlValue"]:
        """The values of a list."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.expected(expected)
        return [YamlValue(node, self.file, f"an entry of {self.name}") for node in self.node.value]

    def words(self, expected: str) -> str:
        """A text that is not empty."""
        if not self.is_single or not self.text.strip():
            raise self.expected(expected)
        return self.text

    def refuse_unknown(
        self, known: Collection[str], *, near_only: bool = False, meant: dict[str, str] | None = None
    ) -> None:
        """Raise for a key that is not `known`; with `near_only` for one that looks like one of them misspelled.

        `meant` says of other words which key they stand for elsewhere.
        """
        for key, value in self.mapping().items():
            guess = (meant or {}).get(key.lower(), "") or closest(key, known)
            if key not in known and (guess or not near_only):
                told = f" Did you mean {guess}?" if guess else ""
                raise value.wrong(f"{self.name or 'the file'} has {key!r}; known are {', '.join(known)}.{told}")


def read_yaml(path: Path) -> YamlValue:
    """The document in a file; raises `ArgumentError` with the place where it is no YAML."""
    try:
        if path.stat().st_size > _LONGEST_FILE:
            raise ArgumentError(f"{path} has more than {_LONGEST_FILE:,} bytes: that is not written by hand.")
        node = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        tab = "\nIndent with spaces: YAML takes no tabs." if "'\\t'" in str(error.problem) else ""
        raise ArgumentError(f"{path.name}{line}: this is no YAML: {error.problem}.{tab}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ArgumentError(f"{path} cannot be read: {error}") from error
    if node is None:
        raise ArgumentError(f"{path} is empty.")
    return YamlValue(node, path.name, "")


def closest(word: str, known: Collection[str]) -> str:
    """The one of `known` that `word` may be a slip of; empty if there is none."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else ""


def did_you_mean(word: str, known: Collection[str]) -> str:
    """` Did you mean NAME?`, or nothing."""
    guess = closest(word, known)
    return f" Did you mean {guess}?" if guess else ""
