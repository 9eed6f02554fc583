"""Patience with a store or a server that is away for a while."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import TypeVar

from .errors import ProgramError

Result = TypeVar("Result")

PATIENCE_SECONDS = 120.0
"""How long an outage may last: a server's restart does, a wrong address is found in the end."""
LONGEST_WAIT_SECONDS = 8.0
SECONDS_BEFORE_TOLD = 10.0


def with_patience(action: Callable[[], Result], purpose: str, patience_seconds: float = PATIENCE_SECONDS) -> Result:
    """Do `action`, again after 0.5, 1, 2, 4, 8, 8, ... seconds while it fails, until `patience_seconds` have passed.

    What a repetition cannot mend fails at once. Raises `ProgramError` that names the `purpose` ("save ...").
    `action` may be done twice: an answer that is lost on its way looks like a failure.
    """
    deadline = time.monotonic() + patience_seconds
    wait = 0.5
    while True:
        try:
            with told_when_slow(purpose):
                return action()
        except Exception as error:
            reason = f"{type(error).__name__}: {_first_lines(error)}"
            if _is_final(error) or time.monotonic() + wait > deadline:
                raise ProgramError(f"Cannot {purpose}:\n{reason}") from error
            sys.stderr.write(f"cannot {purpose} ({reason}); again in {wait:g} s\n")
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


@contextmanager
def told_when_slow(purpose: str) -> Iterator[None]:
    """Say so if the block takes 10 s: a service that hangs says nothing itself."""

    def tell() -> None:
        sys.stderr.write(f"no answer for {SECONDS_BEFORE_TOLD:g} s, to {purpose}; still waiting\n")

    timer = Timer(SECONDS_BEFORE_TOLD, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# A folder or a bucket that is not there does not appear by itself.
_FINAL = (
    ProgramError,
    TypeError,
    ValueError,
    ImportError,
    PermissionError,
    FileNotFoundError,
    NotADirectoryError,
)


def _is_final(error: Exception) -> bool:
    if isinstance(error, _FINAL):
        return True
    # MLflow's errors carry the status of its HTTP API, whatever the store: 4xx is the request's own fault.
    status = getattr(error, "get_http_status_code", None)
    return status is not None and 400 <= status() < 500 and status() != 429


def _first_lines(error: Exception) -> str:
    # MLflow and its like quote the address that they asked, with the login that may be in it.
    return re.sub(r"(?<=://)[^\s/]+@", "***@", "\n".join(str(error).splitlines()[:3]))
