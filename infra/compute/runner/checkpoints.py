"""Snapshots of the program's checkpoint folder in the store, so that a training that was ended continues.

    <uri>/<number>/<relative path>...
    <uri>/<number>/.runner.json        which epochs of which fit the folder knows of
    <uri>/<number>/manifest.json       size and SHA-256 of each file; written last

A snapshot without an intact manifest and files of that very content does not exist. The last two are kept, so that
damage to the newest one costs an epoch and not the training.
"""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from threading import Condition, Thread
from typing import Any

from .manifest import MANIFEST, BadManifest, FileEntry, bytes_entry, file_entry, manifest_bytes, parse_manifest
from .output import say
from .patience import with_patience
from .storage import open_store

KEPT = 2
QUIET_SECONDS = 1.0
LARGE_BYTES = 200_000_000
"""Of a folder of this size no copy is made while one waits for its turn: to copy it would stop the training."""
_HISTORY = ".keras-fit/history.json"
"""What the launcher notes there of fits, even of those whose weights it cannot keep."""
_STATE = ".runner.json"
_FICLONE = 0x40049409  # linux/fs.h

Signature = dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class _Snapshot:
    folder: Path
    state: dict[str, Any]


class Checkpoints:
    """Of one training: from the program's `folder`, by way of copies in `scratch`, to the store."""

    def __init__(
        self, uri: str, folder: Path, scratch: Path, confirm: Callable[[], None], quiet_seconds: float = QUIET_SECONDS
    ) -> None:
        """`confirm` is called before each writing to the store; it raises what forbids it.

        After so many quiet seconds what the program has written to the folder is taken for whole.
        """
        self._filesystem, self._root = open_store(uri)
        self._uri, self._folder, self._scratch, self._confirm = uri, folder, scratch, confirm
        self._quiet_seconds = quiet_seconds
        self._taken: Signature = {}
        self._copies = 0
        self._number = 0
        self._waiting: _Snapshot | None = None
        self._uploading = self._stopped = False
        self._changed = Condition()

    def restore(self) -> dict[str, Any] | None:
        """Bring the newest intact snapshot into the folder; the state that was taken with it, or None without one."""
        self._folder.mkdir(parents=True, exist_ok=True)
        numbers = with_patience(self._numbers, f"list the checkpoints in {self._uri}")
        self._number = max(numbers, default=0)
        for number in sorted(numbers, reverse=True):
            place = self._scratch / "restored"
            shutil.rmtree(place, ignore_errors=True)
            if not with_patience(lambda n=number, p=place: self._bring(n, p), f"read {self._uri}/{number}"):  # type: ignore[misc]
                say(f"checkpoint {number} in {self._uri} is damaged; taking the one before")
                continue
            state: dict[str, Any] = json.loads((place / _STATE).read_text())
            (place / _STATE).unlink()
            shutil.copytree(place, self._folder, dirs_exist_ok=True)
            shutil.rmtree(place)
            self._taken = self._signature()
            return state
        return None

    def _numbers(self) -> list[int]:
        try:
            paths = self._filesystem.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        names = [path.rstrip("/").rpartition("/")[2] for path in paths]
        return [int(name) for name in names if name.isdecimal()]

    def _bring(self, number: int, place: Path) -> bool:
        """Copy a snapshot to `place`; False if it is not whole."""
        root = f"{self._root}/{number}"
        try:
            entries = parse_manifest(self._filesystem.cat_file(f"{root}/{MANIFEST}"))
            for entry in entries:
                target = place / entry.name
                target.parent.mkdir(parents=True, exist_ok=True)
                self._filesystem.get_file(f"{root}/{entry.name}", str(target))
                if file_entry(target, entry.name) != entry:
                    return False
        except (FileNotFoundError, BadManifest):
            return False
        return _STATE in {entry.name for entry in entries}

    def start(
        self,
        state: Callable[[], dict[str, Any]],
        taken: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Begin to watch the folder and to upload; `state` is asked for what to keep with a snapshot.

        `taken` is called when there is a snapshot, and `failed` with what keeps one from being uploaded, both maybe in
        another thread.
        """
        self._state, self._told = state, taken
        for work in (self._watch, self._upload):
            Thread(target=self._guarded, args=[work, failed], daemon=True).start()

    @staticmethod
    def _guarded(work: Callable[[], None], failed: Callable[[BaseException], None]) -> None:
        try:
            work()
        except BaseException as error:
            failed(error)

    def take(self) -> bool:
        """Take a snapshot of the folder, which nobody changes meanwhile; True if there is one that waits for its turn.

        A snapshot whose turn has not come by the next one is left out: a slow store does not stop the training.
        """
        with self._changed:
            now = self._signature()
            if self._waiting and sum(size for size, *_ in now.values()) > LARGE_BYTES:
                return False
            return self._take(now, self._state())

    def _take(self, before: Signature, state: dict[str, Any]) -> bool:
        if before == self._taken:
            return False
        self._copies += 1
        copy = self._scratch / str(self._copies)
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(parents=True)
        try:
            for name in before:
                target = copy / name
                target.parent.mkdir(parents=True, exist_ok=True)
                _copy(self._folder / name, target)
        except FileNotFoundError:
            pass  # It changed, as is seen now.
        if self._signature() != before:
            shutil.rmtree(copy)
            return False
        self._taken = before
        if self._waiting:
            shutil.rmtree(self._waiting.folder)
        self._waiting = _Snapshot(copy, state)
        self._changed.notify_all()
        self._told()
        return True

    def _signature(self) -> Signature:
        found = {}
        for path in self._folder.rglob("*"):
            with suppress(FileNotFoundError):
                if path.is_file():
                    facts = path.stat()
                    name = path.relative_to(self._folder).as_posix()
                    found[name] = (facts.st_size, facts.st_mtime_ns, facts.st_ino)
        return found

    def _watch(self) -> None:
        """Take a snapshot whenever the folder has changed and then been quiet."""
        seen, since = self._taken, time.monotonic()
        # A folder that is whole at every moment costs a look, and the epochs that are over by then.
        shortest = 0.2 if self._quiet_seconds else 0.05
        pause = shortest
        while not self._stopped:
            time.sleep(pause)
            started = time.monotonic()
            now = self._signature()
            pause = max(shortest, 20 * (time.monotonic() - started))
            if now != seen:
                seen, since = now, time.monotonic()
            if now != self._taken and time.monotonic() - since >= self._quiet_seconds:
                with self._changed:
                    if not self._stopped:
                        self._take(now, self._state())

    @property
    def holds_more_than_history(self) -> bool:
        """True if the last snapshot has anything to continue from."""
        return any(not name.startswith(_HISTORY) for name in self._taken)

    def _upload(self) -> None:
        while True:
            with self._changed:
                self._uploading = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting is not None)
                snapshot, self._waiting = self._waiting, None
                self._uploading = True
            assert snapshot is not None
            self._number += 1
            with_patience(lambda s=snapshot: self._store(s), f"save checkpoint {self._number} in {self._uri}")  # type: ignore[misc]
            shutil.rmtree(snapshot.folder)

    def _store(self, snapshot: _Snapshot) -> None:
        root = f"{self._root}/{self._number}"
        state = json.dumps(snapshot.state).encode()
        entries: list[FileEntry] = [bytes_entry(_STATE, state)]
        self._confirm()
        self._filesystem.makedirs(root, exist_ok=True)
        self._filesystem.pipe_file(f"{root}/{_STATE}", state)
        for path in sorted(path for path in snapshot.folder.rglob("*") if path.is_file()):
            entry = file_entry(path, path.relative_to(snapshot.folder).as_posix())
            self._confirm()
            self._filesystem.makedirs(f"{root}/{entry.name}".rpartition("/")[0], exist_ok=True)
            self._filesystem.put_file(str(path), f"{root}/{entry.name}")
            entries.append(entry)
        self._confirm()
        self._filesystem.pipe_file(f"{root}/{MANIFEST}", manifest_bytes(entries))
        for number in self._numbers():
            if number <= self._number - KEPT:
                self._filesystem.rm(f"{self._root}/{number}", recursive=True)

    def finish(self, failure: Callable[[], BaseException | None], final: bool) -> None:
        """Upload what waits, and with `final` a last snapshot; raises `failure()` if that is why it cannot be done."""
        with self._changed:
            self._stopped = True
            if final:
                self._take(self._signature(), self._state())
            while failure() is None and (self._waiting or self._uploading):
                self._changed.wait(0.2)  # A failure wakes nobody.
        if error := failure():
            raise error


def _copy(source: Path, target: Path) -> None:
    """Copy a file, by reference where the file system can: what is then written to one is not in the other."""
    with source.open("rb") as read, target.open("wb") as written:
        with suppress(OSError):
            ioctl(written.fileno(), _FICLONE, read.fileno())
            return
        shutil.copyfileobj(read, written, 4_000_000)
