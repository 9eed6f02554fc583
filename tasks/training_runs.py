"""The MLflow runs of trainings: found by their key, opened, continued, and closed, whoever left them."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import copysign, inf
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run

from infra.addresses import without_secrets
from infra.compute import program_files
from infra.errors import ArgumentError, LeaseLost, TrackerError
from infra.experiment_tracker import ExperimentTracker, Run
from infra.lease import Claims, Lease, claimant
from infra.lock import is_held
from infra.services import Services
from infra.settings import Settings
from infra.source_code import source_state
from infra.terminal import Stopped
from tasks.cancellation import was_cancelled
from tasks.handoffs import Dataset
from tasks.training import TRAINED, Judge, Training, TrainingRequest, TrialEnded

LOGGER = logging.getLogger(__name__)

LEASE = "lease"
"""Tag of a run: the name of the claim of who trains, or trained last."""

COMPLETE = "model_sha256"
"""The last thing that the program writes on its run: with this tag, nothing of the training is missing."""

RECORD = "training"
"""Tag of a run: the training's record without its files, in JSON. The whole of it is the artifact `training.json`."""

RECORD_FILE = "training.json"

TAG_CHARACTERS = 5_000
"""MLflow's databases keep so many."""


def lease_name(key: str) -> str:
    """Of the lease of who trains this key, among all that share the store."""
    return f"training-{key[:16]}"


def lock_file(settings: Settings, key: str) -> Path:
    """Held by who trains this key on this machine."""
    return settings.locks_folder / f"{lease_name(key)}.lock"


def find_finished(tracker: ExperimentTracker, experiment: str, key: str) -> Run | None:
    """The newest finished run of `experiment` with this training key that has all that a version needs."""
    runs = tracker.find_runs(experiment, {"training_key": key}, status="FINISHED")
    return next((run for run in runs if COMPLETE in run.tags), None)


def find_trial(tracker: ExperimentTracker, request: TrainingRequest, judge: Judge) -> Run | None:
    """The newest run with the training key that has all that the trial of a search needs."""
    for run in tracker.find_runs(request.experiment, {"training_key": request.training.key}):
        trained = TRAINED in run.tags or (run.status == "FINISHED" and COMPLETE in run.tags)
        if trained or judge.why_stopped(list(curve_of(tracker, run.run_id, judge.metric).values())):
            return run
    return None


def curve_of(tracker: ExperimentTracker, run_id: str, metric: str) -> dict[int, float]:
    """The values of a metric by their steps, in the order of these."""
    points = tracker.metric_histories(run_id, [metric])[metric]
    # MLflow's database keeps the largest number there is for infinity.
    return {step: value if abs(value) < sys.float_info.max else copysign(inf, value) for step, value in points}


def never_reported(run: Run, metric: str) -> ArgumentError:
    """The error that a run has no value of its objective."""
    names = sorted(name for name in run.metrics if not name.startswith("phase_"))
    return ArgumentError(
        f"The objective {metric} was never reported in run {run.run_id}, which has: {', '.join(names) or 'none'}.\n"
        "Name one of them as the objective in the MLproject, or let the program log it at each epoch."
    )


def why_nothing_to_train(tracker: ExperimentTracker, request: TrainingRequest) -> str | None:
    """Why the training needs no compute; None if it does."""
    if request.retrain:
        return None
    for run in tracker.find_runs(request.experiment, {"training_key": request.training.key}):
        if COMPLETE in run.tags:
            return f"run {run.run_id} has this training key, and all of its training is done"
    return None


def nearest_finished(services: Services, request: TrainingRequest) -> tuple[Run, list[str]] | None:
    """The finished run of the same program that differs least, the newest of several, and what differs.

    None if there is no such run; those of earlier versions do not say what they were made from.
    """
    training, nearest = request.training, None
    for run in services.tracker.find_runs(request.experiment, {}, status="FINISHED"):
        record = _parsed(run.tags.get(RECORD, ""))
        if COMPLETE not in run.tags or record.get("program") != training.name:
            continue
        differences = training.differences(record)
        if nearest is None or len(differences) < len(nearest[1]):
            nearest = run, differences
    if nearest and _parsed(nearest[0].tags[RECORD])["program_sha256"] != training.program_sha256:
        run = nearest[0]
        try:
            whole = services.tracker.read_file(run.run_id, RECORD_FILE, services.settings.scratch_folder)
            nearest = run, training.differences(_parsed(whole.decode()))
        except TrackerError as error:
            LOGGER.debug("Which files of the program have changed since run %s is unknown: %s", run.run_id, error)
    return nearest


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        return {}


def open_run(services: Services, request: TrainingRequest, datasets: Mapping[str, Dataset], lease: Lease) -> str:
    """The id of the run to train in, RUNNING: an unfinished one with the training's key, else a new one."""
    tracker, training = services.tracker, request.training
    tags = _tags(training, datasets, lease)
    for run in tracker.find_runs(request.experiment, {"training_key": training.key}):
        if run.status == "RUNNING" and not lease.follows(run.tags.get(LEASE, lease.name)):
            # Its lease was never in this store: it may be alive, and write to a store of its own.
            LOGGER.warning(
                "Run %s has this key as well, and is RUNNING with another store; it is left alone", run.run_id
            )
        elif run.status != "FINISHED":
            LOGGER.info("Continuing run %s, which an earlier attempt left %s", run.run_id, run.status)
            tracker.continue_run(run.run_id, tags)
            return run.run_id
    name = next(iter(training.datasets), training.name)
    run_id = tracker.start_run(request.experiment, f"{name}-{training.key[:8]}", tags)
    LOGGER.info("Started run %s in experiment %s", run_id, request.experiment)
    return run_id


def _tags(training: Training, datasets: Mapping[str, Dataset], lease: Lease) -> dict[str, str]:
    # A profile of Prefect's may have an address with a login.
    page = without_secrets(flow_run.ui_url or "")
    record = json.dumps({name: value for name, value in training.record.items() if name != "files"})
    tags = {
        "training_key": training.key,
        LEASE: lease.name,
        "owner": lease.holder,
        "dataset": ", ".join(datasets) or "none",
        "dataset_uri": ", ".join(without_secrets(dataset.uri) for dataset in datasets.values()) or "none",
        "program_sha256": training.program_sha256,
        "mlflow.source.type": "LOCAL",
        "prefect.flow_run_id": flow_run.id or "none",
        "prefect.flow_run_name": flow_run.name or "none",
        "prefect.flow_run_url": page or "none: the run had a temporary Prefect server",
        **training.tags,
    }
    if len(record) <= TAG_CHARACTERS:
        tags[RECORD] = record
    if page:
        # The description on the run's page, where a tag's address cannot be clicked.
        tags["mlflow.note.content"] = f"Log, progress and report: flow run [{flow_run.name}]({page})"
    return tags


def record_source(tracker: ExperimentTracker, run_id: str, training: Training) -> None:
    """Keep with the run what it is made from: the program's files, the commit and what differs from it."""
    source = source_state(training.checkout)
    tracker.set_tags(run_id, {"mlflow.source.git.commit": source.commit, "git_dirty": str(source.dirty).lower()})
    if source.diff:
        tracker.log_text(run_id, source.diff, "source/uncommitted.diff")
    tracker.log_text(run_id, json.dumps(training.record, indent=1) + "\n", RECORD_FILE)
    for path in program_files(training.source):
        folder = f"source/{training.source.name}/{path.relative_to(training.source).parent.as_posix()}"
        tracker.log_file(run_id, path, folder.removesuffix("/."))


@contextmanager
def closing_run(tracker: ExperimentTracker, run_id: str, lease: Lease) -> Iterator[None]:
    """Give the run its status at the end of the block: FINISHED, FAILED, or KILLED where this process was stopped.

    Raises `LeaseLost`, and leaves the run alone, if another process has taken over meanwhile.
    """
    try:
        yield
        lease.check()
    except BaseException as error:
        if lease.lost or isinstance(error, LeaseLost):
            raise  # The run is another's, who goes on with it.
        # Not an Exception: Ctrl-C, SIGTERM (SystemExit, or Prefect's own TerminationSignal), Prefect's cancelling.
        ended, failed = isinstance(error, TrialEnded), isinstance(error, Exception)
        if not failed:
            tracker.hurry()
        cause = without_secrets(" ".join(str(error).split()))[:500] if failed else f"told to stop ({_name(error)})"
        try:
            tracker.end_run(run_id, "FAILED" if failed and not ended else "KILLED", cause)
            # Asked after the run is closed, for Prefect may be slow to answer.
            if not failed and was_cancelled(error):
                tracker.set_tags(run_id, {"cause": "cancelled in Prefect"})
        except TrackerError as second:
            LOGGER.warning("Run %s could not be closed, the next attempt does it: %s", run_id, second)
        raise
    tracker.end_run(run_id, "FINISHED")


def _name(stop: BaseException) -> str:
    """The signal, if it is known."""
    return str(stop) if isinstance(stop, Stopped) else type(stop).__name__


def close_orphans(
    services: Services, experiment: str, dry_run: bool = False, claims: Claims | None = None
) -> list[Run]:
    """The runs that say RUNNING and whose process has died; set to KILLED, unless `dry_run`.

    On this machine alive is who holds the lock of the run's training key. Of other machines' runs the lease in the
    store tells, to those who have watched it for a while: to callers that keep `claims` from one look to the next.
    """
    settings, tracker = services.settings, services.tracker
    here = claimant(settings.locks_folder) if settings.locks_folder.exists() else None

    def has_died(run: Run) -> bool:
        key, claim = run.tags["training_key"], run.tags[LEASE]
        if claim.partition(".")[0] == here:
            return not is_held(lock_file(settings, key))
        # Whoever lives and waits for the lease goes on with the run.
        watched = claims.of(lease_name(key)) if claims else {}
        return claim in watched and all(claims.is_dead(name) for name in watched) if claims else False

    running = tracker.find_runs(experiment, {}, status="RUNNING")
    orphans = [run for run in running if {"training_key", LEASE} <= run.tags.keys() and has_died(run)]
    for run in orphans:
        if not dry_run:
            tracker.end_run(run.run_id, "KILLED", "its process died without a word, a later run found it so")
            LOGGER.info("Closed run %s as KILLED: its process has died", run.run_id)
    return orphans
