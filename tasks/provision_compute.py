"""Step: get the compute ready, beside the download and the upload."""

import logging
from collections.abc import Callable

from prefect import task
from prefect.cache_policies import NO_CACHE

from infra.compute import Compute, ComputeDescription

LOGGER = logging.getLogger(__name__)


@task(name="provision compute", cache_policy=NO_CACHE)
def provision_compute(target: Compute, nothing_to_train: Callable[[], str | None]) -> ComputeDescription | None:
    """Block until `target` can run a job, and say what it is; raises `ComputeUnavailable` if it never will.

    Nothing is provisioned, and None returned, where `nothing_to_train` has a reason.
    """
    if reason := nothing_to_train():
        LOGGER.info("No compute is asked for: %s", reason)
        return None
    description = target.provision(LOGGER.info)
    LOGGER.info("Compute: %s", description)
    return description
