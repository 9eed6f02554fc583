"""Step: make a model version of a finished run, and decide at the gate whether it becomes the champion."""

from functools import partial

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.tasks import exponential_backoff

from infra.compute import Compute
from infra.services import Services
from tasks.checkpoints import discard_checkpoints
from tasks.gate import GateRules
from tasks.handoffs import Dataset, ModelVersion, TrainingRun
from tasks.mnist_scores import compare_on_test_set
from tasks.registration import register
from tasks.retrying import is_worth_a_retry


@task(
    name="register model",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=exponential_backoff(2),
    retry_condition_fn=is_worth_a_retry,
)
def register_model(
    run: TrainingRun,
    dataset: Dataset,
    model_name: str,
    rules: GateRules,
    machine: Compute,
    services: Services,
) -> ModelVersion:
    """The version of `model_name` that was made from this run, see `register`."""
    flow_run_id = str(flow_run.id)
    compare = partial(compare_on_test_set, machine=machine, data_uri=dataset.uri)
    version = register(run.run_id, model_name, rules, compare, flow_run_id, services)
    # Not before: until the version exists, a rerun may have to continue this very run.
    discard_checkpoints(services.store, version.run_id)
    return ModelVersion(version.name, version.version, version.run_id)
