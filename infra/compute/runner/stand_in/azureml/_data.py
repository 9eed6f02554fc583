"""Data sets: the folders that were given with `--data`, by name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import link

_READERS = {".csv": "read_csv", ".tsv": "read_table", ".parquet": "read_parquet", ".jsonl": "read_json"}


def given(name: str) -> DataFolder:
    """The data set of this name, or in this folder; raises KeyError."""
    for known, folder in link.folders.items():
        if str(name) in (known, folder):
            return DataFolder(folder, known)
    known = ", ".join(link.folders) or "none"
    raise KeyError(f"no data set {name!r} was given; there is {known}. Give it: --data {name}=FOLDER_OR_NAME")


class DataFolder(str):
    """A data set; as a text it is its folder, which is what scripts take a mounted one for."""

    name: str

    def __new__(cls, folder: str, name: str) -> DataFolder:
        made = super().__new__(cls, folder)
        made.name = name
        return made

    @property
    def id(self) -> str:
        return self.name

    @property
    def mount_point(self) -> str:
        return str(self)

    def _files(self) -> list[Path]:
        return sorted(path for path in Path(self).rglob("*") if path.is_file())

    def to_path(self) -> list[str]:
        return [f"/{path.relative_to(self).as_posix()}" for path in self._files()]

    def to_pandas_dataframe(self, *_: Any, **__: Any) -> Any:
        """The rows of all its tables (.csv, .tsv, .parquet, .jsonl), in the order of their names."""
        import pandas

        frames = []
        for path in self._files():
            if reader := _READERS.get(path.suffix.lower()):
                more = {"lines": True} if reader == "read_json" else {}
                frames.append(getattr(pandas, reader)(path, **more))
        if not frames:
            raise ValueError(f"data set {self.name} has no table: no file that ends in {', '.join(_READERS)}")
        return pandas.concat(frames, ignore_index=True)

    def download(self, target_path: Any = None, overwrite: bool = False, **_: Any) -> list[str]:
        """Copy its files; without a target they are where they are."""
        if target_path is None:
            return [str(path) for path in self._files()]
        return [_copy(path, Path(target_path) / path.relative_to(self), overwrite) for path in self._files()]

    def mount(self, mount_point: Any = None, **_: Any) -> DataFolder:
        """To be entered or started; it is in a folder already."""
        return self

    def as_named_input(self, name: str) -> DataFolder:
        return self

    as_mount = as_download = as_hdfs = mount

    def start(self) -> None:
        """It is there already."""

    stop = start

    def __enter__(self) -> DataFolder:
        return self

    def __exit__(self, *_: object) -> None:
        """It stays."""

    def random_split(self, percentage: float, seed: int | None = None) -> tuple[Table, Table]:
        """Its rows in two parts."""
        return Table(self.to_pandas_dataframe()).random_split(percentage, seed)

    def take(self, count: int) -> Table:
        """Its first rows."""
        return Table(self.to_pandas_dataframe().head(count))


class Table:
    """Rows of a data set."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame

    def to_pandas_dataframe(self, *_: Any, **__: Any) -> Any:
        return self._frame

    def random_split(self, percentage: float, seed: int | None = None) -> tuple[Table, Table]:
        """About this share of the rows, and the others; both in their order."""
        chosen = self._frame.sample(frac=percentage, random_state=seed).index
        return Table(self._frame[self._frame.index.isin(chosen)]), Table(self._frame[~self._frame.index.isin(chosen)])


class Dataset:
    """How scripts come by a data set."""

    @staticmethod
    def get_by_name(workspace: Any, name: str, version: Any = "latest") -> DataFolder:
        return given(name)

    @staticmethod
    def get_by_id(workspace: Any, id: str, **_: Any) -> DataFolder:
        return given(id)


class Datastore:
    """A place of data: here, the data set of that name."""

    name: str

    def __init__(self, workspace: Any, name: str = "") -> None:
        self.name, self._data = name, given(name)

    @staticmethod
    def get(workspace: Any, datastore_name: str) -> Datastore:
        return Datastore(workspace, datastore_name)

    def path(self, path: str = "") -> str:
        return str(Path(self._data) / path)

    def download(self, target_path: Any, prefix: str = "", overwrite: bool = False, show_progress: bool = True) -> int:
        """Copy the files whose paths begin with `prefix`; how many."""
        files = [(path, path.relative_to(self._data).as_posix()) for path in self._data._files()]
        chosen = [(path, name) for path, name in files if name.startswith(prefix or "")]
        return len([_copy(path, Path(target_path) / name, overwrite) for path, name in chosen])


class Inputs(dict):
    """The data sets that were given, by name."""

    def __init__(self) -> None:
        super().__init__((name, given(name)) for name in link.folders)

    def __missing__(self, name: str) -> DataFolder:
        return given(name)


class Experiment:
    """The pipeline's."""

    name: str
    workspace: Workspace

    def __init__(self, workspace: Workspace, name: str, **_: Any) -> None:
        self.workspace, self.name = workspace, name


class Workspace:
    """Where the pipeline keeps what it keeps; there is one."""

    name = "keras-at-scale"

    @classmethod
    def from_config(cls, *_: Any, **__: Any) -> Workspace:
        return cls()

    @classmethod
    def get(cls, *_: Any, **__: Any) -> Workspace:
        return cls()

    @property
    def datasets(self) -> Mapping[str, DataFolder]:
        return Inputs()

    def get_default_datastore(self) -> Datastore:
        """The first data set that was given."""
        return Datastore(self, next(iter(link.folders), "data"))

    def get_mlflow_tracking_uri(self) -> str:
        return os.environ.get("MLFLOW_TRACKING_URI", "")


def _copy(source: Path, target: Path, overwrite: bool) -> str:
    if overwrite or not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return str(target)
