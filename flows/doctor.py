"""List what killed runs left behind, and mend it when told to.

    python -m flows.doctor             what there is, and what mending would do
    python -m flows.doctor --repair    do it

Looked at: runs that say RUNNING and whose process has died, versions without a decision about the alias,
data sets whose upload broke off, checkpoints that nobody will continue, files of dead downloads and jobs.
What a champion or its predecessor was made from is never removed.
"""

import infra.process_environment
import infra.terminal

if __name__ == "__main__":
    infra.terminal.attach()


import argparse
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from infra.errors import PipelineError
from infra.experiment_tracker import ExperimentTracker
from infra.lease import POLL_SECONDS, Claims
from infra.scratch import dead_folders
from infra.services import Services
from infra.settings import load_settings
from tasks.champion import CHAMPION, DECISION, PREVIOUS_CHAMPION
from tasks.checkpoints import RUNS_FOLDER, discard_checkpoints
from tasks.datasets.stored import delete_dataset, list_datasets
from tasks.training_runs import close_orphans

LOGGER = logging.getLogger("doctor")


@dataclass(frozen=True)
class Finding:
    """Something that no living process will finish."""

    what: str
    remedy: str
    """What `--repair` does, or who does it."""
    repair: Callable[[], object] | None = None
    """None: nothing is to be done here."""


def examine(services: Services, experiment: str, model_name: str) -> Iterator[Finding]:
    """Everything that is unfinished and has no living owner."""
    tracker, store = services.tracker, services.store
    claims = Claims(store)
    look = partial(close_orphans, services, experiment, dry_run=True, claims=claims)
    look()
    if undecided := claims.undecided():
        LOGGER.warning("Watching for up to %g s whether trainings of other machines live", undecided[0].seconds)
    while claims.undecided():
        time.sleep(POLL_SECONDS)
        look()
    for run in look():
        close = partial(
            tracker.end_run, run.run_id, "KILLED", "its process died without a word, the doctor found it so"
        )
        yield Finding(f"run {run.run_id} says RUNNING, and its process has died", "set it to KILLED", close)
    for version in tracker.versions(model_name):
        if DECISION not in version.tags:
            yield Finding(f"{version.uri} has no decision about the alias", "the next run of its training decides")

    kept = {
        named.tags.get("dataset_sha256")
        for alias in (CHAMPION, PREVIOUS_CHAMPION)
        if (named := tracker.version_by_alias(model_name, alias))
    }
    for dataset in list_datasets(store):
        if dataset.complete:
            continue
        if dataset.sha256 in kept:
            yield Finding(f"{dataset.uri} is incomplete, and the {CHAMPION} needs it", "the next upload completes it")
        else:
            delete = partial(delete_dataset, store, dataset)
            yield Finding(f"{dataset.uri} is incomplete: its upload broke off", "remove it", delete)

    checkpointed = {key.partition("/")[0] for key in store.sizes(RUNS_FOLDER)}
    runs = {run.run_id: run for run in tracker.find_runs(experiment, {}, run_ids=checkpointed)}
    for run_id in sorted(checkpointed):
        discard = partial(discard_checkpoints, store, run_id)
        if run_id not in runs:
            # It may be of another experiment: only who names that one may judge.
            yield Finding(f"checkpoints of run {run_id}, which is not in {experiment}", "name its --experiment")
        elif runs[run_id].status == "FINISHED":
            yield Finding(f"checkpoints of run {run_id}, which is FINISHED", "remove them", discard)
        else:
            yield Finding(f"checkpoints of run {run_id}, {runs[run_id].status}", "the same training continues them")
    for folder in dead_folders(services.settings.scratch_folder):
        remove = partial(shutil.rmtree, folder, ignore_errors=True)
        yield Finding(f"working folder {folder} of a process that has died", "remove it", remove)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repair", action="store_true", help="do what is listed, instead of listing it only")
    parser.add_argument("--experiment", default="keras-mnist", help="MLflow experiment to look at (%(default)s)")
    parser.add_argument("--model-name", default="keras-dnn-mnist", help="registered model to look at (%(default)s)")
    options = parser.parse_args()
    try:
        settings = load_settings()
        tracker = ExperimentTracker(settings)
        tracker.check_reachable()
        services = Services(settings, tracker)
        findings = list(examine(services, options.experiment, options.model_name))
        for finding in findings:
            doing = options.repair and finding.repair
            sys.stdout.write(f"{finding.what}\n  -> {finding.remedy}{': done' if doing else ''}\n")
            if doing and finding.repair:
                finding.repair()
    except PipelineError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    repairable = sum(finding.repair is not None for finding in findings)
    if not findings:
        sys.stdout.write("Nothing is left over.\n")
    elif repairable and not options.repair:
        sys.stdout.write(f"{repairable} of {len(findings)} can be repaired here: run again with --repair.\n")
    return 0


if __name__ == "__main__":
    infra.terminal.run(main)
