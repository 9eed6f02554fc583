"""A training without Keras, for tests of everything around it: small, quick to start, the same to the bit each time.

Logistic regression on points of a plane, by gradient descent with NumPy. The state of an epoch follows from the state
before it, the seed and the epoch's number alone, so that it continues from a checkpoint as if it had never ended.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from points import read_points
from tracking import find_run


def train(data: Path | None, epochs: int, steps: int, seed: int, seconds: float) -> None:
    """Go on from the last checkpoint, if there is one, to the last epoch; write `outputs/model/weights.npz`.

    With TRIAL in the environment it ends before it writes them, as a program does before its test.
    """
    points, labels = read_points(data, "train")
    val_points, val_labels = read_points(data, "test")
    folder = os.environ.get("CHECKPOINT_FOLDER")
    checkpoint = Path(folder) / "state.npz" if folder else None
    weights, history = read_state(checkpoint)
    run = find_run()
    # Stopped between a checkpoint and its metrics, or before its checkpoint was safe, it has either to make up for.
    logged = run.last_step("val_accuracy")
    for epoch in range(1, epochs + 1):
        if epoch > len(history):
            draw = np.random.default_rng([seed, epoch])
            for _ in range(steps):
                batch = draw.integers(len(points), size=16)
                errors = probability(weights, points[batch]) - labels[batch]
                weights = weights - 0.1 * with_one(points[batch]).T @ errors / len(batch)
            p = np.clip(probability(weights, points), 1e-12, 1 - 1e-12)
            loss = -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))
            accuracy = np.mean((probability(weights, val_points) > 0.5) == val_labels)
            time.sleep(seconds)
            history = [*history, (float(loss), float(accuracy))]
            write_state(checkpoint, weights, history)
            print(f"epoch {epoch} of {epochs}: loss {loss:.4f}, val_accuracy {accuracy:.4f}", flush=True)
        if epoch > logged:
            run.log(dict(zip(("loss", "val_accuracy"), history[epoch - 1], strict=True)), epoch)
    if "TRIAL" in os.environ:
        return
    model = Path(os.environ.get("OUTPUTS_FOLDER", "outputs")) / "model"
    model.mkdir(parents=True, exist_ok=True)
    np.savez(model / "weights.npz", weights=weights)


def probability(weights: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Of the second class, for each of the points, of shape (n, 2)."""
    return np.asarray(1 / (1 + np.exp(-with_one(points) @ weights)))


def with_one(points: np.ndarray) -> np.ndarray:
    """The points with a third coordinate, which is 1: the weights' third number is the bias."""
    return np.column_stack([points, np.ones(len(points))])


def read_state(path: Path | None) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """The weights, and the metrics of each epoch so far; zeros and none where there is no checkpoint."""
    if path is None or not path.exists():
        return np.zeros(3), []
    with np.load(path) as state:
        return state["weights"], [(loss, accuracy) for loss, accuracy in state["history"].tolist()]


def write_state(path: Path | None, weights: np.ndarray, history: Sequence[tuple[float, float]]) -> None:
    """Put a checkpoint in place of the one before, at once; nowhere where there is no folder for it."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name("new.npz")
    np.savez(new, weights=weights, history=np.array(history))
    new.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data-folder", type=Path, help="folder with train.csv and test.csv; by default points are drawn"
    )
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of gradient descent, in each epoch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0, help="that each epoch takes longer than it must")
    args = parser.parse_args()
    train(args.data_folder, args.epochs, args.steps, args.seed, args.seconds)
