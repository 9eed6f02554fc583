"""Train a program of your own, register its model, bring the model's files here.

python -m flows.train --program FOLDER --data FOLDER --param epochs=5        a folder with an MLproject
python -m flows.train --program FOLDER --entry train.py --data FOLDER -- --data {data_folder} --epochs 5
python -m flows.train --program FOLDER --data FOLDER --plan                  what would run, and why; runs nothing

From Python: from flows.train import train; report = train(program="FOLDER", data="FOLDER", parameters={"epochs": 5})

What follows -- goes to the script as it stands, {data_folder} in it replaced by the folder of the data.
Exit status: 0 done, 1 it failed or the program did, 2 a flag or a setting is wrong.
"""

import sys
from pathlib import Path

# As a script and for a worker it is in no package: see flows/__init__.py.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import infra.process_environment

import infra.terminal  # isort: skip

if __name__ == "__main__":
    infra.terminal.attach()

import infra.tracker_process  # isort: skip

if __name__ == "__main__":
    # Ahead of Prefect's import, to run beside it.
    infra.tracker_process.start()

import logging
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.form import compared_with_form
from flows.prefect_server import check_reachable, server_of_its_own
from flows.preflight import announce, head_start, preflight
from flows.program_preflight import EXPERIMENT_NAME, prepare, wanted_of
from flows.reporting import StepSeconds, TrainingReport, publish_report
from flows.run_log import carry_lines, epochs_alone
from infra.compute import DEFAULT_OPTIONS, Accelerator, ClusterOptions, ComputeName, compute_target, this_machine
from infra.scratch import temporary_folder
from infra.services import Services
from infra.settings import load_settings
from infra.tracker_process import TrackerProcess
from tasks.cancellation import cancelled_not_crashed, stop_when_cancelled
from tasks.champion import MODEL_NAME
from tasks.download_artifacts import download_artifacts, filled_in
from tasks.gate import AnyGate
from tasks.program import Value
from tasks.program_scores import ProgramScores
from tasks.provision_compute import provision_compute
from tasks.register_model import register_model
from tasks.registration import name_by_program
from tasks.retrying import once_repaired
from tasks.train_model import train_model
from tasks.training_runs import why_nothing_to_train
from tasks.upload_dataset import bring_data

LOGGER = logging.getLogger("flows.train")  # As a script and for a worker it has another name.

# Bounds and patterns stand in the annotation: see flows/train_mnist.py.
ModelName = Annotated[str, Field(pattern=MODEL_NAME)]
ExperimentName = Annotated[str, Field(pattern=EXPERIMENT_NAME)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Margin = Annotated[float, Field(ge=0)]


@flow(
    name="train",
    description="Train, register and deliver the model of a program of your own.",
    on_crashed=[cancelled_not_crashed],
)
def train_program(
    program: Path = Field(description="Folder of the program, with an MLproject or the script of entry in it."),
    entry: str | None = Field(None, description="Script of the program, or another entry point than main."),
    parameters: dict[str, Value] = Field({}, description="Parameters of the MLproject, by name."),
    arguments: list[str] = Field([], description="Arguments of the script; {data_folder} stands for the data."),
    data: list[str] = Field([], description="Folder, address or name of each data set, with NAME= before it or not."),
    dataset_name: str | None = Field(None, description="Name of the data set; by default that of its folder."),
    in_place: bool = Field(False, description="Leave the data where it is, and read it there."),
    overwrite_dataset: bool = Field(False, description="Send the data to the store even if it is there."),
    seed: Seed | None = Field(None, description="Seed of Python, NumPy and Keras."),
    env: list[str] = Field([], description="Names of variables that the program gets from this process."),
    rebuild_environment: bool = Field(False, description="Build the program's environment anew."),
    hook: bool = Field(True, description="Log Keras's metrics, and keep its checkpoints, from within the program."),
    trust_code: bool = Field(False, description="Load models that need the program's own code."),
    compute: ComputeName = Field("local", description="Where to train: this machine, or a cluster of Ray."),
    accelerator: Accelerator = Field("auto", description="What to train on: gpu refuses to go on without."),
    cluster: ClusterOptions = DEFAULT_OPTIONS,
    model_name: ModelName | None = Field(None, description="Registered model; by default the program's name."),
    gate: AnyGate | None = Field(None, description="When a version replaces the champion."),
    gate_margin: Margin | None = Field(None, description="With the gate metric: by how much it must be better."),
    experiment: ExperimentName | None = Field(None, description="MLflow experiment; by default the program's name."),
    output_dir: Path = Field(
        Path("model"),
        description="Folder for the model's files, replaced as a whole; {model_name} and {version} are filled in.",
    ),
    retrain: bool = Field(False, description="Train even if a finished run has the same training key."),
) -> TrainingReport:
    given = dict(locals())
    carry_lines()
    settings = load_settings()
    services = Services(settings, TrackerProcess(settings))
    announce(settings)
    with temporary_folder(settings.scratch_folder) as bundle, stop_when_cancelled(settings):
        with compared_with_form(program, entry):
            prepared = prepare(wanted_of(given), services, bundle)
        for warning in prepared.request.training.warnings:
            LOGGER.warning("%s", warning)
        request = prepared.request
        target = compute_target(compute, settings, accelerator, cluster, request.workload(settings))
        machine = this_machine(settings, accelerator)
        preflight(services, target, output_dir)
        head_start(settings, compute, request)
        seconds = StepSeconds()
        try:
            provisioned = provision_compute.submit(target, partial(why_nothing_to_train, services.tracker, request))
            bring = partial(bring_data, prepared.sources, dataset_name, in_place, services)
            with seconds.step("upload"):
                datasets = bring(overwrite_dataset)
                request = prepared.on(datasets)
            with seconds.step("provision"):
                provisioned.result()

            # An upload compares sizes alone; who reads the data compares all, and what was damaged is sent again.
            repair = partial(bring, overwrite=True)
            with seconds.step("train"):
                run = once_repaired(partial(train_model, request, datasets, target, machine, services), repair)
            with seconds.step("register"):
                compare = ProgramScores(prepared.program, request.training, datasets, machine, services)
                name = model_name or name_by_program(run.run_id, services) or prepared.model_name
                register = partial(register_model, run, name, prepared.rules, compare, services)
                version = once_repaired(register, repair)
            with seconds.step("download artifacts"):
                folder = filled_in(output_dir, version)
                download_artifacts(version, folder, None, services)
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C, SIGTERM, Prefect's cancelling.
                services.tracker.hurry()
            raise
        finally:
            target.release()
            machine.release()
    return publish_report(TrainingReport, (run, version, folder), seconds, services)


def train(
    program: str | Path,
    data: str | Path | Mapping[str, str | Path] | None = None,
    parameters: Mapping[str, object] | None = None,
    **options: Any,
) -> TrainingReport:
    """Train the program in a folder, register its model, bring the model's files here; the report shows itself.

    While it trains, a line is printed for each epoch, and of the log only warnings; the run's pages have all of it.
    `data` is a folder, an address or the name of a data set; of several, a mapping by name. `parameters` are those of
    the program's `MLproject`; `options` those of the flow `train_program`, with the same names. Raises `PipelineError`.
    """
    named = data if isinstance(data, Mapping) else {}
    given = [f"{name}={place}" for name, place in named.items()] if named else [] if data is None else [str(data)]
    texts: dict[str, Value] = {name: str(value) for name, value in (parameters or {}).items()}
    check_reachable()
    server_of_its_own()
    with epochs_alone():
        report: TrainingReport = train_program(program=Path(program), data=given, parameters=texts, **options)
    return report


if __name__ == "__main__":
    from flows.train_command import run

    run(train_program, __doc__ or "")
