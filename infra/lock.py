"""A lock between processes of this machine, which the kernel lets go when its holders have died."""

import fcntl
import os
import pwd
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.errors import SettingsError


@contextmanager
def hold(
    path: Path,
    on_wait: Callable[[str], None],
    poll_seconds: float = 0.2,
    wait: Callable[[float], None] = time.sleep,
    leave_file: bool = False,
) -> Iterator[int]:
    """Hold the lock at `path` and yield its file descriptor; wait as long as another process has it.

    `on_wait` is called once, with who holds it, before the wait; `wait(poll_seconds)` waits, and gives up if it raises.
    A child that inherits the descriptor holds the lock along with us: after our death it stays locked until the child
    has died as well. The file is gone after its last holder, unless `leave_file`: then, unlocked, it tells of a death.

    This and all below raise `SettingsError` if the file is another user's and may not be opened.
    """
    descriptor = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        waited = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, path):
                    break
                # Its last holder removed it meanwhile: the lock is another file now.
                removed, descriptor = descriptor, _open(path, os.O_RDWR | os.O_CREAT)
                os.close(removed)
            except BlockingIOError:
                if not waited:
                    on_wait(os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process")
                    waited = True
                # Polled, for a blocked flock() in the main thread would hold up the handling of SIGTERM.
                wait(poll_seconds)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
        if not leave_file:
            _remove_unless_held(path)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove_unless_held(path: Path) -> None:
    # Taken once more: a child of ours may have it still, or who has waited may have it already.
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                path.unlink()
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def is_held(path: Path) -> bool:
    """True if some living process of this machine holds the lock at `path`."""
    try:
        descriptor = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def owner(path: Path) -> str:
    """The name of the user whom a file or folder belongs to."""
    number = path.stat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"the user with the number {number}"


def _open(path: Path, flags: int) -> int:
    try:
        if flags & os.O_CREAT:
            path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags | os.O_CLOEXEC, 0o644)
    except PermissionError as error:
        known = next(one for one in (path, *path.parents) if os.access(one.parent, os.X_OK) and one.exists())
        raise SettingsError(
            f"The lock {path} cannot be opened: {known} belongs to {owner(known)}.\n"
            "A PIPELINE_HOME is one person's: set it to a folder of your own. What several share has an address:\n"
            "OBJECT_STORE_URI, MLFLOW_TRACKING_URI."
        ) from error
