"""What a training has cost, over all of its attempts."""

import logging

from infra.compute import Compute
from infra.errors import TrackerError
from infra.experiment_tracker import ExperimentTracker

LOGGER = logging.getLogger(__name__)

GPU_SECONDS = "gpu_seconds."
"""Tag of a run, with the name of a job behind it: the seconds of GPU that the job held."""


def gpu_seconds(tracker: ExperimentTracker, run_id: str) -> dict[str, float]:
    """Of each job that has worked on the run."""
    tags = tracker.get_run(run_id).tags
    return {name.removeprefix(GPU_SECONDS): float(tags[name]) for name in tags if name.startswith(GPU_SECONDS)}


def record_cost(target: Compute, tracker: ExperimentTracker, run_id: str) -> None:
    """Add what the target's jobs have held to the run: a tag each, for a job may be counted again, and the sums."""
    held = {name: round(seconds, 1) for name, seconds in target.gpu_seconds().items()}
    if not held:
        return
    try:
        tracker.set_tags(run_id, {f"{GPU_SECONDS}{name}": str(seconds) for name, seconds in held.items()})
        total = sum(gpu_seconds(tracker, run_id).values())
        cost = {"cost": total / 3600 * target.price_per_hour} if target.price_per_hour else {}
        tracker.log_metrics(run_id, {"gpu_seconds": total, **cost})
    except TrackerError as error:
        LOGGER.warning("What run %s cost could not be recorded: %s", run_id, error)
