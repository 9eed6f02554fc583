"""The flags of `flows.search`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefect import Flow
from pydantic import ValidationError

from flows.command_line import add_flag, options_model, outcome_of, run_parsed, wrong_flags
from flows.prefect_server import check_reachable
from flows.search_report import SearchReport, summary
from flows.search_subject import search_of, subject_of
from flows.train_command import data_flags, model_flags, place_flags, program_flags, read_cluster, read_parameters
from infra.compute import check_options
from infra.scratch import make_folder
from infra.services import Services
from infra.settings import load_settings
from infra.tracker_process import TrackerProcess
from tasks.download_artifacts import check_output_dir
from tasks.programs.mnist.digits.hyperparameters import Hyperparameters

RULES = (
    *("trials", "at_once", "sampler", "seed", "stop", "evaluation_interval", "delay_evaluation", "slack_factor"),
    *("slack_amount", "space", "from_champion", "as_they_come", "max_seconds"),
)
"""Parameters of the flow that are of a search; each has a flag of its name."""
OF_MNIST = ("dataset", "if_unreachable", "recall_floor")
OF_A_PROGRAM = ("entry", "data", "dataset_name", "in_place", "env", "trust_code", "gate_margin")
"""What means nothing where the program is MNIST's."""


def parser(flow: Flow[..., Any], description: str) -> argparse.ArgumentParser:
    """The command line of `python -m flows.search`."""
    found = argparse.ArgumentParser(
        prog="python -m flows.search",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fields = options_model(flow).model_fields
    rules = found.add_argument_group("the search")
    for name in RULES:
        add_flag(rules, name, fields[name])
    words = "parent run of an earlier search, whose trials TPE learns from; up to five times"
    rules.add_argument("--warm-start", action="append", default=[], metavar="RUN", help=words)
    program_flags(found, required=False)
    mnist = found.add_argument_group("MNIST, without --program")
    for name in OF_MNIST:
        add_flag(mnist, name, fields[name])
    for name, field in Hyperparameters.model_fields.items():
        if name != "seed":
            add_flag(mnist, name, field)
    data_flags(found)
    place_flags(found)
    model_flags(found)
    return found


def run(flow: Flow[..., SearchReport], description: str, words: Sequence[str] | None = None) -> None:
    """Do with `flow` what the flags of this process say, and exit with the status."""
    commands = parser(flow, description)
    given = commands.parse_args(sys.argv[1:] if words is None else words)
    parameters = read(commands, flow, given)
    run_parsed(partial(_search, flow, parameters), summary, given, commands)


def read(commands: argparse.ArgumentParser, flow: Flow[..., Any], given: argparse.Namespace) -> dict[str, Any]:
    """The parameters of the flow that the flags mean; leaves with status 2 for what is wrong."""
    told = {name: value for name, value in vars(given).items() if value is not None}
    asked = dict(read_parameters(commands, given))
    own = {name: told[name] for name in Hyperparameters.model_fields if name in told and name != "seed"}
    if given.program:
        if wrong := [*own, *(name for name in OF_MNIST if name in told)]:
            instead = f" --param {wrong[0]}={told[wrong[0]]}" if wrong[0] in own else " nothing"
            commands.error(f"--{wrong[0].replace('_', '-')} is of MNIST's program; with --program write{instead}")
    elif wrong := [name for name in OF_A_PROGRAM if told.get(name)]:
        commands.error(f"--{wrong[0].replace('_', '-')} is of a program of your own, and --program names none")
    if twice := [name for name in own if name in asked]:
        commands.error(f"--param {twice[0]} and --{twice[0].replace('_', '-')} are both given")
    chosen = {
        name: value
        for name, value in told.items()
        if name in flow.parameters.properties and name not in ("parameters", "cluster")
    }
    options = options_model(flow)
    try:
        checked = options.model_validate(chosen)
    except ValidationError as error:
        commands.error(wrong_flags(error))
    values = {name: getattr(checked, name) for name in options.model_fields}
    return {**values, "parameters": {**own, **asked}, "cluster": read_cluster(commands, given)}


def _search(flow: Flow[..., SearchReport], parameters: Mapping[str, Any]) -> SearchReport:
    """Refuse what cannot work before Prefect's temporary server starts."""
    check_reachable()
    check_options(parameters["compute"], parameters["cluster"], given=True)
    settings = load_settings()
    services = Services(settings, TrackerProcess(settings))
    check_output_dir(parameters["output_dir"])
    bundle: Path = make_folder(settings.scratch_folder)
    search_of(parameters, subject_of(parameters, services, bundle), services)
    report: SearchReport = outcome_of(flow, parameters)
    return report
