"""Put the deployments and automations in place, and say where everything is. A part of the stack; safe to repeat.

python -m flows.deploy
python -m flows.deploy --program FOLDER ...    a deployment of your own program, see flows/program_deployment.py
"""

import infra.process_environment
import infra.terminal

if __name__ == "__main__":
    infra.terminal.attach()


import json
import re
import subprocess
import sys
from collections.abc import Collection
from datetime import timedelta
from typing import cast
from uuid import UUID

from prefect.automations import Automation
from prefect.blocks.fields import SecretDict
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolUpdate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from flows.form import completed
from infra.settings import PROJECT_ROOT, load_settings
from infra.stack.parts import WORK_POOL, WORK_POOL_TEMPLATE
from infra.stack.settings import StackSettings, load_stack_settings
from tasks.dataset_catalog import read_catalog

ZOMBIE_SECONDS = 300
"""Without a sign of life for so long a flow run is Crashed. Signs come every 30 s, the shortest that Prefect takes.
A healthy run misses them while the server restarts or the machine is overloaded, a minute or two; its training goes
on meanwhile, and must not be taken for dead."""

_FLOW_RUNS = ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]})
_FAILURES = {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut")}
_ENDS = _FAILURES | {f"prefect.flow-run.{state}" for state in ("Completed", "Cancelled")}


def zombies() -> list[Automation]:
    """Flow runs that nobody will end: those of this machine are found sooner, by flows/reconcile.py."""

    def crash_after(name: str, sign: str, expect: set[str], message: str) -> Automation:
        trigger = EventTrigger(
            posture=Posture.Proactive,
            match=_FLOW_RUNS,
            for_each={"prefect.resource.id"},
            after={sign},
            expect=expect | _ENDS,
            threshold=1,
            within=timedelta(seconds=ZOMBIE_SECONDS),
        )
        action = ChangeFlowRunState(state=StateType.CRASHED, message=message)
        return Automation(name=name, description=message, trigger=trigger, actions=[action])

    heartbeat, pending = "prefect.flow-run.heartbeat", "prefect.flow-run.Pending"
    return [
        crash_after(
            "Crash flow runs without a sign of life",
            heartbeat,
            {heartbeat},
            f"No sign of life for {ZOMBIE_SECONDS} s: its process has died, with its worker or its machine.",
        ),
        crash_after(
            "Crash flow runs that never start",
            pending,
            {"prefect.flow-run.Running", "prefect.flow-run.Scheduled", "prefect.flow-run.AwaitingConcurrencySlot"},
            f"Handed to a worker {ZOMBIE_SECONDS} s ago, and never started: the worker has died.",
        ),
    ]


def failure_notification(address: str | None) -> Automation:
    """Tell a team's channel of every flow run that failed or crashed; off while there is no address."""
    # Blocks are kept encrypted, and only the secrets of this one are hidden in the UI.
    webhook = CustomWebhookNotificationBlock(
        name="team-channel",
        url="{{ address }}",
        # What Slack, Mattermost, Rocket.Chat and Google Chat take.
        json_data={"text": "{{ subject }}\n{{ body }}"},
        secrets=SecretDict({"address": address or "http://127.0.0.1:9/"}),
    )
    block = cast(UUID, webhook.save("team-channel", overwrite=True))
    return Automation(
        name="Tell of failed runs",
        description="On while STACK_FAILURE_NOTIFICATION_URL is set.",
        enabled=address is not None,
        trigger=EventTrigger(
            posture=Posture.Reactive,
            match=_FLOW_RUNS,
            expect=_FAILURES,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject="{{ flow.name }}: {{ flow_run.name }} is {{ flow_run.state.name }}",
                body="{{ flow_run.state.message }}\n{{ flow_run | ui_url }}",
            )
        ],
    )


def put_in_place(automation: Automation) -> None:
    """Create the automation, or make the one of its name as it is written here."""
    try:
        existing = cast(Automation, Automation.read(name=automation.name))
    except ValueError:
        automation.create()
        return
    automation.id = existing.id
    automation.update()


def close_work_pool() -> None:
    """Let runs set nothing of the process that they become, in a pool of an earlier version as well."""
    template = json.loads(WORK_POOL_TEMPLATE.read_text())
    with get_client(sync_client=True) as client:
        client.update_work_pool(WORK_POOL, WorkPoolUpdate(base_job_template=template))


def complete_forms(datasets: Collection[str]) -> None:
    """Let the server refuse, for each of our deployments, what the flow would; see `flows.form`."""
    ours = FlowFilter(name=FlowFilterName(any_=["train-mnist", "search"]))
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments(flow_filter=ours):
            if schema := deployment.parameter_openapi_schema:
                update = DeploymentUpdate(parameter_openapi_schema=completed(schema, datasets))
                client.update_deployment(deployment.id, update)


def keep_ui_at_home(stack: StackSettings) -> None:
    """Let browsers refuse what Prefect's pages would send elsewhere than to Prefect's server.

    At each start they ask a maker of usage statistics for its configuration, with analytics switched off as well.
    """
    servers = " ".join(f"{address} {address.replace('http', 'ws', 1)}" for address in stack.addresses("prefect"))
    policy = '<meta http-equiv="Content-Security-Policy" content="connect-src \'self\' {}">'
    head = re.compile(rf"<head>(\s*{policy.format('[^>]*')})?")
    for page in stack.prefect_pages_folder.glob("*/index.html"):
        changed = page.with_suffix(".incoming")
        changed.write_text(head.sub(f"<head>\n    {policy.format(servers)}", page.read_text(), count=1))
        changed.replace(page)


def addresses(stack: StackSettings) -> str:
    """Where a person finds everything."""
    return (
        "The stack is up.\n"
        f"  Prefect  {stack.prefect_url}\n"
        f"  MLflow   {stack.mlflow_url}\n"
        f"  Store    {stack.store_url} (S3)\n"
        f"  Service  {stack.loopback_url('service')}, from the first champion on; its key: service/keys.json there\n"
        f"  To use it from a terminal:  . {stack.environment_path}\n"
        "  A browser is asked for a key, and finds it in that file: Prefect's login page takes\n"
        "  PREFECT_API_AUTH_STRING, MLflow MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.\n"
    )


def main() -> int:
    """The command line; returns the exit status."""
    close_work_pool()
    # Its form of a schedule, a limit or a template is Prefect's own; we only call it.
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    subprocess.run(command, cwd=PROJECT_ROOT, check=True)
    stack = load_stack_settings()
    catalog = read_catalog(load_settings().dataset_catalog)
    complete_forms([name for name, dataset in catalog.items() if dataset.is_idx])
    keep_ui_at_home(stack)
    for automation in (*zombies(), failure_notification(stack.failure_notification_url)):
        put_in_place(automation)
    sys.stdout.write(addresses(stack))
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 1:
        infra.terminal.run(main)
    from flows.program_deployment import run

    run(sys.argv[1:])
