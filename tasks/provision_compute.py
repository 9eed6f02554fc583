"""Step: get the compute ready, beside the download and the upload."""

from collections.abc import Callable

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from infra.compute import Compute, ComputeDescription


@task(name="provision compute", cache_policy=NO_CACHE)
def provision_compute(target: Compute, nothing_to_train: Callable[[], str | None]) -> ComputeDescription | None:
    """Block until `target` can run a job, and say what it is; raises `ComputeUnavailable` if it never will.

    Nothing is provisioned, and None returned, where `nothing_to_train` has a reason.
    """
    logger = get_run_logger()
    if reason := nothing_to_train():
        logger.info("No compute is asked for: %s", reason)
        return None
    description = target.provision(logger.info)
    logger.info("Compute: %s", description)
    return description
