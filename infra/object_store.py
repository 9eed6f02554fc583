"""The object store: send and read objects by key, over fsspec, with an error that says what to do.

An object appears whole or not at all: in a folder by a rename, in S3 because a PUT or a multipart upload
counts only once it is complete. Listings are asked of the store each time.
"""

import asyncio
import base64
import fcntl
import hashlib
import io
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self
from urllib.parse import unquote

from fsspec.core import split_protocol, url_to_fs

from infra.addresses import without_secrets
from infra.errors import ObjectStoreError
from infra.hidden_packages import packages_hidden
from infra.store_failures import s3_code, told
from infra.waiting import Wait, told_when_slow

_PART_BYTES = 5 * 2**20  # The smallest part that S3 takes.
_MAX_PARTS = 10_000  # More S3 does not take: beyond 50 GB parts grow.
_REQUESTS = 4
"""Requests under way at once, and with them the parts in memory; as `rclone copy` does.

A process that sent 1 GiB peaked at 72 MB for a thousand files and 107 MB for one, in 0.99 and 0.67 of rclone's time
(tests/benchmarks/upload.py). Parts of 8 MiB, or two or eight at once, were no faster, and eight peaked at 170 MB.
"""
_COPIED_AT_ONCE = 128 * 2**20
"""Bytes that a store is asked to copy by one request, which it must answer before we take it for dead."""
_SECONDS_FOR_ITS_OWN_WORK = 300
_DEAD_AFTER_SECONDS = 24 * 3600
_SECONDS_TO_STOP = 0.7

_S3_CONFIG: dict[str, Any] = {
    # A server that is down is told within a minute: 3 times 15 s, and the pauses between.
    "retries": {"mode": "standard", "total_max_attempts": 3},
    "connect_timeout": 5,
    "read_timeout": 15,
    # A name of our own: botocore's lists the machine's parts, and puts them together for each request anew (0.4 ms).
    "user_agent": "keras-at-scale",
    # Over http botocore would hash every body once more to sign it: 0.6 s per GiB. What signs it here is
    # its checksum, a signed header that the server checks: a file's SHA-256, which the caller knows anyway,
    # or a part's CRC32, botocore's default. AWS_REQUEST_CHECKSUM_CALCULATION=WHEN_REQUIRED leaves the
    # latter out, for servers that refuse it.
    "s3": {"payload_signing_enabled": False},
}


def client_options(scheme: str) -> dict[str, Any]:
    """What fsspec's class for `scheme` is made with."""
    if scheme not in ("s3", "s3a"):
        return {}
    # aiobotocore takes httpx where it finds it, for a choice that is not made here: 0.4 of 1.6 s.
    with packages_hidden("httpx"):
        from aiobotocore.httpsession import AIOHTTPSession

    class WholeBodies(AIOHTTPSession):  # type: ignore[misc]
        """Sends a body as the bytes that it is.

        Of bytes botocore makes a file, which aiohttp sends in pieces of 64 KiB, with a turn for every other task
        in between: that costs a tenth of both sides' processor time.
        """

        async def send(self, request: Any) -> Any:
            if isinstance(request.body, io.BytesIO):
                request.body = request.body.getvalue()  # No copy: it shares the bytes that it was made of.
                # With it botocore has the server asked before each body is sent: a round trip, to save 5 MiB at most.
                request.headers.pop("Expect", None)
            return await super().send(request)

    return {
        "use_listings_cache": False,
        # A cached instance would keep the endpoint and the keys that the environment had when it was made.
        "skip_instance_cache": True,
        "config_kwargs": {**_S3_CONFIG, "http_session_cls": WholeBodies},
    }


class Source(Protocol):
    """Bytes to send: how many, with which SHA-256 in hexadecimal."""

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
        self._backend: _Folder | _Remote
        if scheme in ("file", "local"):
            # What fsspec reads again: it takes the rest of a file:// address as it stands, without unquoting.
            self._backend = _Folder(Path(unquote(split_protocol(uri)[1])))
            self.uri = f"file://{self._backend.root}"
        else:
            self.uri = uri.rstrip("/")
            with self._errors_told("open it"):
                self._backend = _Remote(self.uri, client_options(scheme))

    def put_files(self, files: Iterable[tuple[str, Source]], on_bytes: Callable[[int], None]) -> None:
        """Send each file to its key, several at once, and check its bytes on the way.

        `on_bytes` is told the number of bytes that were just sent, in the thread of the caller.
        """
        with self._errors_told("send files to it") as wait:

            def sent(count: int) -> None:
                wait.goes_on()
                on_bytes(count)

            self._backend.put_files(files, sent)

    def copies_from(self, uri: str) -> bool:
        """True if the store itself can copy what lies under the address `uri`: nothing comes to this machine."""
        return isinstance(self._backend, _Remote) and self._backend.speaks(split_protocol(uri)[0])

    def copy_files(self, files: Iterable[tuple[str, str, int, str]], on_bytes: Callable[[int], None]) -> set[str]:
        """Have the store copy objects, several at once: for each its new key, its address, its size and its ETag or "".

        Returns the keys of those that it cannot copy: not every server copies parts, as large objects need. The caller
        sees to it that `copies_from` is true, and that what was copied is what it meant: not every one heeds the ETag.
        """
        assert isinstance(self._backend, _Remote)
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

    def put_files(self, files: Iterable[tuple[str, Source]], on_bytes: Callable[[int], None]) -> None:
        # One after the other: a disk gains nothing from two writers.
        for key, file in files:
            self._write(key, file.chunks(_PART_BYTES), on_bytes)

    def put_bytes(self, key: str, data: bytes) -> None:
        self._write(key, [data], lambda count: None)

    def _write(self, key: str, chunks: Iterable[bytes], on_bytes: Callable[[int], None]) -> None:
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


class _Remote:
    def __init__(self, uri: str, options: dict[str, Any]) -> None:
        self._uri, self._options = uri, options
        self._fs, self._root = url_to_fs(uri, **options)
        self._speaks_s3 = hasattr(self._fs, "call_s3")
        if self._speaks_s3:
            self._fs.retries = 1  # botocore retries, and knows more errors; both would multiply.

    @property
    def endpoint(self) -> str | None:
        """The address of the server, once there was reason to connect to it."""
        client = getattr(self._fs, "_s3", None)
        return None if client is None else str(client.meta.endpoint_url)

    def put_files(self, files: Iterable[tuple[str, Source]], on_bytes: Callable[[int], None]) -> None:
        with ThreadPoolExecutor(_REQUESTS) as pool, _Requests(on_bytes) as requests:
            for key, file in files:
                path = self._path(key)
                if file.size > _PART_BYTES and self._speaks_s3:
                    self._put_in_parts(path, file, requests)
                    continue
                # Whole in memory: a store that speaks no S3 pays for its large files.
                data = b"".join(file.chunks(max(file.size, 1)))
                if self._speaks_s3:
                    bucket, name, _ = self._fs.split_path(path)
                    digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()
                    put = {"Bucket": bucket, "Key": name, "Body": data, "ChecksumSHA256": digest}
                    requests.start(len(data), partial(self._begin, "put_object", **put))
                else:
                    requests.start(len(data), partial(pool.submit, self._fs.pipe_file, path, data))

    def _put_in_parts(self, path: str, file: Source, requests: "_Requests") -> None:
        bucket, key, _ = self._fs.split_path(path)
        upload = {"Bucket": bucket, "Key": key}
        upload["UploadId"] = self._fs.call_s3("create_multipart_upload", **upload)["UploadId"]
        parts: list[Future[Any]] = []
        try:
            for chunk in file.chunks(max(_PART_BYTES, -(-file.size // _MAX_PARTS))):
                part = {"PartNumber": len(parts) + 1, "Body": chunk}
                parts.append(requests.start(len(chunk), partial(self._begin, "upload_part", **upload, **part)))
            done = [{"PartNumber": number, "ETag": sent.result()["ETag"]} for number, sent in enumerate(parts, 1)]
            finish = self._patient if file.size > _COPIED_AT_ONCE else self._fs
            finish.call_s3("complete_multipart_upload", **upload, MultipartUpload={"Parts": done})
        except BaseException as error:
            # A part that arrives after the end would be kept, and paid for, until `discard_unfinished`. Who was told to
            # stop does not wait for it long.
            patience = None if isinstance(error, Exception) else _SECONDS_TO_STOP
            wait(parts, patience)
            with suppress(Exception):
                self._begin("abort_multipart_upload", **upload).result(patience)
            raise

    @cached_property
    def _patient(self) -> Any:
        """For what a server does by itself, and answers when it is done: by a client that waits minutes for it.

        One that gave up and asked again would find the parts of its upload gone, and the object not there.
        """
        config = {**self._options["config_kwargs"], "read_timeout": _SECONDS_FOR_ITS_OWN_WORK}
        patient = url_to_fs(self._uri, **{**self._options, "config_kwargs": config})[0]
        patient.retries = 1
        return patient

    def _begin(self, method: str, **arguments: Any) -> Future[Any]:
        # Straight to s3fs's own loop: a thread for each request, and its wait for that loop, cost a fifth more.
        return asyncio.run_coroutine_threadsafe(self._fs._call_s3(method, **arguments), self._fs.loop)

    def put_bytes(self, key: str, data: bytes) -> None:
        self._fs.pipe_file(self._path(key), data)

    def get_bytes(self, key: str) -> bytes | None:
        try:
            return bytes(self._fs.cat_file(self._path(key)))
        except FileNotFoundError as error:
            if s3_code(error) == "NoSuchBucket":
                raise
            return None

    def speaks(self, scheme: str | None) -> bool:
        protocols = self._fs.protocol
        return scheme in ((protocols,) if isinstance(protocols, str) else protocols)

    def copy_files(self, files: Iterable[tuple[str, str, int, str]], on_bytes: Callable[[int], None]) -> set[str]:
        with ThreadPoolExecutor(_REQUESTS) as pool, _Requests(on_bytes) as requests:
            copies = {
                key: requests.start(size, partial(pool.submit, self._copy, self._path(key), uri, size, etag))
                for key, uri, size, etag in files
            }
        return {key for key, copied in copies.items() if not copied.result()}

    def _copy(self, path: str, uri: str, size: int, etag: str) -> bool:
        """Copy an object; False if the store cannot."""
        source_path = self._fs._strip_protocol(uri)
        if not self._speaks_s3:
            self._fs.cp_file(source_path, path)
            return True
        source = dict(zip(("Bucket", "Key"), self._fs.split_path(source_path)[:2], strict=True))
        target = dict(zip(("Bucket", "Key"), self._fs.split_path(path)[:2], strict=True))
        request = {**target, "CopySource": source, **({"CopySourceIfMatch": f'"{etag}"'} if etag else {})}
        if size <= _COPIED_AT_ONCE:
            self._patient.call_s3("copy_object", **request)
            return True
        upload = {**target, "UploadId": self._fs.call_s3("create_multipart_upload", **target)["UploadId"]}
        done: list[dict[str, Any]] = []
        part_bytes = max(_COPIED_AT_ONCE, -(-size // _MAX_PARTS))
        try:
            for start in range(0, size, part_bytes):
                part = {"PartNumber": len(done) + 1, "UploadId": upload["UploadId"]}
                part["CopySourceRange"] = f"bytes={start}-{min(start + part_bytes, size) - 1}"
                etag_of_part = self._patient.call_s3("upload_part_copy", **request, **part)["CopyPartResult"].get(
                    "ETag"
                )
                if not etag_of_part:  # It took the request for one that sends an empty part.
                    self._fs.call_s3("abort_multipart_upload", **upload)
                    return False
                done.append({"PartNumber": part["PartNumber"], "ETag": etag_of_part})
            self._patient.call_s3("complete_multipart_upload", **upload, MultipartUpload={"Parts": done})
        except BaseException:
            with suppress(Exception):
                self._begin("abort_multipart_upload", **upload).result(_SECONDS_TO_STOP)
            raise
        return True

    def changed_at(self, key: str) -> datetime | None:
        try:
            found = self._fs.modified(self._path(key))
        except (FileNotFoundError, NotImplementedError):
            return None
        return found if isinstance(found, datetime) else None

    def sizes(self, prefix: str) -> dict[str, int]:
        root = self._path(prefix)
        try:
            found = self._fs.find(root, detail=True)
        except FileNotFoundError as error:
            if s3_code(error) == "NoSuchBucket":
                raise
            return {}
        # Consoles and some servers keep an empty object for the folder itself.
        return {
            path.removeprefix(f"{root}/"): info["size"]
            for path, info in found.items()
            if path != root and info["type"] == "file"
        }

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(key))

    def discard_unfinished(self, prefix: str, before: float) -> None:
        if not self._speaks_s3:
            return
        bucket, key, _ = self._fs.split_path(self._path(prefix))
        for upload in self._fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{key}/").get("Uploads", []):
            if upload["Initiated"].timestamp() < before:
                self._fs.call_s3(
                    "abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}".rstrip("/")


class _Requests:
    """Requests under way: `start` waits while there are `_REQUESTS`, and raises what one of them raised.

    Leaving its context waits for all; if it is left by an exception, those under way are cancelled.
    """

    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        self._on_bytes = on_bytes
        self._under_way: dict[Future[Any], int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._collect(wait(self._under_way).done)
        for future in self._under_way:
            future.cancel()

    def start(self, size: int, begin: Callable[[], Future[Any]]) -> Future[Any]:
        if len(self._under_way) >= _REQUESTS:
            self._collect(wait(self._under_way, return_when=FIRST_COMPLETED).done)
        future = begin()
        self._under_way[future] = size
        return future

    def _collect(self, done: set[Future[Any]]) -> None:
        for future in done:
            size = self._under_way.pop(future)
            future.result()
            self._on_bytes(size)
