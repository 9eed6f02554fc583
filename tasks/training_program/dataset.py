"""The data set that the program trains on: read from its address, checked, and split."""

import io
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np

from .dataset_files import (
    FILE_NAMES,
    MANIFEST,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    BadDataset,
    FileEntry,
    bytes_entry,
    check_arrays,
    dataset_sha256,
    parse_manifest,
    read_idx,
)
from .errors import ProgramError, UsageError
from .retry import told_when_slow
from .storage import open_store


@dataclass(frozen=True)
class ImageDataset:
    """Images and labels, and the digests of the files that they were read from.

    Images are uint8 of shape (n, 28, 28), from 0 (background) to 255; labels are uint8 of shape (n,), from 0 to 9.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    sha256: str
    """Identity of the whole data set: the SHA-256 of its manifest."""
    test_set_sha256: str
    """The same over the two test files alone: accuracies are comparable where it is equal."""


def load_dataset(uri: str, validation_images: int, cache: Path | None = None) -> ImageDataset:
    """Read the four files under `uri` and hold out the last `validation_images` of the training set.

    `uri` is a folder or an fsspec address. Every byte is compared with the manifest there, if there is one.
    Files that the manifest names are kept in the folder `cache`, if that is given, and not fetched again.
    Raises `BadDataset` if a file is missing or is not what it must be, `UsageError` if nothing is left to train on.
    """
    arrays, entries = read_files(uri, cache)
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
        sha256=dataset_sha256(entries),
        test_set_sha256=test_set_sha256(entries),
    )


def test_set_sha256(entries: Iterable[FileEntry]) -> str:
    """The identity of the test set: as that of the data set, over its two test files alone."""
    return dataset_sha256(entry for entry in entries if entry.name in (TEST_IMAGES, TEST_LABELS))


def read_files(uri: str, cache: Path | None = None) -> tuple[dict[str, np.ndarray], list[FileEntry]]:
    """The arrays of the four files under `uri` by file name, and an entry for each file as it was read."""
    try:
        filesystem, folder = open_store(uri)
        with told_when_slow(f"read {MANIFEST} of {uri}"):
            announced = _manifest(filesystem, folder)
        arrays, entries = {}, []
        for name in FILE_NAMES:
            kept = cache and announced and name in announced and cache.expanduser() / announced[name].sha256
            content = _kept(kept, announced[name]) if kept and announced else None
            fetched = content is None
            if content is None:
                try:
                    with told_when_slow(f"read {name} of {uri}"):
                        content = filesystem.cat_file(f"{folder}/{name}")
                except FileNotFoundError as error:
                    raise BadDataset(f"there is no {name} under {uri}") from error
            entry = bytes_entry(name, content)
            if announced is not None and announced.get(name) != entry:
                raise BadDataset(_difference(announced.get(name), entry))
            if kept and fetched:
                _keep(kept, content)
            arrays[name] = read_idx(io.BytesIO(content), name)
            entries.append(entry)
    except (OSError, ImportError, ValueError) as error:
        raise ProgramError(f"Cannot read the data set at {uri}:\n{type(error).__name__}: {error}") from error
    check_arrays(arrays[TRAIN_IMAGES], arrays[TRAIN_LABELS], arrays[TEST_IMAGES], arrays[TEST_LABELS])
    return arrays, entries


def _kept(path: Path, expected: FileEntry) -> bytes | None:
    """The bytes of a file that an earlier job kept; None unless they are what they must be."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return content if bytes_entry(expected.name, content) == expected else None


def _keep(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def _manifest(filesystem: fsspec.AbstractFileSystem, folder: str) -> dict[str, FileEntry] | None:
    try:
        content = filesystem.cat_file(f"{folder}/{MANIFEST}")
    except FileNotFoundError:
        return None
    return {entry.name: entry for entry in parse_manifest(content)}


def _difference(announced: FileEntry | None, found: FileEntry) -> str:
    if announced is None:
        return f"{found.name} is not in {MANIFEST}"
    return (
        f"{found.name} is not what {MANIFEST} says:\n"
        f"expected {announced.size:,} bytes, SHA-256 {announced.sha256}\n"
        f"   found {found.size:,} bytes, SHA-256 {found.sha256}"
    )
