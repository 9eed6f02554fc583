"""A trial of a search as a value."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tasks.program_parameters import Value
from tasks.program_project import Goal

Status = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """One set of values, and what became of it."""

    number: int
    parameters: Mapping[str, Value]
    """Of the space; one that is not drawn in this trial is not among them."""
    values: tuple[float, ...] = ()
    """The objective, by report: a report is a step at which the program logged it."""
    status: Status = "running"
    reason: str = ""
    """Why it was stopped, or failed."""
    run_id: str = ""
    """The MLflow run that trained it."""
    reused: bool = False
    """True if that run was there before."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What else its record has: `weights_sha256`, `seconds`."""

    def best(self, goal: Goal, reports: int | None = None) -> float | None:
        """The best finite value up to and with so many reports, all by default; None without one."""
        return best_of(self.values[:reports], goal)


def best_of(values: Iterable[float | None], goal: Goal) -> float | None:
    """The best finite one; None without one: NaN and infinity are never best."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return (max if goal == "maximize" else min)(finite) if finite else None


def ranked(trials: Sequence[Trial], goal: Goal) -> list[Trial]:
    """The finished ones with a finite objective, the best first; of equals the one with the lower number."""
    judged = [
        (value, trial) for trial in trials if trial.status == "finished" and (value := trial.best(goal)) is not None
    ]
    sign = -1 if goal == "maximize" else 1
    return [trial for value, trial in sorted(judged, key=lambda one: (sign * one[0], one[1].number))]
