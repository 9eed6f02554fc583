"""Before anything is paid for: say which services are used, refuse what cannot work, start what takes long."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

from prefect.settings import PREFECT_API_URL

from infra.addresses import without_secrets
from infra.compute import Accelerator, Compute, ComputeName, check_options, compute_target, this_machine
from infra.errors import PipelineError
from infra.services import Services
from infra.settings import Settings, load_settings
from infra.tracker_process import TrackerProcess
from tasks.dataset_catalog import DatasetDescription, describe_dataset
from tasks.download_artifacts import check_output_dir
from tasks.mnist_training import mnist_training
from tasks.training import TrainingRequest
from tasks.training_runs import find_finished

LOGGER = logging.getLogger(__name__)


def preflight(services: Services, target: Compute, output_dir: Path) -> None:
    """Raise `UsageError`, `TrackerError` or `ComputeUnavailable` if the run cannot succeed, as far as one knows."""
    check_output_dir(output_dir)
    services.tracker.check_reachable()
    target.check()


def mirrors_of(settings: Settings, dataset: DatasetDescription) -> tuple[str, ...]:
    """Where the data set would be downloaded from; a sample is not downloaded."""
    return () if dataset.sample_of else settings.dataset_mirrors or dataset.mirrors


def announce(settings: Settings, mirrors: Sequence[str] | None = None) -> None:
    """Say in the log which services the run uses; `mirrors` where it may download a data set of the catalog."""
    prefect_url = PREFECT_API_URL.value()
    services = {
        "Prefect": without_secrets(prefect_url) if prefect_url else "a temporary server",
        "MLflow": without_secrets(settings.mlflow_tracking_uri),
        "Object store": without_secrets(settings.object_store_uri),
        **({} if mirrors is None else {"Mirrors": ", ".join(map(without_secrets, mirrors)) or "none is needed"}),
        "Home": settings.home,
    }
    LOGGER.info("Services\n%s", "\n".join(f"  {name:<12}  {place}" for name, place in services.items()))


def start_early(given: Mapping[str, Any]) -> None:
    """Refuse what cannot work, and give the flow its head start, before Prefect's temporary server starts.

    `given` are the parameters of the flow `train-mnist`.
    """
    compute, accelerator, cluster = given["compute"], given["accelerator"], given["cluster"]
    check_options(compute, cluster, given=True)
    settings = load_settings()
    description = describe_dataset(given["dataset"], settings.dataset_catalog)
    training = mnist_training(description, given["hyperparameters"], settings)
    request = TrainingRequest(training, given["experiment"], given["retrain"], accelerator)
    target = compute_target(compute, settings, accelerator, cluster, request.workload(settings))
    preflight(Services(settings, TrackerProcess(settings)), target, given["output_dir"])
    head_start(settings, compute, request)


_head_starts: set[tuple[Settings, ComputeName, Accelerator, str, str, bool]] = set()


def head_start(settings: Settings, compute: ComputeName, request: TrainingRequest) -> None:
    """Start, in the background, what takes long and needs no other step; once for the same arguments.

    TensorFlow's import, in the standing-by program, runs beside the start of Prefect's temporary server (8 s) and the
    download. What will be needed is a guess from the catalog's digests: the steps look for themselves, and find it
    done or do it.
    """
    training = request.training
    given = (settings, compute, request.accelerator, request.experiment, training.key, request.retrain)
    if given in _head_starts:
        return
    _head_starts.add(given)
    tracker = TrackerProcess(settings)
    # On a cluster the job itself lets the program stand by, once it has a node.
    target = this_machine(settings, request.accelerator) if compute == "local" else None
    if target and (request.retrain or tracker.is_new):
        target.stand_by(training.shipped, "train")

    def look() -> None:
        try:
            if find_finished(tracker, request.experiment, training.key) is None and target:
                target.stand_by(training.shipped, "train")
        except (PipelineError, OSError) as error:
            # The step that needs it meets the same failure, and tells it.
            LOGGER.debug("No head start: %s", error)

    Thread(target=look, name="head start", daemon=True).start()
