"""Step: bring the data sets of a training to the object store, wherever their files are."""

from collections.abc import Mapping

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from infra.services import Services
from tasks.datasets.sources import DataSource
from tasks.datasets.store import bring_to_store
from tasks.handoffs import Dataset
from tasks.retrying import is_worth_a_retry


@task(
    name="upload dataset",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=0.5,
    retry_condition_fn=is_worth_a_retry,
)
def bring_data(
    sources: Mapping[str, DataSource],
    name: str | None,
    in_place: bool,
    services: Services,
    overwrite: bool = False,
) -> dict[str, Dataset]:
    """Each of them in the store, by the name that the program knows it by; see `bring_to_store`.

    `name` is what the data set is called in the store, where there is one only; None: as its folder.
    """
    return {known: bring_to_store(source, services, name, in_place, overwrite) for known, source in sources.items()}
