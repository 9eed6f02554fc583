"""Folders for work in progress, each locked by the process that made it, so that those of dead ones can be told.

The kernel lets the lock go when the process ends. A pid would not tell: two containers that share PIPELINE_HOME each
count their processes from 1.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.terminal import at_end

_locks: dict[Path, int] = {}
_made_by = os.getpid()


def make_folder(scratch: Path) -> Path:
    """A new folder under `scratch`, until `remove_folder` or our end; if we are killed, who asks next removes it."""
    scratch.mkdir(parents=True, exist_ok=True)
    remove_dead_folders(scratch)
    while True:
        folder = Path(tempfile.mkdtemp(prefix="job-", dir=scratch))
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # It was taken for a dead one's before it was locked.
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.exists():
            _locks[folder] = descriptor
            return folder
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder that this process made; never raises."""
    shutil.rmtree(folder, ignore_errors=True)
    if (descriptor := _locks.pop(folder, None)) is not None:
        os.close(descriptor)


def _remove_all() -> None:
    """Remove what a way out that was cut short has left: who removes a folder may be interrupted in that."""
    if os.getpid() == _made_by:  # And not a fork of ours, which knows of the same folders.
        for folder in list(_locks):
            remove_folder(folder)


at_end(_remove_all)


@contextmanager
def temporary_folder(scratch: Path) -> Iterator[Path]:
    """A new folder under `scratch`, removed when the block ends."""
    folder = make_folder(scratch)
    try:
        yield folder
    finally:
        remove_folder(folder)


def dead_folders(scratch: Path) -> list[Path]:
    """The folders under `scratch` whose process was killed before it could remove them."""
    return [folder for folder in scratch.glob("job-*") if _unless_alive(folder, remove=False)]


def remove_dead_folders(scratch: Path) -> None:
    """Remove them; several processes may do so at once."""
    for folder in scratch.glob("job-*"):
        _unless_alive(folder, remove=True)


def _unless_alive(folder: Path, remove: bool) -> bool:
    """True if nobody has the folder's lock; with `remove`, it is removed under it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if remove:
            shutil.rmtree(folder, ignore_errors=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
