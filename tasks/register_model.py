"""Step: make a model version of a finished run, and decide at the gate whether it becomes the champion."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.tasks import exponential_backoff

from infra.services import Services
from tasks.checkpoints import discard_checkpoints
from tasks.gate import GateRules
from tasks.handoffs import ModelVersion, TrainingRun
from tasks.registration import CompareModels, Judge, register
from tasks.retrying import is_worth_a_retry


@task(
    name="register model",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=exponential_backoff(2),
    retry_condition_fn=is_worth_a_retry,
)
def register_model(
    run: TrainingRun, model_name: str, rules: GateRules, compare: CompareModels, services: Services
) -> ModelVersion:
    """The version of `model_name` that was made from this run, see `register`."""
    version = register(run.run_id, model_name, Judge(rules, compare, str(flow_run.id)), services)
    # Not before: until the version exists, a rerun may have to continue this very run.
    discard_checkpoints(services.store, version.run_id)
    return ModelVersion(version.name, version.version, version.run_id)
