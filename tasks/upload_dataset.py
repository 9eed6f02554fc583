"""The step "upload": a data set of the catalog in the object store, under the digest of its manifest."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from infra.services import Services
from tasks.datasets.stored import folder_files, store_dataset
from tasks.handoffs import Dataset, DatasetFiles
from tasks.retrying import is_worth_a_retry


@task(
    name="upload dataset",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=0.5,
    retry_condition_fn=is_worth_a_retry,
)
def upload_dataset(
    files: DatasetFiles, services: Services, overwrite: bool = False, read_back: bool = False
) -> Dataset:
    """The data set in the object store of this machine's settings; see `store_dataset`."""
    found = folder_files(files.folder, files.description.files)
    return store_dataset(files.description.name, found, services.store, overwrite, read_back)
