"""The files under an address as a data set: their digests, as they stream, and their way into the store."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from threading import Event

from infra.addresses import without_secrets
from infra.background import in_background
from infra.compute.runner.manifest import FileEntry
from infra.digest_cache import DigestCache
from infra.errors import ArgumentError
from infra.object_store import ObjectStore
from infra.remote_folder import RemoteFile, RemoteFolder, RemoteSource, changed, sha256_of
from tasks.datasets.names import is_left_out, refuse, wrong_names
from tasks.progress import byte_progress

LOGGER = logging.getLogger(__name__)

_READERS = 4
"""Files that are read at once, each with a part of 5 MiB in memory."""


@dataclass(frozen=True)
class DescribedAddress:
    """The files under an address, by name, with their digests."""

    folder: RemoteFolder
    files: dict[str, RemoteFile]
    entries: tuple[FileEntry, ...]

    def in_place(self) -> list[FileEntry]:
        """The entries of a manifest that names the files where they are."""
        return [FileEntry(entry.name, entry.size, entry.sha256, self.files[entry.name].uri) for entry in self.entries]

    def send(self, store: ObjectStore, keyed: Iterable[tuple[str, FileEntry]], on_bytes: Callable[[int], None]) -> None:
        """Bring files to their keys: copied by the store itself where they lie in it, else as they stream.

        Raises `DatasetUnavailable`, with nothing wrong left behind, if one was changed since it was read.
        """
        wanted = [(key, self.files[entry.name], entry.sha256) for key, entry in keyed]
        if not store.copies_from(self.folder.uri):
            self._stream(store, wanted, on_bytes)
            return
        try:
            copies = ((key, file.uri, file.size, file.etag or "") for key, file, _ in wanted)
            left = store.copy_files(copies, on_bytes)
            if left:
                self._stream(store, [one for one in wanted if one[0] in left], lambda count: None)
            now = {file.name: file for file in self.folder.files()}
        except BaseException:
            # Which of them are the ones that were read is not known now.
            for key, _, _ in wanted:
                store.delete(key)
            raise
        different = [(key, file) for key, file, _ in wanted if now.get(file.name) != file]
        for key, _ in different:
            store.delete(key)
        if different:
            raise changed(without_secrets(different[0][1].uri))

    def _stream(
        self, store: ObjectStore, wanted: list[tuple[str, RemoteFile, str]], on_bytes: Callable[[int], None]
    ) -> None:
        store.put_files(((key, RemoteSource(self.folder, file, digest)) for key, file, digest in wanted), on_bytes)


def list_address(uri: str) -> tuple[RemoteFolder, list[RemoteFile]]:
    """The files under the address `uri` that belong to a data set, and the folder to read them from.

    Raises `ArgumentError` if there is none, or one's name is refused, see `wrong_names`; `ObjectStoreError` and its
    family as `RemoteFolder` does.
    """
    folder = RemoteFolder(uri)
    shown = without_secrets(folder.uri)
    found = folder.files()
    files = [file for file in found if not any(map(is_left_out, file.name.split("/")))]
    refuse(shown, wrong_names(file.name for file in files))
    if not files:
        raise ArgumentError(f"There is no file under {shown}.\nCorrect the address: expected the folder of the files.")
    if len(files) < len(found):
        LOGGER.info("Left out of %s: %d files that are no data (.*, Thumbs.db)", shown, len(found) - len(files))
    return folder, files


def describe_address(uri: str, cache: DigestCache) -> DescribedAddress:
    """Name, size and SHA-256 of each file under the address `uri`, none of which touches this machine's disk.

    A file of which its server says the same (ETag, size, time) as when `cache` noted a digest is not read.
    Raises as `list_address` does, and `DatasetUnavailable` if a file changes while it is read.
    """
    folder, files = list_address(uri)
    known: dict[str, str] = {}
    for file in files:
        sha256 = file.version and cache.get(_place(folder, file), file.version)
        if sha256:
            known[file.name] = sha256
    unread = [file for file in files if file.name not in known]
    for file, sha256 in _digests(folder, unread):
        known[file.name] = sha256
        if file.version:
            cache.put(_place(folder, file), file.version, sha256)
    entries = tuple(FileEntry(file.name, file.size, known[file.name]) for file in files)
    return DescribedAddress(folder, {file.name: file for file in files}, entries)


def _digests(folder: RemoteFolder, files: list[RemoteFile]) -> Iterator[tuple[RemoteFile, str]]:
    """The SHA-256 of each file, several of which are read at once."""
    if not files:
        return
    abandoned = Event()
    under_way: deque[tuple[RemoteFile, Future[str]]] = deque()
    with byte_progress(f"Reading {without_secrets(folder.uri)}", sum(file.size for file in files)) as advance:

        def on_bytes(count: int) -> None:
            if abandoned.is_set():
                raise CancelledError
            advance(count)

        try:
            for file in files:
                read = partial(sha256_of, folder.chunks(file), on_bytes)
                # Each in this context, where Prefect finds the task run that progress belongs to.
                under_way.append((file, in_background(partial(copy_context().run, read))))
                if len(under_way) == _READERS:
                    yield under_way[0][0], under_way[0][1].result()
                    under_way.popleft()
            for file, future in under_way:
                yield file, future.result()
        except BaseException as error:
            abandoned.set()
            if isinstance(error, Exception):
                wait([future for _, future in under_way])
            # Who was told to stop waits for no server.
            raise


def _place(folder: RemoteFolder, file: RemoteFile) -> bytes:
    # The same address means other files at another server.
    return f"{folder.endpoint or ''} {file.uri}".encode()
