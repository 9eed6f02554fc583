"""A flow run stops when Prefect says so, whoever started it, and what died without a word can be told from what lives.

A worker stops its runs itself. Nobody does for a run that a person started at a terminal, nor for one whose worker
was killed: so each run looks at its own state.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect import Flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled

from infra.background import in_background
from infra.lock import hold
from infra.settings import Settings
from infra.terminal import Stopped
from infra.waiting import told_when_slow

T = TypeVar("T")

LOGGER = logging.getLogger(__name__)

POLL_SECONDS = 5.0
ANSWER_SECONDS = 20.0
"""As long as any request has; a server that has just started needs more than a moment."""

UNREACHABLE = (httpx.HTTPError, PrefectException, OSError)
"""What a call to the API raises while the server is away."""

stopped_itself = threading.Event()
"""Set once this process stops because its flow run was cancelled."""
_lives: dict[Path, AbstractContextManager[int]] = {}


def told_by_prefect(error: Exception) -> str:
    """One of `UNREACHABLE` in a line."""
    if isinstance(error, ObjectNotFound):
        return "its server knows no such run"
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def ask(attempt: str, call: Callable[[], T], seconds: float = ANSWER_SECONDS) -> T:
    """What `call` to Prefect's API returns, within so many seconds: else one of `UNREACHABLE`, a TimeoutError.

    Prefect's own client tries again for minutes at a server that hangs, and connecting has no limit of its own.
    """
    with told_when_slow("Prefect's server", attempt):
        # In this context, where Prefect keeps its settings, and the run.
        answer = in_background(partial(copy_context().run, call))
        done, _ = wait([answer], seconds)
        if not done:
            raise TimeoutError(f"no answer within {seconds:g} s")
        return answer.result()


def state_of(flow_run_id: str) -> State[Any] | None:
    """The state of a flow run as Prefect has it. Raises one of `UNREACHABLE`; None: it knows no such run."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(flow_run_id)).state


def was_cancelled(stop: BaseException) -> bool:
    """True if what told this process to stop was the cancelling of its flow run, as far as Prefect can be asked."""
    # A person's signal waits for no server. A temporary server is this process's own: nobody else asks it for anything.
    if isinstance(stop, Stopped) or PREFECT_API_URL.value() is None:
        return stopped_itself.is_set()
    with suppress(*UNREACHABLE):
        flow_run_id = runtime.flow_run.id
        return flow_run_id is not None and _is_cancelled(
            ask("tell whether it was cancelled", partial(state_of, flow_run_id))
        )
    return False


def _is_cancelled(state: State[Any] | None) -> bool:
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def life_file(settings: Settings, flow_run_id: str) -> Path:
    """The file that the process of a flow run keeps locked; unlocked, it says that the process has died."""
    return settings.locks_folder / f"flow-run-{flow_run_id}.lock"


@contextmanager
def stop_when_cancelled(settings: Settings) -> Iterator[None]:
    """While the block runs, stop this process with SIGTERM once its flow run is cancelled or taken for dead."""
    flow_run_id = runtime.flow_run.id
    logging.getLogger("prefect.flow_runs").addFilter(_without_a_false_end)
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
    try:
        yield
    finally:
        ended.set()


def _without_a_false_end(record: logging.LogRecord) -> bool:
    # Prefect's engine says that a run finished in the state that it knew last: of a cancelled one, of which the worker
    # tells how it ended, and where the server did not take the last state.
    return record.getMessage() != "Finished in state Running()"


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
            if _is_cancelled(state):
                stopped_itself.set()
            os.kill(os.getpid(), signal.SIGTERM)
            return


def cancelled_not_crashed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Hook: a run that stopped itself because it was cancelled is Cancelled, which Prefect's engine calls Crashed."""
    if stopped_itself.is_set():
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(
                flow_run.id, Cancelled(message="Stopped itself when it was cancelled."), force=True
            )
