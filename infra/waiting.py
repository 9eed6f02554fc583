"""Calls to services that take long are told of: a service that hangs says nothing itself."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, Thread

LOGGER = logging.getLogger(__name__)

SECONDS_BEFORE = 10.0
SECONDS_BETWEEN = 30.0


class Wait:
    """A call that is under way."""

    def __init__(self, service: str, attempt: str, why: Callable[[], str]) -> None:
        self._said = f"No answer from {service} for %.0f s, to %s; still waiting%s"
        self._attempt = attempt
        self._why = why
        self.goes_on()

    def goes_on(self) -> None:
        """Something has come of it just now."""
        self._since = time.monotonic()
        self._next = SECONDS_BEFORE

    def tell_if_slow(self) -> None:
        """Say so when the time for it has come."""
        passed = time.monotonic() - self._since
        if passed >= self._next:
            self._next = passed + SECONDS_BETWEEN
            reason = self._why()
            LOGGER.warning(self._said, passed, self._attempt, f": {reason}" if reason else "")


_waits: set[Wait] = set()
_lock = Lock()
_watchers: list[Thread] = []


@contextmanager
def told_when_slow(service: str, attempt: str, why: Callable[[], str] = str) -> Iterator[Wait]:
    """While the block runs, say after 10 s, and every 30 s from then on, that it waits for `service` to `attempt`.

    `why` is asked, from another thread, for the reason that can be seen; empty: none.
    """
    wait = Wait(service, attempt, why)
    with _lock:
        _waits.add(wait)
        if not _watchers:
            _watchers.append(Thread(target=_watch, name="slow calls", daemon=True))
            _watchers[0].start()
    try:
        yield wait
    finally:
        with _lock:
            _waits.discard(wait)


def _watch() -> None:
    while True:
        time.sleep(min(1.0, SECONDS_BEFORE))
        with _lock:
            waits = list(_waits)
        for wait in waits:
            wait.tell_if_slow()
