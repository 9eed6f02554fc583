"""The training of a person's program: what identifies it, and the bundle in which a compute runs it.

A bundle is a folder `runner`: the runner's modules, the program's files in `program`, and `program.json`.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from infra.compute import program_files
from infra.compute.runner.locked import listed_versions
from infra.compute.runner.variables import THREADS
from infra.errors import ArgumentError, ProgramInvalid
from infra.requirements import OWN_PYTHON, met, resolve
from infra.settings import Settings, given_variables
from tasks.program import Arguments, Program
from tasks.program_scores import score_command
from tasks.program_sources import Sources, imported_distributions, key_packages, module_distributions, read_sources
from tasks.training import Attempt, Training

LOGGER = logging.getLogger(__name__)

RUNNER = Path(__file__).parent.parent / "infra" / "compute" / "runner"

RUNNER_REQUIREMENTS = ("mlflow", "fsspec", "s3fs", "uv")
"""What the runner itself imports or calls, in the very versions of this machine."""


@dataclass(frozen=True)
class Asked:
    """What is asked of a program, as a person gives it."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    """Of its `MLproject`, by name."""
    arguments: Sequence[str] = ()
    """Of a script: they go to it as they stand."""
    seed: int | None = None
    hook: bool = True
    """False: nothing is put into the program's process."""
    variables: Sequence[str] = ()
    """Names of variables of this process that are passed on."""
    rebuild_environment: bool = False


@dataclass(frozen=True)
class _Environment:
    """Where the program runs."""

    versions: Mapping[str, str]
    """What the key names."""
    requirements: Mapping[str, Any] | None
    """Of an environment of its own, for the runner; None: the program runs in the pipeline's."""


def program_training(
    program: Program, asked: Asked, datasets: Mapping[str, str], bundle: Path, settings: Settings
) -> Training:
    """The training, with its bundle made in the folder `bundle`.

    `datasets` are the digests by name, the one that `{data_folder}` stands for first. Raises `ArgumentError` for what
    the program could not be started with, as far as its sources and its `MLproject` tell without running it, and
    `ProgramInvalid` for what its sources cannot do, `SettingsError` if its requirements cannot be resolved.
    """
    arguments = program.check(asked.parameters, asked.arguments, tuple(datasets))
    score_command(program, tuple(datasets))
    sources = read_sources(program)
    environment = _environment(program, sources, settings)
    try:
        sources.check(None if environment.requirements else {*module_distributions(), *stand_ins(asked.hook)})
    except ArgumentError as error:
        raise ProgramInvalid(f"The program {program.name} cannot run:\n{error}") from error
    variables = given_variables(asked.variables)
    if missing := [name for name in asked.variables if name not in variables]:
        raise ArgumentError(f"--env {missing[0]}: there is no such variable here.\nSet it, or leave --env out.")
    shipped = _make_bundle(bundle, program, _facts(program, asked, arguments, sources, environment))
    requirements = [*RUNNER_REQUIREMENTS]
    if environment.requirements is None:
        requirements = list(dict.fromkeys([*requirements, *imported_distributions(sources)]))
    return Training(
        name=program.name,
        datasets=datasets,
        arguments=_identifying(program, asked, arguments),
        source=shipped / "program",
        environment={**environment.versions, **given_variables(THREADS)},
        shipped=shipped,
        requirements=tuple(f"{name}=={version(name)}" for name in requirements),
        command_for=partial(_command, settings, asked.rebuild_environment),
        tags={"program": program.name, "mlflow.source.name": program.entry or "MLproject"},
        checkout=program.folder,
        secret_variables=variables,
        warnings=tuple(map(str, (*arguments.warnings, *sources.warnings))),
    )


def stand_ins(hook: bool) -> set[str]:
    """The modules that the runner has in place of what is not installed: of what is put into the program's process."""
    return {"azureml"} if hook else set()


def _environment(program: Program, sources: Sources, settings: Settings) -> _Environment:
    unmet = met(program.requirements or (), program.python)
    if not unmet:
        return _Environment(key_packages(program, sources), None)
    LOGGER.info("The program gets an environment of its own, for here is not: %s", "; ".join(unmet))
    lock = resolve(program.requirements or (), program.python, settings.home / "requirements")
    python = program.python or OWN_PYTHON
    # Versions are for people to compare; what is installed, the list decides to the last hash.
    digest = hashlib.sha256(lock.encode()).hexdigest()
    return _Environment(
        {"python": python, "requirements": digest, **listed_versions(lock)}, {"python": python, "lock": lock}
    )


def _identifying(program: Program, asked: Asked, arguments: Arguments) -> dict[str, Any]:
    """What of the arguments decides the weights; what is no parameter of the program's has a name with two dashes."""
    identifying: dict[str, Any] = dict(arguments.parameters)
    if program.command is None:
        identifying["--entry"] = program.entry
        identifying["arguments"] = list(asked.arguments)
    else:
        identifying["command"] = program.command
    if asked.seed is not None:
        identifying["--seed"] = asked.seed
    if not asked.hook:
        identifying["--no-hook"] = True
    return identifying


def _facts(
    program: Program, asked: Asked, arguments: Arguments, sources: Sources, environment: _Environment
) -> dict[str, Any]:
    """What the runner reads from `program.json`."""
    objective = program.objective
    return {
        "name": program.name,
        "command": list(arguments.command),
        "parameters": None if program.command is None else dict(arguments.parameters),
        "import_ahead": list(sources.import_ahead if program.import_ahead is None else program.import_ahead),
        "import_ahead_of_score": list(sources.import_ahead_of_score),
        "requirements": environment.requirements,
        "uses_mlflow": sources.uses_mlflow,
        "uses_keras": sources.uses_keras,
        "uses_azureml": not sources.imports.isdisjoint(stand_ins(asked.hook)),
        "old_spellings": sources.old_spellings if asked.hook else None,
        "sets_variables": sorted(sources.sets_variables),
        "hook": asked.hook,
        "continues": program.continues,
        "trial": program.trial,
        "objective": {"metric": objective.metric, "goal": objective.goal} if objective else None,
        "seed": asked.seed,
        "variables": sorted(asked.variables),
    }


def _make_bundle(folder: Path, program: Program, facts: Mapping[str, Any]) -> Path:
    """The folder that a compute ships and runs, made in `folder`."""
    bundle = folder / "runner"
    files = [(path, bundle / path.relative_to(RUNNER)) for path in program_files(RUNNER)]
    files += [(path, bundle / "program" / path.relative_to(program.folder)) for path in program.files]
    (bundle / "program").mkdir(parents=True, exist_ok=True)
    for source, target in files:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)  # With its mode, for a command may be a script that is executed.
    (bundle / "program.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    return bundle


def with_parameters(training: Training, program: Program, asked: Asked, settings: Settings) -> Training:
    """The training with other parameters, in the same bundle: what differs comes with the order.

    What stands by for one of a search can so be any other. Raises `ArgumentError` as `Program.check` does.
    """
    arguments = program.check(asked.parameters, asked.arguments, tuple(training.datasets))
    instead = {"command": arguments.command, "parameters": dict(arguments.parameters), "seed": asked.seed}
    return replace(
        training,
        arguments=_identifying(program, asked, arguments),
        command_for=partial(_command, settings, asked.rebuild_environment, instead=instead),
    )


def _command(
    settings: Settings, rebuild_environment: bool, attempt: Attempt, instead: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    datasets = {name: {"uri": dataset.uri, "sha256": dataset.sha256} for name, dataset in attempt.datasets.items()}
    order = {
        "run_id": attempt.run_id,
        "dataset_uris": datasets,
        "default_dataset": next(iter(datasets), None),
        "checkpoint_uri": attempt.checkpoint_uri,
        "lease_uri": attempt.lease_uri,
        "accelerator": attempt.accelerator,
        "cache": attempt.cache,
        # What is kept on a node is kept where the compute's other things are.
        "home": None if attempt.cache else str(settings.home),
        "rebuild_environment": rebuild_environment,
        "trial": attempt.trial,
        "instead": dict(instead or {}),
    }
    return ("train", json.dumps(order))
