"""Step: train, unless a finished run has the same training key; continue, if an unfinished one has it."""

import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from infra.addresses import without_secrets
from infra.compute import Accelerator, Compute, Job, Workload, program_files, program_sha256
from infra.compute.local_process import STANDING_BY
from infra.errors import LeaseLost, PipelineError, TrackerError
from infra.experiment_tracker import ExperimentTracker, Run
from infra.lease import Claims, Lease, claimant, hold_lease
from infra.lock import hold, is_held
from infra.object_store import ObjectStore
from infra.services import Services
from infra.settings import PROJECT_ROOT, Settings
from infra.source_code import source_state
from infra.terminal import Stopped
from tasks.cancellation import is_cancelled
from tasks.dataset_catalog import describe_dataset
from tasks.handoffs import Dataset, TrainingRun
from tasks.program_run import PROGRAM, ProgramRun
from tasks.progress import ProgressArtifact
from tasks.training_program.hyperparameters import Hyperparameters

LOGGER = logging.getLogger(__name__)

COMPUTING_LIBRARIES = ("keras", "tensorflow", "numpy")
"""Those whose version can change the resulting weights."""

REQUIREMENTS = (*COMPUTING_LIBRARIES, "mlflow", "pydantic", "fsspec", "s3fs", "matplotlib")
"""What the program imports and a node must have, in the very versions of this machine."""

GPU_SECONDS = "gpu_seconds."
"""Tag of a run, with the name of a job behind it: the seconds of GPU that the job held."""

RUNS_FOLDER = "runs"
"""Folder of the object store with what unfinished runs keep there."""

LEASE = "lease"
"""Tag of a run: the name of the claim of who trains, or trained last."""

COMPLETE = "model_sha256"
"""The last thing that the program writes on its run: with this tag, nothing of the training is missing."""

PHASES = ("preparing", "scaling", "running", "post_processing")
"""Of a job; the run's metrics `phase_..._seconds` say how long each took."""

_MEASURED = re.compile(r"(scaling|preparing) took ([\d.]+) s")
_EPOCH_LINE = re.compile(r"epoch (\d+)/(\d+)\b")


def training_key(dataset_sha256: str, hyperparameters: Hyperparameters) -> str:
    """The identity of a training: SHA-256 over all that decides its weights, 64 hexadecimal digits.

    The same key gives the same weights on the same kind of machine, so a finished run with it is the
    answer. Nothing else is part of it: neither flows, nor documents, nor where services are.
    """
    made_from = {
        "dataset_sha256": dataset_sha256,
        "hyperparameters": hyperparameters.model_dump(),
        "program_sha256": program_sha256(PROGRAM),
        "libraries": {name: version(name) for name in COMPUTING_LIBRARIES},
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def workload(settings: Settings, experiment: str, key: str) -> Workload:
    """What a compute is asked to be ready for."""
    services = (key, experiment, settings.object_store_uri, settings.mlflow_tracking_uri)
    identity = hashlib.sha256("\0".join(services).encode()).hexdigest()[:16]
    requirements = tuple(f"{name}=={version(name)}" for name in REQUIREMENTS)
    return Workload(PROGRAM, "train", requirements, f"training-{identity}")


def why_nothing_to_train(tracker: ExperimentTracker, experiment: str, key: str, retrain: bool) -> str | None:
    """Why a training with this key needs no compute; None if it does."""
    if retrain:
        return None
    for run in tracker.find_runs(experiment, {"training_key": key}):
        if COMPLETE in run.tags:
            return f"run {run.run_id} has this training key, and all of its training is done"
    return None


def find_finished(tracker: ExperimentTracker, experiment: str, key: str) -> Run | None:
    """The newest finished run of `experiment` with this training key that has all that a version needs."""
    runs = tracker.find_runs(experiment, {"training_key": key}, status="FINISHED")
    return next((run for run in runs if COMPLETE in run.tags), None)


@task(name="train model", cache_policy=NO_CACHE)
def train_model(
    dataset: Dataset,
    hyperparameters: Hyperparameters,
    target: Compute,
    machine: Compute,
    accelerator: Accelerator,
    experiment: str,
    retrain: bool,
    services: Services,
) -> TrainingRun:
    """Train on `target` and return the finished MLflow run, or the finished run that had the same key.

    `machine` is this machine, where the next steps will want the program.
    One process trains a key, of all that share the store: the others wait, and take its run. If the program ends
    without a result, raises as `ProgramRun.lines` does; the run is then FAILED, or KILLED if this process was told to
    stop. Raises `LeaseLost` if another process has taken over meanwhile; the run is then that one's.
    """
    settings, tracker = services.settings, services.tracker
    key = training_key(dataset.sha256, hyperparameters)

    def on_wait(holder: str) -> None:
        LOGGER.info("The same is being trained already, by %s; waiting for it to end", holder)

    def finished() -> TrainingRun | None:
        run = None if retrain else find_finished(tracker, experiment, key)
        if run is None:
            return None
        LOGGER.info(
            "Nothing that decides the weights has changed since run %s (training key %s): it is used again, "
            "nothing is trained. --retrain trains all the same.",
            run.run_id,
            key[:12],
        )
        # Of an attempt from here that was killed, before another machine finished the run.
        shutil.rmtree(_log_file(settings, run.run_id).parent, ignore_errors=True)
        return TrainingRun(run.run_id, reused=True)

    # The lock for this machine, where a dead holder is known at once; the lease for all that share the store.
    with hold(_lock_file(settings, key), on_wait):
        close_orphans(services, experiment)
        if reused := finished():
            return reused
        with hold_lease(services.store, _lease_name(key), claimant(settings.locks_folder), on_wait) as lease:
            if lease.waited and (reused := finished()):
                return reused
            run_id = _open_run(services, experiment, key, dataset, lease)
            with _closing(tracker, run_id, lease):
                unfinished = COMPLETE not in tracker.get_run(run_id).tags
                log_file = _log_file(settings, run_id)
                phases = {}
                if unfinished:
                    arguments = _arguments(
                        dataset, hyperparameters, accelerator, run_id, services.store, target.cache, lease
                    )
                    job = Job(PROGRAM, arguments, _gpu_seconds(tracker, run_id))
                    _record_source(tracker, run_id)
                    try:
                        phases = _run_program(target, machine, job, log_file, hyperparameters.epochs)
                    finally:
                        _record_cost(target, tracker, run_id)
                _post_process(tracker, run_id, log_file, phases)
    return TrainingRun(run_id, reused=False)


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
            return not is_held(_lock_file(settings, key))
        # Whoever lives and waits for the lease goes on with the run.
        watched = claims.of(_lease_name(key)) if claims else {}
        return claim in watched and all(claims.is_dead(name) for name in watched) if claims else False

    running = tracker.find_runs(experiment, {}, status="RUNNING")
    orphans = [run for run in running if {"training_key", LEASE} <= run.tags.keys() and has_died(run)]
    for run in orphans:
        if not dry_run:
            tracker.end_run(run.run_id, "KILLED", "its process died without a word, a later run found it so")
            LOGGER.info("Closed run %s as KILLED: its process has died", run.run_id)
    return orphans


def _lease_name(key: str) -> str:
    return f"training-{key[:16]}"


def _lock_file(settings: Settings, key: str) -> Path:
    return settings.locks_folder / f"training-{key[:16]}.lock"


def _open_run(services: Services, experiment: str, key: str, dataset: Dataset, lease: Lease) -> str:
    settings, tracker = services.settings, services.tracker
    # A profile of Prefect's may have an address with a login.
    page = without_secrets(flow_run.ui_url or "")
    tags = {
        "training_key": key,
        LEASE: lease.name,
        "owner": lease.holder,
        "dataset": dataset.name,
        "dataset_sample_of": describe_dataset(dataset.name, settings.dataset_catalog).sample_of or "",
        "dataset_uri": dataset.uri,
        "program_sha256": program_sha256(PROGRAM),
        "mlflow.source.name": "flows/train_mnist.py",
        "mlflow.source.type": "LOCAL",
        "prefect.flow_run_id": flow_run.id or "none",
        "prefect.flow_run_name": flow_run.name or "none",
        "prefect.flow_run_url": page or "none: the run had a temporary Prefect server",
    }
    if page:
        # The description on the run's page, where a tag's address cannot be clicked.
        tags["mlflow.note.content"] = f"Log, progress and report: flow run [{flow_run.name}]({page})"
    for run in tracker.find_runs(experiment, {"training_key": key}):
        if run.status == "RUNNING" and not lease.follows(run.tags.get(LEASE, lease.name)):
            # Its lease was never in this store: it may be alive, and write to a store of its own.
            LOGGER.warning(
                "Run %s has this key as well, and is RUNNING with another store; it is left alone", run.run_id
            )
        elif run.status != "FINISHED":
            LOGGER.info("Continuing run %s, which an earlier attempt left %s", run.run_id, run.status)
            tracker.continue_run(run.run_id, tags)
            return run.run_id
    run_id = tracker.start_run(experiment, f"{dataset.name}-{key[:8]}", tags)
    LOGGER.info("Started run %s in experiment %s", run_id, experiment)
    return run_id


def _arguments(
    dataset: Dataset,
    hyperparameters: Hyperparameters,
    accelerator: Accelerator,
    run_id: str,
    store: ObjectStore,
    cache: str | None,
    lease: Lease,
) -> tuple[str, ...]:
    flags = {
        "data-folder": dataset.uri,
        "dataset-name": dataset.name,
        "run-id": run_id,
        "outputs": "outputs",
        "checkpoint-uri": checkpoints_uri(store, run_id),
        "lease-uri": lease.uri,
        "accelerator": accelerator,
        **({"data-cache": cache} if cache else {}),
        **{name.replace("_", "-"): value for name, value in hyperparameters.model_dump().items()},
    }
    return ("train", *(f"--{flag}={value}" for flag, value in flags.items()))


def _gpu_seconds(tracker: ExperimentTracker, run_id: str) -> dict[str, float]:
    tags = tracker.get_run(run_id).tags
    return {name.removeprefix(GPU_SECONDS): float(tags[name]) for name in tags if name.startswith(GPU_SECONDS)}


def _record_cost(target: Compute, tracker: ExperimentTracker, run_id: str) -> None:
    """Add what the target's jobs have held to the run: a tag each, for a job may be counted again, and the sums."""
    held = {name: round(seconds, 1) for name, seconds in target.gpu_seconds().items()}
    if not held:
        return
    try:
        tracker.set_tags(run_id, {f"{GPU_SECONDS}{name}": str(seconds) for name, seconds in held.items()})
        total = sum(_gpu_seconds(tracker, run_id).values())
        cost = {"cost": total / 3600 * target.price_per_hour} if target.price_per_hour else {}
        tracker.log_metrics(run_id, {"gpu_seconds": total, **cost})
    except TrackerError as error:
        LOGGER.warning("What run %s cost could not be recorded: %s", run_id, error)


def checkpoints_uri(store: ObjectStore, run_id: str) -> str:
    """Where the program keeps the checkpoints of a run."""
    return f"{store.uri}/{RUNS_FOLDER}/{run_id}/checkpoints"


def discard_checkpoints(store: ObjectStore, run_id: str) -> None:
    """Remove what the program kept to continue a run."""
    for key in store.sizes(f"{RUNS_FOLDER}/{run_id}"):
        store.delete(f"{RUNS_FOLDER}/{run_id}/{key}")


@contextmanager
def _closing(tracker: ExperimentTracker, run_id: str, lease: Lease) -> Iterator[None]:
    try:
        yield
        lease.check()
    except BaseException as error:
        if lease.lost or isinstance(error, LeaseLost):
            raise  # The run is another's, who goes on with it.
        # Not an Exception: Ctrl-C, SIGTERM (SystemExit, or Prefect's own TerminationSignal), Prefect's cancelling.
        failed = isinstance(error, Exception)
        if not failed:
            tracker.hurry()
        cause = without_secrets(" ".join(str(error).split()))[:500] if failed else f"told to stop ({_name(error)})"
        try:
            tracker.end_run(run_id, "FAILED" if failed else "KILLED", cause)
            # Asked after the run is closed, for Prefect may be slow to answer.
            if not failed and is_cancelled():
                tracker.set_tags(run_id, {"cause": "cancelled in Prefect"})
        except TrackerError as second:
            LOGGER.warning("Run %s could not be closed, the next attempt does it: %s", run_id, second)
        raise
    tracker.end_run(run_id, "FINISHED")


def _name(stop: BaseException) -> str:
    """The signal, if it is known."""
    return str(stop) if isinstance(stop, Stopped) else type(stop).__name__


def _record_source(tracker: ExperimentTracker, run_id: str) -> None:
    source = source_state(PROJECT_ROOT)
    tracker.set_tags(run_id, {"mlflow.source.git.commit": source.commit, "git_dirty": str(source.dirty).lower()})
    if source.diff:
        tracker.log_text(run_id, source.diff, "source/uncommitted.diff")
    for path in program_files(PROGRAM):
        folder = Path("source", PROGRAM.name, path.relative_to(PROGRAM)).parent
        tracker.log_file(run_id, path, folder.as_posix())


def _run_program(target: Compute, machine: Compute, job: Job, log_file: Path, epochs: int) -> dict[str, float]:
    """Run the job, show and keep its output; the seconds of its phases."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    progress = ProgressArtifact(f"Training, {epochs} epochs")
    progress.show(0)
    phases = _Phases()
    known = log_file.read_text().splitlines() if log_file.exists() else []
    with log_file.open("a", buffering=1) as log, closing(ProgramRun(target, job).lines()) as lines:  # type: ignore[type-var]
        for line in _behind(known, map(without_secrets, lines)):
            log.write(line + "\n")
            LOGGER.info(line)
            phases.saw(line)
            if epoch := _EPOCH_LINE.match(line):
                # The downloaded model will be tried in a process of its own. Its start takes 5 s of one core,
                # and a training of this size leaves one idle.
                machine.stand_by(PROGRAM, "predict")
                progress.show(100 * int(epoch[1]) / int(epoch[2]))
    return phases.ended()


def _behind(known: list[str], lines: Iterator[str]) -> Iterator[str]:
    """Those of `lines` that are not in `known` already: of a job that an earlier flow watched to some point."""
    first = next(lines, None)
    if first is None:
        return
    before = known[known.index(first) :] if first.startswith("job ") and first in known else []
    for number, line in enumerate(chain([first], lines)):
        if line != (before[number] if number < len(before) else None):
            yield line


class _Phases:
    """Tells from the program's lines which phase it is in, and counts the seconds of each."""

    _STARTS = (("running", STANDING_BY), ("post_processing", "post-processing"))

    def __init__(self) -> None:
        # This machine has no node to wait for: scaling takes no time. A cluster says what it took.
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase = "preparing"
        self._since = time.monotonic()

    def saw(self, line: str) -> None:
        if measured := _MEASURED.fullmatch(line):
            self._seconds[measured[1]] += float(measured[2])
        for phase, start in self._STARTS:
            if line.startswith(start):
                self.ended()
                self._phase = phase

    def ended(self) -> dict[str, float]:
        now = time.monotonic()
        self._seconds[self._phase] += now - self._since
        self._since = now
        return self._seconds


def _post_process(tracker: ExperimentTracker, run_id: str, log_file: Path, phases: dict[str, float]) -> None:
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
