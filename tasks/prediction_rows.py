"""The rows of a file or folder that is to be predicted, a block at a time: memory does not grow with their number."""

import csv
import gzip
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from infra.errors import ArgumentError
from infra.service.contract import Tensor

BLOCK_ROWS = 500

Block = tuple[list[str], np.ndarray]
"""Names of the items, and their rows."""

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def blocks(path: Path, tensor: Tensor) -> Iterator[Block]:
    """Blocks of at most `BLOCK_ROWS` rows of a .npy, .npz, .csv or IDX file, or of the images in a folder.

    `tensor` is the input that they are for. Raises `ArgumentError` for what is none of these, or does not fit.
    """
    try:
        if path.is_dir():
            yield from _images(path, tensor)
        elif path.suffix == ".csv":
            yield from _table(path)
        elif path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                fitting = {name: _npy(archive.open(name)) for name in archive.namelist() if name.endswith(".npy")}
                shapes = {name: shape[1:] for name, (_, _, shape) in fitting.items()}
                found = [name for name, one in shapes.items() if tensor.fits(one) or tensor.fits_flat(one)]
                if len(found) != 1:
                    names = ", ".join(f"{name[:-4]} {shape}" for name, (_, _, shape) in fitting.items())
                    raise ArgumentError(f"{path} has {len(found)} arrays of {tensor}, expected one.\nIt has: {names}.")
                yield from _rows(*fitting[found[0]])
        else:
            with path.open("rb") as raw:
                stream: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
                yield from _rows(*(_npy(stream) if path.suffix == ".npy" else _idx(stream)))
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ArgumentError(
            f"{path} cannot be read: {error}\nExpected a .npy, .npz, .csv or IDX file, or a folder of images."
        ) from error


def _npy(stream: IO[bytes]) -> tuple[IO[bytes], np.dtype, tuple[int, ...]]:
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = reader(stream)
    if dtype.hasobject or (by_columns and len(shape) > 1) or not shape:
        raise ValueError(f"its array is of {dtype} with shape {shape}; expected numbers, row after row")
    return stream, dtype, shape


def _idx(stream: IO[bytes]) -> tuple[IO[bytes], np.dtype, tuple[int, ...]]:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES or not head[3]:
        raise ValueError("it is no IDX file")
    return stream, np.dtype(_IDX_TYPES[head[2]]), struct.unpack(f">{head[3]}I", stream.read(4 * head[3]))


def _rows(stream: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]) -> Iterator[Block]:
    size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    for first in range(0, shape[0], BLOCK_ROWS):
        count = min(BLOCK_ROWS, shape[0] - first)
        data = stream.read(count * size)
        if len(data) < count * size:
            raise EOFError(f"it ends after {first + len(data) // size:,} of {shape[0]:,} rows")
        yield [str(first + number) for number in range(count)], np.frombuffer(data, dtype).reshape(count, *shape[1:])


def _table(path: Path) -> Iterator[Block]:
    names: list[str] = []
    rows: list[list[float]] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        for words in lines:
            try:
                rows.append([float(word) for word in words])
            except ValueError:
                if lines.line_num > 1:
                    raise ValueError(f"line {lines.line_num} has something else than numbers") from None
                continue  # The names of the columns.
            names.append(f"line {lines.line_num}")
            if len(rows) == BLOCK_ROWS:
                yield names, np.array(rows)
                names, rows = [], []
    if rows:
        yield names, np.array(rows)


def _images(folder: Path, tensor: Tensor) -> Iterator[Block]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
    if not paths or not 2 <= len(tensor.shape) <= 3:
        found = "no images" if not paths else f"images, and the model takes {tensor}"
        raise ArgumentError(f"{folder} has {found}.\nExpected a folder of images, for a model that takes one.")
    for first in range(0, len(paths), BLOCK_ROWS):
        part = paths[first : first + BLOCK_ROWS]
        yield (
            [path.relative_to(folder).as_posix() for path in part],
            np.stack([_image(path, tensor) for path in part]),
        )


def _image(path: Path, tensor: Tensor) -> np.ndarray:
    from PIL import Image

    channels: Any = tensor.shape[2] if len(tensor.shape) == 3 else None
    mode = {None: "L", 1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert(mode))
    pixels = pixels[..., np.newaxis] if channels == 1 else pixels
    if not tensor.fits(pixels.shape):
        raise ArgumentError(f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels; the model takes {tensor}.")
    return pixels
