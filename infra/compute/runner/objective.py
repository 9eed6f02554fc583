"""The objective of a training: the best value that its metric had, and how far it is by the metric's steps."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread

from mlflow.entities import Metric

from .order import Objective
from .output import say
from .record import RunRecord

METRIC = "objective"

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_BETWEEN_LOOKS_AT_A_TRIAL = 0.3
"""Which may be ended at each step."""
SECONDS_FOR_THE_LAST = 5.0
STEPS_TOLD = 10
"""At most, of one look; a program may log thousands."""


class ObjectiveSteps:
    """Tells how far a program is that calls no `fit`, by the steps that MLflow has of its objective."""

    def __init__(
        self, record: RunRecord, metric: str, epochs: int | None, lines_passed: Callable[[], int], between: float
    ) -> None:
        """`epochs` is how many steps there will be, if that is known; `lines_passed` tells what the program wrote.

        It looks once in `between` seconds.
        """
        self._between = between
        self._record, self._metric, self._epochs, self._lines_passed = record, metric, epochs, lines_passed
        self._last = max((step for key, step in record.logged if key == metric), default=-1)
        self._passed = 0
        self._left, self._over = False, Event()
        self._thread = Thread(target=self._follow, name="steps", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Tell no more: who calls `fit` is followed by its epochs."""
        self._left = True
        self._over.set()

    def end(self) -> None:
        """Tell what is new since the last look, and no more; an MLflow that hangs is not waited for."""
        self._over.set()
        self._thread.join(SECONDS_FOR_THE_LAST)

    def _follow(self) -> None:
        over = False
        while not over:
            over = self._over.wait(self._between)
            if not self._left:
                self._look()

    def _look(self) -> None:
        found: list[Metric] = []
        with suppress(Exception):  # It is for the eye; who must have an answer from MLflow says that there is none.
            found = self._record.client.get_metric_history(self._record.run_id, self._metric)
        new = {point.step: point.value for point in found if point.step > self._last}
        self._last = max((self._last, *new))
        # A program that says something itself at each step needs no second line of ours.
        speaks = {"unseen": True} if self._lines_passed() - self._passed >= len(new) else {}
        points: list[tuple[int, float]] = sorted(new.items())
        for number, (step, value) in enumerate(told := points[-STEPS_TOLD:], 1):
            told_of = {"points": points} if number == len(told) else {}
            say(f"step {step}  {self._metric} {value:.4f}", epoch=step, epochs=self._epochs, **told_of, **speaks)
        if new:
            self._passed = self._lines_passed()


def log_objective(record: RunRecord, objective: Objective | None) -> None:
    """Log the best value over all points of the metric, and the tag `objective_value`; without one, say so."""
    if objective is None:
        return
    points = [point for point in record.history(objective.metric) if math.isfinite(point.value)]
    if not points:
        logged = sorted({key for key, _ in record.logged if key != "epoch_seconds"})
        say(
            f"the objective has no value: the run has no finite point of {objective.metric}; "
            f"it has {', '.join(logged) or 'no metric at all'}"
        )
        return
    best = (max if objective.goal == "maximize" else min)(points, key=lambda point: point.value)
    if (METRIC, best.step) not in record.logged:
        record.log_batch(metrics=[Metric(METRIC, best.value, time.time_ns() // 1_000_000, best.step)])
    record.log_tags({"objective_value": repr(best.value)})
    say(f"objective: {objective.metric} {best.value:.6g} at step {best.step}, the best by {objective.goal}")
