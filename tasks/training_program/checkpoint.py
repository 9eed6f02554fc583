"""Checkpoints: everything that the next epoch depends on, in a folder or an object store.

    <uri>/<epoch>/state.npz        arrays of the state, and its record as JSON; no pickle
    <uri>/<epoch>/manifest.json    size and SHA-256 of state.npz; written last

A checkpoint without an intact manifest and an intact state does not exist. The last two are kept, so that
damage to the newest one costs an epoch and not the training.
"""

import io
import json
from dataclasses import asdict, dataclass

import numpy as np

from .dataset_files import MANIFEST, BadDataset, bytes_entry, manifest_bytes, parse_manifest
from .errors import ForeignCheckpoint
from .storage import open_store

STATE = "state.npz"
KEPT = 2


@dataclass(frozen=True)
class EpochMetrics:
    """What is known about an epoch once it is over; fields in the order in which they are shown."""

    epoch: int
    """From 1."""
    loss: float
    accuracy: float
    """`loss` and `accuracy` are running averages over the epoch, during which the weights change."""
    val_loss: float
    val_accuracy: float
    epoch_seconds: float
    """Training and validation."""
    finished_ms: int
    """Unix time in milliseconds."""


@dataclass(frozen=True)
class State:
    """Everything that the next epoch depends on."""

    weights: list[np.ndarray]
    optimizer: list[np.ndarray]
    """The optimizer's variables: its step counter, learning rate and moving averages."""
    best_weights: list[np.ndarray]
    """The weights after `best_epoch`."""
    history: tuple[EpochMetrics, ...]
    """One for each epoch that is over."""

    @property
    def epoch(self) -> int:
        """The number of epochs that are over."""
        return len(self.history)

    @property
    def best_epoch(self) -> int:
        """The epoch with the highest validation accuracy; of several, the one with the lowest validation loss."""
        return max(self.history, key=lambda metrics: (metrics.val_accuracy, -metrics.val_loss)).epoch


class Checkpoints:
    """The checkpoints of one training, under an fsspec address."""

    def __init__(self, uri: str, identity: dict[str, object]) -> None:
        """`identity` is what decides the outcome of the training, as JSON values."""
        self._filesystem, self._root = open_store(uri)
        self._uri = uri
        self._identity = json.loads(json.dumps(identity))

    def save(self, state: State) -> None:
        """Write the checkpoint of `state`, then remove all but the last two."""
        folder = f"{self._root}/{state.epoch}"
        content = _to_bytes(state, self._identity)
        self._filesystem.makedirs(folder, exist_ok=True)
        self._filesystem.pipe_file(f"{folder}/{STATE}", content)
        self._filesystem.pipe_file(f"{folder}/{MANIFEST}", manifest_bytes([bytes_entry(STATE, content)]))
        for epoch in self._epochs():
            if epoch <= state.epoch - KEPT:
                self._filesystem.rm(f"{self._root}/{epoch}", recursive=True)

    def newest(self) -> State | None:
        """The newest intact checkpoint, or None. Raises `ForeignCheckpoint` if it is another training's."""
        for epoch in sorted(self._epochs(), reverse=True):
            content = self._intact(epoch)
            if content is None:
                continue
            identity, state = _from_bytes(content)
            if identity != self._identity:
                keys = identity.keys() | self._identity.keys()
                different = sorted(key for key in keys if identity.get(key) != self._identity.get(key))
                raise ForeignCheckpoint(
                    f"The checkpoint {self._uri}/{epoch} belongs to another training; these differ: "
                    f"{', '.join(different)}.\nName another --checkpoint-uri, or remove it to start over."
                )
            return state
        return None

    def _epochs(self) -> list[int]:
        try:
            paths = self._filesystem.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        names = [path.rstrip("/").rpartition("/")[2] for path in paths]
        return [int(name) for name in names if name.isdecimal()]

    def _intact(self, epoch: int) -> bytes | None:
        folder = f"{self._root}/{epoch}"
        try:
            entries = parse_manifest(self._filesystem.cat_file(f"{folder}/{MANIFEST}"))
            content: bytes = self._filesystem.cat_file(f"{folder}/{STATE}")
        except (FileNotFoundError, BadDataset):
            return None
        return content if entries == [bytes_entry(STATE, content)] else None


def _to_bytes(state: State, identity: dict[str, object]) -> bytes:
    record = {"identity": identity, "history": [asdict(metrics) for metrics in state.history]}
    arrays = {"record": np.frombuffer(json.dumps(record).encode(), np.uint8)}
    for part in ("weights", "optimizer", "best_weights"):
        arrays |= {f"{part}/{index}": array for index, array in enumerate(getattr(state, part))}
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _from_bytes(content: bytes) -> tuple[dict[str, object], State]:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        record = json.loads(arrays["record"].tobytes())
        parts: dict[str, list[np.ndarray]] = {"weights": [], "optimizer": [], "best_weights": []}
        for key in arrays.files[1:]:
            parts[key.partition("/")[0]].append(arrays[key])
    history = tuple(EpochMetrics(**metrics) for metrics in record["history"])
    return record["identity"], State(**parts, history=history)
