"""Before anything is paid for: say which services are used, refuse what cannot work, start what takes long."""

import logging
from functools import cache
from pathlib import Path
from threading import Thread

from prefect.settings import PREFECT_API_URL

from infra.addresses import without_secrets
from infra.compute import (
    Accelerator,
    ClusterOptions,
    Compute,
    ComputeName,
    check_options,
    compute_target,
    this_machine,
)
from infra.errors import ArgumentError, PipelineError
from infra.services import Services
from infra.settings import Settings, load_settings
from infra.tracker_process import TrackerProcess
from tasks.dataset_catalog import DatasetDescription, describe_dataset
from tasks.download_artifacts import check_output_dir
from tasks.program_run import PROGRAM
from tasks.train_model import find_finished, training_key, workload
from tasks.training_program.hyperparameters import VALIDATION_IMAGES, Hyperparameters

LOGGER = logging.getLogger(__name__)


def preflight(
    services: Services,
    target: Compute,
    dataset: str,
    hyperparameters: Hyperparameters,
    output_dir: Path,
) -> None:
    """Raise `UsageError`, `TrackerError` or `ComputeUnavailable` if the run cannot succeed, as far as one knows."""
    fit_to_dataset(hyperparameters, describe_dataset(dataset, services.settings.dataset_catalog))
    check_output_dir(output_dir)
    services.tracker.check_reachable()
    target.check()


def expected_key(settings: Settings, dataset: str, hyperparameters: Hyperparameters) -> str:
    """The training key, if the data set turns out to be what the catalog says: it is downloaded later."""
    description = describe_dataset(dataset, settings.dataset_catalog)
    return training_key(description.sha256, fit_to_dataset(hyperparameters, description))


def announce(settings: Settings, dataset: str) -> None:
    """Say in the log which services the run uses."""
    prefect_url = PREFECT_API_URL.value()
    description = describe_dataset(dataset, settings.dataset_catalog)
    mirrors = () if description.sample_of else settings.dataset_mirrors or description.mirrors
    services = {
        "Prefect": without_secrets(prefect_url) if prefect_url else "a temporary server",
        "MLflow": without_secrets(settings.mlflow_tracking_uri),
        "Object store": without_secrets(settings.object_store_uri),
        "Mirrors": ", ".join(map(without_secrets, mirrors)) or "none is needed",
        "Home": settings.home,
    }
    LOGGER.info("Services\n%s", "\n".join(f"  {name:<12}  {place}" for name, place in services.items()))


def fit_to_dataset(hyperparameters: Hyperparameters, dataset: DatasetDescription) -> Hyperparameters:
    """The hyperparameters as they are on this data set, whose own validation part counts if no number was asked for.

    Raises `ArgumentError` if no image is left to train on, or less than a batch.
    """
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


def start_early(
    hyperparameters: Hyperparameters,
    compute: ComputeName,
    accelerator: Accelerator,
    cluster: ClusterOptions,
    dataset: str,
    experiment: str,
    output_dir: Path,
    retrain: bool,
    **_: object,
) -> None:
    """Refuse what cannot work, and give the flow its head start, before Prefect's temporary server starts."""
    check_options(compute, cluster, given=True)
    settings = load_settings()
    key = expected_key(settings, dataset, hyperparameters)
    target = compute_target(compute, settings, accelerator, cluster, workload(settings, experiment, key))
    preflight(Services(settings, TrackerProcess(settings)), target, dataset, hyperparameters, output_dir)
    head_start(settings, compute, accelerator, dataset, hyperparameters, experiment, retrain)


@cache
def head_start(
    settings: Settings,
    compute: ComputeName,
    accelerator: Accelerator,
    dataset: str,
    hyperparameters: Hyperparameters,
    experiment: str,
    retrain: bool,
) -> Thread:
    """Start, in the background, what takes long and needs no other step; once for the same arguments.

    TensorFlow's import, in the standing-by program, runs beside the start of Prefect's temporary server (8 s) and the
    download. What will be needed is a guess from the catalog's digests: the steps look for themselves, and find it
    done or do it.
    """
    tracker = TrackerProcess(settings)
    # On a cluster the job itself lets the program stand by, once it has a node.
    target = this_machine(settings, accelerator) if compute == "local" else None
    if target and (retrain or tracker.is_new):
        target.stand_by(PROGRAM, "train")

    def look() -> None:
        try:
            key = expected_key(settings, dataset, hyperparameters)
            if find_finished(tracker, experiment, key) is None and target:
                target.stand_by(PROGRAM, "train")
        except (PipelineError, OSError) as error:
            # The step that needs it meets the same failure, and tells it.
            LOGGER.debug("No head start: %s", error)

    thread = Thread(target=look, name="head start", daemon=True)
    thread.start()
    return thread
