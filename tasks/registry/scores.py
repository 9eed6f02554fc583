"""What a program's entry point `score` writes: how each model does on each item, as a CSV file.

    model,item,loss          a finite number, the lower the better
    model,item,right         1 where the model is right, 0 where it is not
    model,item,right,group   the same, and what kind of item it is, such as the digit on an image

The first line names the columns. Every model has a line for each of the very same items.
"""

import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from infra.errors import BadScores

Kind = Literal["loss", "right"]

HEADERS: dict[tuple[str, ...], Kind] = {
    ("model", "item", "loss"): "loss",
    ("model", "item", "right"): "right",
    ("model", "item", "right", "group"): "right",
}

LARGEST = 1e100
"""Beyond this a loss is as good as infinite; below, no sum of losses is."""

LONGEST = 100
"""How much of a text that is out of place is quoted."""


@dataclass(frozen=True)
class Scores:
    """How models do on the same items."""

    kind: Kind
    values: Mapping[str, tuple[float, ...]]
    """By the name that each model was given: a loss, or 1 and 0 for right and wrong, for each item. All in the order
    of the items' names, whatever the order of the lines."""
    groups: tuple[str, ...] | None = None
    """The group of each item; None where the file names none."""


def read_scores(file: Path, models: Collection[str]) -> Scores:
    """Read what was written of `models`, which are the names that they were given.

    Raises `BadScores`, with the line and what was expected there, unless it is one of the forms above.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            return _Reader(models).read(lines)
    except FileNotFoundError as error:
        raise BadScores(f"{file.name} was not written. A program's score writes it where --output says.") from error
    except UnicodeDecodeError as error:
        raise BadScores(f"{file.name} is not text in UTF-8: {error}.") from error
    except (csv.Error, ValueError) as error:
        raise BadScores(f"{file.name}: {error}.") from error


class _Reader:
    """Collects the lines of a file; its `ValueError`s say what is wrong with it."""

    def __init__(self, models: Collection[str]) -> None:
        self._scores: dict[str, dict[str, float]] = {name: {} for name in models}
        self._groups: dict[str, str] = {}

    def read(self, file: TextIO) -> Scores:
        lines = csv.reader(file, strict=True)
        columns = tuple(next(lines, ()))
        if columns not in HEADERS:
            known = " or ".join(",".join(header) for header in HEADERS)
            raise ValueError(f"line 1 is {_quoted(','.join(columns))}, expected {known}")
        kind = HEADERS[columns]
        for fields in lines:
            try:
                self._take(fields, columns, kind)
            except ValueError as error:
                raise ValueError(f"line {lines.line_num}: {error}") from None
        items = self._items()
        return Scores(
            kind,
            {model: tuple(of_model[item] for item in items) for model, of_model in self._scores.items()},
            tuple(self._groups[item] for item in items) if "group" in columns else None,
        )

    def _take(self, fields: list[str], columns: tuple[str, ...], kind: Kind) -> None:
        if len(fields) != len(columns):
            raise ValueError(f"expected {len(columns)} fields ({','.join(columns)}), found {len(fields)}")
        model, item, value, *group = fields
        if model not in self._scores:
            raise ValueError(f"there is no model {_quoted(model)}, expected {' or '.join(self._scores)}")
        if item in self._scores[model]:
            raise ValueError(f"a second line for item {_quoted(item)} of {model}")
        self._scores[model][item] = _loss(value) if kind == "loss" else _right(value)
        if group and self._groups.setdefault(item, group[0]) != group[0]:
            raise ValueError(
                f"item {_quoted(item)} is in group {_quoted(group[0])} here, and in {_quoted(self._groups[item])} above"
            )

    def _items(self) -> list[str]:
        """The items' names, sorted; raises `ValueError` unless every model has the same."""
        items = set().union(*self._scores.values())
        if not items:
            raise ValueError("it has no line but the first: nothing was scored")
        for model, of_model in self._scores.items():
            if missing := sorted(items - of_model.keys()):
                raise ValueError(
                    f"{model} has no score of item {_quoted(missing[0])} ({len(missing):,} of {len(items):,} are "
                    "missing), and every model must be scored on the same items"
                )
        return sorted(items)


def _loss(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{_quoted(text)} is no loss, expected a number") from None
    if not abs(value) <= LARGEST:
        raise ValueError(f"the loss {_quoted(text)} is not finite")
    return value


def _right(text: str) -> float:
    if text not in ("0", "1"):
        raise ValueError(f"{_quoted(text)} is neither 1 (right) nor 0 (wrong)")
    return float(text)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}...")
