"""Step: train, unless a finished run has the same training key; continue, if an unfinished one has it."""

import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from infra.compute import Compute, Job, program_sha256
from infra.errors import ArgumentError, PipelineError
from infra.experiment_tracker import ExperimentTracker
from infra.lease import Lease, claimant, hold_lease
from infra.lock import hold
from infra.services import Services
from infra.settings import Settings
from tasks.checkpoints import RUNS_FOLDER, checkpoints_uri
from tasks.handoffs import Dataset, TrainingRun
from tasks.job_output import PHASES, Audience, run_job
from tasks.training import TRAINED, Attempt, TrainingRequest, TrialEnded
from tasks.training_cost import gpu_seconds, record_cost
from tasks.training_runs import (
    COMPLETE,
    close_orphans,
    closing_run,
    curve_of,
    find_finished,
    find_trial,
    lease_name,
    lock_file,
    nearest_finished,
    never_reported,
    open_run,
    record_source,
)

LOGGER = logging.getLogger(__name__)


@task(name="train model", cache_policy=NO_CACHE)
def train_model(
    request: TrainingRequest, datasets: Mapping[str, Dataset], target: Compute, machine: Compute, services: Services
) -> TrainingRun:
    """Train on `target` and return the finished MLflow run, or the finished run that had the same key.

    `datasets` are those of the training, by name, in the store; `machine` is this machine, where the next steps will
    want the program. One process trains a key, of all that share the store: the others wait, and take its run. If the
    program ends without a result, raises as `ProgramRun.lines` does; the run is then FAILED, or KILLED if this process
    was told to stop. Raises `LeaseLost` if another process has taken over meanwhile; the run is then that one's.

    Where the request has a judge, the run may be KILLED, or be one of before: stopped, or all of it done but its test.
    """
    key, settings = request.training.key, services.settings

    def on_wait(holder: str) -> None:
        LOGGER.info("The same is being trained already, by %s; waiting for it to end", holder)

    # The lock for this machine, where a dead holder is known at once; the lease for all that share the store.
    with hold(lock_file(settings, key), on_wait):
        close_orphans(services, request.experiment)
        if reused := _done(request, services):
            return reused
        who = claimant(settings.locks_folder) + (f".{target.job_identity}" if target.job_identity else "")
        with hold_lease(Lease(services.store, lease_name(key), who), on_wait) as lease:
            if lease.waited and (reused := _done(request, services)):
                return reused
            if not request.judge:
                _tell_what_differs(request, services)
            run_id = open_run(services, request, datasets, lease)
            with suppress(TrialEnded), closing_run(services.tracker, run_id, lease):
                attempt = Attempt(
                    run_id=run_id,
                    datasets=datasets,
                    checkpoint_uri=checkpoints_uri(services.store, run_id),
                    lease_uri=lease.uri,
                    accelerator=request.accelerator,
                    cache=target.cache,
                    trial=request.judge is not None,
                )
                _train(request, attempt, target, machine, services)
    return TrainingRun(run_id, reused=False)


def _done(request: TrainingRequest, services: Services) -> TrainingRun | None:
    """The run that is the answer: a finished one; to a judge also one that a trial needs no more of."""
    if not request.judge:
        return _finished(request, services)
    run = find_trial(services.tracker, request, request.judge)
    return TrainingRun(run.run_id, reused=True) if run else None


def _finished(request: TrainingRequest, services: Services) -> TrainingRun | None:
    key = request.training.key
    run = None if request.retrain else find_finished(services.tracker, request.experiment, key)
    if run is None:
        return None
    LOGGER.info(
        "Nothing that was asked for has changed since run %s (training key %s): it is used again, nothing is trained. "
        "--retrain trains all the same.",
        run.run_id,
        key[:12],
    )
    # Of an attempt from here that was killed, before another machine finished the run.
    shutil.rmtree(_log_file(services.settings, run.run_id).parent, ignore_errors=True)
    return TrainingRun(run.run_id, reused=True)


def _tell_what_differs(request: TrainingRequest, services: Services) -> None:
    if nearest := nearest_finished(services, request):
        run, differences = nearest
        LOGGER.info("The nearest finished run is %s. Since then: %s", run.run_id, "; ".join(differences) or "no change")


def _train(request: TrainingRequest, attempt: Attempt, target: Compute, machine: Compute, services: Services) -> None:
    """Let the program finish what of the run is unfinished, and keep its log."""
    tracker, run_id, training = services.tracker, attempt.run_id, request.training
    log_file = _log_file(services.settings, run_id)
    phases: dict[str, float] = {}
    if COMPLETE not in tracker.get_run(run_id).tags:
        record_source(tracker, run_id, training)
        if program_sha256(training.source) != training.program_sha256:
            raise ArgumentError(
                f"The program in {training.source} was edited since this run began, which is to train what it was.\n"
                "Run the same command again."
            )
        audience = Audience(
            title=f"Training, {training.epochs} epochs" if training.epochs else "Training",
            log_file=log_file,
            on_epoch=_on_epoch(request, run_id, target, machine, tracker),
            quiet=request.judge is not None,
        )
        job = Job(training.shipped, training.command_for(attempt), gpu_seconds(tracker, run_id))
        try:
            phases = run_job(target, job, audience)
        finally:
            record_cost(target, tracker, run_id)
            if request.judge and log_file.exists():
                tracker.log_file(run_id, log_file, "logs")
        if request.judge and TRAINED in tracker.get_run(run_id).tags:
            raise TrialEnded("a trial of a search: all of it is done but its test")
    _post_process(tracker, run_id, log_file, phases)


def _on_epoch(
    request: TrainingRequest, run_id: str, target: Compute, machine: Compute, tracker: ExperimentTracker
) -> Callable[[Mapping[str, Any]], None]:
    """What is done after each epoch; of a trial it raises `TrialEnded` where the judge says so."""
    training, judge = request.training, request.judge

    def stand_by(told: Mapping[str, Any]) -> None:
        # The downloaded model will be tried in a process of its own. Its start takes 5 s of one core, and a training of
        # this size leaves one idle.
        if training.tried_by:
            machine.stand_by(training.shipped, training.tried_by)

    if judge is None:
        return stand_by
    known = curve_of(tracker, run_id, judge.metric)

    def look(told: Mapping[str, Any]) -> None:
        target.stand_by(training.shipped, "train")  # For the next trial.
        # Who logs in the middle of a fit tells MLflow alone.
        known.update(told.get("points") or curve_of(tracker, run_id, judge.metric))
        if not known and told["epoch"] > 1:
            raise never_reported(tracker.get_run(run_id), judge.metric)
        if why := judge.why_stopped([known[step] for step in sorted(known)]):
            raise TrialEnded(why)

    return look


def _post_process(tracker: ExperimentTracker, run_id: str, log_file: Path, phases: Mapping[str, float]) -> None:
    if log_file.exists():
        tracker.log_file(run_id, log_file, "logs")
    if COMPLETE not in tracker.get_run(run_id).tags:
        raise PipelineError(
            f"The training program exited with 0, but run {run_id} lacks the tag {COMPLETE}, its last mark.\n"
            "Run the same command again: it continues after the last checkpoint."
        )
    # Of the attempt that finishes the run, and once: the one before may have died at any word of the program, or here.
    logged = tracker.get_run(run_id).metrics
    seconds = {f"phase_{name}_seconds": phases.get(name, 0.0) for name in PHASES}
    tracker.log_metrics(run_id, {name: value for name, value in seconds.items() if name not in logged})
    shutil.rmtree(log_file.parent, ignore_errors=True)


def _log_file(settings: Settings, run_id: str) -> Path:
    """What the program of an unfinished run has said here, in a folder of its own."""
    return settings.home / RUNS_FOLDER / run_id / "training.log"
