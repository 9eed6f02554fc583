"""The step "download": the files of a data set of the catalog on this machine, checked; offline, a sample of them."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from infra.settings import Settings
from tasks.dataset_catalog import DatasetDescription
from tasks.datasets.obtain import IfUnreachable, obtain_dataset
from tasks.handoffs import DatasetFiles
from tasks.retrying import is_worth_a_retry


@task(
    name="download dataset",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=exponential_backoff(10),
    retry_jitter_factor=0.2,
    retry_condition_fn=is_worth_a_retry,
)
def download_dataset(
    dataset: DatasetDescription, settings: Settings, if_unreachable: IfUnreachable = "fail"
) -> DatasetFiles:
    """The files of the data set on this machine; see `obtain_dataset`."""
    return obtain_dataset(dataset, settings, if_unreachable)
