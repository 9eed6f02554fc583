"""What the program has started, directly or not, and how all of it is ended."""

import ctypes
import os
import signal
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

_servants: set[int] = set()


def adopt_orphans() -> None:
    """Become the parent of what the program leaves behind, even in a session of its own. Linux alone has that."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def spare(pid: int) -> None:
    """Let a process of the runner's own, and what it starts, outlive the program."""
    _servants.add(pid)


def end_what_was_left(wait_seconds: float = 0.3) -> list[str]:
    """End everything that this process has for descendants, but those that are spared; returns the names of them.

    What is about to end by itself, as helpers of multiprocessing are, has `wait_seconds` for it.
    """
    deadline = time.monotonic() + wait_seconds
    while (left := _left()) and time.monotonic() < deadline:
        time.sleep(0.02)
    names = sorted(left.values())
    # Again until none is left: one may have been starting another.
    deadline = time.monotonic() + 5
    while left and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
        left = _left()
    return names


def _left() -> dict[int, str]:
    """The living descendants by their ids, with their names; the dead ones that were left to us are buried."""
    children: dict[int, list[tuple[int, str, str]]] = defaultdict(list)
    if not _PROC.is_dir():
        return {}
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):
            # The name stands in parentheses, and may hold anything.
            pid_and_name, _, fields = (entry / "stat").read_text(errors="replace").rpartition(") ")
            words = fields.split()
            children[int(words[1])].append((int(entry.name), words[0], pid_and_name.partition("(")[2]))
    found: dict[int, str] = {}
    parents = [os.getpid()]
    while parents:
        parent = parents.pop()
        for pid, state, name in children[parent]:
            if pid in _servants:
                continue
            if state in "ZX":
                if parent == os.getpid():
                    _bury(pid)
                continue
            found[pid] = name
            parents.append(pid)
    return found


def _bury(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
