"""The trials of a search, several at once: which there are follows from what the search is, not from which ends first.

Trial i sees the trials up to i - at_once as finished and those between as running, and is compared with the former
alone. How many really run side by side is the compute's matter, and changes nothing.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextvars import copy_context
from dataclasses import asdict, dataclass, replace
from functools import partial
from signal import SIGTERM
from threading import Event, Semaphore

from infra.background import in_background
from infra.compute import Compute
from infra.errors import TrainingFailed
from infra.services import Services
from infra.terminal import Stopped
from tasks.handoffs import Dataset, TrainingRun
from tasks.program_parameters import Value
from tasks.progress import ProgressArtifact
from tasks.search.record import SearchRecord, line_of
from tasks.search.sampling import Sampling
from tasks.search.space import as_record
from tasks.search.stopping import Stopping
from tasks.search.trial import Trial
from tasks.train_model import train_model
from tasks.training import Judge, TrainingRequest
from tasks.training_runs import curve_of, never_reported

LOGGER = logging.getLogger(__name__)

OWNER = "search.of"
"""Tag of the run of a training: the search and the trial for which it was begun."""

SECONDS_TO_END = 10.0

ATTEMPTS = 5
"""Of a trial whose process was killed; each continues where the one before ended."""


@dataclass(frozen=True)
class Search:
    """All that decides its trials."""

    sampling: Sampling
    stopping: Stopping
    trials: int
    at_once: int
    as_they_come: bool
    metric: str
    request: Callable[[Mapping[str, Value]], TrainingRequest]
    """The training with these values of the space; raises `ArgumentError` for what the program does not take."""

    @property
    def record(self) -> dict[str, object]:
        """What is kept of it, as JSON holds it."""
        sampling, stopping = self.sampling, asdict(self.stopping)
        return {
            "space": as_record(sampling.space),
            "first": dict(sampling.first),
            "sampler": sampling.sampler,
            "seed": sampling.seed,
            "stopping": stopping,
            "trials": self.trials,
            "at_once": self.at_once,
            "as_they_come": self.as_they_come,
            "metric": self.metric,
            "warm": [[dict(trial.parameters), trial.status, list(trial.values)] for trial in sampling.warm],
        }

    @property
    def key(self) -> str:
        """SHA-256 over the record and the training of trial 0, which has data, program and environment in it."""
        made_from = [self.request(self.sampling.first).training.key, self.record]
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Computes:
    """Where trials run."""

    of: Callable[[TrainingRequest], Compute]
    """The compute for a training; the same for all of them, or one for each."""
    workers: int
    """How many run side by side at most."""


class Searcher:
    """Runs what is missing of a search."""

    def __init__(
        self,
        search: Search,
        datasets: Mapping[str, Dataset],
        computes: Computes,
        services: Services,
    ) -> None:
        """`datasets` are those of the trainings, by name, in the store."""
        self._search, self._datasets, self._computes, self._services = search, datasets, computes, services
        self._slots = Semaphore(computes.workers)
        self._progress = ProgressArtifact(f"Search, {search.trials} trials")
        self._stopping = Event()
        self._targets: list[Compute] = []
        self._futures: dict[int, Future[Trial]] = {}
        self._by_key: dict[str, Future[Trial]] = {}

    def run(self, record: SearchRecord, until: float) -> tuple[list[Trial], bool]:
        """The trials, those that have ended before among them, and whether that is all of them.

        None is begun after `until`, by the monotonic clock. Raises what ended a trial other than its own failure; the
        others are told to end.
        """
        search = self._search
        ended = record.trials()
        complete = True
        values: dict[int, Mapping[str, Value]] = {number: trial.parameters for number, trial in ended.items()}
        try:
            for number in range(search.trials):
                if number in ended:
                    continue
                self._wait(ended, number)
                if time.monotonic() > until:
                    LOGGER.info("The time of the search is up: no further trial is begun")
                    complete = False
                    break
                seen = [self._seen(other, number, ended, values) for other in range(number)]
                proposed = search.sampling.propose(number, seen)
                if proposed is None:
                    LOGGER.info("The grid has no more points: the search has %d trials", number)
                    break
                values[number] = proposed
                self._begin(number, proposed, record, ended)
            for number, future in self._futures.items():
                ended[number] = future.result()
        except BaseException:
            self._stopping.set()
            for target in dict.fromkeys(self._targets):
                target.release()
            raise
        return [ended[number] for number in sorted(ended)], complete

    def leave(self) -> None:
        """Return when no trial is under way any more; those of a search that was stopped end in a moment."""
        wait(self._futures.values(), SECONDS_TO_END)

    def _wait(self, ended: dict[int, Trial], number: int) -> None:
        """Return when trial `number` may begin; what has ended until then is in `ended`."""
        search = self._search
        if search.as_they_come:
            while len(running := [one for one in self._futures.values() if not one.done()]) >= search.at_once:
                wait(running, return_when=FIRST_COMPLETED)
            ended |= {other: future.result() for other, future in self._futures.items() if future.done()}
            return
        for other in range(number - search.at_once + 1):
            if other not in ended:
                ended[other] = self._futures[other].result()

    def _seen(
        self, other: int, number: int, ended: Mapping[int, Trial], values: Mapping[int, Mapping[str, Value]]
    ) -> Trial:
        over = other in ended and (self._search.as_they_come or other <= number - self._search.at_once)
        return ended[other] if over else Trial(other, values[other])

    def _begin(self, number: int, values: Mapping[str, Value], record: SearchRecord, ended: dict[int, Trial]) -> None:
        search = self._search
        before = number - search.at_once
        others = [trial for other, trial in sorted(ended.items()) if search.as_they_come or other <= before]

        looked = 0

        def why_stopped(curve: Sequence[float]) -> str | None:
            nonlocal looked
            found = search.stopping.first(curve, others, looked)
            looked = 0 if found else len(curve)
            return found[1] if found else None

        request = replace(search.request(values), judge=Judge(search.metric, why_stopped))
        owner = f"{record.parent_run_id} {number}"
        twin = self._by_key.get(request.training.key)

        def work() -> Trial:
            if twin:
                wait([twin])  # The very same training: whichever has the lower number trains it.
            with self._slots:
                trial = self._train(Trial(number, values), request, owner, others)
            record.add(trial, request.training.arguments)
            LOGGER.info("%s", line_of(trial, trial.best(search.stopping.goal)))
            self._progress.show(100 * (number + 1) / search.trials)
            return trial

        self._futures[number] = in_background(partial(copy_context().run, work))
        self._by_key[request.training.key] = self._futures[number]

    def _train(self, trial: Trial, request: TrainingRequest, owner: str, others: list[Trial]) -> Trial:
        """The trial as it ended."""
        tracker, metric = self._services.tracker, self._search.metric
        started = time.monotonic()
        before = tracker.find_runs(request.experiment, {"training_key": request.training.key})
        reused = bool(before) and before[0].tags.get(OWNER) != owner
        if not before:
            tags = {**request.training.tags, OWNER: owner}
            request = replace(request, training=replace(request.training, tags=tags))
        run, failure = self._attempts(request, trial.number)
        found = tracker.get_run(run.run_id)
        curve = tuple(curve_of(tracker, run.run_id, metric).values())
        facts = {"seconds": f"{time.monotonic() - started:.1f}"}
        if weights := found.tags.get("weights_sha256"):
            facts["weights_sha256"] = weights
        trial = replace(trial, values=curve, run_id=run.run_id, facts=facts)
        if failure:
            return replace(trial, status="failed", reason=failure)
        if not curve:
            raise never_reported(found, metric)
        trial = replace(trial, reused=reused)
        if stop := self._search.stopping.first(curve, others):
            return replace(trial, values=curve[: stop[0]], status="stopped", reason=stop[1])
        return replace(trial, status="finished")

    def _attempts(self, request: TrainingRequest, number: int) -> tuple[TrainingRun, str]:
        """The run of the training, and why it failed: a trial has that fails twice by itself with no report between.

        One whose process was killed goes on where it was.
        """
        train = train_model.with_options(task_run_name=f"trial {number}")
        reports = -1
        for attempt in range(ATTEMPTS):
            if self._stopping.is_set():
                raise Stopped(SIGTERM)
            target = self._computes.of(request)
            self._targets.append(target)
            try:
                return train(request, self._datasets, target, target, self._services), ""
            except TrainingFailed as error:
                if self._stopping.is_set() or attempt == ATTEMPTS - 1:
                    raise
                tracker = self._services.tracker
                run_id = tracker.find_runs(request.experiment, {"training_key": request.training.key})[0].run_id
                by_itself = isinstance(error.__cause__, TrainingFailed) and error.__cause__.exit_status == 1
                now = len(curve_of(tracker, run_id, self._search.metric))
                if by_itself and now == reports:
                    return TrainingRun(run_id, reused=False), str(error)
                reports = now if by_itself else -1
                LOGGER.warning("Trial %d failed, and is tried again: %s", number, error)
        raise AssertionError("the last attempt returns or raises")
