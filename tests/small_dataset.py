"""A small data set in MNIST's format that a network learns in seconds, and a catalog that names it."""

import gzip
from pathlib import Path

import numpy as np

from infra.compute.runner.manifest import FileEntry, file_entry
from tasks.dataset_catalog import DatasetDescription
from tasks.programs.mnist.digits.dataset_files import (
    FILE_NAMES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    write_idx,
)


def write_small_dataset(folder: Path, training_images: int = 600, test_images: int = 200, seed: int = 0) -> None:
    """Write the four files: each digit is a bright bar at a place of its own, in noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for images_name, labels_name, count in (
        (TRAIN_IMAGES, TRAIN_LABELS, training_images),
        (TEST_IMAGES, TEST_LABELS, test_images),
    ):
        labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 120, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row = 2 + 5 * (label % 5)
            column = 2 if label < 5 else 15
            image[row : row + 3, column : column + 10] = rng.integers(130, 256, (3, 10))
        write_idx(folder / images_name, images)
        write_idx(folder / labels_name, labels)


def entries(folder: Path) -> list[FileEntry]:
    """Name, size and digest of each of the four files."""
    return [file_entry(folder / name) for name in FILE_NAMES]


def describe(folder: Path) -> DatasetDescription:
    """The data set in `folder`, as a catalog that names no mirror says it."""
    training, test = (int.from_bytes(_header(folder / images)) for images in (TRAIN_IMAGES, TEST_IMAGES))
    return DatasetDescription("mnist", (), training, test, None, None, tuple(entries(folder)), is_idx=True)


def write_catalog(path: Path, folder: Path, name: str = "mnist", mirrors: tuple[str, ...] = ()) -> None:
    """Write a catalog that knows the data set in `folder` under `name`."""
    found = describe(folder)
    lines = [
        f"[{name}]",
        f"mirrors = {list(mirrors)}",
        f"training_images = {found.training_images}",
        f"test_images = {found.test_images}",
        f"[{name}.files]",
        *(f'"{entry.name}" = {{ size = {entry.size}, sha256 = "{entry.sha256}" }}' for entry in found.files),
    ]
    path.write_text("\n".join(lines) + "\n")


def _header(path: Path) -> bytes:
    with gzip.open(path) as file:
        return file.read(8)[4:]
