"""Standard output: our own lines and the program's, written by a thread of its own, so that nobody waits for a reader.

Whoever reads us may be slow, by a line of a log at a time; a program that says much trains on meanwhile.

A job's log is the one channel that every compute has, so what the flow is to know goes through it too: at the end of
a line, behind a mark that nothing which a program prints can hold.
"""

import json
import sys
from collections import deque
from threading import Condition, Thread
from typing import Any

from .exits import LAST_WORDS

LINE_LIMIT = 10_000
"""Characters of a line; what is beyond is left out."""

_KEPT_BYTES = 64_000_000
"""What may wait for a reader; beyond it, the program waits too."""

EVENT = "\x1f"
"""Behind it stands, at the end of a line, what the line tells the flow, as a JSON object: `phase`, the one that begins;
`took`, seconds by phase; `epoch`, the number of one that is over, and `epochs`, how many there will be, or null;
`points`, step and value of each new one of the objective; `unseen`, that a person who reads all lines has no need of
this one."""

_PLAIN = {ord("\n"): " "} | dict.fromkeys(map(ord, f"\x1d{LAST_WORDS}{EVENT}"))
"""What makes a text a line without meaning: the first of these marks begins a node's own lines."""


class _Output:
    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._writing = self._gone = self._over = False
        self._changed = Condition()
        self._thread: Thread | None = None

    def add(self, text: str, last: bool = False) -> None:
        encoded = text.encode(errors="replace") + b"\n"
        with self._changed:
            if self._over:
                return
            self._over = last
            if self._thread is None:
                self._thread = Thread(target=self._write, name="output", daemon=True)
                self._thread.start()
            self._changed.wait_for(lambda: self._bytes < _KEPT_BYTES or self._gone)
            self._lines.append(encoded)
            self._bytes += len(encoded)
            self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._gone or not (self._lines or self._writing))

    def _write(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._lines))
                lines, self._bytes = b"".join(self._lines), 0
                self._lines.clear()
                self._writing = True
            try:
                sys.stdout.buffer.write(lines)
                sys.stdout.buffer.flush()
            except OSError:  # Nobody reads any more; whoever started us will end us.
                with self._changed:
                    self._gone = True


_OUTPUT = _Output()


def telling(line: str, **event: Any) -> str:
    """A line that tells an event; only its end can."""
    return line.translate(_PLAIN) + (EVENT + json.dumps(event) if event else "")


def say(line: str, **event: Any) -> None:
    """Write a line, and with it what it tells the flow; one of the program's tells nothing."""
    _OUTPUT.add(telling(line, **event))


def say_last(words: str) -> None:
    """Write the last words; what threads say after them is left out."""
    _OUTPUT.add("\n".join([LAST_WORDS, *map(telling, words.splitlines())]), last=True)


def wait_until_written() -> None:
    """Return when every line is written, or nobody reads them."""
    _OUTPUT.wait()


def shown(line: bytes) -> str:
    """A line of the program's as it is passed on: what a terminal would show in the end, cut."""
    # Progress bars write a line over itself; only the last state of it says anything.
    text = line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
    return text if len(text) <= LINE_LIMIT else text[:LINE_LIMIT]


class Lines:
    """Parts a stream of bytes into lines, of which it keeps no more than is shown."""

    _LIMIT = 4 * LINE_LIMIT  # Bytes: a character of UTF-8 has four at most.

    def __init__(self) -> None:
        self._rest = b""

    def add(self, received: bytes) -> list[str]:
        """The lines that end in what was `received`, as they are passed on."""
        *ended, rest = (self._rest + received).split(b"\n")
        if len(rest) > self._LIMIT:
            _, over, last = rest.rpartition(b"\r")
            rest = last if over and len(last) < self._LIMIT else rest[: self._LIMIT]
        self._rest = rest
        return [shown(line) for line in ended]

    def last(self) -> list[str]:
        """The line that no end of line ended, if there is one."""
        rest, self._rest = self._rest, b""
        return [shown(rest)] if rest else []
