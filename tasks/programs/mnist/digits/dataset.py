"""The data set that the program trains on: read from its folder, checked, and split."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .dataset_files import (
    FILE_NAMES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    check_arrays,
    read_idx,
)
from .errors import BadDataset, UsageError


@dataclass(frozen=True)
class ImageDataset:
    """Images and labels.

    Images are uint8 of shape (n, 28, 28), from 0 (background) to 255; labels are uint8 of shape (n,), from 0 to 9.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    test_set_sha256: str
    """Identity of the two test files: accuracies are comparable where it is equal."""


def load_dataset(folder: Path, validation_images: int) -> ImageDataset:
    """Read the four files in `folder` and hold out the last `validation_images` of the training set.

    Raises `BadDataset` if a file is missing or is not what it must be, `UsageError` if nothing is left to train on.
    """
    arrays = {name: _read(folder, name) for name in FILE_NAMES}
    check_arrays(*arrays.values())
    images, labels = arrays[TRAIN_IMAGES], arrays[TRAIN_LABELS]
    split = len(images) - validation_images
    if split <= 0:
        raise UsageError(
            f"Cannot hold out {validation_images:,} validation images: the training set has {len(images):,}.\n"
            "Lower --validation-images."
        )
    return ImageDataset(
        train_images=images[:split],
        train_labels=labels[:split],
        validation_images=images[split:],
        validation_labels=labels[split:],
        test_images=arrays[TEST_IMAGES],
        test_labels=arrays[TEST_LABELS],
        test_set_sha256=_sha256(folder, (TEST_IMAGES, TEST_LABELS)),
    )


def load_test_set(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The test images and their labels; raises `BadDataset` as `load_dataset` does."""
    return _read(folder, TEST_IMAGES), _read(folder, TEST_LABELS)


def _read(folder: Path, name: str) -> np.ndarray:
    try:
        with (folder / name).open("rb") as file:
            return read_idx(file, name)
    except FileNotFoundError as error:
        raise BadDataset(f"there is no {name} in {folder}") from error


def _sha256(folder: Path, names: tuple[str, ...]) -> str:
    """As a data set of these files is known: SHA-256 of the list of their names, sizes and digests."""
    files = [
        {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name in sorted(names)
        for content in [(folder / name).read_bytes()]
    ]
    return hashlib.sha256(json.dumps({"files": files}, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
