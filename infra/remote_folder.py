"""The files under an address that fsspec can list: which there are, and their bytes as they stream."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.core import url_to_fs

from infra.addresses import is_http, without_secrets
from infra.errors import DatasetNotFound, DatasetUnavailable, ObjectStoreUnreachable, PipelineError
from infra.remote_store import endpoint_of, open_address
from infra.store_failures import missing_is_none, s3_code, told
from infra.waiting import told_when_slow

CHUNK_BYTES = 5 * 2**20
_BREAKS = 3
"""Connections that may break off while one file is read."""
_VERSIONS = ("ETag", "etag", "LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created")
"""What listings call the facts that change with a file's bytes."""


@dataclass(frozen=True)
class RemoteFile:
    """A file under an address: its name there, with folders; its own address; its size in bytes."""

    name: str
    uri: str
    size: int
    version: str | None
    """What its server says that changes with the bytes; None: nothing."""
    etag: str | None


class RemoteFolder:
    """The folder at `uri`, in any protocol of fsspec's but `file`; S3's keys come from `AWS_*`.

    Each method raises `ObjectStoreError`, and of it `ObjectStoreUnreachable` where a later attempt may succeed; of a
    web server `DatasetNotFound` and `DatasetUnavailable`.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        with self._errors_told("open it"):
            opened: tuple[Any, str] = url_to_fs(self.uri, **_http_options()) if is_http(uri) else open_address(self.uri)
            self._fs, self._root = opened
            self._speaks_s3 = hasattr(self._fs, "call_s3")

    @property
    def endpoint(self) -> str | None:
        """The address of the S3 server, once there was reason to connect to it."""
        return endpoint_of(self._fs)

    def files(self) -> list[RemoteFile]:
        """Every file there, sorted by name; none if there is no such folder. Links of a web page count as files."""
        with self._errors_told("list it"):
            found: dict[str, dict[str, Any]] = {}
            with missing_is_none():
                found = self._fs.find(self._root, detail=True, **_nothing_skipped(self._fs))
            files = [self._file(path, facts) for path, facts in found.items() if facts["type"] == "file"]
            return sorted(filter(None, files), key=lambda file: file.name)

    def _file(self, path: str, facts: Mapping[str, Any]) -> RemoteFile | None:
        name = path.removeprefix(self._root).removeprefix("/")
        if is_http(self.uri):
            if "?" in name or "#" in name:  # Links by which a listing is sorted.
                return None
            name = unquote(name)
        if facts.get("size") is None:
            facts = self._fs.info(path)
        if not name or facts.get("size") is None:
            what = "is a single file" if not name else f"says no size of {name}"
            raise DatasetNotFound(
                f"{without_secrets(self.uri)} {what}, and a data set is a folder of files of known size.\n"
                "Name the folder, or download the files and name theirs."
            )
        etag = _etag(facts)
        versions = [str(facts[key]) for key in _VERSIONS if facts.get(key)]
        size = int(facts["size"])
        version = " ".join((str(size), *versions)) if versions else None
        return RemoteFile(name, self._fs.unstrip_protocol(path), size, version, etag)

    def chunks(self, file: RemoteFile, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The bytes of `file`, all but the last piece of `chunk_bytes`.

        Raises `DatasetUnavailable` if it turns out to have changed since it was listed. A connection that breaks off
        is made again, where the server can tell that the file is the same.
        """
        attempt = f"read {file.name}"
        read = breaks = 0
        with ExitStack() as opened:
            more: Callable[[], bytes] | None = None
            while True:
                try:
                    with self._errors_told(attempt):
                        more = more or opened.enter_context(self._opened(file, read, chunk_bytes))
                        chunk = more()
                except ObjectStoreUnreachable:
                    breaks += 1
                    if breaks > _BREAKS or not file.etag:
                        raise
                    opened.close()
                    more = None
                    continue
                if not chunk:
                    break
                read += len(chunk)
                yield chunk
        if read != file.size:
            raise changed(without_secrets(file.uri))

    @contextmanager
    def _opened(self, file: RemoteFile, start: int, chunk_bytes: int) -> Iterator[Callable[[], bytes]]:
        """What reads the next piece of `file`, from the byte `start`."""
        path = self._fs._strip_protocol(file.uri)
        if not self._speaks_s3:
            # No cache: what is read once, in order, needs no second copy in memory.
            with self._fs.open(path, "rb", block_size=chunk_bytes, cache_type="none") as stream:
                stream.seek(start)
                yield lambda: bytes(stream.read(chunk_bytes))
            return
        # One request for all of it. s3fs's own files ask for piece after piece, and a server that makes up an ETag
        # reads the whole file for each: 11 s for 5 MiB of 1.5 GB.
        bucket, key, _ = self._fs.split_path(path)
        conditions = {"IfMatch": f'"{file.etag}"'} if file.etag else {}
        if start:
            conditions["Range"] = f"bytes={start}-"
        try:
            body = self._fs.call_s3("get_object", Bucket=bucket, Key=key, **conditions)["Body"]
        except Exception as error:
            if s3_code(error) in ("PreconditionFailed", "412", "InvalidRange"):
                raise changed(without_secrets(file.uri)) from None
            raise

        async def next_piece() -> bytes:
            piece = bytearray()
            while len(piece) < chunk_bytes and (some := await body.read(chunk_bytes - len(piece))):
                piece += some
            return bytes(piece)

        try:
            yield lambda: bytes(sync(self._fs.loop, next_piece))
        finally:
            self._fs.loop.call_soon_threadsafe(body.close)

    @contextmanager
    def _errors_told(self, attempt: str) -> Iterator[None]:
        place = without_secrets(self.uri)
        try:
            with told_when_slow(place, attempt):
                yield
        except PipelineError:
            raise
        except Exception as error:
            if is_http(self.uri):
                kind = DatasetNotFound if isinstance(error, FileNotFoundError) else DatasetUnavailable
                reason = "there is nothing" if isinstance(error, FileNotFoundError) else str(error)
                raise kind(f"{place}: could not {attempt}: {reason or type(error).__name__}.") from None
            if isinstance(error, (ValueError, ImportError)) and not hasattr(self, "_fs"):
                raise DatasetNotFound(f"{place} cannot be opened: {error}") from None
            found = told(error, attempt, self.uri, self.endpoint if hasattr(self, "_fs") else None, "the address")
            if found is None:
                raise
            raise found from None


@dataclass(frozen=True)
class RemoteSource:
    """A file of a remote folder and the SHA-256 that its bytes must have, to be sent to a store as they stream."""

    folder: RemoteFolder
    file: RemoteFile
    sha256: str
    path: None = None

    @property
    def size(self) -> int:
        return self.file.size

    def chunks(self, chunk_bytes: int) -> Iterator[bytes]:
        """The bytes; raises `DatasetUnavailable` at their end if they were not the right ones."""
        digest = hashlib.sha256()
        for chunk in self.folder.chunks(self.file, max(chunk_bytes, 1)):
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != self.sha256:
            raise changed(without_secrets(self.file.uri))


def changed(place: str) -> DatasetUnavailable:
    """The error for a file that is not what it was a moment ago."""
    return DatasetUnavailable(
        f"{place} was changed while the data set was read, so nothing of it was kept.\n"
        "Run again when nothing writes there any more."
    )


def _nothing_skipped(fs: AbstractFileSystem) -> dict[str, str]:
    """What fsspec's own `find` must be told, or a folder that cannot be listed would be left out without a word."""
    asked_by_folder = getattr(type(fs), "_find", AsyncFileSystem._find) is AsyncFileSystem._find
    return {"on_error": "raise"} if asked_by_folder and type(fs).find is AbstractFileSystem.find else {}


def _etag(facts: Mapping[str, Any]) -> str | None:
    # Some servers put it between quotes when they are asked for the file, and not in a list.
    return str(facts.get("ETag") or facts.get("etag") or "").strip('"') or None


def _http_options() -> dict[str, Any]:
    from aiohttp import ClientTimeout

    # By default a file may take five minutes, however large it is.
    timeout = ClientTimeout(total=None, sock_connect=15, sock_read=60)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}, "skip_instance_cache": True}
