"""The files of a data set: written alike everywhere, and read only if they are what they say."""

import gzip
import io
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from infra.compute.runner.manifest import FileEntry, file_entry
from tasks.programs.mnist.digits.dataset_files import check_arrays, read_idx, write_idx
from tasks.programs.mnist.digits.errors import BadDataset


def idx(*shape: int, values: bytes | None = None, zeros: int = 0, kind: int = 8) -> bytes:
    """An IDX file, not compressed."""
    header = struct.pack(f">HBB{len(shape)}I", zeros, kind, len(shape), *shape)
    return header + (bytes(int(np.prod(shape))) if values is None else values)


def read(data: bytes, shape: tuple[int, ...] | None = None) -> np.ndarray:
    return read_idx(io.BytesIO(data), "name.gz", shape)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (100, 28, 28)])
def test_what_is_written_is_read_again_and_any_gzip_opens_it(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = tmp_path / "x.gz"
    write_idx(path, array)
    assert gzip.decompress(path.read_bytes()) == idx(*shape, values=array.tobytes())
    with path.open("rb") as file:
        found = read_idx(file, path.name, shape)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, array)


def test_the_bytes_written_depend_on_the_array_alone(tmp_path: Path) -> None:
    write_idx(tmp_path / "x.gz", np.arange(200_000).reshape(50, 40, 100).astype(np.uint8))
    assert file_entry(tmp_path / "x.gz") == FileEntry(
        "x.gz", 200_054, "142c504e2bb6e8fb521bc0e4ee5717fda2c26fec43fa0fb5fb14d7cede652eb1"
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<html>Sign in</html>", "is not a gzip file"),
        (gzip.compress(idx(10, 28, 28))[:-9], "is truncated"),
        (gzip.compress(idx(10, 28, 28))[:-1] + b"\x01", "CRC|Incorrect length"),
        (gzip.compress(idx(10, 28, 28)) + b"more", "is not a gzip file"),
        (gzip.compress(idx(10, 28, 28, zeros=1)), "magic number is 0x00010803"),
        (gzip.compress(idx(10, 28, 28, kind=0x0D)), "magic number is 0x00000d03"),
        (gzip.compress(idx(10, 1, 28, 28)), "magic number is 0x00000804"),
        (gzip.compress(idx(9, 28, 28)), r"shape \(9, 28, 28\), expected \(10, 28, 28\)"),
        (gzip.compress(idx(10, 27, 28)), r"shape \(10, 27, 28\), expected"),
        (gzip.compress(idx(7840)), r"shape \(7840,\), expected"),
        (gzip.compress(idx(10, 28, 28, values=bytes(7839))), "ends after 7,839 of 7,840 bytes"),
        (gzip.compress(idx(10, 28, 28, values=bytes(7841))), "bytes follow after the 7,840 values"),
        (gzip.compress(b"\0\0\x08"), "ends after 3 of 4 bytes"),
        (b"", "ends after 0 of 4 bytes"),
    ],
    # By its reason: the bytes have the time in them, and processes that share the tests must agree on names.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_not_what_it_should_be_is_refused_by_name(data: bytes, reason: str) -> None:
    with pytest.raises(BadDataset, match=f"name.gz: .*({reason})"):
        read(data, (10, 28, 28))


def test_a_header_that_announces_too_much_is_refused_where_the_shape_is_unknown() -> None:
    with pytest.raises(BadDataset, match="beyond any data set"):
        read(gzip.compress(idx(2**31 - 1, 28, 28, values=b"")))


def test_no_more_is_decompressed_than_the_header_announces() -> None:
    bomb = gzip.compress(idx(10, 28, 28) + bytes(100_000_000), compresslevel=1)
    tracemalloc.start()
    try:
        with pytest.raises(BadDataset, match="bytes follow"):
            read(bomb, (10, 28, 28))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (np.zeros((3, 28, 27)), np.zeros(3), r"have shape \(3, 28, 27\)"),
        (np.zeros((3, 28, 28)), np.zeros(4), "3 test images have"),
        (np.zeros((0, 28, 28)), np.zeros(0), "no test images"),
        (np.zeros((3, 28, 28)), np.array([0, 10, 1]), "a test label is 10"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(images: np.ndarray, labels: np.ndarray, reason: str) -> None:
    good = np.zeros((2, 28, 28)), np.array([0, 9])
    check_arrays(*good, *good)
    with pytest.raises(BadDataset, match=reason):
        check_arrays(*good, images, labels)
    with pytest.raises(BadDataset, match=reason.replace("test", "training")):
        check_arrays(images, labels, *good)
