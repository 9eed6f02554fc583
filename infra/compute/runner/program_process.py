"""The program's process: the launcher, and in it the program; its output, its events, its end."""

import json
import os
import re
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

from .exits import RunnerError
from .output import Lines, say
from .process_tree import end_what_was_left

LAUNCHER = Path(__file__).parent / "launcher"

SECONDS_TO_STOP = 4.0
"""Between SIGTERM and SIGKILL; whoever stops us waits for five."""

_LINES_REMEMBERED = 50
_ERROR_LINE = re.compile(r"(\w+\.)*\w*(Error|Exception|Exit|Interrupt|Warning)\b")
"""How the last line of a traceback begins."""


class ProgramProcess:
    """Starts at once and imports ahead; the program begins when it is given its order."""

    def __init__(
        self, python: Path, folder: Path, variables: Mapping[str, str], import_ahead: Sequence[str], inbox: SimpleQueue
    ) -> None:
        """Into `inbox` come its events, as `dict`, and in the end its exit status, as `int` (see `Popen.returncode`).

        All its output has been passed on by then, and nothing that it started runs any more.
        """
        self._inbox = inbox
        self._latest: deque[str] = deque(maxlen=_LINES_REMEMBERED)
        self._ready, self._ended = Event(), Event()
        self._begins = self._all_read = False
        self.lines_passed = 0
        """How many lines the program has written, and we passed on."""
        self._reading, self._stopping = Lock(), Lock()
        order_read, self._order = os.pipe()
        events, events_write = os.pipe()
        told = {"import_ahead": list(import_ahead), "order_fd": order_read, "events_fd": events_write}
        # A session of its own: what is sent to our group, Ctrl-C too, reaches us alone, and the order is ours.
        self._process = subprocess.Popen(
            [python, LAUNCHER, json.dumps(told)],
            cwd=folder,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(order_read, events_write),
            start_new_session=True,
        )
        os.close(order_read)
        os.close(events_write)
        readers = [Thread(target=self._pass_on, daemon=True), Thread(target=self._read, args=[events], daemon=True)]
        for reader in readers:
            reader.start()
        Thread(target=self._wait, args=[readers], daemon=True).start()

    def begin(self, order: Mapping[str, Any]) -> None:
        """Let the program begin. What libraries said when they were imported ahead of it is not passed on."""
        self._ready.wait()
        while not self._begins:
            with self._reading:
                # All that was said before it was ready is in the pipe, or has been read.
                self._begins = self._all_read or not self._readable(0)
            time.sleep(0.001)
        self._tell(order)

    def answer_taken(self) -> None:
        """Let it go on after a checkpoint."""
        self._tell({"taken": True})

    def _tell(self, message: Mapping[str, Any]) -> None:
        # What has ended needs no answer; its exit status says the rest.
        with suppress(BrokenPipeError), os.fdopen(os.dup(self._order), "wb") as pipe:
            pipe.write(json.dumps(message).encode() + b"\n")

    def stop(self, wait_seconds: float = SECONDS_TO_STOP) -> None:
        """End it and all that it started, politely first; returns when nothing of it runs any more."""
        with self._stopping:
            if self._ended.is_set():
                return
            if wait_seconds:
                self._signal(signal.SIGTERM)
                deadline = time.monotonic() + wait_seconds
                while self._process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.02)
            self._signal(signal.SIGKILL)
            end_what_was_left(wait_seconds=0)
            self._ended.wait(1)

    def _signal(self, number: signal.Signals) -> None:
        # PermissionError: what macOS says of a group that has only zombies left.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _pass_on(self) -> None:
        assert self._process.stdout is not None
        lines = Lines()
        with self._process.stdout as pipe:
            while self._readable(None):
                with self._reading:
                    received = os.read(pipe.fileno(), 65_536)
                    for line in lines.add(received):
                        self._show(line)
                    self._all_read = not received
                if not received:
                    break
        for line in lines.last():
            self._show(line)

    def _readable(self, timeout: float | None) -> bool:
        """Whether there is something in its output, or its end."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], timeout)[0])

    def _show(self, line: str) -> None:
        if line.strip():
            self._latest.append(line)
        if self._begins:
            self.lines_passed += 1
            say(line)

    def _read(self, events: int) -> None:
        with os.fdopen(events, "rb") as pipe:
            for line in pipe:
                with suppress(ValueError):  # The program can find this pipe, and write into it.
                    event = json.loads(line)
                    if not isinstance(event, dict):
                        continue
                    if event.get("event") == "ready":
                        self._ready.set()
                    self._inbox.put(event)
        self._ready.set()  # Or it never will be.

    def _wait(self, readers: list[Thread]) -> None:
        status = self._process.wait()
        names = end_what_was_left()
        # Where no orphans can be adopted, the group is what can be found of them.
        self._signal(signal.SIGKILL)
        if names:
            say(f"ended what the program had started and left behind: {', '.join(names)}")
        for reader in readers:
            reader.join(10)
        self._ended.set()
        self._inbox.put(status)

    def check_end(self, status: int, name: str) -> None:
        """Raise `RunnerError` unless it ended with 0; the text says how it ended, and its last error line."""
        if status == 0:
            return
        if status < 0:
            how = f"was ended by {_signal_name(-status)}"
            hint = "\nThe kernel does that when memory runs out: see the system's log." if -status == 9 else ""
        else:
            how, hint = f"ended with exit status {status}", ""
        last = next((line for line in reversed(self._latest) if _ERROR_LINE.match(line)), None)
        last = last or (self._latest[-1] if self._latest else None)
        said = f"its last error line: {last.strip()}" if last else "it said nothing"
        raise RunnerError(f"{name} {how}; {said}{hint}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
