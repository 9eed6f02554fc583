"""A program of one's own in Prefect: its form, what the server refuses by it, its runs by the worker, its schedule."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.experiment_tracker import Run
from tests.pipeline import ROOT, wait_until
from tests.stack import ENDED, POLL_SECONDS, Stack

# The first of them waits for the stack as well.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

COUNTER = ROOT / "tests" / "programs" / "counter"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the counter, and points for it beside it."""
    folder = tmp_path_factory.mktemp("deploy")
    copy_counter(folder / "counter")
    subprocess.run([sys.executable, COUNTER / "points.py", folder / "points"], check=True)
    return folder


def copy_counter(folder: Path) -> None:
    shutil.copytree(COUNTER, folder, ignore=shutil.ignore_patterns("__pycache__"))


def deploy(stack: Stack, program: Path, *flags: str) -> dict[str, Any]:
    done = stack.deploy_program(program, "--data=./points", *flags)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def submit(stack: Stack, deployment_id: str, **parameters: Any) -> str:
    """Ask for a run; the flow run's id."""
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    return str(stack.api("POST", f"/deployments/{deployment_id}/create_flow_run", **body)["id"])


@pytest.fixture(scope="module")
def deployed(stack: Stack, place: Path) -> dict[str, Any]:
    return deploy(stack, place / "counter", "--param", "epochs=3")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--data=./points", "--param=epochs=0"), "--param epochs=0: expected a whole number, at least 1"),
        (("--data=./nowhere",), "is not there"),
        (("--data=./points", "--cron=61 * * * *"), "--cron 61 * * * *: Invalid cron string"),
        (("--data=./points", "--cron=0 2 * * *", "--timezone=Mars"), "--timezone Mars: Invalid timezone"),
        (("--data=./points", "--timezone=UTC"), "--timezone UTC belongs to --cron"),
        (("--data=./points", "--name=no/name"), "no/name"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_registered(
    stack: Stack, place: Path, flags: tuple[str, ...], told: str
) -> None:
    before = stack.api("POST", "/deployments/count")
    done = stack.deploy_program(place / "counter", *flags)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert stack.api("POST", "/deployments/count") == before


def test_the_deployment_arrived_as_it_was_asked_for(stack: Stack, place: Path, deployed: dict[str, Any]) -> None:
    found = stack.api("GET", "/deployments/name/train/counter")
    assert found["id"] == deployed["deployment_id"]
    assert deployed["deployment"] == "train/counter"
    assert deployed["url"] == f"{stack.prefect_url}/v2/deployments/deployment/{found['id']}"
    assert found["parameters"] == {
        "program": str(place / "counter"),
        "parameters": {"epochs": 3},
        "data": [str(place / "points")],
        "output_dir": str(stack.home / "models" / "{model_name}" / "{version}"),
    }
    assert found["enforce_parameter_schema"]
    assert found["schedules"] == []
    assert (found["work_pool_name"], found["global_concurrency_limit"]["limit"]) == ("this-machine", 1)
    assert found["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert str(place / "counter") in found["description"]
    fields = found["parameter_openapi_schema"]["properties"]["parameters"]["properties"]
    assert set(fields) == {"epochs", "steps", "seed", "seconds"}
    assert (fields["epochs"]["type"], fields["epochs"]["minimum"], fields["epochs"]["maximum"]) == ("integer", 1, 10000)


def test_a_second_call_renews_the_deployment_and_another_programs_is_left_alone(
    stack: Stack, place: Path, deployed: dict[str, Any], tmp_path: Path
) -> None:
    nightly = ("--param", "epochs=3", "--cron", "30 2 * * *", "--timezone", "Europe/Berlin")
    with_schedule = deploy(stack, place / "counter", *nightly)
    assert with_schedule["deployment_id"] == deployed["deployment_id"]
    (schedule,) = stack.api("GET", "/deployments/name/train/counter")["schedules"]
    assert schedule["active"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("30 2 * * *", "Europe/Berlin")
    # The switch in the UI: what a person has paused stays so.
    address = f"/deployments/{deployed['deployment_id']}/schedules/{schedule['id']}"
    stack.api("PATCH", address, active=False)
    assert deploy(stack, place / "counter", *nightly)["paused"]
    (schedule,) = stack.api("GET", "/deployments/name/train/counter")["schedules"]
    assert not schedule["active"]

    copy_counter(tmp_path / "counter")
    refused = stack.deploy_program(tmp_path / "counter", f"--data={place / 'points'}")
    assert refused.returncode == 2
    assert f"train/counter is the deployment of another program, {place / 'counter'}" in refused.stderr
    deploy(stack, place / "counter", "--param", "epochs=3")
    assert stack.api("GET", "/deployments/name/train/counter")["schedules"] == []


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"parameters": {"epochs": 0}}, "0 is less than the minimum of 1"),
        ({"parameters": {"epochs": "many"}}, "'many' is not of type 'integer'"),
        ({"parameters": {"epocs": 3}}, "('epocs' was unexpected)"),
        ({"program": "/elsewhere"}, "was expected"),
        ({"seed": -1}, "-1 is less than the minimum of 0"),
        ({"sede": 1}, "'sede' does not match any"),
    ],
)
def test_a_wrong_value_is_refused_with_words_and_makes_no_run(
    stack: Stack, deployed: dict[str, Any], wrong: dict[str, Any], told: str
) -> None:
    ours = {"deployments": {"name": {"any_": ["counter"]}}}
    before = stack.api("POST", "/flow_runs/count", **ours)
    with pytest.raises(httpx.HTTPStatusError) as refused:
        submit(stack, deployed["deployment_id"], **wrong)
    assert refused.value.response.status_code == 409
    assert told in refused.value.response.json()["detail"]
    assert stack.api("POST", "/flow_runs/count", **ours) == before


def test_the_worker_trains_it_and_a_schedule_trains_only_what_has_changed(
    stack: Stack, place: Path, deployed: dict[str, Any]
) -> None:
    run_id = submit(stack, deployed["deployment_id"], parameters={"epochs": 4})
    assert stack.wait_for(run_id)["state_name"] == "Completed", stack.flow_log(run_id)
    (trained,) = stack.tracker.find_runs("counter", {"prefect.flow_run_id": run_id})
    assert (trained.params["epochs"], trained.params["steps"]) == ("4", "20")
    assert (stack.home / "models" / "counter" / "1" / "weights.npz").is_file()

    deploy(stack, place / "counter", "--param", "epochs=4", "--cron", "* * * * *")
    try:
        unchanged = next_look(stack, deployed["deployment_id"])
        stack.wait_for_log(unchanged, "Nothing that was asked for has changed", 60)
        with (place / "points" / "train.csv").open("a") as points:
            points.write("0.5,0.5,1\n")
        finished: list[Run] = []

        def has_trained() -> bool:
            finished[:] = stack.tracker.find_runs("counter", {}, status="FINISHED")
            return len(finished) == 2

        wait_until(has_trained, 300, "the schedule to train what has changed", POLL_SECONDS)
    finally:
        # Without the flag there is no schedule.
        deploy(stack, place / "counter", "--param", "epochs=3")
    (again,) = [run for run in finished if run.run_id != trained.run_id]
    assert again.tags["dataset_sha256"] != trained.tags["dataset_sha256"]
    assert stack.wait_for(again.tags["prefect.flow_run_id"])["auto_scheduled"]


def next_look(stack: Stack, deployment_id: str) -> str:
    """The first run that the schedule starts from now on, once it has ended well."""
    now = datetime.now(UTC)
    found: list[str] = []

    def has_started() -> bool:
        started = {"start_time": {"after_": now.isoformat()}, "deployment_id": {"any_": [deployment_id]}}
        runs = stack.api("POST", "/flow_runs/filter", flow_runs=started, sort="START_TIME_ASC")
        found[:] = [run["id"] for run in runs if run["auto_scheduled"]]
        return bool(found)

    wait_until(has_started, 300, "the schedule to start a run", POLL_SECONDS)
    ended = stack.wait_for(found[0], *ENDED)
    assert ended["state_name"] == "Completed", stack.flow_log(found[0])
    return found[0]


def test_a_program_that_is_another_now_or_is_gone_fails_with_what_to_do(stack: Stack, tmp_path: Path) -> None:
    program = tmp_path / "moving"
    copy_counter(program)
    flags = ("--entry=without_data", "--name=moving", "--param=epochs=3")
    done = stack.deploy_program(program, *flags)
    assert done.returncode == 0, done.stderr
    deployment_id = json.loads(done.stdout)["deployment_id"]
    project = program / "MLproject"
    project.write_text(project.read_text().replace("default: 5, min: 1}", "default: 5, min: 4}"))
    message = failed(stack, submit(stack, deployment_id))
    assert "--param epochs=3: expected a whole number, at least 4" in message
    assert (
        f"Deploy the program again, with the command by which it was: python -m flows.deploy --program {program}"
        in (message)
    )
    shutil.move(program, tmp_path / "elsewhere")
    assert f"The program {program} is not there" in failed(stack, submit(stack, deployment_id))
    remove = [sys.executable, "-m", "prefect", "--no-prompt", "deployment", "delete", "train/moving"]
    subprocess.run(remove, env={**os.environ, **stack.environment}, check=True, capture_output=True)
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        stack.api("GET", "/deployments/name/train/moving")


def failed(stack: Stack, run_id: str) -> str:
    """What the page of a run says of why it failed."""
    ended = stack.wait_for(run_id)
    assert ended["state_name"] == "Failed", stack.flow_log(run_id)
    return str(ended["state"]["message"])
