"""The checkpoint: everything that the next epoch depends on, in a file of the folder CHECKPOINT_FOLDER.

    state.npz    arrays of the state, and its record as JSON; no pickle

It takes the place of the one before at once, so that whoever copies the folder copies a whole one.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .errors import UsageError

STATE = "state.npz"


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
    """The checkpoint of one training, in a folder."""

    def __init__(self, folder: Path, identity: dict[str, object]) -> None:
        """`identity` is what decides the outcome of the training, as JSON values."""
        self._folder = folder
        self._identity = json.loads(json.dumps(identity))

    def save(self, state: State) -> None:
        """Put `state` in place of the one before."""
        record = {"identity": self._identity, "history": [asdict(metrics) for metrics in state.history]}
        arrays = {"record": np.frombuffer(json.dumps(record).encode(), np.uint8)}
        for part in ("weights", "optimizer", "best_weights"):
            arrays |= {f"{part}/{index}": array for index, array in enumerate(getattr(state, part))}
        self._folder.mkdir(parents=True, exist_ok=True)
        new = self._folder / f"new-{STATE}"
        np.savez(new, **arrays)  # type: ignore[arg-type]
        new.replace(self._folder / STATE)

    def newest(self) -> State | None:
        """What was saved last, or None. Raises `UsageError` if that is another training's."""
        path = self._folder / STATE
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            record = json.loads(arrays["record"].tobytes())
            parts: dict[str, list[np.ndarray]] = {"weights": [], "optimizer": [], "best_weights": []}
            for key in arrays.files[1:]:
                parts[key.partition("/")[0]].append(arrays[key])
        if different := sorted(key for key in self._identity if record["identity"].get(key) != self._identity[key]):
            raise UsageError(
                f"The checkpoint {path} belongs to another training; these differ: {', '.join(different)}.\n"
                "Name another CHECKPOINT_FOLDER, or remove it to start over."
            )
        return State(**parts, history=tuple(EpochMetrics(**metrics) for metrics in record["history"]))
