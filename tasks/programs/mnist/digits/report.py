"""What a person looks at after a training: plots and tables in the outputs folder.

    samples.png  learning_curves.png  confusion_matrix.png  mistakes.png  epochs.csv  test.json

Drawn on matplotlib's figures directly, a whole sheet of digits as one image: all four take 1 s on two cores,
where an axes for each digit takes 1.5 s a sheet.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .checkpoint import EpochMetrics
from .dataset import ImageDataset
from .dataset_files import CLASSES
from .model import Evaluation
from .training import TrainedModel

COLUMNS = 10
SHOWN = 30

INK = "#222222"
MUTED = "#8a8f98"
ACCENT = "#1f5fae"
WRONG = "#c8201c"


def write_report(folder: Path, dataset: ImageDataset, trained: TrainedModel, test: Evaluation) -> None:
    """Write all plots and tables into `folder`, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = {
        "samples.png": plot_samples(dataset.train_images, dataset.train_labels),
        "learning_curves.png": plot_learning_curves(trained.history, trained.best_epoch),
        "confusion_matrix.png": plot_confusion(confusion_matrix(test, dataset.test_labels), test.accuracy),
        "mistakes.png": plot_mistakes(dataset.test_images, dataset.test_labels, test),
    }
    for name, figure in plots.items():
        figure.savefig(folder / name)
    with (folder / "epochs.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(EpochMetrics)])
        table.writeheader()
        table.writerows(asdict(metrics) for metrics in trained.history)
    facts = {
        "best_epoch": trained.best_epoch,
        **test_metrics(test, dataset.test_labels),
        # Row: the digit that it is; column: the digit that was predicted.
        "confusion_matrix": confusion_matrix(test, dataset.test_labels).tolist(),
    }
    (folder / "test.json").write_text(json.dumps(facts, indent=1) + "\n")


def test_metrics(test: Evaluation, labels: np.ndarray) -> dict[str, float]:
    """Loss and accuracy on the test set, and each digit's recall: the share of its images that were recognised."""
    metrics = {"test_loss": test.loss, "test_accuracy": test.accuracy}
    for digit in range(CLASSES):
        # A small test set may lack a digit, whose recall is then undefined.
        if (is_digit := labels == digit).any():
            metrics[f"recall_digit_{digit}"] = float((test.predictions[is_digit] == digit).mean())
    return metrics


def confusion_matrix(test: Evaluation, labels: np.ndarray) -> np.ndarray:
    """Number of images by label (row) and prediction (column), int64, shape (10, 10)."""
    return np.bincount(CLASSES * labels.astype(np.int64) + test.predictions, minlength=CLASSES**2).reshape(CLASSES, -1)


def plot_samples(images: np.ndarray, labels: np.ndarray) -> Figure:
    """The first 30 of uint8 `images` (n, 28, 28), each with its label."""
    captions = [(str(label), INK) for label in labels[:SHOWN]]
    return _sheet(images[:SHOWN], captions, f"The first {len(captions)} training images and their labels")


def plot_mistakes(images: np.ndarray, labels: np.ndarray, test: Evaluation) -> Figure:
    """The 30 test images whose digit was wrong with the highest probability, the most certain one first."""
    certainty = test.probabilities.max(axis=1)
    wrong = np.flatnonzero(test.predictions != labels)
    shown = wrong[np.argsort(-certainty[wrong], kind="stable")][:SHOWN]
    captions = [(f"{test.predictions[i]} ({_percent(certainty[i])})\nis {labels[i]}", WRONG) for i in shown]
    title = f"{len(wrong):,} of {len(labels):,} test images are wrong"
    if len(wrong) > len(shown):
        title += f"; these {len(shown)} with the highest probability"
    return _sheet(images[shown], captions, title)


def plot_learning_curves(history: Sequence[EpochMetrics], best_epoch: int) -> Figure:
    """Accuracy and loss over the epochs, on the training and on the validation images."""
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    epochs = [metrics.epoch for metrics in history]
    for axes, name in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        training = [getattr(metrics, name) for metrics in history]
        validation = [getattr(metrics, f"val_{name}") for metrics in history]
        style = {"linewidth": 1.8, "marker": "o", "markersize": 3.5}
        axes.plot(epochs, training, color=MUTED, label="training", **style)
        axes.plot(epochs, validation, color=ACCENT, label="validation", **style)
        at_best = validation[best_epoch - 1]
        axes.axvline(best_epoch, color=ACCENT, linewidth=1, linestyle=":", zorder=0)
        axes.plot(
            best_epoch,
            at_best,
            "o",
            color=ACCENT,
            markersize=9,
            markerfacecolor="white",
            markeredgewidth=2,
            label=f"kept: epoch {best_epoch}, {at_best:.4f}",
        )
        axes.set_title(name.capitalize(), color=INK, loc="left")
        axes.set_xlabel("epoch", color=INK)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", color="#e6e8eb")
        axes.legend(frameon=False)
        _unframe(axes)
    return figure


def plot_confusion(counts: np.ndarray, accuracy: float) -> Figure:
    """The confusion matrix; colour shows the mistakes only, or the 98 % on the diagonal would hide them."""
    figure = Figure(figsize=(7, 6.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    mistakes = np.where(np.eye(CLASSES, dtype=bool), 0, counts)
    axes.imshow(mistakes, cmap="Reds", vmin=0, vmax=max(1.6 * mistakes.max(), 1))
    for label, row in enumerate(counts):
        for prediction, count in enumerate(row):
            right = label == prediction
            if count:
                axes.text(prediction, label, f"{count}", ha="center", va="center", color=MUTED if right else INK)
        recall = f"{row[label] / row.sum():.1%}" if row.sum() else "none"
        axes.text(CLASSES - 0.3, label, recall, va="center", color=INK)
    axes.text(CLASSES - 0.3, -0.8, "recall", color=INK)
    axes.set_title(f"Test set, accuracy {accuracy:.2%}", color=INK, loc="left", pad=26)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("label", color=INK)
    axes.set_xticks(range(CLASSES))
    axes.set_yticks(range(CLASSES))
    axes.set_xticks(np.arange(0.5, CLASSES - 1), minor=True)
    axes.set_yticks(np.arange(0.5, CLASSES - 1), minor=True)
    axes.grid(which="minor", color="#e6e8eb")
    axes.tick_params(which="both", length=0)
    _unframe(axes)
    return figure


def _sheet(images: np.ndarray, captions: Sequence[tuple[str, str]], title: str) -> Figure:
    """Digits in rows of ten, each with a caption (text and colour) below."""
    lines = max((text.count("\n") + 1 for text, _ in captions), default=1)
    width, height = 28 + 6, 28 + 4 + 8 * lines
    rows = max(1, -(-len(images) // COLUMNS))
    paper = np.full((rows * height, COLUMNS * width), 255, np.uint8)
    figure = Figure(figsize=(10, 10 * rows * height / (COLUMNS * width) + 0.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    for index, (image, (text, colour)) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, COLUMNS)
        top, left = row * height, column * width + 3
        paper[top : top + 28, left : left + 28] = 255 - image
        first, _, rest = text.partition("\n")
        middle = left + 14
        axes.text(middle, top + 34, first, ha="center", va="center", color=colour, fontsize=11)
        axes.text(middle, top + 42, rest, ha="center", va="center", color=INK, fontsize=11)
    axes.imshow(paper, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title, color=INK, loc="left")
    axes.set_axis_off()
    return figure


def _percent(share: float) -> str:
    # Rounded down, and never 100 %: float32 takes 99.999997 % for that.
    return f"{min(np.floor(1000 * float(share)) / 10, 99.9):.1f}%"


def _unframe(axes: Axes) -> None:
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(colors=INK)
