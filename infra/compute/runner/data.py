"""The data sets of a training: brought into a local folder, each file checked against the manifest as it is read."""

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import BinaryIO, TypeVar

import fsspec

from .exits import BadDataset, RunnerError
from .manifest import MANIFEST, BadManifest, FileEntry, is_intact, parse_manifest
from .order import DatasetOrder
from .output import say
from .patience import with_patience
from .storage import open_store

Result = TypeVar("Result")

CHUNK_BYTES = 16_000_000
"""What is read at once: memory that a copy takes, times those side by side."""
SIDE_BY_SIDE = 16
SECONDS_BETWEEN_NEWS = 10.0
_ROOM_TO_WORK = 100_000_000


def bring(dataset: DatasetOrder, folder: Path, cache: Path | None = None) -> list[FileEntry]:
    """Copy the files of a data set into `folder`, which is created; returns their entries.

    With a `cache`, a folder of files named by their SHA-256, what lies there is not read again but checked, and what
    is read is put there. Raises `BadDataset` with the name of a file that is not there or not what the manifest says,
    `RunnerError` if the store stays away or the disk is too small.
    """
    entries = _manifest(dataset)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    news = _News(dataset.name, entries)
    _check_room(dataset, entries, cache or folder)
    with ThreadPoolExecutor(min(SIDE_BY_SIDE, len(entries)) or 1) as pool:
        jobs = [pool.submit(_bring_file, dataset, entry, folder, cache, news) for entry in entries]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return entries


def _manifest(dataset: DatasetOrder) -> list[FileEntry]:
    filesystem, root = open_store(dataset.uri)
    what = f"read {MANIFEST} of data set {dataset.name}"
    try:
        content = with_patience(lambda: _unless_missing(lambda: filesystem.cat_file(f"{root}/{MANIFEST}")), what)
        if content is None:
            raise BadDataset(f"There is no data set {dataset.name} in {dataset.uri}: it has no {MANIFEST}.")
        found = hashlib.sha256(content).hexdigest()
        if found != dataset.sha256:
            raise BadDataset(
                f"The data set {dataset.name} in {dataset.uri} is not what it must be: the SHA-256 of its {MANIFEST}\n"
                f"is {found}, expected {dataset.sha256}. Store it again, or name the version that is there."
            )
        return parse_manifest(content)
    except BadManifest as error:
        raise BadDataset(f"The data set {dataset.name} in {dataset.uri} is not what it must be: {error}") from error


def _unless_missing(action: Callable[[], Result]) -> Result | None:
    """What `action` returns; None if the file that it reads is not there, which no patience mends."""
    try:
        return action()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _check_room(dataset: DatasetOrder, entries: Sequence[FileEntry], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = sum(entry.size for entry in entries) + _ROOM_TO_WORK
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise RunnerError(
            f"The data set {dataset.name} and room to work need {wanted / 1e9:.1f} GB of disk in {folder},\n"
            f"and {free / 1e9:.1f} GB are free. Free some, or train on a larger machine."
        )


class _News:
    """Says how far a long copy is."""

    def __init__(self, name: str, entries: Sequence[FileEntry]) -> None:
        self._name, self._files, self._all_bytes = name, len(entries), sum(entry.size for entry in entries)
        self._bytes = self._done = 0
        self._next = time.monotonic() + SECONDS_BETWEEN_NEWS
        self._lock = Lock()

    def add(self, size: int, files: int = 0) -> None:
        with self._lock:
            self._bytes += size
            self._done += files
            if time.monotonic() < self._next:
                return
            self._next = time.monotonic() + SECONDS_BETWEEN_NEWS
        say(
            f"data set {self._name}: {self._done:,} of {self._files:,} files, "
            f"{self._bytes / 1e6:,.0f} of {self._all_bytes / 1e6:,.0f} MB"
        )


def _bring_file(dataset: DatasetOrder, entry: FileEntry, folder: Path, cache: Path | None, news: _News) -> None:
    target = folder / entry.name
    target.parent.mkdir(parents=True, exist_ok=True)
    uri = entry.uri or f"{dataset.uri.rstrip('/')}/{entry.name}"
    if cache is None:
        _fetch(dataset.name, entry, uri, target, news)
    else:
        kept = cache / entry.sha256
        if not is_intact(kept, entry):
            part = cache / f".{entry.sha256}.{secrets.token_hex(4)}.part"
            try:
                _fetch(dataset.name, entry, uri, part, news)
                part.chmod(0o444)  # The program gets this very file under its name, and others later.
                part.replace(kept)
            finally:
                part.unlink(missing_ok=True)
        try:
            os.link(kept, target)
        except OSError:
            shutil.copyfile(kept, target)
    news.add(0, files=1)


def _fetch(name: str, entry: FileEntry, uri: str, target: Path, news: _News) -> None:
    filesystem, path = open_store(uri)
    digest = hashlib.sha256()
    size: int | None = 0
    with target.open("wb") as file:
        if entry.size == 0:
            size = with_patience(lambda: _unless_missing(lambda: int(filesystem.size(path))), f"look at {uri}")
        while size is not None and size < entry.size:
            # A byte more than there should be: of what has grown, it is found.
            read = partial(_range, filesystem, path, size, min(size + CHUNK_BYTES, entry.size + 1))
            chunk = with_patience(partial(_unless_missing, read), f"read {entry.name} of data set {name}")
            if not chunk:
                size = None if chunk is None else size
                break
            _write(file, chunk)
            digest.update(chunk)
            size += len(chunk)
            news.add(len(chunk))
    if size is None:
        raise BadDataset(f"The data set {name} is not what it must be: there is no file {uri}.")
    found = digest.hexdigest()
    if (size, found) != (entry.size, entry.sha256):
        bytes_found = "another number of bytes" if size > entry.size else f"{size:,} bytes"
        raise BadDataset(
            f"The data set {name} is not what it must be: its file {entry.name} ({uri}) has changed.\n"
            f"expected {entry.size:,} bytes, SHA-256 {entry.sha256}\n   found {bytes_found}, SHA-256 {found}\n"
            "Store the data set anew, or bring the file back as it was."
        )


def _range(filesystem: fsspec.AbstractFileSystem, path: str, start: int, end: int) -> bytes:
    try:
        # By name: s3fs has the version of the object in between.
        content: bytes = filesystem.cat_file(path, start=start, end=end)
    except OSError:
        # A store refuses to read behind the end of a file that has become shorter.
        if int(filesystem.size(path)) <= start:
            return b""
        raise
    return content


def _write(file: BinaryIO, chunk: bytes) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        raise RunnerError(f"Cannot write {file.name}: {error.strerror}. Free some disk, and run it again.") from error
