"""List the data sets in the store with their versions, or delete one.

python -m flows.datasets                              every version of every data set
python -m flows.datasets --name fashion               those of one name
python -m flows.datasets --delete fashion@1f3a --yes  remove one from the store, for good

A version is asked for by NAME@ and the beginning of its digest, as `--data` takes it. The answer goes to stdout. Exit
status: 0 done, 1 refused or failed, 2 wrong usage.
"""

import infra.process_environment
import infra.terminal

if __name__ == "__main__":
    infra.terminal.attach()


import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC
from typing import Any

from flows.plain_command import failed
from infra.addresses import without_secrets
from infra.errors import ArgumentError, PipelineError
from infra.object_store import ObjectStore
from infra.settings import load_settings
from tasks.datasets.stored import SHORT, StoredDataset, delete_dataset, find_version, list_datasets


def as_dict(dataset: StoredDataset) -> dict[str, Any]:
    """For JSON."""
    moment = dataset.moment.astimezone(UTC).isoformat(timespec="seconds") if dataset.moment else None
    return {**asdict(dataset), "uri": without_secrets(dataset.uri), "moment": moment}


def table(datasets: Sequence[StoredDataset], store: ObjectStore) -> str:
    """The data sets in lines for a terminal, the newest version of each name last."""
    place = without_secrets(store.uri)
    if not datasets:
        return f"There is no data set in {place}.\n"
    width = max(len("data set"), *(len(one.name) for one in datasets)) + 1 + SHORT
    lines = [f"{'data set':<{width}}  {'files':>9}  {'MB':>10}  stored (UTC)"]
    for one in sorted(datasets, key=lambda one: (one.name, one.moment.timestamp() if one.moment else 0.0)):
        moment = f"{one.moment.astimezone(UTC):%Y-%m-%d %H:%M}" if one.moment else "at an unknown time"
        state = ", its files in place" if one.in_place else ""
        state = state if one.complete else "incomplete: bring it again, or delete it"
        shown = moment + state if one.complete else state
        lines.append(f"{one.short_name:<{width}}  {one.files:>9,}  {one.size / 1e6:>10,.1f}  {shown}")
    return "\n".join((*lines, f"in {place}")) + "\n"


def delete(named: str, store: ObjectStore, confirmed: bool) -> StoredDataset:
    """Remove the data set NAME@DIGEST from the store; raises `ArgumentError` if it is not there or not confirmed."""
    name, at, prefix = named.rpartition("@")
    if not at or not name:
        raise ArgumentError(f"--delete {named} names no version.\nExpected NAME@DIGEST, as the list shows them.")
    dataset = find_version(store, name, prefix)
    if not confirmed:
        gone = "; they stay, and their list goes" if dataset.in_place else ", which go for good"
        raise ArgumentError(
            f"{dataset.short_name} has {dataset.files:,} files, {dataset.size / 1e6:,.1f} MB{gone}.\n"
            "A training that used it cannot be repeated then, nor its champion be compared. Add --yes to delete it."
        )
    delete_dataset(store, dataset)
    return dataset


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.datasets",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--name", metavar="NAME", help="list the versions of this data set alone")
    one.add_argument("--delete", metavar="NAME@DIGEST", help="remove this version from the store")
    parser.add_argument("--yes", action="store_true", help="with --delete: do it")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer the arguments, by default those of the process; returns the exit status."""
    commands = parser()
    asked = commands.parse_args(arguments)
    if asked.yes and not asked.delete:
        commands.error("--yes goes with --delete")
    try:
        store = ObjectStore(load_settings().object_store_uri)
        if asked.delete:
            deleted = delete(asked.delete, store, asked.yes)
            answer: dict[str, Any] = {"deleted": as_dict(deleted)}
            lines = f"Deleted {deleted.short_name}\n"
        else:
            found = list_datasets(store, asked.name)
            answer = {"store": without_secrets(store.uri), "datasets": [as_dict(one) for one in found]}
            lines = table(found, store)
    except PipelineError as error:
        return failed(error, asked.debug)
    sys.stdout.write(json.dumps(answer) + "\n" if asked.json else lines)
    return 0


if __name__ == "__main__":
    infra.terminal.run(main)
