"""The objective of a training: the best value that its metric had."""

import math
import time

from mlflow.entities import Metric

from .order import Objective
from .output import say
from .record import RunRecord

METRIC = "objective"


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
