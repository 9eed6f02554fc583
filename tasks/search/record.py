"""What MLflow keeps of a search, and all there is of it: a parent run, and a child run for each trial that ended."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from infra.addresses import without_secrets
from infra.errors import TrackerError
from infra.experiment_tracker import ExperimentTracker, Run
from infra.experiment_tracker import TerminalStatus as RunStatus
from tasks.search.trial import Status, Trial

LOGGER = logging.getLogger(__name__)

KEY = "search.key"
"""Tag of a parent run: SHA-256 over all that decides which trials there are and which are stopped."""
PARENT = "mlflow.parentRunId"
NUMBER = "search.trial"
RECORD = "search.record"
"""Tag of a child run: the trial in JSON. Its last tag: a child without it was left by a process that died."""
TAG_CHARACTERS = 5_000
_ENDS: Mapping[Status, RunStatus] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


@dataclass(frozen=True)
class SearchRecord:
    """The runs of one search."""

    tracker: ExperimentTracker
    experiment: str
    parent_run_id: str
    metric: str

    def trials(self) -> dict[int, Trial]:
        """Those that have ended, by number."""
        children = self.tracker.find_runs(self.experiment, {PARENT: self.parent_run_id})
        return {trial.number: trial for run in children if RECORD in run.tags for trial in [self._trial(run)]}

    def _trial(self, run: Run) -> Trial:
        facts: dict[str, Any] = json.loads(run.tags[RECORD])
        # What a tag does not hold, the curve does.
        values = facts.pop("values", None)
        if values is None:
            values = [value for _, value in self.tracker.metric_histories(run.run_id, [self.metric])[self.metric]]
        return Trial(**{**facts, "values": tuple(values)})

    def add(self, trial: Trial, arguments: Mapping[str, Any]) -> Trial:
        """Keep a trial that has ended; `arguments` are all that its program was given."""
        tags = {
            PARENT: self.parent_run_id,
            NUMBER: str(trial.number),
            "search.status": trial.status,
            "search.reason": trial.reason[:TAG_CHARACTERS],
            "search.run_id": trial.run_id,
            "search.stopped_at": str(len(trial.values)) if trial.status == "stopped" else "",
            "search.reused_run": trial.run_id if trial.reused else "",
            **trial.facts,
        }
        tags = {name: value for name, value in tags.items() if value}
        left = self.tracker.find_runs(self.experiment, {PARENT: self.parent_run_id, NUMBER: str(trial.number)})
        run_id = left[0].run_id if left else self.tracker.start_run(self.experiment, f"trial-{trial.number:03}", tags)
        self.tracker.log_curve(run_id, self.metric, trial.values, {name: str(one) for name, one in arguments.items()})
        facts = {**vars(trial), "parameters": dict(trial.parameters), "facts": dict(trial.facts)}
        text = json.dumps(facts)
        if len(text) > TAG_CHARACTERS:
            text = json.dumps({name: value for name, value in facts.items() if name != "values"})
        self.tracker.set_tags(run_id, {**tags, RECORD: text})
        self.tracker.end_run(run_id, _ENDS[trial.status])
        return trial


def open_search(
    tracker: ExperimentTracker, experiment: str, key: str, tags: Mapping[str, str], params: Mapping[str, str]
) -> tuple[str, bool]:
    """The id of the parent run with this key, and whether it is FINISHED: then the search is the answer.

    An unfinished one is continued, whoever left it; else a new one is started.
    """
    runs = tracker.find_runs(experiment, {KEY: key})
    for run in sorted(runs, key=lambda run: run.status != "FINISHED"):
        if run.status == "FINISHED":
            LOGGER.info("Nothing of this search has changed since run %s: it is the answer", run.run_id)
            return run.run_id, True
        LOGGER.info("Continuing the search in run %s, which an earlier attempt left %s", run.run_id, run.status)
        tracker.continue_run(run.run_id, tags)
        return run.run_id, False
    run_id = tracker.start_run(experiment, f"search-{key[:8]}", {KEY: key, **tags})
    tracker.log_curve(run_id, "", (), params)
    LOGGER.info("Started the search in run %s of experiment %s", run_id, experiment)
    return run_id, False


def line_of(trial: Trial, best: float | None) -> str:
    """A trial as a line for a terminal."""
    values = "  ".join(f"{name} {_short(value)}" for name, value in trial.parameters.items())
    ended = f"best {_short(best)}" if best is not None else "no finite value"
    how = {"stopped": f", stopped at {len(trial.values)}", "failed": ", failed"}.get(trial.status, "")
    return f"trial {trial.number:>3}  {ended}{how}{', trained before' if trial.reused else ''}  ({values})"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def closing_search(tracker: ExperimentTracker, run_id: str) -> Iterator[list[str]]:
    """Give the parent run its status at the end of the block: FINISHED, unless the list that it yields says why not."""
    unfinished: list[str] = []
    try:
        yield unfinished
    except BaseException as error:
        failed = isinstance(error, Exception)
        if not failed:
            tracker.hurry()
        told = without_secrets(" ".join(str(error).split()))[:500] if failed else "told to stop; it can be continued"
        with suppress(TrackerError):  # What ended the search is the error to tell.
            tracker.end_run(run_id, "FAILED" if failed else "KILLED", told)
        raise
    tracker.end_run(run_id, "KILLED" if unfinished else "FINISHED", "; ".join(unfinished) or None)
