"""The training of the digit classifier: the program that ships with the pipeline, on a data set of the catalog."""

import logging
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean

from infra.compute import program_sha256
from infra.errors import ArgumentError, ModelMismatch, SettingsError
from infra.experiment_tracker import Run
from infra.scratch import make_folder
from infra.settings import PROJECT_ROOT, Settings
from tasks.dataset_catalog import DatasetDescription
from tasks.program import read_program
from tasks.program_scores import ProgramScores
from tasks.program_training import Asked, program_training
from tasks.programs.mnist.digits.hyperparameters import VALIDATION_IMAGES, Hyperparameters
from tasks.training import Training

LOGGER = logging.getLogger(__name__)

PROGRAM = Path(__file__).parent / "programs" / "mnist"


def mnist_training(dataset: DatasetDescription, hyperparameters: Hyperparameters, settings: Settings) -> Training:
    """The training on this data set; raises `ArgumentError` as `fit_to_dataset` does."""
    fitting = fit_to_dataset(hyperparameters, dataset)
    training = _bundled(program_sha256(PROGRAM), fitting, dataset.name, settings)
    return replace(
        training,
        datasets={dataset.name: dataset.sha256},
        tags={
            **training.tags,
            "dataset_sample_of": dataset.sample_of or "",
            "mlflow.source.name": "flows/train_mnist.py",
            # The network takes pixels from 0 to 255; the service's /score, as the tutorial's, numbers from 0 to 1.
            "score_scale": "255",
        },
        checkout=PROJECT_ROOT,
        tried_by="score",
        epochs=fitting.epochs,
    )


@cache
def _bundled(sha256: str, hyperparameters: Hyperparameters, dataset: str, settings: Settings) -> Training:
    """The training with its bundle, which stays until this process ends: what stands by is started from it."""
    asked = Asked({name: str(value) for name, value in hyperparameters.model_dump().items()})
    try:
        bundle = make_folder(settings.scratch_folder)
        return program_training(read_program(PROGRAM), asked, {dataset: ""}, bundle, settings)
    except OSError as error:
        raise SettingsError(
            f"The training cannot be prepared in {settings.scratch_folder}: {error}\n"
            "Make room there, or set PIPELINE_HOME to a folder that can be written."
        ) from error


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


def verify_test_accuracy(model: Path, run: Run, scores: ProgramScores) -> None:
    """Raise `ModelMismatch` unless the model in this folder has the test accuracy that its run logged."""
    rights = scores.score({"downloaded": model.absolute()}).values["downloaded"]
    found, expected = fmean(rights), run.metrics["test_accuracy"]
    if found != expected:
        raise ModelMismatch(
            f"The downloaded model of run {run.run_id} has test accuracy {found}, and the run logged {expected}.\n"
            "The files have the right digests, so the libraries differ from those that trained: see the run's tags."
        )
    LOGGER.info("The downloaded model has the run's test accuracy, %.4f", expected)
