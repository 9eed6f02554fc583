"""A command and its terminal: the signals that end it, and streams that are closed.

A terminal sends its signals to all processes that were started in it. Whatever a command still needs while it ends is
therefore started in a session of its own, and ends with the command by the end of a pipe.
"""

import atexit
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
"""Ctrl-C, what `kill` sends, Ctrl-\\, and a terminal that was closed."""

STOPPED = "Stopped. Run the same command again."
WRONG_USAGE = 2
"""The exit status of a command that can do nothing as it was started."""

SECONDS_TO_END = 2.0
"""For threads and libraries to end, after `main` has."""

closed: set[str] = set()
"""Of stdin, stdout and stderr, those that this process was started without."""

_told: list["Stopped"] = []
_seconds_when_told: list[float] = []
_out_of_time: list[bool] = []
_at_end: list[Callable[[], object]] = []


class Stopped(KeyboardInterrupt):
    """This process was told to end. A KeyboardInterrupt, which libraries do not take for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class OutOfTime(Exception):
    """What `main` waits for takes too long. No TimeoutError, after which HTTP clients try again."""


def attach() -> None:
    """The first thing that a command does: until `run`, while modules are imported, a signal ends it on the spot."""
    for stream, flags, mode in (
        ("stdin", os.O_RDONLY, "r"),
        ("stdout", os.O_WRONLY, "w"),
        ("stderr", os.O_WRONLY, "w"),
    ):
        if getattr(sys, stream) is None:
            # Closed by who started us. The next file to be opened would get its number, and what is meant for the
            # stream: a database has been destroyed so.
            setattr(sys, stream, os.fdopen(os.open(os.devnull, flags), mode))
            closed.add(stream)
    _react(_end_at_once)
    try:
        os.getcwd(), os.stat("./.")  # noqa: PTH109, PTH116
    except OSError as error:
        # Prefect, which looks for a file there while it is imported, would show where it was.
        say(
            f"The current folder is gone, or may not be entered ({error.strerror}).\nChange to another and run again.\n"
        )
        sys.exit(WRONG_USAGE)


def run(main: Callable[[], int], said: str = STOPPED) -> NoReturn:
    """Exit with the status that `main` returns; told to end, say one sentence and exit with 128 + the signal's number.

    `main` is interrupted by a `Stopped`, and by one only: what it does then to leave things in order is not interrupted
    in its turn.
    """
    _react(_raise_stopped)
    signal.signal(signal.SIGPIPE, _stop_if_nobody_reads)
    stopped: Stopped | None = None
    try:
        status = _with_its_answer_written(main)
    except BaseException:
        if not _told:
            raise
        stopped = _told[0]
    _react(signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if stopped:
        status = stopped.status
        say(f"\n{said}\n")
    seconds = 0.0 if _out_of_time else SECONDS_TO_END
    Thread(target=_end_within, args=(seconds, status), daemon=True).start()
    sys.exit(status)


def _with_its_answer_written(main: Callable[[], int]) -> int:
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError as error:
        say(f"\nThe answer could not be written to stdout: {error.strerror}.\n")
        # The interpreter would try again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return status


def limit(seconds: float) -> None:
    """Interrupt `main` with `OutOfTime` after so many seconds, and every second from then on; 0: no more."""
    signal.signal(signal.SIGALRM, _raise_out_of_time)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1 if seconds else 0)


def limit_when_told(seconds: float) -> None:
    """From now on limit `main` to so many seconds after it was told to end, or after now; 0: as long as it takes."""
    _seconds_when_told[:] = [seconds] if seconds else []
    if _told:
        limit(seconds)


def at_end(action: Callable[[], object]) -> None:
    """Do this when the process ends, also where its way out takes too long and is cut short."""
    atexit.register(action)
    _at_end.append(action)


def interruptible() -> None:
    """Let signals interrupt `main` again, after a library has put a reaction of its own in place."""
    _react(_raise_stopped)


def was_told() -> bool:
    """True once `main` was told to end; what fails then, under whatever name, fails for that."""
    return bool(_told)


def _react(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    """Let `handler` react to the signals that end a command, but for those that it was started to ignore.

    They are so after `nohup`, and in the background of a shell without job control.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    # Not while one is on its way already: what is being handled has then come of it. One that was lost, in a destructor
    # or a callback, does not count.
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, Stopped):
            return
        error = error.__context__
    _told.append(Stopped(number))
    if _seconds_when_told:
        limit(_seconds_when_told[0])
    raise _told[-1]


def _raise_out_of_time(number: int, frame: FrameType | None) -> None:
    _out_of_time.append(True)
    raise OutOfTime("no answer in time")


def _stop_if_nobody_reads(number: int, frame: FrameType | None) -> None:
    """End as any program does whose output has lost its reader, `| head` for one; and say nothing more to it.

    The same signal comes of every other pipe and connection that broke, which who writes to it is told by an error. An
    answer on stdout comes when all is done: see `_with_its_answer_written`.
    """
    if _has_lost_its_reader(2):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in filter(_has_lost_its_reader, (1, 2)):
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
        _raise_stopped(number, frame)


def _has_lost_its_reader(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    lost = any(found & (select.POLLERR | select.POLLHUP) for _, found in poll.poll(0))
    return lost and stat.S_ISFIFO(os.fstat(descriptor).st_mode)


def _end_within(seconds: float, status: int) -> None:
    # The interpreter's way out waits for every thread, and one may be in the middle of a call that nobody needs.
    time.sleep(seconds)
    for action in _at_end:
        with suppress(Exception):
            action()
    os._exit(status)


def say(text: str) -> None:
    """Write to stderr, if anybody is there to read it."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _end_at_once(number: int, frame: FrameType | None) -> None:
    say(f"\n{STOPPED}\n")
    os._exit(128 + number)
