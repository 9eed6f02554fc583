"""Two runs by the number that each was trained for: weaker evidence than scores, for nothing tells what is chance."""

from dataclasses import asdict, dataclass
from math import nan
from typing import Any

from infra.experiment_tracker import Run
from tasks.program_project import Goal, Objective

OBJECTIVE = "objective"
"""Metric of a run: the best value of the metric that its program names. Without it none was finite."""

OBJECTIVE_METRIC = "objective_metric"
"""Tag of a run: that metric's name."""

OBJECTIVE_GOAL = "objective"
"""Tag of a run: `maximize` or `minimize`."""


@dataclass(frozen=True)
class ObjectiveChange:
    """The objective of a champion's run and of a challenger's."""

    metric: str
    goal: Goal
    champion: float
    challenger: float
    dataset_sha256: str
    """The data set of both runs."""

    @property
    def footnote(self) -> str:
        """What was done, and on what."""
        return (
            f"{self.metric} ({self.goal}) of two runs on the data set `{self.dataset_sha256}`. No test was made: what\n"
            "of the difference is chance is not known, so this is weaker evidence than scores are."
        )

    def rows(self) -> list[tuple[str, str, str]]:
        """A table: what, of the champion, of the challenger."""
        return [(self.metric, f"{self.champion:.6g}", f"{self.challenger:.6g}")]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, but that its numbers may not be finite."""
        return asdict(self)

    def tags(self) -> dict[str, str]:
        """For the version of the challenger."""
        return {"champion_objective": repr(self.champion), "challenger_objective": repr(self.challenger)}


def compare_objectives(champion: Run, challenger: Run, objective: Objective) -> ObjectiveChange | str:
    """The objective of two runs or, in a sentence, why they cannot be compared by it."""
    digests = [run.tags.get("dataset_sha256", "none") for run in (champion, challenger)]
    if "none" in digests:
        return "a run names no data set, and objectives are compared on the very same data only"
    if digests[0] != digests[1]:
        return f"its data set {digests[1][:12]} is not the one of the champion, {digests[0][:12]}"
    for run, whose in ((champion, "the champion's"), (challenger, "its")):
        found = f"{run.tags.get(OBJECTIVE_METRIC, 'none')} ({run.tags.get(OBJECTIVE_GOAL, 'no goal')})"
        if found != (expected := f"{objective.metric} ({objective.goal})"):
            return f"{whose} run {run.run_id} has the objective {found}, expected {expected}"
    before, after = (run.metrics.get(OBJECTIVE, nan) for run in (champion, challenger))
    return ObjectiveChange(objective.metric, objective.goal, before, after, digests[0])
