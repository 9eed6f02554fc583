"""What the program accepts as a data set; no TensorFlow is needed for that."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from infra.compute.runner.manifest import MANIFEST, files_sha256, manifest_bytes
from tasks.training_program.dataset import load_dataset
from tasks.training_program.dataset_files import TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, BadDataset, write_idx
from tasks.training_program.errors import ProgramError, UsageError
from tests.small_dataset import entries, write_small_dataset


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_small_dataset(tmp_path, training_images=30, test_images=10)
    (tmp_path / MANIFEST).write_bytes(manifest_bytes(entries(tmp_path)))
    return tmp_path


def test_the_last_images_are_held_out(data: Path) -> None:
    dataset = load_dataset(str(data), 10)
    assert (len(dataset.train_images), len(dataset.validation_images), len(dataset.test_images)) == (20, 10, 10)
    everything = load_dataset(str(data), 1)
    assert np.array_equal(everything.train_images[20:], dataset.validation_images[:-1])
    assert np.array_equal(everything.train_labels[20:], dataset.validation_labels[:-1])


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_it_is_known_by_what_was_read_with_or_without_a_manifest(data: Path, prefix: str) -> None:
    expected = files_sha256(entries(data))
    assert load_dataset(f"{prefix}{data}", 10).sha256 == expected
    (data / MANIFEST).unlink()
    assert load_dataset(f"{prefix}{data}/", 10).sha256 == expected


def test_as_many_validation_images_as_there_are_leave_nothing_to_train_on(data: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot hold out 30 .* has 30"):
        load_dataset(str(data), 30)


def test_a_file_with_another_digest_than_the_manifest_says_is_refused(data: Path) -> None:
    labels = np.zeros(30, np.uint8)
    write_idx(data / TRAIN_LABELS, labels)
    with pytest.raises(BadDataset, match=rf"{TRAIN_LABELS} is not what manifest.json says"):
        load_dataset(str(data), 10)


def test_a_header_that_lies_is_refused(data: Path) -> None:
    (data / MANIFEST).unlink()
    content = gzip.decompress((data / TRAIN_IMAGES).read_bytes())
    (data / TRAIN_IMAGES).write_bytes(gzip.compress(content[:4] + (31).to_bytes(4) + content[8:]))
    with pytest.raises(BadDataset, match=f"{TRAIN_IMAGES}: ends after"):
        load_dataset(str(data), 10)


def test_labels_that_do_not_fit_the_images_are_refused(data: Path) -> None:
    (data / MANIFEST).unlink()
    write_idx(data / TEST_LABELS, np.zeros(9, np.uint8))
    with pytest.raises(BadDataset, match="10 test images have"):
        load_dataset(str(data), 10)


def test_a_missing_file_is_named(data: Path) -> None:
    (data / TEST_LABELS).unlink()
    with pytest.raises(BadDataset, match=f"there is no {TEST_LABELS} under {data}"):
        load_dataset(str(data), 10)


def test_an_address_that_nothing_understands_is_refused() -> None:
    with pytest.raises(ProgramError, match="Cannot read the data set at gopher://x"):
        load_dataset("gopher://x", 10)
