"""Put the deployments and automations in place, and say where everything is. A part of the stack; safe to repeat.

python -m flows.deploy
"""

import infra.quiet_libraries  # noqa: F401  isort: skip

import subprocess
import sys
from datetime import timedelta
from typing import cast

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from infra.settings import PROJECT_ROOT, StackSettings, load_stack_settings

ZOMBIE_SECONDS = 300
"""Without a sign of life for so long a flow run is Crashed. Signs come every 30 s, the shortest that Prefect takes.
A healthy run misses them while the server restarts or the machine is overloaded, a minute or two; its training goes
on meanwhile, and must not be taken for dead."""

_FLOW_RUNS = ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]})
_ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}


def zombies() -> Automation:
    """A flow run whose process died without a word, with its worker or its machine."""
    heartbeat = "prefect.flow-run.heartbeat"
    return Automation(
        name="Crash flow runs without a sign of life",
        description=f"No heartbeat for {ZOMBIE_SECONDS} s: the process has died, with its worker or its machine.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=_FLOW_RUNS,
            for_each={"prefect.resource.id"},
            after={heartbeat},
            expect={heartbeat, *_ENDS},
            threshold=1,
            within=timedelta(seconds=ZOMBIE_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, message=f"No sign of life for {ZOMBIE_SECONDS} s: its process has died."
            )
        ],
    )


def put_in_place(automation: Automation) -> None:
    """Create the automation, or make the one of its name as it is written here; a person's pause of it stays."""
    try:
        existing = cast(Automation, Automation.read(name=automation.name))
    except ValueError:
        automation.create()
        return
    automation.id, automation.enabled = existing.id, existing.enabled
    automation.update()


def refuse_unknown_parameters() -> None:
    """Let the server refuse a parameter that the flow does not have; by itself it starts a run, which crashes."""
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments():
            schema = {**(deployment.parameter_openapi_schema or {}), "additionalProperties": False}
            client.update_deployment(deployment.id, DeploymentUpdate(parameter_openapi_schema=schema))


def addresses(stack: StackSettings) -> str:
    """Where a person finds everything."""
    return (
        "The stack is up.\n"
        f"  Prefect  {stack.prefect_url}\n"
        f"  MLflow   {stack.mlflow_url}\n"
        f"  Store    {stack.store_url} (S3)\n"
        f"  To use it from a terminal:  . {stack.environment_path}\n"
    )


def main() -> None:
    """The command line."""
    # Its form of a schedule, a limit or a template is Prefect's own; we only call it.
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    subprocess.run(command, cwd=PROJECT_ROOT, check=True)
    refuse_unknown_parameters()
    put_in_place(zombies())
    sys.stdout.write(addresses(load_stack_settings()))


if __name__ == "__main__":
    main()
