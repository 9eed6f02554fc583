"""What is predicted in bulk: rows of files and images of folders, a block at a time, each with its item."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.errors import ArgumentError
from infra.service.contract import Tensor
from tasks.prediction_rows import BLOCK_ROWS, blocks

IMAGE = Tensor("image", "uint8", (2, 3))
ROW = Tensor("row", "float32", (3,))
MANY = np.arange((2 * BLOCK_ROWS + 1) * 6).reshape(-1, 2, 3) % 251


def read(path: Path, tensor: Tensor) -> tuple[list[str], np.ndarray]:
    names, parts = zip(*blocks(path, tensor), strict=True)
    assert max(map(len, parts)) <= BLOCK_ROWS
    return [name for block in names for name in block], np.concatenate(parts)


def test_arrays_come_in_blocks_with_their_numbers(tmp_path: Path) -> None:
    images = MANY.astype(np.uint8)
    np.save(tmp_path / "a.npy", images)
    np.savez_compressed(tmp_path / "b.npz", labels=np.arange(3), images=images)
    head = b"\0\0\x08\x03" + struct.pack(">3I", *images.shape)
    (tmp_path / "c-ubyte").write_bytes(head + images.tobytes())
    with gzip.open(tmp_path / "d-ubyte.gz", "wb") as file:
        file.write(head + images.tobytes())
    for name in ("a.npy", "b.npz", "c-ubyte", "d-ubyte.gz"):
        items, found = read(tmp_path / name, IMAGE)
        assert items == [str(number) for number in range(len(images))], name
        assert (found == images).all()


def test_a_table_may_have_names_and_each_row_its_line(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    for head in ("", "a,b,c\n"):
        file.write_text(f"{head}1,2,3\n4.5,-6,7e2\n")
        items, found = read(file, ROW)
        first = 2 if head else 1
        assert items == [f"line {first}", f"line {first + 1}"]
        assert found.tolist() == [[1, 2, 3], [4.5, -6, 700]]


@pytest.mark.parametrize(("shape", "mode"), [((2, 3), "L"), ((2, 3, 1), "L"), ((2, 3, 3), "RGB")])
def test_a_folder_s_images_come_as_the_model_takes_them(tmp_path: Path, shape: tuple[int, ...], mode: str) -> None:
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "sub/a.PNG"):
        Image.fromarray(pixels.squeeze(), mode).save(tmp_path / name, "png")
    (tmp_path / "notes.txt").write_text("no image")
    items, found = read(tmp_path, Tensor("image", "uint8", shape))
    assert items == ["b.png", "sub/a.PNG"]
    assert (found == pixels).all()


def test_what_is_no_data_is_refused_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "cut.npy", MANY)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    np.savez(tmp_path / "two.npz", a=MANY, b=MANY)
    (tmp_path / "no.csv").write_text("1,2,3\n4,five,6\n")
    (tmp_path / "no.bin").write_bytes(b"nothing of the kind")
    (tmp_path / "no.gz").write_bytes(b"nothing of the kind")
    (tmp_path / "no.npz").write_bytes(b"nothing of the kind")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "other" / "large.png")
    for name, words in {
        "objects.npy": "expected numbers",
        "cut.npy": "ends after",
        "two.npz": "has 2 arrays",
        "no.csv": "line 2",
        "no.bin": "no IDX file",
        "no.gz": "cannot be read",
        "no.npz": "cannot be read",
        "empty": "no images",
        "other": "has 9 x 9 pixels",
    }.items():
        with pytest.raises(ArgumentError, match=words) as refused:
            list(blocks(tmp_path / name, IMAGE))
        assert name in str(refused.value)
