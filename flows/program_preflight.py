"""Before a person's program is trained: what was asked for, read and checked without running any of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from infra.compute import Accelerator, ComputeName
from infra.errors import ArgumentError
from infra.services import Services
from tasks.datasets.sources import DataSource, dataset_name, digest, resolve_all
from tasks.gate import AnyGate, GateRules, rules_for
from tasks.handoffs import Dataset
from tasks.program import Program, read_program
from tasks.program_training import Asked, program_training
from tasks.training import TrainingRequest

EXPERIMENT_NAME = r"^\w[\w. -]{0,199}$"
"""What an experiment may be called."""


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a program, as a person says it: the flags of `flows.train`."""

    program: Path
    asked: Asked
    entry: str | None = None
    data: tuple[str, ...] = ()
    dataset_name: str | None = None
    in_place: bool = False
    compute: ComputeName = "local"
    experiment: str | None = None
    retrain: bool = False
    accelerator: Accelerator = "auto"
    model_name: str | None = None
    gate: AnyGate | None = None
    gate_margin: float | None = None
    trust_code: bool = False


@dataclass(frozen=True)
class Prepared:
    """What will be done."""

    program: Program
    sources: Mapping[str, DataSource]
    """Where the data is, by name."""
    request: TrainingRequest
    model_name: str
    rules: GateRules

    def on(self, datasets: Mapping[str, Dataset]) -> TrainingRequest:
        """The request on the data as it came into the store."""
        digests = {name: dataset.sha256 for name, dataset in datasets.items()}
        return replace(self.request, training=replace(self.request.training, datasets=digests))


def wanted_of(parameters: Mapping[str, Any]) -> Wanted:
    """What the parameters of the flow `train` want."""
    names = {one.name for one in fields(Wanted)} - {"asked", "data"}
    asked = Asked(
        # As text: a number of the form or of a notebook is read as one of a flag is.
        parameters={name: str(value) for name, value in parameters["parameters"].items()},
        arguments=parameters["arguments"],
        seed=parameters["seed"],
        hook=parameters["hook"],
        variables=parameters["env"],
        rebuild_environment=parameters["rebuild_environment"],
    )
    return Wanted(asked=asked, data=tuple(parameters["data"]), **{name: parameters[name] for name in names})


def prepare(wanted: Wanted, services: Services, bundle: Path) -> Prepared:
    """Read the program, find the data and its digests, and check all that is asked; what is shipped goes to `bundle`.

    Raises `UsageError` for what was asked wrongly, `ProgramInvalid` for a program that cannot run.
    """
    program = read_program(wanted.program, wanted.entry)
    sources = resolve_all(wanted.data, services)
    for source in sources.values():
        if source.kind == "folder":
            program.refuse_data_inside(Path(source.place))
        dataset_name(source, wanted.dataset_name)
        here = source.stored.in_folder if source.stored else source.kind == "folder" and wanted.in_place
        if here and wanted.compute == "ray":
            raise ArgumentError(
                f"--compute ray: the files of {source.place} are to be read in a folder of this machine, in place, "
                "and no node can read them there.\nBring them to the store: --data FOLDER, without --in-place."
            )
    if wanted.dataset_name and len(sources) != 1:
        raise ArgumentError(
            f"--dataset-name {wanted.dataset_name} names one data set, and --data gives {len(sources) or 'none'}.\n"
            "Leave it out: each has the name of its folder."
        )
    rules = rules_for(wanted.gate, wanted.gate_margin, program.score is not None, program.objective)
    # Before the data is read, which can take long, and so with no digests yet.
    training = program_training(program, wanted.asked, dict.fromkeys(sources, ""), bundle, services.settings)
    digests = {name: digest(source, services, wanted.in_place) for name, source in sources.items()}
    name = re.sub(r"[^\w.-]+", "-", program.name).strip("-.") or "program"
    return Prepared(
        program,
        sources,
        TrainingRequest(
            replace(training, datasets=digests), wanted.experiment or name, wanted.retrain, wanted.accelerator
        ),
        wanted.model_name or name,
        replace(rules, trust_code=wanted.trust_code),
    )
