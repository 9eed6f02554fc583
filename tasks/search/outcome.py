"""A search from its key to its winner: continued where it was left, recorded, and told of on the winner's version."""

import csv
import io
import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from infra.errors import PipelineError
from infra.lease import Lease, claimant, hold_lease
from infra.lock import hold
from infra.services import Services
from tasks.handoffs import Dataset, ModelVersion
from tasks.search.record import SearchRecord, closing_search, open_search
from tasks.search.searching import Computes, Search, Searcher
from tasks.search.trial import Trial, best_of, ranked

LOGGER = logging.getLogger(__name__)

BEST = "best"
"""Metric of a parent run: the best value of all trials up to that with the number of the step."""
TABLE = "trials.csv"


@dataclass(frozen=True)
class Outcome:
    """The trials of a search that has ended, or whose time was up."""

    search: Search
    parent_run_id: str
    trials: tuple[Trial, ...]
    """In the order of their numbers."""

    @property
    def best(self) -> Trial:
        """The winner. Raises `PipelineError` without one."""
        found = ranked(self.trials, self.search.stopping.goal)
        if not found:
            reasons = {trial.reason for trial in self.trials if trial.status == "failed"}
            raise PipelineError(
                f"None of {len(self.trials)} trials ended with a finite {self.search.metric}, so there is nothing to "
                f"register: see the children of run {self.parent_run_id}.\n" + "\n".join(sorted(reasons)[:1])
            )
        return found[0]

    @property
    def lead(self) -> str:
        """How far ahead of the next one the winner is, in words."""
        goal, metric = self.search.stopping.goal, self.search.metric
        found = ranked(self.trials, goal)
        if len(found) < 2:
            return f"no other of {len(self.trials)} trials was trained to its end"
        ahead = abs((found[0].best(goal) or 0) - (found[1].best(goal) or 0))
        return f"{metric} ahead of the runner-up, trial {found[1].number}, by {ahead:.6g}"

    def mark(self, version: ModelVersion, services: Services) -> None:
        """Let the version say which search it won."""
        registered = services.tracker.find_version(version.name, version.run_id)
        assert registered, "the version was registered one step ago"
        tags = {
            "search.run_id": self.parent_run_id,
            "search.trial": str(self.best.number),
            "search.trials": str(len(self.trials)),
            "search.lead": self.lead,
        }
        services.tracker.set_version_tags(registered, tags)


def carry_out(
    search: Search, datasets: Mapping[str, Dataset], computes: Computes, services: Services, until: float
) -> Outcome:
    """Run what is missing of the search; the parent run with its key is FINISHED then, or the time was up.

    One process does so, of all that share the store: the others wait, and find it done.
    """
    tracker, settings, key = services.tracker, services.settings, search.key

    def on_wait(holder: str) -> None:
        LOGGER.info("The same search is under way already, by %s; waiting for it to end", holder)

    name = f"search-{key[:16]}"
    with (
        hold(settings.locks_folder / f"{name}.lock", on_wait),
        hold_lease(Lease(services.store, name, claimant(settings.locks_folder)), on_wait) as lease,
    ):
        experiment = search.request(search.sampling.first).experiment
        told = {one: json.dumps(value) for one, value in search.record.items()}
        told["warm"] = str(len(search.sampling.warm))
        tags = {"objective": search.stopping.goal, "objective_metric": search.metric}
        parent, finished = open_search(tracker, experiment, key, tags, told)
        record = SearchRecord(tracker, experiment, parent, search.metric)
        if finished:
            return Outcome(search, parent, tuple(trial for _, trial in sorted(record.trials().items())))
        with ExitStack() as after, closing_search(tracker, parent) as unfinished:
            searcher = Searcher(search, datasets, computes, services)
            # After the parent run has its status: who was told to stop has little time to say so.
            after.callback(searcher.leave)
            trials, complete = searcher.run(record, until)
            outcome = Outcome(search, parent, tuple(trials))
            if complete:
                goal = search.stopping.goal
                values = [trial.best(goal) if trial.status == "finished" else None for trial in trials]
                best = [best_of(values[: number + 1], goal) for number in range(len(values))]
                tracker.log_curve(parent, BEST, [float("nan") if value is None else value for value in best], {})
            else:
                unfinished.append("its time was up; the same command goes on, with more of it")
            tracker.log_text(parent, table_of(outcome), TABLE)
            lease.check()
    return outcome


def table_of(outcome: Outcome) -> str:
    """The trials as CSV."""
    names = [one.name for one in outcome.search.sampling.space]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["number", *names, "status", "best", "reports", "reason", "run_id", "reused"])
    for trial in outcome.trials:
        best = trial.best(outcome.search.stopping.goal)
        values = [trial.parameters.get(name, "") for name in names]
        told = [trial.status, "" if best is None else repr(best), len(trial.values), trial.reason, trial.run_id]
        rows.writerow([trial.number, *values, *told, trial.reused])
    return text.getvalue()
