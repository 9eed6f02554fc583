"""The step "upload": data sets in the object store, under the digests of their manifests."""

from collections.abc import Mapping
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from infra.services import Services
from tasks.datasets.folder import FolderFiles
from tasks.datasets.sources import DataSource, bring_to_store
from tasks.datasets.stored import store_dataset
from tasks.handoffs import Dataset, DatasetFiles
from tasks.retrying import is_worth_a_retry

_STEP: dict[str, Any] = {
    "name": "upload dataset",
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_worth_a_retry,
}


@task(cache_policy=NO_CACHE, **_STEP)
def upload_dataset(
    files: DatasetFiles, services: Services, overwrite: bool = False, read_back: bool = False
) -> Dataset:
    """A data set of the catalog, whose files are here and checked; see `store_dataset`."""
    found = FolderFiles(files.folder, files.description.files)
    return store_dataset(files.description.name, found, services.store, overwrite, read_back)


@task(cache_policy=NO_CACHE, **_STEP)
def bring_data(
    sources: Mapping[str, DataSource],
    name: str | None,
    in_place: bool,
    services: Services,
    overwrite: bool = False,
) -> dict[str, Dataset]:
    """The data sets of a training, wherever their files are, by the names that the program knows; see `bring_to_store`.

    `name` is what the data set is called in the store, where there is one only; None: as its folder.
    """
    return {known: bring_to_store(source, services, name, in_place, overwrite) for known, source in sources.items()}
