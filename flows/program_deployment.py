"""Deploy a program of your own: a form in Prefect's UI, and a schedule. A second call renews the deployment.

python -m flows.deploy --program FOLDER --data DATA                      a form with the parameters of its MLproject
python -m flows.deploy --program FOLDER --data DATA --cron "30 2 * * *" --timezone Europe/Berlin

The flags of flows.train are what the form is filled with, and what a schedule trains with. Program and data stay where
they are, and are read at each run, on the machine of the worker: what has changed is trained, else nothing is.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.utilities.urls import url_for
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from flows.command_line import run_parsed
from flows.form import program_form
from flows.prefect_server import check_reachable
from flows.program_preflight import Prepared
from flows.train import train_program
from flows.train_command import model_name, parse, parser, prepared_here
from infra.addresses import without_secrets
from infra.errors import ArgumentError, SettingsError
from infra.settings import PROJECT_ROOT, load_settings
from infra.stack.parts import WORK_POOL
from tasks.datasets.sources import split_argument

OUTPUT_DIR = Path("{home}", "models", "{model_name}", "{version}")
"""A folder for each version, so that runs do not replace each other's; {home} is filled in when it is deployed."""

ENTRYPOINT = f"flows/train.py:{train_program.fn.__name__}"


@dataclass(frozen=True)
class Deployed:
    """A deployment that is in place."""

    deployment: str
    """FLOW/NAME, as Prefect's commands take it."""
    deployment_id: str
    url: str
    """Its page, with the button Run."""
    program: str
    data: list[str]
    cron: str | None
    timezone: str | None
    paused: bool
    """The schedule was paused before, in the UI, and still is."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        when = f"{self.cron}, {self.timezone}{' (paused in the UI)' * self.paused}" if self.cron else "none"
        return (
            f"\n{self.deployment} is in place: {self.url}\n"
            f"  program   {self.program}, as it is at each run\n"
            f"  data      {', '.join(self.data) or 'none'}\n"
            f"  schedule  {when}\n"
            f"  To remove it:  prefect deployment delete {self.deployment}\n"
        )


def run(words: Sequence[str]) -> None:
    """Deploy what the flags say, and exit with the status."""
    commands = parser("flows.deploy", __doc__ or "")
    flag = commands.add_argument_group("the deployment").add_argument
    flag("--name", type=model_name, metavar="NAME", help="its name; by default the model's")
    flag("--cron", metavar="CRON", help='when to look for changes, as in "30 2 * * *"; by default never')
    flag("--timezone", metavar="ZONE", help="of --cron, as in Europe/Berlin; by default UTC")
    commands.set_defaults(output_dir=OUTPUT_DIR)
    given, parameters = parse(commands, train_program, words)
    schedule = _schedule(commands, given.cron, given.timezone)
    run_parsed(partial(deploy, parameters, given.name, schedule), str, given, commands)


def _schedule(commands: argparse.ArgumentParser, cron: str | None, timezone: str | None) -> CronSchedule | None:
    if cron is None:
        if timezone is not None:
            commands.error(f"--timezone {timezone} belongs to --cron, which is not given")
        return None
    try:
        return CronSchedule(cron=cron, timezone=timezone or "UTC")
    except ValidationError as error:
        wrong = error.errors()[0]
        commands.error(f"--{wrong['loc'][0]} {wrong['input']}: {wrong['msg'].removeprefix('Value error, ')}")


def deploy(parameters: Mapping[str, Any], name: str | None, schedule: CronSchedule | None) -> Deployed:
    """Check what is asked for, as if it were to be trained here and now, then make the deployment or renew it.

    Raises `PipelineError`; nothing is registered then.
    """
    home = load_settings().home
    if PREFECT_API_URL.value() is None:
        raise SettingsError(
            "There is no Prefect server that could keep a deployment: PREFECT_API_URL is not set.\n"
            f"make stack starts one, with a worker. To use it from a terminal:  . {home / 'stack.env'}"
        )
    check_reachable()
    output_dir = Path(str(parameters["output_dir"]).replace("{home}", str(home))).expanduser().absolute()
    parameters = {**parameters, "output_dir": output_dir}
    # Variables that the program is to get are those of the worker.
    prepared, _ = prepared_here({**parameters, "env": []})
    values = _values(parameters, prepared)
    name = name or prepared.model_name
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(WORK_POOL)
        except ObjectNotFound:
            raise SettingsError(
                f"Prefect's server at {without_secrets(PREFECT_API_URL.value())} has no work pool {WORK_POOL}, "
                "whose worker would run the deployment.\nmake stack starts a server that has it."
            ) from None
        before = _existing(client, name, values["program"])
        paused = before is not None and any(not one.active for one in before.schedules)
        deployment_id = client.create_deployment(
            client.create_flow_from_name(train_program.name),
            name,
            entrypoint=ENTRYPOINT,
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(PROJECT_ROOT)}}],
            work_pool_name=WORK_POOL,
            description=_description(values),
            parameters=values,
            parameter_openapi_schema=program_form(
                train_program.parameters.model_dump(), prepared.program, parameters["entry"]
            ),
            enforce_parameter_schema=True,
            schedules=[DeploymentScheduleCreate(slug="cron", schedule=schedule, active=not paused)] if schedule else [],
            # What a schedule asks for while a training goes on waits, and then finds that nothing has changed.
            concurrency_limit=1,
            concurrency_options=ConcurrencyOptions(
                collision_strategy=ConcurrencyLimitStrategy.ENQUEUE, grace_period_seconds=120
            ),
        )
    return Deployed(
        deployment=f"{train_program.name}/{name}",
        deployment_id=str(deployment_id),
        # Of today's UI: Prefect's own address opens the one before it.
        url=(url_for("deployment", obj_id=deployment_id) or "").replace("/deployments/", "/v2/deployments/", 1),
        program=values["program"],
        data=values.get("data", []),
        cron=schedule.cron if schedule else None,
        timezone=schedule.timezone if schedule else None,
        paused=schedule is not None and paused,
    )


def _values(parameters: Mapping[str, Any], prepared: Prepared) -> dict[str, Any]:
    """The parameters of the flow that are told, the others left to its defaults and to those of the MLproject."""
    declared = {parameter.name: parameter for parameter in prepared.program.parameters}
    data = []
    for given, source in zip(parameters["data"], prepared.sources.values(), strict=True):
        own_name, place = split_argument(given)
        # A path means the same wherever the worker was started.
        place = source.place if source.kind == "folder" else place
        data.append(f"{own_name}={place}" if own_name else place)
    values = to_jsonable_python(
        {
            **parameters,
            "program": prepared.program.folder,
            "parameters": {name: declared[name].value(text) for name, text in parameters["parameters"].items()},
            "data": data,
        }
    )
    fields = train_program.parameters.properties
    return {name: value for name, value in values.items() if value != fields[name].get("default")}


def _existing(client: SyncPrefectClient, name: str, program: str) -> DeploymentResponse | None:
    """The deployment of this name; raises `ArgumentError` if it is another program's."""
    try:
        found = client.read_deployment_by_name(f"{train_program.name}/{name}")
    except ObjectNotFound:
        return None
    other = str(found.parameters.get("program"))
    if other != program and Path(other).is_dir():
        raise ArgumentError(
            f"{train_program.name}/{name} is the deployment of another program, {other}.\n"
            "Name this one apart with --name."
        )
    return found


def _description(values: Mapping[str, Any]) -> str:
    return (
        f"Trains the program in `{values['program']}`. Program and data are read at each run, on the machine of the "
        "worker: what has changed since is trained, else nothing is. The form has the parameters of the `MLproject` "
        "as they were when this was deployed; after a change of them, deploy it again."
    )
