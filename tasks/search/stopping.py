"""When a trial is stopped early: functions of its curve and of those of the trials that it is compared with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tasks.program_project import Goal
from tasks.search.sampling import frozen, new_study
from tasks.search.trial import Trial, best_of

Stop = Literal["bandit", "median", "halving", "none"]

MEDIAN_OF = 5
"""The median rule stops nothing before so many trials have finished; Optuna's own number."""
REDUCTION = 2
"""Of successive halving: one in two goes on from each rung."""


@dataclass(frozen=True)
class Stopping:
    """The rule by which trials are stopped."""

    rule: Stop
    goal: Goal
    evaluation_interval: int = 2
    """Reports between two looks."""
    delay_evaluation: int = 0
    """Reports before the first look."""
    slack_factor: float | None = 0.1
    slack_amount: float | None = None
    """Of the bandit, in the objective's own unit; one of the two."""
    last: int | None = None
    """The report of the last epoch, where nothing is left to be saved; None: it is not known which that is."""

    def first(self, values: Sequence[float], others: Sequence[Trial], looked: int = 0) -> tuple[int, str] | None:
        """The report at which a trial with these values is stopped, and why; None if it is not.

        `others` are those that it is compared with, in the order of their numbers, each at the same report.
        The reports up to `looked` are known to stop nothing.
        """
        looks = (
            report for report in range(looked + 1, len(values) + 1) if self._looks_at(report) and report != self.last
        )
        for report in looks:
            if reason := self._why(values[:report], [other for other in others if other.status != "failed"]):
                return report, reason
        return None

    def _looks_at(self, report: int) -> bool:
        if self.rule == "halving":
            return True  # It has rungs of its own.
        return report % self.evaluation_interval == 0 and report >= self.delay_evaluation

    def _why(self, values: Sequence[float], others: Sequence[Trial]) -> str | None:
        if self.rule == "bandit":
            return self._bandit(values, others)
        if self.rule == "none":
            return None
        import optuna

        if self.rule == "median":
            pruner: Any = optuna.pruners.MedianPruner(n_startup_trials=MEDIAN_OF)
        else:
            pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=self.first_rung, reduction_factor=REDUCTION)
        study = new_study(self.goal, pruner=pruner)
        for other in others:
            study.add_trial(self._as_optuna(other, len(other.values)))
        study.add_trial(self._as_optuna(Trial(len(others), {}, tuple(values)), len(values) - 1))
        if not pruner.prune(study, study.get_trials(deepcopy=False)[-1]):
            return None
        best = best_of(values, self.goal)
        shown = "no finite value" if best is None else f"its best is {best:.6g}"
        if self.rule == "median":
            return f"median: at report {len(values)} {shown}, worse than the median of the finished trials there"
        return f"halving: at report {len(values)} it is {values[-1]:.6g}, not in the better half of those there"

    @property
    def first_rung(self) -> int:
        """The report at which successive halving looks for the first time; the next are at twice as many each."""
        return max(self.evaluation_interval, self.delay_evaluation)

    def _as_optuna(self, trial: Trial, judged: int) -> Any:
        """With the values that it had at the rungs which were looked at, `judged` reports far, as Optuna notes them."""
        rungs: dict[str, float] = {}
        report = self.first_rung
        while self.rule == "halving" and report <= judged:
            value = trial.values[report - 1]
            if math.isfinite(value):
                rungs[f"completed_rung_{len(rungs)}"] = value
            report *= REDUCTION
        return frozen(Trial(trial.number, {}, trial.values, trial.status), (), self.goal, system_attrs=rungs)

    def _bandit(self, values: Sequence[float], others: Sequence[Trial]) -> str | None:
        """Azure's rule: stopped is whose best is worse than the best of the others by more than the slack.

        A factor is of the value that is nearer to zero, so that it is a slack for negative objectives too; with one on
        either side of zero there is none.
        """
        own = best_of(values, self.goal)
        yardstick = best_of((other.best(self.goal, len(values)) for other in others), self.goal)
        if yardstick is None:
            return None
        if own is None:
            return f"bandit: no finite value by report {len(values)}, and the best of the others is {yardstick:.6g}"
        sign = 1 if self.goal == "maximize" else -1
        if self.slack_amount is not None:
            beaten = sign * own + self.slack_amount < sign * yardstick
            slack = f"a slack of {self.slack_amount:g}"
        else:
            assert self.slack_factor is not None
            near, far = sorted((abs(own), abs(yardstick)))
            beaten = sign * own < sign * yardstick and (own * yardstick <= 0 or near * (1 + self.slack_factor) < far)
            slack = f"a slack factor of {self.slack_factor:g}"
        if not beaten:
            return None
        return (
            f"bandit: at report {len(values)} its best is {own:.6g}, that of the others {yardstick:.6g}, with {slack}"
        )
