"""What unfinished runs keep in the object store, to be continued."""

from infra.object_store import ObjectStore

RUNS_FOLDER = "runs"
"""Folder of the object store with what unfinished runs keep there."""


def checkpoints_uri(store: ObjectStore, run_id: str) -> str:
    """Where the program keeps the checkpoints of a run."""
    return f"{store.uri}/{RUNS_FOLDER}/{run_id}/checkpoints"


def discard_checkpoints(store: ObjectStore, run_id: str) -> None:
    """Remove what the program kept to continue a run."""
    for key in store.sizes(f"{RUNS_FOLDER}/{run_id}"):
        store.delete(f"{RUNS_FOLDER}/{run_id}/{key}")
