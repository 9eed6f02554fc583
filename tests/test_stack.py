"""The servers, the deployments and what happens when parts of them die: `make stack`, real and whole."""

import httpx
import pytest

from tests.stack import SMALL, Stack

# The first of them waits for the stack as well.
pytestmark = pytest.mark.timeout(600)


def test_every_part_answers_and_nobody_else_is_let_in(stack: Stack) -> None:
    assert httpx.get(stack.prefect_url, follow_redirects=True).status_code == 200
    assert httpx.get(f"{stack.mlflow_url}/health").status_code == 200
    assert httpx.get(f"{stack.settings.store_url}/pipeline").status_code in (400, 403), (
        "the store let in somebody without a key"
    )
    for private in (stack.home / "stack.env", stack.settings.folder / "store-key.json"):
        assert private.stat().st_mode & 0o777 == 0o600
    assert stack.settings.postgres_folder.stat().st_mode & 0o777 == 0o700
    secret = stack.environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in stack.log
    assert all(secret not in argument for part in ("store", "mlflow") for argument in stack.part(part).cmdline())


def test_a_training_from_the_form_runs_on_the_worker(stack: Stack) -> None:
    run_id = stack.submit(hyperparameters={"seed": 1})
    ended = stack.wait_for(run_id)
    assert ended["state_name"] == "Completed", stack.flow_log(run_id)
    run = stack.mlflow_run(run_id)
    assert run.status == "FINISHED"
    assert run.params["epochs"] == str(SMALL["epochs"])
    version = stack.tracker.find_version("keras-dnn-mnist", run.run_id)
    assert version is not None
    assert (stack.home / "models" / "keras-dnn-mnist" / str(version.version) / "MLmodel").is_file()
    report = stack.api("POST", "/artifacts/filter", artifacts={"key": {"any_": ["training-report"]}})
    assert any(run.run_id in artifact["data"] for artifact in report)
