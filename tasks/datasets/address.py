"""The files under an address as a data set: their digests, as they stream, and their way into the store."""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

from infra.addresses import without_secrets
from infra.background import OnBytes, side_by_side
from infra.compute.runner.manifest import FileEntry
from infra.digest_cache import DigestCache
from infra.errors import ArgumentError
from infra.object_store import ObjectStore
from infra.remote_folder import RemoteFile, RemoteFolder, RemoteSource, changed
from tasks.datasets.names import is_left_out, refuse, wrong_names
from tasks.progress import byte_progress

LOGGER = logging.getLogger(__name__)

_READERS = 4
"""Files that are read at once, each with a part of 5 MiB in memory."""


@dataclass(frozen=True)
class AddressFiles:
    """The files under an address, by name, with their digests."""

    folder: RemoteFolder
    files: dict[str, RemoteFile]
    entries: tuple[FileEntry, ...]

    def in_place(self) -> "AddressFiles":
        """The same for a manifest that names the files where they are."""
        return replace(self, entries=tuple(replace(one, uri=self.files[one.name].uri) for one in self.entries))

    def send(self, store: ObjectStore, keyed: Iterable[tuple[str, FileEntry]], on_bytes: OnBytes) -> None:
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

    def _stream(self, store: ObjectStore, wanted: list[tuple[str, RemoteFile, str]], on_bytes: OnBytes) -> None:
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


def describe_address(uri: str, cache: DigestCache) -> AddressFiles:
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
    if unread:
        reads = (partial(_digest, folder, file) for file in unread)
        with byte_progress(f"Reading {without_secrets(folder.uri)}", sum(file.size for file in unread)) as advance:
            for file, sha256 in side_by_side(reads, _READERS, advance):
                known[file.name] = sha256
                if file.version:
                    cache.put(_place(folder, file), file.version, sha256)
    entries = tuple(FileEntry(file.name, file.size, known[file.name]) for file in files)
    return AddressFiles(folder, {file.name: file for file in files}, entries)


def _digest(folder: RemoteFolder, file: RemoteFile, on_bytes: OnBytes) -> tuple[RemoteFile, str]:
    digest = hashlib.sha256()
    for chunk in folder.chunks(file):
        digest.update(chunk)
        on_bytes(len(chunk))
    return file, digest.hexdigest()


def _place(folder: RemoteFolder, file: RemoteFile) -> bytes:
    # The same address means other files at another server.
    return f"{folder.endpoint or ''} {file.uri}".encode()
