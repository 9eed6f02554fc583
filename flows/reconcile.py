"""Close, in Prefect and in MLflow, what died without a word on this machine. A part of the stack.

    python -m flows.reconcile

Every flow run and every training of this machine holds a lock for as long as its process lives, and the kernel lets
go of it. So a dead one is found within a minute, and a slow one is never taken for dead. Trainings of
machines that share the store are told by their lease there.
"""

import infra.process_environment
import infra.terminal

if __name__ == "__main__":
    infra.terminal.attach()


import logging
import time
from contextlib import suppress
from uuid import UUID

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from infra.errors import PipelineError
from infra.experiment_tracker import ExperimentTracker
from infra.lease import Claims
from infra.lock import is_held
from infra.services import Services
from infra.settings import Settings, load_settings
from tasks.cancellation import UNREACHABLE, life_file, state_of
from tasks.training_runs import close_orphans

LOGGER = logging.getLogger("reconcile")

SECONDS_BETWEEN = 15.0
DIED = "Its process died without a word"


def look(services: Services, suspects: set[str], claims: Claims) -> set[str]:
    """Close what was dead at the last look already, as `suspects` says, and return what is dead now.

    The second look leaves a worker the time to say more about the end of its run. Raises `PipelineError` or one of
    `UNREACHABLE`.
    """
    dead, tracker = set(), services.tracker
    for path in services.settings.locks_folder.glob(life_file(services.settings, "*").name):
        if is_held(path):
            continue
        flow_run_id = path.stem.removeprefix("flow-run-")
        dead.add(flow_run_id)
        if flow_run_id in suspects:
            _end_flow_run(flow_run_id)
            path.unlink(missing_ok=True)
    for experiment in tracker.experiments():
        for run in close_orphans(services, experiment, dry_run=True, claims=claims):
            dead.add(run.run_id)
            if run.run_id in suspects:
                cause = _cause(run.tags.get("prefect.flow_run_id", "none"))
                tracker.end_run(run.run_id, "KILLED", cause)
                LOGGER.info("Closed run %s as KILLED: %s", run.run_id, cause)
    return dead - suspects


def _end_flow_run(flow_run_id: str) -> None:
    try:
        state = state_of(flow_run_id)
    except ObjectNotFound:
        return
    if state is None or state.is_final() or state.is_scheduled() or state.is_pending():
        return
    end: State[None] = (
        Cancelled(message=f"{DIED} while it was cancelled.") if state.is_cancelling() else Crashed(message=f"{DIED}.")
    )
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(flow_run_id), end, force=True)
    LOGGER.info("Flow run %s is %s: %s", flow_run_id, end.name, end.message)


def _cause(flow_run_id: str) -> str:
    """Why the training of this flow run ended, as far as Prefect knows."""
    try:
        state = state_of(flow_run_id)
    except (ObjectNotFound, ValueError):
        state = None
    if state is not None and state.is_cancelled():
        return "cancelled in Prefect"
    said = f"; Prefect says {state.name}: {state.message}" if state is not None and state.is_final() else ""
    return f"its process died without a word{said}"[:500]


def end_flow_runs(settings: Settings) -> None:
    """Tell the flow runs of workers to end: one whose worker was killed has nobody else who would.

    A run that a person started at a terminal is that person's.
    """
    for path in settings.locks_folder.glob(life_file(settings, "*").name):
        if is_held(path):
            with suppress(psutil.Error, ValueError):
                process = psutil.Process(int(path.read_text().split()[-1]))
                if "prefect.engine" in process.cmdline():
                    process.terminate()


def main() -> int:
    """Look again and again, until told to end; the stack ends then, and the flow runs of its workers with it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = load_settings()
    services = Services(settings, ExperimentTracker(settings))
    suspects: set[str] = set()
    claims = Claims(services.store)
    try:
        while True:
            try:
                suspects = look(services, suspects, claims)
            except (PipelineError, *UNREACHABLE) as error:
                LOGGER.warning("Looked in vain: %s", str(error).partition("\n")[0])
            time.sleep(SECONDS_BETWEEN)
    finally:
        end_flow_runs(settings)


if __name__ == "__main__":
    infra.terminal.run(main)
