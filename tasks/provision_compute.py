"""Step: get the compute ready, beside the download and the upload."""

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from infra.compute import Compute, ComputeDescription


@task(name="provision compute", cache_policy=NO_CACHE)
def provision_compute(target: Compute) -> ComputeDescription:
    """Block until `target` can run a job, and say what it is; raises `ComputeUnavailable` if it never will."""
    description = target.provision()
    get_run_logger().info("Compute: %s", description)
    return description
