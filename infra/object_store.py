"""The object store: send and read objects by key, over fsspec, with an error that says what to do.

An object appears whole or not at all: in a folder by a rename, in S3 because a PUT or a multipart upload
counts only once it is complete. Listings are asked of the store each time.
"""

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote

from fsspec.core import split_protocol

from infra.addresses import without_secrets
from infra.background import OnBytes
from infra.errors import ObjectStoreError
from infra.remote_store import RemoteStore
from infra.store_failures import told
from infra.waiting import Wait, told_when_slow

_CHUNK_BYTES = 5 * 2**20
_DEAD_AFTER_SECONDS = 24 * 3600


class Source(Protocol):
    """Bytes to send: how many, with which SHA-256 in hexadecimal, and of which file, if they are one's."""

    @property
    def path(self) -> Path | None: ...

    @property
    def size(self) -> int: ...

    @property
    def sha256(self) -> str: ...

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """The bytes piece by piece; raises a `PipelineError` at their end if they were not the right ones."""


@dataclass(frozen=True)
class SourceFile:
    """A file of this machine and the bytes that it must hold: `size` in bytes, SHA-256 in hexadecimal."""

    path: Path
    size: int
    sha256: str

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """The file piece by piece; raises `ObjectStoreError` at its end if these were not the right bytes."""
        try:
            digest = hashlib.sha256()
            with self.path.open("rb", buffering=0) as file:
                while chunk := file.read(chunk_bytes):
                    digest.update(chunk)
                    yield chunk
        except OSError as error:
            raise ObjectStoreError(f"{self.path} cannot be read, so it was not sent: {error.strerror}.") from error
        if digest.hexdigest() != self.sha256:
            raise ObjectStoreError(
                f"{self.path} is not what it should be, so it was not stored: expected {self.size:,} bytes\n"
                f"with SHA-256 {self.sha256}, found SHA-256 {digest.hexdigest()}.\n"
                "Restore or remove the file, and run again."
            )


class ObjectStore:
    """A store of objects under `uri`: a folder (`file://`), `s3://bucket/prefix`, or what else fsspec can write.

    Keys are relative to `uri`, with slashes. Endpoint, keys and region of S3 come from `AWS_*`, as every S3 tool
    reads them. Making one connects to nothing. Each method raises `ObjectStoreError`, and of it
    `ObjectStoreUnreachable` where a later attempt may succeed. A missing folder is created, a missing bucket is
    not: a misspelt name would make a bucket that nobody set rights, region and budget for.
    """

    def __init__(self, uri: str) -> None:
        scheme = split_protocol(uri)[0] or "file"
        self._backend: _Folder | RemoteStore
        if scheme in ("file", "local"):
            # What fsspec reads again: it takes the rest of a file:// address as it stands, without unquoting.
            self._backend = _Folder(Path(unquote(split_protocol(uri)[1])))
            self.uri = f"file://{self._backend.root}"
        else:
            self.uri = uri.rstrip("/")
            with self._errors_told("open it"):
                self._backend = RemoteStore(self.uri)

    def put_files(self, files: Iterable[tuple[str, Source]], on_bytes: OnBytes) -> None:
        """Send each file to its key, several at once, its bytes checked."""
        with self._errors_told("send files to it") as wait:

            def sent(count: int) -> None:
                wait.goes_on()
                if count:  # Not of a file that is being read yet.
                    on_bytes(count)

            self._backend.put_files(files, sent)

    def copies_from(self, uri: str) -> bool:
        """True if the store itself can copy what lies under the address `uri`: nothing comes to this machine."""
        return isinstance(self._backend, RemoteStore) and self._backend.speaks(split_protocol(uri)[0])

    def copy_files(self, files: Iterable[tuple[str, str, int, str]], on_bytes: OnBytes) -> set[str]:
        """Have the store copy objects, several at once: for each its new key, its address, its size and its ETag or "".

        Returns the keys of those that it cannot copy: not every server copies parts, as large objects need. The caller
        sees to it that `copies_from` is true, and that what was copied is what it meant: not every one heeds the ETag.
        """
        assert isinstance(self._backend, RemoteStore)
        with self._errors_told("copy files to it") as wait:

            def copied(count: int) -> None:
                wait.goes_on()
                on_bytes(count)

            return self._backend.copy_files(files, copied)

    def changed_at(self, key: str) -> datetime | None:
        """When the object was written, if there is one and the store knows."""
        with self._errors_told(f"look up {key}"):
            return self._backend.changed_at(key)

    def put_bytes(self, key: str, data: bytes) -> None:
        with self._errors_told(f"write {key}"):
            self._backend.put_bytes(key, data)

    def get_bytes(self, key: str) -> bytes | None:
        """The object's bytes; None if there is none."""
        with self._errors_told(f"read {key}"):
            return self._backend.get_bytes(key)

    def sizes(self, prefix: str) -> dict[str, int]:
        """The size in bytes of every object under `prefix/`, by the rest of its key."""
        with self._errors_told(f"list {prefix}"):
            return self._backend.sizes(prefix)

    def delete(self, key: str) -> None:
        """Remove an object; it is no error if there is none."""
        with self._errors_told(f"delete {key}"):
            self._backend.delete(key)

    def discard_unfinished(self, prefix: str, older_than_seconds: float = _DEAD_AFTER_SECONDS) -> None:
        """Free what uploads that were killed under `prefix` left behind, where the store lets us.

        In a folder the writer holds a lock, so what is left is known at once; elsewhere its age must tell.
        """
        with suppress(ObjectStoreError), self._errors_told("list unfinished uploads"):
            self._backend.discard_unfinished(prefix, time.time() - older_than_seconds)

    @contextmanager
    def _errors_told(self, attempt: str) -> Iterator[Wait]:
        try:
            with told_when_slow(f"the store {without_secrets(self.uri)}", attempt) as wait:
                yield wait
        except ObjectStoreError:
            raise
        except Exception as error:
            found = told(error, attempt, self.uri, getattr(getattr(self, "_backend", None), "endpoint", None))
            if found is None:
                raise
            # Not chained: what libraries and servers write of a request may hold the key id or the signature.
            raise found from None


class _Folder:
    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def put_files(self, files: Iterable[tuple[str, Source]], on_bytes: OnBytes) -> None:
        # One after the other: a disk gains nothing from two writers.
        for key, file in files:
            self._write(key, file.chunks(_CHUNK_BYTES), on_bytes)

    def put_bytes(self, key: str, data: bytes) -> None:
        self._write(key, [data], lambda count: None)

    def _write(self, key: str, chunks: Iterable[bytes], on_bytes: OnBytes) -> None:
        target = self.root / key
        unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            with _create(unfinished) as file:
                with suppress(OSError):  # Some file systems have no locks.
                    fcntl.flock(file, fcntl.LOCK_EX)
                if not unfinished.exists():  # It was taken for a dead one's before it was locked.
                    self._write(key, chunks, on_bytes)
                    return
                for chunk in chunks:
                    file.write(chunk)
                    on_bytes(len(chunk))
                file.flush()
                # Without it a power failure can leave the name with nothing behind it.
                os.fsync(file.fileno())
            unfinished.replace(target)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def get_bytes(self, key: str) -> bytes | None:
        try:
            return (self.root / key).read_bytes()
        except FileNotFoundError:
            return None

    def changed_at(self, key: str) -> datetime | None:
        try:
            return datetime.fromtimestamp((self.root / key).stat().st_mtime, UTC)
        except FileNotFoundError:
            return None

    def sizes(self, prefix: str) -> dict[str, int]:
        folder = self.root / prefix
        found = {}
        for place, _, names in os.walk(folder, onerror=_unless_it_is_gone):
            for path in (Path(place, name) for name in names):
                with suppress(FileNotFoundError):  # Another upload may just have renamed it.
                    if path.is_file() and not _is_unfinished(path):
                        found[path.relative_to(folder).as_posix()] = path.stat().st_size
        return found

    def delete(self, key: str) -> None:
        path = self.root / key
        path.unlink(missing_ok=True)
        # As in a bucket there is no folder without an object; those of the first level are a few, and stay.
        with suppress(OSError):
            for folder in path.parents[: max(len(Path(key).parts) - 2, 0)]:
                folder.rmdir()

    def discard_unfinished(self, prefix: str, before: float) -> None:
        for path in filter(_is_unfinished, (self.root / prefix).rglob("*")):
            with suppress(FileNotFoundError), path.open("r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                except OSError:
                    # No locks here. An upload that lives writes to its file all the time.
                    if path.stat().st_mtime >= before:
                        continue
                path.unlink()


def _create(path: Path) -> BinaryIO:
    """Open a new file, its folder made, even if another process removes the folder each time because it is empty."""
    for tries_left in reversed(range(20)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("wb")
        except (FileNotFoundError, FileExistsError):  # mkdir() raises both for a folder that goes meanwhile.
            if not tries_left:
                raise
    raise AssertionError


def _unless_it_is_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _is_unfinished(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".part")
