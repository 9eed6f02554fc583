"""The catalog of data sets that can be asked for by name: a TOML file, see `datasets.toml`."""

import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.compute.runner.manifest import FileEntry, files_sha256
from infra.errors import ArgumentError, SettingsError
from tasks.datasets.names import wrong_names
from tasks.programs.mnist.digits.dataset_files import (
    FILE_NAMES,
    IMAGE_SHAPE,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
)


@dataclass(frozen=True)
class DatasetDescription:
    """What the catalog says of a data set."""

    name: str
    mirrors: tuple[str, ...]
    """Folders that hold the files, in the order in which they are tried."""
    training_images: int
    """Images in the training files, the validation images among them; 0 where it is not IDX."""
    test_images: int
    validation_images: int | None
    """How many of the last training images validate; None: each run decides."""
    sample_of: str | None
    """The data set that this one is a small part of; its files are written here, never downloaded."""
    files: tuple[FileEntry, ...]
    is_idx: bool
    """True for the four gzipped IDX files of 28 x 28 images in ten classes, False for files of any kind."""

    @property
    def sha256(self) -> str:
        """The identity of the data set."""
        return files_sha256(self.files)

    def shape(self, file_name: str) -> tuple[int, ...]:
        """The shape of the array in a file."""
        return {
            TRAIN_IMAGES: (self.training_images, *IMAGE_SHAPE),
            TRAIN_LABELS: (self.training_images,),
            TEST_IMAGES: (self.test_images, *IMAGE_SHAPE),
            TEST_LABELS: (self.test_images,),
        }[file_name]


def read_catalog(path: Path) -> dict[str, DatasetDescription]:
    """Every data set in the catalog at `path`, by name; raises `SettingsError` naming what is wrong in it."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"The catalog {path} cannot be read: {error}") from error
    catalog = {}
    for name, table in tables.items():
        try:
            catalog[name] = _description(name, table)
        except _Wrong as error:
            raise SettingsError(
                f"The catalog {path} is wrong at [{name}]: {error}\n"
                "datasets.toml beside tasks/dataset_catalog.py shows the form."
            ) from None
    return catalog


def describe_dataset(name: str, catalog: Path) -> DatasetDescription:
    """What the catalog at the path `catalog` says of `name`; raises `ArgumentError` if it does not know it."""
    known = read_catalog(catalog)
    if name not in known:
        raise ArgumentError(f"There is no data set {name!r} in {catalog}.\nIt knows: {', '.join(known) or 'none'}.")
    return known[name]


def sample_of(name: str, catalog: Path) -> DatasetDescription | None:
    """The sample that can stand in for the data set `name`, if the catalog has one."""
    return next((other for other in read_catalog(catalog).values() if other.sample_of == name), None)


class _Wrong(Exception):
    pass


_IDX_OPTIONAL = {"format", "mirrors", "validation_images", "sample_of"}
_IDX_REQUIRED = {"training_images", "test_images", "files"}
_FORMATS = ("idx", "files")


def _description(name: str, table: Any) -> DatasetDescription:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise _Wrong("a name is lower-case letters, digits, '.', '_' and '-': it becomes a folder")
    if is_idx := _format(table) == "idx":
        table = _table(table, "the data set", _IDX_REQUIRED, _IDX_OPTIONAL)
        files = _table(table["files"], "files", set(FILE_NAMES))
    else:
        table = _table(table, "the data set", {"files"}, {"format", "mirrors"})
        files = table["files"]
        if not isinstance(files, dict) or not files:
            raise _Wrong(f"files is {files!r}, expected a table of names, each with its size and sha256")
        if wrong := wrong_names(sorted(files)):
            raise _Wrong("; ".join(wrong))
    sample = table.get("sample_of")
    if not isinstance(sample, str | None):
        raise _Wrong(f"sample_of is {sample!r}, expected the name of a data set")
    mirrors = table.get("mirrors", [])
    if not isinstance(mirrors, list) or not all(isinstance(mirror, str) and mirror for mirror in mirrors):
        raise _Wrong(f"mirrors is {mirrors!r}, expected a list of addresses")
    training_images = _count(table, "training_images") if is_idx else 0
    validation_images = _count(table, "validation_images") if "validation_images" in table else None
    if validation_images is not None and validation_images >= training_images:
        raise _Wrong(f"validation_images is {validation_images}, expected fewer than the {training_images} of training")
    names = FILE_NAMES if is_idx else sorted(files)
    return DatasetDescription(
        name=name,
        mirrors=tuple(mirrors),
        training_images=training_images,
        test_images=_count(table, "test_images") if is_idx else 0,
        validation_images=validation_images,
        sample_of=sample,
        files=tuple(_file_entry(file_name, files[file_name], smallest=int(is_idx)) for file_name in names),
        is_idx=is_idx,
    )


def _format(table: Any) -> str:
    """The format of a data set: as it says or, without a word, IDX if it counts images or has a file named as IDX."""
    if not isinstance(table, dict):
        return "idx"
    named = table.get("files")
    looks_idx = "training_images" in table or (isinstance(named, dict) and bool(set(named) & set(FILE_NAMES)))
    found = table.get("format", "idx" if looks_idx else "files")
    if found not in _FORMATS:
        raise _Wrong(f"format is {found!r}, expected {' or '.join(map(repr, _FORMATS))}")
    return str(found)


def _file_entry(name: str, table: Any, smallest: int) -> FileEntry:
    table = _table(table, name, {"size", "sha256"})
    if not isinstance(table["sha256"], str) or not re.fullmatch("[0-9a-f]{64}", table["sha256"]):
        raise _Wrong(f"the sha256 of {name} is {table['sha256']!r}, expected 64 digits of 0-9a-f")
    return FileEntry(name, _count(table, "size", smallest), table["sha256"])


def _table(value: Any, what: str, required: set[str], optional: Collection[str] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong(f"{what} is {value!r}, expected a table")
    if missing := sorted(required - set(value)):
        raise _Wrong(f"{what} lacks {', '.join(missing)}")
    if unknown := sorted(set(value) - required - set(optional)):
        raise _Wrong(f"{what} has {', '.join(unknown)}, which is unknown there")
    return value


def _count(table: dict[str, Any], key: str, smallest: int = 1) -> int:
    value = table[key]
    if type(value) is not int or value < smallest:
        raise _Wrong(f"{key} is {value!r}, expected a whole number from {smallest}")
    return value
