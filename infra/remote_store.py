"""How an address is opened by fsspec; and the objects under one, in S3 above all: sent, copied, listed."""

import asyncio
import base64
import io
from asyncio import wrap_future
from collections.abc import Iterable
from concurrent.futures import CancelledError, wait
from contextlib import suppress
from contextvars import copy_context
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from fsspec.asyn import get_loop
from fsspec.callbacks import Callback
from fsspec.core import split_protocol, url_to_fs

from infra.background import OnBytes, in_background, side_by_side
from infra.digest_cache import file_version
from infra.errors import ObjectStoreError
from infra.hidden_packages import packages_hidden
from infra.store_failures import is_upload_lost, missing_is_none

if TYPE_CHECKING:
    from infra.object_store import Source

_PART_BYTES = 5 * 2**20  # The smallest part that S3 takes.
_MAX_PARTS = 10_000  # More S3 does not take: beyond 50 GB parts grow.
_AT_ONCE = 4
"""Files under way at once, and parts of each; as `rclone copy` does."""
_TRIES = 3
_SECONDS_FOR_LONG_WORK = 300
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


def open_address(uri: str, session: Any = None, **config: Any) -> tuple[Any, str]:
    """The file system of an fsspec address, and the path in it; connects to nothing.

    Of S3 `config` is botocore's where it differs from ours; with the `session` of another one it is there sooner.
    """
    if split_protocol(uri)[0] not in ("s3", "s3a"):
        return url_to_fs(uri)  # type: ignore[no-any-return]
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

    config = {**_S3_CONFIG, **config, "http_session_cls": WholeBodies}
    # A cached instance would keep the endpoint and the keys that the environment had when it was made.
    options = {"use_listings_cache": False, "skip_instance_cache": True, "session": session, "config_kwargs": config}
    fs, path = url_to_fs(uri, **options)
    fs.retries = 1  # botocore retries, and knows more errors; both would multiply.
    return fs, path


def endpoint_of(fs: Any) -> str | None:
    """The address of the S3 server, once there was reason to connect to it."""
    client = getattr(fs, "_s3", None)
    return None if client is None else str(client.meta.endpoint_url)


class RemoteStore:
    """The objects under the address `uri`; raises what fsspec and its libraries raise. See `ObjectStore`."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._fs, self._root = open_address(uri)
        self._speaks_s3 = hasattr(self._fs, "call_s3")

    @property
    def endpoint(self) -> str | None:
        return endpoint_of(self._fs) or endpoint_of(self._patient)

    @cached_property
    def _patient(self) -> Any:
        """For requests that a server may take minutes over: parts of a large file, and what it does by itself.

        Who gives one up and sends it again meets the first: rclone's server, while it still writes the first copy of a
        part, takes the second for done, and has too few parts in the end (InvalidPart); and what was completed by the
        first request is gone at the second (NoSuchUpload). Seen on a busy machine, with s3fs's own `put` as well.
        """
        if not self._speaks_s3:
            return self._fs
        return open_address(self._uri, self._fs.session, read_timeout=_SECONDS_FOR_LONG_WORK)[0]

    def put_files(self, files: Iterable[tuple[str, "Source"]], on_bytes: OnBytes) -> None:
        # In fsspec's own loop: a thread for each file, or a word between it and this thread, costs half as much again.
        waiting, abandoned = iter(files), Event()

        def told(count: int) -> None:
            if abandoned.is_set():
                raise CancelledError
            on_bytes(count)

        async def put_in_turn() -> None:
            for key, file in waiting:
                await self._put(self._path(key), file, told)

        async def put_all() -> None:
            turns = [asyncio.ensure_future(put_in_turn()) for _ in range(_AT_ONCE)]
            done, others = await asyncio.wait(turns, return_when=asyncio.FIRST_EXCEPTION)
            if others:
                abandoned.set()
                await asyncio.wait(others)
            for turn in (*done, *others):
                turn.result()

        sending = asyncio.run_coroutine_threadsafe(put_all(), get_loop())
        try:
            sending.result()
        except BaseException:
            abandoned.set()
            wait([sending], _SECONDS_TO_STOP)  # For what has arrived of a file in parts to be freed.
            raise

    async def _put(self, path: str, file: "Source", on_bytes: OnBytes) -> None:
        """Send a file, from its beginning again if the server has lost what it had of it."""
        for tries_left in reversed(range(_TRIES)):
            sent = _Sent(on_bytes)
            try:
                if file.path and self._speaks_s3:
                    await self._put_file(path, file, file.path, sent)
                else:
                    await wrap_future(in_background(partial(copy_context().run, self._put_stream, path, file, sent)))
                return
            except OSError as error:
                if not tries_left or not is_upload_lost(error):
                    raise
                on_bytes(-sent.value)

    async def _put_file(self, path: str, file: "Source", local: Path, sent: "_Sent") -> None:
        def check() -> None:
            for _ in file.chunks(_PART_BYTES):
                sent.relative_update(0)

        before = _version(local)
        is_large = file.size > _PART_BYTES
        if is_large:  # In the loop everybody's requests would wait for it.
            await wrap_future(in_background(check))
        else:
            check()
        fs = self._patient if is_large else self._fs
        digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()  # Of a file that is sent in one piece.
        parts = {"chunksize": _part_bytes(file), "max_concurrency": _AT_ONCE}
        await fs._put_file(str(local), path, callback=sent, ChecksumSHA256=digest, **parts)
        if _version(local) != before:
            await fs._rm_file(path)
            raise ObjectStoreError(
                f"{local} was changed while it was sent, so it was not stored.\n"
                "Run again when nothing writes there any more."
            )

    def _put_stream(self, path: str, stream: "Source", sent: "_Sent") -> None:
        if stream.size <= _PART_BYTES:
            self._fs.pipe_file(path, b"".join(stream.chunks(_PART_BYTES)))
            return sent.relative_update(stream.size)
        file = self._patient.open(path, "wb", block_size=_part_bytes(stream), autocommit=False)
        try:
            for chunk in stream.chunks(_PART_BYTES):
                file.write(chunk)
                sent.relative_update(len(chunk))
            file.close()
            file.commit()
        except BaseException:
            file.closed = True  # Or it would be sent after all when it is forgotten.
            file.discard()
            raise

    def put_bytes(self, key: str, data: bytes) -> None:
        self._fs.pipe_file(self._path(key), data)

    def get_bytes(self, key: str) -> bytes | None:
        with missing_is_none():
            return bytes(self._fs.cat_file(self._path(key)))
        return None

    def speaks(self, scheme: str | None) -> bool:
        protocols = self._fs.protocol
        return scheme in ((protocols,) if isinstance(protocols, str) else protocols)

    def copy_files(self, files: Iterable[tuple[str, str, int, str]], on_bytes: OnBytes) -> set[str]:
        copies = (partial(self._copy, *file) for file in files)
        return {key for key in side_by_side(copies, _AT_ONCE, on_bytes) if key}

    def _copy(self, key: str, uri: str, size: int, etag: str, on_bytes: OnBytes) -> str | None:
        """Have an object copied; returns its key if the store cannot."""
        condition = {"CopySourceIfMatch": f'"{etag}"'} if etag and self._speaks_s3 else {}
        try:
            self._patient.cp_file(self._fs._strip_protocol(uri), self._path(key), **condition)
        except KeyError:  # The server took what should be a copied part of a large object for an empty part.
            return key
        on_bytes(size)
        return None

    def changed_at(self, key: str) -> datetime | None:
        try:
            found = self._fs.modified(self._path(key))
        except (FileNotFoundError, NotImplementedError):
            return None
        return found if isinstance(found, datetime) else None

    def sizes(self, prefix: str) -> dict[str, int]:
        root = self._path(prefix)
        found: dict[str, dict[str, Any]] = {}
        with missing_is_none():
            found = self._fs.find(root, detail=True)
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


class _Sent(Callback):  # type: ignore[misc]
    """Tells on what fsspec says of the bytes that it has sent."""

    def __init__(self, on_bytes: OnBytes) -> None:
        super().__init__()
        self._on_bytes = on_bytes

    def relative_update(self, inc: int = 1) -> None:
        self.value += inc
        self._on_bytes(inc)


def _part_bytes(file: "Source") -> int:
    return max(_PART_BYTES, -(-file.size // _MAX_PARTS))


def _version(path: Path) -> str:
    with suppress(OSError):
        return file_version(path.stat())
    return ""
