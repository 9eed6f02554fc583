"""The flags of `flows.train`, and the plan: what would run, and why."""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from prefect import Flow
from pydantic import ValidationError

from flows.command_line import add_flag, outcome_of, run_parsed
from flows.prefect_server import check_reachable
from flows.preflight import head_start, preflight
from flows.program_preflight import EXPERIMENT_NAME, Prepared, prepare, wanted_of
from flows.reporting import TrainingReport, summary
from infra.compute import Accelerator, ClusterOptions, ComputeName, check_options, compute_target
from infra.scratch import make_folder
from infra.services import Services
from infra.settings import load_settings
from infra.tracker_process import TrackerProcess
from tasks.champion import MODEL_NAME
from tasks.download_artifacts import check_output_dir
from tasks.gate import AnyGate
from tasks.training_runs import find_finished, nearest_finished


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """The command line of `python -m MODULE`, up to `--`."""
    found = argparse.ArgumentParser(
        prog=f"python -m {module}",
        usage="%(prog)s --program FOLDER [flags] [-- ARGUMENTS OF THE SCRIPT]",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    program_flags(found, required=True)
    found.add_argument(
        "--seed", type=_seed, metavar="N", help="seed of Python, NumPy and Keras; by default none is set"
    )
    data_flags(found)
    place_flags(found)
    model_flags(found)
    again = "train even if a finished run has the same training key"
    found.add_argument("--retrain", action="store_true", help=again)
    return found


_AGAIN: dict[str, Any] = {"action": "append", "default": []}


def program_flags(found: argparse.ArgumentParser, required: bool) -> None:
    """Add what is said of a program; `required`: it must be named."""
    flag = found.add_argument_group("the program").add_argument
    flag("--program", type=Path, required=required, metavar="FOLDER", help="folder of the program")
    flag("--entry", metavar="SCRIPT", help="its script, or another entry point than main")
    flag("--param", **_AGAIN, type=_pair, metavar="NAME=VALUE", help="parameter of its MLproject; again and again")
    flag("--env", **_AGAIN, metavar="NAME", help="variable that it gets from here; again and again")
    flag("--rebuild-environment", action="store_true", help="build its own environment anew")
    flag("--no-hook", dest="hook", action="store_false", help="put nothing into its process")


def data_flags(found: argparse.ArgumentParser) -> None:
    """Add what is said of a program's data."""
    flag = found.add_argument_group("its data").add_argument
    kinds = "a folder (./name), an address, or the name of a data set, NAME or NAME@DIGEST"
    flag("--data", **_AGAIN, metavar="[NAME=]DATA", help=f"{kinds}; of several, each with a NAME=")
    flag("--dataset-name", metavar="NAME", help="name of the data set; by default that of its folder")
    flag("--in-place", action="store_true", help="leave it where it is, and read it there")
    flag("--overwrite-dataset", action="store_true", help="send it to the store even if it is there")


def place_flags(found: argparse.ArgumentParser) -> None:
    """Add where it runs."""
    place = found.add_argument_group("where it runs")
    flag = place.add_argument
    flag("--compute", choices=get_args(ComputeName), default="local", help="this machine, or a cluster of Ray")
    flag("--accelerator", choices=get_args(Accelerator), default="auto", help="gpu refuses to go on without")
    for name, field in ClusterOptions.model_fields.items():
        add_flag(place, name, field)


def model_flags(found: argparse.ArgumentParser) -> None:
    """Add what becomes of the model, and how the run is told of."""
    flag = found.add_argument_group("the model").add_argument
    flag("--model-name", type=model_name, metavar="NAME", help="registered model; by default the program's name")
    flag("--gate", choices=get_args(AnyGate), help="when a version replaces the champion")
    flag("--gate-margin", type=_margin, metavar="M", help="with --gate metric: by how much it must be better")
    flag("--trust-code", action="store_true", help="load models that need the program's own code")
    filled = "folder for the model's files; {model_name} and {version} are filled in (%(default)s)"
    flag("--output-dir", type=Path, default=Path("model"), metavar="FOLDER", help=filled)
    flag = found.add_argument_group("the run").add_argument
    flag("--experiment", type=_experiment, metavar="NAME", help="MLflow experiment; by default the program's name")
    flag("--json", action="store_true", help="one JSON object on stdout, everything else on stderr")
    flag("--debug", action="store_true", help="show tracebacks and debug messages")


def run(flow: Flow[..., TrainingReport], description: str, words: Sequence[str] | None = None) -> None:
    """Do with `flow` what the flags of this process say, and exit with the status."""
    commands = parser("flows.train", description)
    commands.add_argument("--plan", action="store_true", help="say what would run, and why; run nothing")
    given, parameters = parse(commands, flow, sys.argv[1:] if words is None else words)
    if given.plan:
        run_parsed(partial(_plan, parameters), str, given, commands)
    else:
        run_parsed(partial(_train, flow, parameters), summary, given, commands)


def parse(
    commands: argparse.ArgumentParser, flow: Flow[..., Any], words: Sequence[str]
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """What was given, and the parameters of the flow that it means; leaves with status 2 for what is wrong."""
    cut = words.index("--") if "--" in words else len(words)
    given, unknown = commands.parse_known_args(words[:cut])
    if unknown:
        commands.error(
            f"unknown: {' '.join(unknown)}. What the script itself takes follows --, as it stands: -- {unknown[0]} ..."
        )
    values = {name: value for name, value in vars(given).items() if name in flow.parameters.properties}
    facts = {"cluster": read_cluster(commands, given), "parameters": read_parameters(commands, given)}
    return given, {**values, **facts, "arguments": list(words[cut + 1 :])}


def read_cluster(commands: argparse.ArgumentParser, given: argparse.Namespace) -> ClusterOptions:
    """What a cluster is asked for; leaves with status 2 for what is wrong."""
    told = {name: value for name in ClusterOptions.model_fields if (value := getattr(given, name)) is not None}
    try:
        return ClusterOptions.model_validate(told)
    except ValidationError as error:
        commands.error("; ".join(f"--{str(one['loc'][-1]).replace('_', '-')}: {one['msg']}" for one in error.errors()))


def read_parameters(commands: argparse.ArgumentParser, given: argparse.Namespace) -> dict[str, str]:
    """What `--param` says, by name; leaves with status 2 for a name that is given twice."""
    repeated = [name for name, _ in given.param]
    if twice := [name for name in repeated if repeated.count(name) > 1]:
        commands.error(f"--param {twice[0]} is given twice")
    return dict(given.param)


def prepared_here(parameters: Mapping[str, Any]) -> tuple[Prepared, Services]:
    """What the parameters of the flow mean on this machine, checked; raises as `prepare` does, and for its folders."""
    check_options(parameters["compute"], parameters["cluster"], given=True)
    settings = load_settings()
    services = Services(settings, TrackerProcess(settings))
    check_output_dir(parameters["output_dir"])
    # Until this process ends: what stands by is started from it, in the background.
    bundle = make_folder(settings.scratch_folder)
    return prepare(wanted_of(parameters), services, bundle), services


def _train(flow: Flow[..., TrainingReport], parameters: Mapping[str, Any]) -> TrainingReport:
    """Refuse what cannot work, and give the flow its head start, before Prefect's temporary server starts."""
    check_reachable()
    prepared, services = prepared_here(parameters)
    target = compute_target(
        parameters["compute"],
        services.settings,
        parameters["accelerator"],
        parameters["cluster"],
        prepared.request.workload(services.settings),
    )
    preflight(services, target, parameters["output_dir"])
    head_start(services.settings, parameters["compute"], prepared.request)
    report: TrainingReport = outcome_of(flow, parameters)
    return report


@dataclass(frozen=True)
class Plan:
    """What would run, and why."""

    program: str
    program_folder: str
    files: list[str]
    left_out: dict[str, str]
    """What else is in the folder, and why it is not of the program."""
    command: list[str]
    """The data's folders in it are for the place where it runs."""
    arguments: dict[str, Any]
    data: dict[str, str]
    """SHA-256 by name."""
    environment: dict[str, str]
    training_key: str
    finished_run: str | None
    """It has this key, so that nothing would be trained."""
    nearest_run: str | None
    differences: list[str]
    """What has changed since the nearest run."""
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.finished_run:
            will = f"Nothing would be trained: run {self.finished_run} has this training key."
        elif self.nearest_run:
            since = "; ".join(self.differences) or "nothing has changed"
            will = f"It would be trained. Since the nearest finished run, {self.nearest_run}: {since}."
        else:
            will = "It would be trained: no finished run of this program is there."
        tables = {
            f"Program {self.program}, of {self.program_folder}": dict.fromkeys(self.files, ""),
            "Left out": self.left_out,
            "Arguments": self.arguments,
            "Data": self.data,
            "Environment": self.environment,
        }
        lines = [will, f"Training key {self.training_key}", f"Command  {shlex.join(self.command)}"]
        for title, rows in tables.items():
            lines += [title, *(f"  {name}  {value}".rstrip() for name, value in rows.items())] if rows else []
        return "\n".join([*lines, *self.warnings]) + "\n"


def _plan(parameters: Mapping[str, Any]) -> Plan:
    prepared, services = prepared_here(parameters)
    services.tracker.check_reachable()
    request, training = prepared.request, prepared.request.training
    finished = None if request.retrain else find_finished(services.tracker, request.experiment, training.key)
    nearest = None if finished else nearest_finished(services, request)
    return Plan(
        program=prepared.program.name,
        program_folder=str(prepared.program.folder),
        files=list(prepared.program.names),
        left_out=dict(prepared.program.left_out),
        command=json.loads((training.shipped / "program.json").read_text())["command"],
        arguments=dict(training.arguments),
        data=dict(training.datasets),
        environment=dict(training.environment),
        training_key=training.key,
        finished_run=finished.run_id if finished else None,
        nearest_run=nearest[0].run_id if nearest else None,
        differences=nearest[1] if nearest else [],
        warnings=list(training.warnings),
    )


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE")
    return name, value


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: expected 0 to {2**32 - 1}")
    return int(text)


def _margin(text: str) -> float:
    try:
        margin = float(text)
    except ValueError:
        margin = -1.0
    if not 0 <= margin < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0, in the unit of the objective")
    return margin


def model_name(text: str) -> str:
    """The name of a registered model as a flag takes it."""
    if not re.fullmatch(MODEL_NAME, text):
        raise argparse.ArgumentTypeError(f"{text!r} is no model's name: a letter, a digit or _, then dots and - too")
    return text


def _experiment(text: str) -> str:
    if not re.fullmatch(EXPERIMENT_NAME, text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a letter, a digit or _, then spaces, dots and - too")
    return text
