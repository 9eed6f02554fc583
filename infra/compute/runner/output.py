"""Standard output: our own lines and the program's, written by a thread of its own, so that nobody waits for a reader.

Whoever reads us may be slow, by a line of a log at a time; a program that says much trains on meanwhile.
"""

import sys
from collections import deque
from threading import Condition, Thread

LINE_LIMIT = 10_000
"""Characters of a line; what is beyond is left out."""

_KEPT_BYTES = 64_000_000
"""What may wait for a reader; beyond it, the program waits too."""

_MARKS = dict.fromkeys(map(ord, "\x1d\x1e"))
"""With these the runner's last words and a node's own lines begin. A program's lines must not, so they lose them."""


class _Output:
    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._writing = self._gone = False
        self._changed = Condition()
        self._thread: Thread | None = None

    def add(self, line: str) -> None:
        encoded = line.encode(errors="replace") + b"\n"
        with self._changed:
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


def say(line: str) -> None:
    """Write a line of the runner's own."""
    _OUTPUT.add(line)


def wait_until_written() -> None:
    """Return when every line is written, or nobody reads them."""
    _OUTPUT.wait()


def shown(line: bytes) -> str:
    """A line of the program's as it is passed on: what a terminal would show in the end, without our marks, cut."""
    # Progress bars write a line over itself; only the last state of it says anything.
    text = line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace").translate(_MARKS)
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
