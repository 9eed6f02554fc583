"""Train MNIST, register the model, bring its files here.

python -m flows.train_mnist            as do `make train` and `python flows/train_mnist.py`
python -m flows.train_mnist --help     what can be told
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
from dataclasses import replace
from functools import partial
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.preflight import announce, head_start, mirrors_of, preflight
from flows.reporting import MnistReport, StepSeconds, publish_report
from flows.run_log import carry_lines
from infra.compute import DEFAULT_OPTIONS, Accelerator, ClusterOptions, ComputeName, compute_target, this_machine
from infra.services import Services
from infra.settings import load_settings
from infra.tracker_process import TrackerProcess
from tasks.cancellation import cancelled_not_crashed, stop_when_cancelled
from tasks.champion import MODEL_NAME
from tasks.dataset_catalog import describe_dataset
from tasks.datasets.obtain import IfUnreachable, closing_reminder
from tasks.download_artifacts import download_artifacts, filled_in
from tasks.download_dataset import download_dataset
from tasks.gate import RECALL_FLOOR, Gate, GateRules
from tasks.mnist_training import PROGRAM, mnist_training, verify_test_accuracy
from tasks.program import read_program
from tasks.program_scores import ProgramScores
from tasks.programs.mnist.digits.hyperparameters import DEFAULTS, Hyperparameters
from tasks.provision_compute import provision_compute
from tasks.register_model import register_model
from tasks.retrying import once_repaired
from tasks.train_model import train_model
from tasks.training import TrainingRequest
from tasks.training_runs import why_nothing_to_train
from tasks.upload_dataset import upload_dataset

# Bounds and patterns stand in the annotation: of a `Field` that is the default, Prefect's form keeps the default and
# the description alone.
ModelName = Annotated[str, Field(pattern=MODEL_NAME)]
ExperimentName = Annotated[str, Field(pattern=r"^\w[\w. -]{0,199}$")]
LOGGER = logging.getLogger("flows.train_mnist")  # As a script and for a worker it has another name.

Share = Annotated[float, Field(ge=0, le=1)]


@flow(
    name="train-mnist",
    description="Train, register and deliver a Keras model on MNIST.",
    on_crashed=[cancelled_not_crashed],
)
def train_mnist(
    hyperparameters: Hyperparameters = DEFAULTS,
    dataset: str = Field("mnist", description="Name of a data set in the catalog: mnist, mnist-5k, or your own."),
    if_unreachable: IfUnreachable = Field(
        "sample", description="When no mirror can be reached: fail, or go on with the data set's sample, saying so."
    ),
    compute: ComputeName = Field(
        "local",
        description="Where to train: local is this machine, ray the cluster of RAY_JOBS_URL or RAY_CLUSTER_FILE.",
    ),
    accelerator: Accelerator = Field(
        "auto", description="What to train on: auto takes a GPU if there is one, gpu refuses to go on without."
    ),
    cluster: ClusterOptions = DEFAULT_OPTIONS,
    model_name: ModelName = Field(
        "keras-dnn-mnist",
        description="Registered model to make a version of; a letter, a digit or _, then dots and - too.",
    ),
    gate: Gate = Field(
        "better",
        description="A champion is replaced by a version that is better, with p at most 0.05, or by any not-worse.",
    ),
    recall_floor: Share = Field(RECALL_FLOOR, description="How far the recall of a digit may fall in a new champion."),
    experiment: ExperimentName = Field(
        "keras-mnist",
        description="MLflow experiment of the run; a letter, a digit or _, then spaces, dots and - too.",
    ),
    output_dir: Path = Field(
        Path("model"),
        description="Folder for the model's files, replaced as a whole; {model_name} and {version} are filled in.",
    ),
    retrain: bool = Field(False, description="Train even if a finished run has the same training key."),
    overwrite_dataset: bool = Field(False, description="Send the data set to the store even if it is there."),
) -> MnistReport:
    carry_lines()
    settings = load_settings()
    services = Services(settings, TrackerProcess(settings))
    tracker = services.tracker
    description = describe_dataset(dataset, settings.dataset_catalog)
    training = mnist_training(description, hyperparameters, settings)
    request = TrainingRequest(training, experiment, retrain, accelerator)
    target = compute_target(compute, settings, accelerator, cluster, request.workload(settings))
    machine = this_machine(settings, accelerator)
    announce(settings, mirrors_of(settings, description))
    preflight(services, target, output_dir)
    head_start(settings, compute, request)
    seconds = StepSeconds()
    with stop_when_cancelled(settings):
        try:
            provisioned = provision_compute.submit(target, partial(why_nothing_to_train, tracker, request))
            with seconds.step("download"):
                files = download_dataset(description, settings, if_unreachable)
                if files.description != description:
                    training = mnist_training(files.description, hyperparameters, settings)
                    request = replace(request, training=training)
            with seconds.step("upload"):
                stored = upload_dataset(files, services, overwrite_dataset)
            with seconds.step("provision"):
                provisioned.result()

            # An upload compares sizes, for to read all of a data set at each run would cost what it saves. Who reads it
            # compares every byte, and what was damaged in the store is then sent again, from the checked download.
            repair = partial(upload_dataset, files, services, read_back=True)
            with seconds.step("train"):
                datasets = {stored.name: stored}
                train = partial(train_model, request, datasets, target, machine, services)
                run = once_repaired(train, repair)
            with seconds.step("register"):
                rules = GateRules(gate, recall_floor)
                scores = ProgramScores(read_program(PROGRAM), training, datasets, machine, services)
                register = partial(register_model, run, model_name, rules, scores, services)
                version = once_repaired(register, repair)
            with seconds.step("download artifacts"):
                folder = filled_in(output_dir, version)
                verify = partial(verify_test_accuracy, scores=scores)
                once_repaired(partial(download_artifacts, version, folder, verify, services), repair)
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C, SIGTERM, Prefect's cancelling.
                tracker.hurry()
            raise
        finally:
            target.release()
            machine.release()
    if reminder := closing_reminder(dataset, files):
        LOGGER.warning(reminder)
    return publish_report(MnistReport, (run, version, folder), seconds, services)


if __name__ == "__main__":
    from flows.command_line import run_from_terminal
    from flows.preflight import start_early
    from flows.reporting import summary

    run_from_terminal(train_mnist, start_early, summary)
