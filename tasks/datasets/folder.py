"""A folder of this machine as a data set: which of its files belong to it, and their digests."""

import hashlib
import logging
import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from infra.background import OnBytes
from infra.compute.runner.manifest import FileEntry
from infra.digest_cache import DigestCache, file_version
from infra.errors import ArgumentError, DatasetUnavailable
from infra.object_store import ObjectStore, SourceFile
from infra.remote_folder import changed
from tasks.datasets.names import is_left_out, printable, refuse, wrong_names
from tasks.progress import byte_progress

LOGGER = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_SECONDS_OF_DOUBT = 2.5
"""A clock's step on the coarsest file system (FAT), and some: what was changed later may change again unseen."""


@dataclass(frozen=True)
class Listing:
    """The files of a data set, as they lie in a folder, and what of the folder does not belong to it."""

    folder: Path
    names: tuple[str, ...]
    """Relative to the folder, parted by `/`, sorted."""
    left_out: tuple[str, ...]
    """Dotfiles and what file managers and notebooks leave; of a folder its own name alone, with a `/`."""


@dataclass(frozen=True)
class FolderFiles:
    """Files of a folder of this machine; as they are sent, their bytes are compared with their entries."""

    folder: Path
    entries: tuple[FileEntry, ...]

    def in_place(self) -> "FolderFiles":
        """The same for a manifest that names the files where they are."""
        entries = (replace(entry, uri=f"file://{self.folder / entry.name}") for entry in self.entries)
        return replace(self, entries=tuple(entries))

    def send(self, store: ObjectStore, keyed: Iterable[tuple[str, FileEntry]], on_bytes: OnBytes) -> None:
        """Bring files to their keys."""
        sources = ((key, SourceFile(self.folder / entry.name, entry.size, entry.sha256)) for key, entry in keyed)
        store.put_files(sources, on_bytes)


def list_folder(folder: Path) -> Listing:
    """The files under `folder`, at any depth; links to files inside it count as files.

    Raises `ArgumentError`, naming what it is, for a folder that is not there, cannot be read or has no file, for links
    that lead out of it, nowhere or to a folder, for what is neither file nor folder, and for names that are not the
    same everywhere; see `wrong_names`.
    """
    try:
        root = folder.expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise ArgumentError(f"{folder} cannot be used: {error}\nWrite the whole path.") from error
    if not root.is_dir():
        found = "is a file. Name the folder that it lies in" if root.exists() else "is not there"
        raise ArgumentError(f"The folder {root} {found}.\n--data takes a folder, an address or the name of a data set.")
    names: list[str] = []
    left_out: list[str] = []
    wrong: list[str] = []
    waiting = [root]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as scan:
                found_here = sorted(scan, key=lambda item: item.name)
        except OSError as error:
            wrong.append(f"{printable(here.relative_to(root).as_posix())}: cannot be read ({error.strerror})")
            continue
        for item in found_here:
            name = Path(item.path).relative_to(root).as_posix()
            if is_left_out(item.name):
                left_out.append(f"{printable(name)}/" if item.is_dir(follow_symlinks=False) else printable(name))
            elif item.is_dir(follow_symlinks=False):
                waiting.append(Path(item.path))
            elif reason := _no_file(root, item):
                wrong.append(f"{printable(name)}: {reason}")
            else:
                names.append(name)
    names.sort()
    refuse(f"The folder {root}", wrong + wrong_names(names))
    if not names:
        beside = f" but what is left out: {', '.join(sorted(left_out)[:5])}" if left_out else ""
        raise ArgumentError(f"The folder {root} has no file in it{beside}.\nName a folder with the data's files.")
    return Listing(root, tuple(names), tuple(sorted(left_out)))


def _no_file(root: Path, item: os.DirEntry[str]) -> str | None:
    """Why what is neither a folder nor left out is no file of a data set; None: it is one."""
    if item.is_symlink():
        try:
            target = Path(item.path).resolve(strict=True)
        except (OSError, RuntimeError):
            return f"is a link to {Path(item.path).readlink()}, where nothing is"
        if not target.is_relative_to(root):
            return f"is a link out of the folder, to {target}"
        if target.is_dir():
            return f"is a link to a folder, {target}"
    mode = item.stat().st_mode
    if not stat.S_ISREG(mode):
        return "is neither a file nor a folder"
    return None if os.access(item.path, os.R_OK) else "may not be read"


def describe_folder(folder: Path, cache: DigestCache) -> list[FileEntry]:
    """Name, size and SHA-256 of each file that `list_folder` finds, in a little memory however large they are.

    A file whose path, inode, size, and times of change of bytes and of inode are those that `cache` has a digest for
    is not read. Raises as `list_folder` does, and `DatasetUnavailable` if a file changes or goes while it is read.
    """
    listing = list_folder(folder)
    if listing.left_out:
        more = f" and {len(listing.left_out) - 5:,} more" if len(listing.left_out) > 5 else ""
        LOGGER.info("Left out of %s: %s%s", listing.folder, ", ".join(listing.left_out[:5]), more)
    known: dict[str, FileEntry] = {}
    unread: list[tuple[str, int]] = []
    for name in listing.names:
        path = listing.folder / name
        try:
            found = path.stat()
        except OSError:
            raise changed(str(path)) from None
        sha256 = cache.get(os.fsencode(path), file_version(found))
        if sha256:
            known[name] = FileEntry(name, found.st_size, sha256)
        else:
            unread.append((name, found.st_size))
    if unread:
        with byte_progress(f"Reading {listing.folder.name}", sum(size for _, size in unread)) as advance:
            for name, _ in unread:
                known[name] = _read(listing.folder / name, name, cache, advance)
    return [known[name] for name in listing.names]


def _read(path: Path, name: str, cache: DigestCache, advance: OnBytes) -> FileEntry:
    begun = time.time()
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                advance(len(chunk))
            after = path.stat()
    except FileNotFoundError:
        raise changed(str(path)) from None
    except OSError as error:
        raise DatasetUnavailable(f"{path} cannot be read: {error.strerror}.\nCorrect that, and run again.") from error
    if file_version(before) != file_version(after) or size != after.st_size:
        raise changed(str(path))
    # One that was changed just now could be changed again within the same step of the file system's clock.
    if max(after.st_mtime, after.st_ctime) < begun - _SECONDS_OF_DOUBT:
        cache.put(os.fsencode(path), file_version(after), digest.hexdigest())
    return FileEntry(name, size, digest.hexdigest())
