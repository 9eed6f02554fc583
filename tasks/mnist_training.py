"""The training of the digit classifier, a program that is shipped as it stands."""

import logging
from functools import partial
from importlib.metadata import version
from pathlib import Path

from infra.compute import Compute
from infra.errors import ArgumentError, ModelMismatch
from infra.experiment_tracker import Run
from infra.settings import PROJECT_ROOT
from tasks.dataset_catalog import DatasetDescription
from tasks.program_run import PROGRAM
from tasks.saved_model import ask_program
from tasks.training import Attempt, Training
from tasks.training_program.hyperparameters import VALIDATION_IMAGES, Hyperparameters

LOGGER = logging.getLogger(__name__)

COMPUTING_LIBRARIES = ("keras", "tensorflow", "numpy")
"""Those whose version can change the resulting weights."""

REQUIREMENTS = (*COMPUTING_LIBRARIES, "mlflow", "pydantic", "fsspec", "s3fs", "matplotlib")
"""What the program imports and a node must have, in the very versions of this machine."""


def mnist_training(dataset: DatasetDescription, hyperparameters: Hyperparameters) -> Training:
    """The training on this data set; raises `ArgumentError` as `fit_to_dataset` does."""
    fitting = fit_to_dataset(hyperparameters, dataset)
    return Training(
        name="mnist",
        datasets={dataset.name: dataset.sha256},
        arguments=fitting.model_dump(),
        source=PROGRAM,
        environment={name: version(name) for name in COMPUTING_LIBRARIES},
        shipped=PROGRAM,
        requirements=tuple(f"{name}=={version(name)}" for name in REQUIREMENTS),
        command_for=partial(_command, fitting),
        tags={"dataset_sample_of": dataset.sample_of or "", "mlflow.source.name": "flows/train_mnist.py"},
        checkout=PROJECT_ROOT,
        tried_by="predict",
        epochs=fitting.epochs,
    )


def _command(hyperparameters: Hyperparameters, attempt: Attempt) -> tuple[str, ...]:
    (dataset,) = attempt.datasets.values()
    flags = {
        "data-folder": dataset.uri,
        "dataset-name": dataset.name,
        "run-id": attempt.run_id,
        "outputs": "outputs",
        "checkpoint-uri": attempt.checkpoint_uri,
        "lease-uri": attempt.lease_uri,
        "accelerator": attempt.accelerator,
        **({"data-cache": attempt.cache} if attempt.cache else {}),
        **{name.replace("_", "-"): value for name, value in hyperparameters.model_dump().items()},
    }
    return ("train", *(f"--{flag}={value}" for flag, value in flags.items()))


def fit_to_dataset(hyperparameters: Hyperparameters, dataset: DatasetDescription) -> Hyperparameters:
    """The hyperparameters as they are on this data set, whose own validation part counts if no number was asked for.

    Raises `ArgumentError` if no image is left to train on, or less than a batch.
    """
    if not dataset.is_idx:
        raise ArgumentError(
            f"{dataset.name} is no data set of IDX files, and no other trains this network.\nName one with --dataset."
        )
    if not hyperparameters.validation_images:
        images = dataset.validation_images or VALIDATION_IMAGES
        hyperparameters = hyperparameters.model_copy(update={"validation_images": images})
    left = dataset.training_images - hyperparameters.validation_images
    if left < hyperparameters.batch_size:
        raise ArgumentError(
            f"{dataset.name} has {dataset.training_images:,} training images; "
            f"{hyperparameters.validation_images:,} held out for validation leave {max(left, 0):,}, which is less than "
            f"a batch of {hyperparameters.batch_size:,}.\nLower --validation-images or --batch-size."
        )
    return hyperparameters


def verify_test_accuracy(model: Path, run: Run, machine: Compute, data_uri: str) -> None:
    """Raise `ModelMismatch` unless the model in this folder has the test accuracy that its run logged.

    `machine` is where it predicts the test set of the data at `data_uri`.
    """
    arguments = ("predict", f"--model={model.absolute()}", f"--data-folder={data_uri}")
    found, expected = ask_program(machine, arguments).get("test_accuracy"), run.metrics["test_accuracy"]
    if found != expected:
        raise ModelMismatch(
            f"The downloaded model of run {run.run_id} has test accuracy {found}, and the run logged {expected}.\n"
            "The files have the right digests, so the libraries differ from those that trained: see the run's tags."
        )
    LOGGER.info("The downloaded model has the run's test accuracy, %.4f", expected)
