"""Patience with a store or a server that is away for a while."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import TypeVar

from .exits import RunnerError
from .output import say

Result = TypeVar("Result")

PATIENCE_SECONDS = 120.0
"""How long an outage may last: a server's restart does, a wrong address is found in the end."""
LONGEST_WAIT_SECONDS = 8.0
SECONDS_BEFORE_TOLD = 10.0


def with_patience(action: Callable[[], Result], purpose: str, patience_seconds: float = PATIENCE_SECONDS) -> Result:
    """Do `action`, again after 0.5, 1, 2, 4, 8, 8, ... seconds while it fails, until `patience_seconds` have passed.

    What a repetition cannot mend fails at once. Raises `RunnerError` that names the `purpose` ("save ...").
    `action` may be done twice: an answer that is lost on its way looks like a failure.
    """
    deadline = time.monotonic() + patience_seconds
    wait = 0.5
    while True:
        try:
            with told_when_slow(purpose):
                return action()
        except RunnerError:
            raise
        except Exception as error:
            reason = _refusal(error) or f"{type(error).__name__}: {_first_lines(error)}"
            if _is_final(error) or time.monotonic() + wait > deadline:
                raise RunnerError(f"Cannot {purpose}:\n{reason}") from error
            say(f"cannot {purpose} ({reason}); again in {wait:g} s")
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


@contextmanager
def told_when_slow(purpose: str) -> Iterator[None]:
    """Say so if the block takes 10 s: a service that hangs says nothing itself."""

    def tell() -> None:
        say(f"no answer for {SECONDS_BEFORE_TOLD:g} s, to {purpose}; still waiting")

    timer = Timer(SECONDS_BEFORE_TOLD, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# A folder or a bucket that is not there does not appear by itself.
_FINAL = (
    TypeError,
    ValueError,
    ImportError,
    PermissionError,
    FileNotFoundError,
    NotADirectoryError,
)


# What MLflow reports as if it could pass, by a pattern of what it says.
_REFUSALS = {
    "out-of-date database schema": "MLflow's database was made by another version of MLflow; use that, or upgrade it",
    r"table \w+ already exists": "MLflow's database was made by another version of MLflow; use that, or upgrade it",
    "readonly database": "MLflow's database: it may only be read; correct the rights of the file and its folder",
    "unable to open database file": "MLflow's database: there is no such file, or it may not be written to",
    "file is not a database": "MLflow's database: the file is damaged, or no database; put a copy there",
    "disk image is malformed": "MLflow's database: the file is damaged, or no database; put a copy there",
    "password authentication failed": "MLflow's database refuses this user; correct MLFLOW_TRACKING_URI",
}


def _refusal(error: Exception) -> str | None:
    # Without the statement and its values, which may hold any text.
    said = str(error).partition("\n[SQL")[0]
    return next((f"{told}.\nFound: {said}" for refusal, told in _REFUSALS.items() if re.search(refusal, said)), None)


def _is_final(error: Exception) -> bool:
    if isinstance(error, _FINAL) or _refusal(error):
        return True
    # MLflow's errors carry the status of its HTTP API, whatever the store: 4xx is the request's own fault.
    status = getattr(error, "get_http_status_code", None)
    return status is not None and 400 <= status() < 500 and status() != 429


def _first_lines(error: Exception) -> str:
    # MLflow and its like quote the address that they asked.
    return without_logins("\n".join(str(error).splitlines()[:3]))


def without_logins(text: str) -> str:
    """`text` with `***` in place of what stands for a login in the addresses in it."""
    return re.sub(r"(?<=://)[^\s/]+@", "***@", text)
