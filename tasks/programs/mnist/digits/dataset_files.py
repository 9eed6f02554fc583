"""The files of a data set: how they are named, read and written.

Light enough to be imported by who downloads them (no Keras, no TensorFlow): what is downloaded is then checked by the
same lines that later read the data.

The format is IDX (http://yann.lecun.com/exdb/mnist/, "THE IDX FILE FORMAT"), big-endian:
two zero bytes, a type byte (0x08: unsigned byte), the number of dimensions, each dimension as uint32,
then the values, the last dimension running fastest.
"""

import gzip
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import BadDataset

TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
TRAIN_LABELS = "train-labels-idx1-ubyte.gz"
TEST_IMAGES = "t10k-images-idx3-ubyte.gz"
TEST_LABELS = "t10k-labels-idx1-ubyte.gz"
FILE_NAMES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

IMAGE_SHAPE = (28, 28)
CLASSES = 10


def read_idx(compressed: BinaryIO, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """The array in a gzipped IDX file of unsigned bytes, as uint8.

    `shape` is what the header must say, where it is known. Never more is decompressed than the header
    announces, nor more than `shape` allows. Raises `BadDataset` on a header that lies, on bytes that
    are missing or left over, and on anything that is not gzip.
    """
    try:
        with gzip.GzipFile(fileobj=compressed) as stream:
            zeros, kind, dimensions = struct.unpack(">HBB", _exactly(stream, 4, name))
            if zeros != 0 or kind != 0x08 or not 1 <= dimensions <= 3:
                magic = (zeros << 16) | (kind << 8) | dimensions
                raise BadDataset(f"{name}: the magic number is 0x{magic:08x}, not one of unsigned bytes (0x000008nn)")
            found = struct.unpack(f">{dimensions}I", _exactly(stream, 4 * dimensions, name))
            if shape is not None and found != shape:
                raise BadDataset(f"{name}: the header says shape {found}, expected {shape}")
            if shape is None and int(np.prod(found, dtype=object)) > 2**31:
                raise BadDataset(f"{name}: the header says shape {found}, which is beyond any data set of this kind")
            data = _exactly(stream, int(np.prod(found, dtype=np.int64)), name)
            if stream.read(1):
                raise BadDataset(f"{name}: bytes follow after the {len(data):,} values that the header announces")
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BadDataset(f"{name}: is not a gzip file ({error})") from error
    except EOFError as error:
        raise BadDataset(f"{name}: is truncated ({error})") from error
    return np.frombuffer(data, np.uint8).reshape(found)


def _exactly(stream: gzip.GzipFile, size: int, name: str) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise BadDataset(f"{name}: ends after {len(data):,} of {size:,} bytes that its header announces")
    return data


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write a uint8 `array` as a gzipped IDX file whose bytes depend on nothing but the array.

    The deflate blocks are "stored" (RFC 1951, 3.2.4) and the header has no time (RFC 1952, 2.3):
    compressed bytes differ between builds of zlib, and with them the data set's digest would.
    """
    data = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
    data += np.ascontiguousarray(array, np.uint8).tobytes()
    with path.open("wb") as file:
        file.write(b"\x1f\x8b\x08\x00" + bytes(5) + b"\xff")
        for start in range(0, len(data), 65_535):
            block = data[start : start + 65_535]
            last = start + 65_535 >= len(data)
            file.write(struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF) + block)
        file.write(struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF))


def check_arrays(
    train_images: np.ndarray, train_labels: np.ndarray, test_images: np.ndarray, test_labels: np.ndarray
) -> None:
    """Raise `BadDataset` unless the four arrays fit together: images of 28 x 28, a label 0 to 9 each."""
    for name, images, labels in (
        ("training", train_images, train_labels),
        ("test", test_images, test_labels),
    ):
        if images.ndim != 3 or images.shape[1:] != IMAGE_SHAPE:
            raise BadDataset(f"the {name} images have shape {images.shape}, expected (n, 28, 28)")
        if labels.shape != images.shape[:1]:
            raise BadDataset(f"{len(images):,} {name} images have {labels.shape} labels")
        if not len(labels):
            raise BadDataset(f"there are no {name} images")
        if labels.max() >= CLASSES:
            raise BadDataset(f"a {name} label is {labels.max()}, beyond 0 to {CLASSES - 1}")
