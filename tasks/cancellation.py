"""A flow run stops when Prefect says so, whoever started it, and what died without a word can be told from what lives.

A worker stops its runs itself. Nobody does for a run that a person started at a terminal, nor for one whose worker
was killed: so each run looks at its own state.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled

from infra.lock import hold
from infra.settings import Settings

LOGGER = logging.getLogger(__name__)

POLL_SECONDS = 5.0

UNREACHABLE = (httpx.HTTPError, PrefectException, OSError)
"""What a call to the API raises while the server is away."""

_told_to_stop = threading.Event()
_lives: dict[Path, AbstractContextManager[int]] = {}


def told_by_prefect(error: Exception) -> str:
    """One of `UNREACHABLE` in a line."""
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def state_of(flow_run_id: str) -> State[Any] | None:
    """The state of a flow run as Prefect has it. Raises one of `UNREACHABLE`; None: it knows no such run."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(flow_run_id)).state


def is_cancelled() -> bool:
    """True if Prefect says that the flow run of this process was cancelled, as far as it can be asked."""
    if PREFECT_API_URL.value() is None:
        return False  # A temporary server is this process's own: nobody else asks it for anything.
    with suppress(*UNREACHABLE):
        state = state_of(runtime.flow_run.id) if runtime.flow_run.id else None
        return state is not None and (state.is_cancelling() or state.is_cancelled())
    return False


def life_file(settings: Settings, flow_run_id: str) -> Path:
    """The file that the process of a flow run keeps locked; unlocked, it says that the process has died."""
    return settings.locks_folder / f"flow-run-{flow_run_id}.lock"


@contextmanager
def stop_when_cancelled(settings: Settings) -> Iterator[None]:
    """While the block runs, stop this process with SIGTERM once its flow run is cancelled or taken for dead."""
    flow_run_id = runtime.flow_run.id
    # A temporary server has no UI, and ends with us.
    if PREFECT_API_URL.value() is None or flow_run_id is None:
        yield
        return
    ended = threading.Event()
    # In this context, where Prefect finds the flow run that a line belongs to.
    watching = partial(copy_context().run, _watch, flow_run_id, ended)
    watch = threading.Thread(target=watching, name="cancellation", daemon=True)
    life = life_file(settings, flow_run_id)
    if life not in _lives:
        # Not let go at the end of the block: the engine has yet to tell Prefect how the run ended.
        _lives[life] = hold(life, on_wait=lambda _: None, leave_file=True)
        _lives[life].__enter__()
    watch.start()
    logging.getLogger("prefect.flow_runs").addFilter(_without_a_false_end)
    try:
        yield
    finally:
        ended.set()


def _without_a_false_end(record: logging.LogRecord) -> bool:
    # Prefect's engine leaves it to the worker to tell how a cancelled run ended, and says that it finished in the state
    # that it knew last.
    if record.getMessage() == "Finished in state Running()":
        record.msg, record.args = "Stopped before its end", ()
    return True


def _watch(flow_run_id: str, ended: threading.Event) -> None:
    seen = 0
    while not ended.wait(POLL_SECONDS):
        try:
            state = state_of(flow_run_id)
        except UNREACHABLE:
            continue
        over = state is not None and (state.is_cancelling() or state.is_final())
        seen = seen + 1 if over else 0
        # Seen thrice: who stops it otherwise (the worker, within a second or two) has not.
        if seen == 3 and state is not None:
            LOGGER.warning("Prefect says of this flow run: %s. It stops.", state.name)
            if state.is_cancelling():
                _told_to_stop.set()
            os.kill(os.getpid(), signal.SIGTERM)
            return


def cancelled_not_crashed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook: a run that stopped itself because it was cancelled is Cancelled, which Prefect's engine calls Crashed."""
    if _told_to_stop.is_set():
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(
                flow_run.id, Cancelled(message="Stopped itself when it was cancelled."), force=True
            )
