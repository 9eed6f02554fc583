"""A figure of the bench, and how figures are shown."""

import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One thing measured, if `theirs` is given against another that was measured in turn with it."""

    name: str
    ours: list[float]
    theirs: list[float] | None
    unit: str
    note: str
    """What `theirs` is, and the target."""

    @property
    def ratio(self) -> float | None:
        """The median of ours over theirs, pair by pair; None where theirs is nothing."""
        if not self.theirs or not all(self.theirs):
            return None
        return statistics.median(a / b for a, b in zip(self.ours, self.theirs, strict=True))


def show(rows: Iterable[Row]) -> None:
    """Print the rows as a markdown table: medians, and the ratio's median."""
    lines = ["| what | ours | theirs | ratio | theirs is; target |", "|---|---|---|---|---|"]
    for row in rows:
        theirs = f"{statistics.median(row.theirs):.3g} {row.unit}" if row.theirs else ""
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
        lines.append(f"| {row.name} | {statistics.median(row.ours):.3g} {row.unit} | {theirs} | {ratio} | {row.note} |")
    sys.stdout.write("\n".join(lines) + "\n")
