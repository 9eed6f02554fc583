"""Search for the best hyperparameters: many trainings of a program, poor ones stopped early, the best one registered.

python -m flows.search                                              MNIST in the tutorial's space, as `make search`
python -m flows.search --trials 40 --sampler tpe --stop halving     with the flags of flows.train_mnist too
python -m flows.search --program FOLDER --data FOLDER --param epochs=10      with those of flows.train

What is tried stands in the program's MLproject under `search:`, or in the file of --space. The same command goes on
where it was ended, and ends as if it had not been. Exit status: as of flows.train.
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
import time
from functools import partial
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.preflight import announce, preflight
from flows.program_preflight import EXPERIMENT_NAME
from flows.reporting import MnistReport, StepSeconds, TrainingReport
from flows.run_log import carry_lines
from flows.search_report import SearchReport, publish_search
from flows.search_subject import search_of, subject_of
from infra.compute import DEFAULT_OPTIONS, Accelerator, ClusterOptions, ComputeName, compute_target, this_machine
from infra.scratch import temporary_folder
from infra.services import Services
from infra.settings import load_settings
from infra.tracker_process import TrackerProcess
from tasks.cancellation import cancelled_not_crashed, stop_when_cancelled
from tasks.champion import MODEL_NAME
from tasks.datasets.obtain import IfUnreachable
from tasks.download_artifacts import download_artifacts, filled_in
from tasks.gate import RECALL_FLOOR, AnyGate
from tasks.mnist_training import verify_test_accuracy
from tasks.program import Value
from tasks.program_scores import ProgramScores
from tasks.register_model import register_model
from tasks.retrying import once_repaired
from tasks.search.outcome import carry_out
from tasks.search.sampling import Sampler
from tasks.search.stopping import Stop
from tasks.train_model import train_model

LOGGER = logging.getLogger("flows.search")  # As a script and for a worker it has another name.

# Bounds and patterns stand in the annotation: see flows/train_mnist.py.
Count = Annotated[int, Field(ge=1, le=10_000)]
Reports = Annotated[int, Field(ge=0)]
Slack = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
ModelName = Annotated[str, Field(pattern=MODEL_NAME)]
ExperimentName = Annotated[str, Field(pattern=EXPERIMENT_NAME)]


@flow(
    name="search",
    description="Search for the best hyperparameters, of MNIST's network or of a program of your own.",
    on_crashed=[cancelled_not_crashed],
)
def search(
    trials: Count = Field(20, description="Trainings, that of trial 0 with the program's defaults among them."),
    at_once: Count = Field(4, description="Trials that do not wait for each other; it decides what is tried."),
    sampler: Sampler = Field("random", description="How values are drawn."),
    seed: Seed = Field(0, description="Decides what is drawn; not the seed of the trainings."),
    stop: Stop = Field("bandit", description="The rule by which poor trials are stopped."),
    evaluation_interval: Count = Field(2, description="Reports of the objective between two looks of that rule."),
    delay_evaluation: Reports = Field(0, description="Reports before its first look."),
    slack_factor: Slack | None = Field(None, description="Of the bandit: by what share a trial may be worse. [0.1]"),
    slack_amount: Slack | None = Field(None, description="Of the bandit, instead: by how much it may be worse."),
    space: Path | None = Field(None, description="File of what is tried, instead of `search:` of the MLproject."),
    from_champion: bool = Field(False, description="Trial 0 has the champion's values, not the defaults."),
    warm_start: list[str] = Field([], description="Parent runs of earlier searches, whose trials TPE learns from."),
    as_they_come: bool = Field(
        False, description="Wait for no trial: faster, and another search each time, for it depends on who ends first."
    ),
    max_seconds: Seconds | None = Field(None, description="Begin no trial after so long; a later run goes on."),
    parameters: dict[str, Value] = Field({}, description="Parameters of the MLproject that are not drawn, by name."),
    dataset: str = Field("mnist", description="MNIST: name of a data set in the catalog."),
    if_unreachable: IfUnreachable = Field("sample", description="MNIST: what to do when no mirror can be reached."),
    recall_floor: Share = Field(RECALL_FLOOR, description="MNIST: how far the recall of a digit may fall."),
    program: Path | None = Field(None, description="Folder of a program of your own; by default it is MNIST's."),
    entry: str | None = Field(None, description="Another entry point of the MLproject than main."),
    data: list[str] = Field([], description="Folder, address or name of each data set, with NAME= before it or not."),
    dataset_name: str | None = Field(None, description="Name of the data set; by default that of its folder."),
    in_place: bool = Field(False, description="Leave the data where it is, and read it there."),
    overwrite_dataset: bool = Field(False, description="Send the data to the store even if it is there."),
    env: list[str] = Field([], description="Names of variables that the program gets from this process."),
    rebuild_environment: bool = Field(False, description="Build the program's environment anew."),
    hook: bool = Field(True, description="Log Keras's metrics, and keep its checkpoints, from within the program."),
    trust_code: bool = Field(False, description="Load models that need the program's own code."),
    compute: ComputeName = Field("local", description="Where to train: this machine, or a cluster of Ray."),
    accelerator: Accelerator = Field("auto", description="What to train on: gpu refuses to go on without."),
    cluster: ClusterOptions = DEFAULT_OPTIONS,
    model_name: ModelName | None = Field(None, description="Registered model; by default that of a single training."),
    gate: AnyGate | None = Field(None, description="When a version replaces the champion."),
    gate_margin: Slack | None = Field(None, description="With the gate metric: by how much it must be better."),
    experiment: ExperimentName | None = Field(None, description="MLflow experiment; by default as of a training."),
    output_dir: Path = Field(
        Path("model"),
        description="Folder for the model's files, replaced as a whole; {model_name} and {version} are filled in.",
    ),
) -> SearchReport:
    given = dict(locals())
    carry_lines()
    settings = load_settings()
    services = Services(settings, TrackerProcess(settings))
    announce(settings)
    with temporary_folder(settings.scratch_folder) as bundle, stop_when_cancelled(settings):
        subject = subject_of(given, services, bundle)
        search_of(given, subject, services)  # What is wrong with it is said before the data is on its way.
        machine = this_machine(settings, accelerator)
        target = machine
        if compute == "ray":
            target = compute_target(compute, settings, accelerator, cluster, subject.request.workload(settings))
        preflight(services, target, output_dir)
        machine.provision()
        began, seconds = time.monotonic(), StepSeconds()
        try:
            with seconds.step("upload"):
                subject, datasets = subject.with_data(overwrite_dataset)
            wanted = search_of(given, subject, services)
            repair = partial(subject.with_data, True)
            until = began + max_seconds if max_seconds else float("inf")
            with seconds.step("search"):
                outcome = carry_out(wanted, datasets, subject.computes(given, machine, services), services, until)
            request = wanted.request(outcome.best.parameters)
            with seconds.step("train"):
                target = subject.computes(given, machine, services).of(request)
                run = once_repaired(partial(train_model, request, datasets, target, machine, services), repair)
            with seconds.step("register"):
                scores = ProgramScores(subject.program, request.training, datasets, machine, services)
                register = partial(register_model, run, subject.model_name, subject.rules, scores, services)
                version = once_repaired(register, repair)
                outcome.mark(version, services)
            with seconds.step("download artifacts"):
                folder = filled_in(output_dir, version)
                verify = partial(verify_test_accuracy, scores=scores) if program is None else None
                once_repaired(partial(download_artifacts, version, folder, verify, services), repair)
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C, SIGTERM, Prefect's cancelling.
                services.tracker.hurry()
            raise
        finally:
            target.release()
            machine.release()
    kind = TrainingReport if program else MnistReport
    return publish_search(outcome, kind, (run, version, folder), seconds, services)


if __name__ == "__main__":
    from flows.search_command import run

    run(search, __doc__ or "")
