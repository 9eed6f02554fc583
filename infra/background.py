"""Calls in threads that nobody has to wait for: neither who is told to stop, nor the interpreter at its end."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

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
