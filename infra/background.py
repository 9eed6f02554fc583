"""Calls in threads that nobody has to wait for: neither who is told to stop, nor the interpreter at its end."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextvars import copy_context
from functools import partial
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")
OnBytes = Callable[[int], None]
"""Is told, in any thread, how many bytes were just done; what must be done again is taken back by a negative number."""

NAME = "in the background"


def in_background(call: Callable[[], T]) -> Future[T]:
    """Begin `call`, which ends with this process at the latest. A pool's threads hold a process up until they end."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, name=NAME, daemon=True).start()
    return outcome


def side_by_side(calls: Iterable[Callable[[OnBytes], T]], at_once: int, on_bytes: OnBytes) -> Iterator[T]:
    """What each of `calls` returns, as they end; `at_once` of them are under way, each in the context of the caller.

    What one raises is raised here, when the others have ended: what they tell of their bytes raises `CancelledError` in
    them from then on. Who is told to stop meanwhile (an exception that is no `Exception`) waits for none of them.
    """
    abandoned = Event()
    under_way: set[Future[T]] = set()

    def told(count: int) -> None:
        if abandoned.is_set():
            raise CancelledError
        on_bytes(count)

    def ended(left: int) -> Iterator[T]:
        while len(under_way) > left:
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                under_way.remove(future)
                yield future.result()

    try:
        for call in calls:
            yield from ended(at_once - 1)
            # In this context Prefect finds the run that log lines and progress belong to.
            under_way.add(in_background(partial(copy_context().run, call, told)))
        yield from ended(0)
    except BaseException as error:
        abandoned.set()
        if isinstance(error, Exception):
            wait(under_way)
        raise
