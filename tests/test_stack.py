"""The servers, the deployments and what happens when parts of them die: `make stack`, real and whole."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psutil
import pytest

from tests.pipeline import QUICK, descendants, still_running, wait_until
from tests.s3_server import free_port
from tests.stack import ENDED, LONG, POLL_SECONDS, ROOT, SECONDS_TO_STOP, SMALL, Channel, Stack

# The first of them waits for the stack as well.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def cancel(stack: Stack, run_id: str) -> None:
    """What the button in the UI does."""
    state = {"type": "CANCELLING", "message": "Cancelled from the UI."}
    stack.api("POST", f"/flow_runs/{run_id}/set_state", state=state)


def test_every_part_answers_and_everything_is_its_owners_alone(stack: Stack) -> None:
    assert httpx.get(stack.prefect_url, follow_redirects=True).status_code == 200
    assert httpx.get(f"{stack.mlflow_url}/health").status_code == 200
    assert httpx.get(f"{stack.settings.store_url}/pipeline").status_code in (400, 403), (
        "the store let in somebody without a key"
    )
    for private in (stack.home / "stack.env", *stack.settings.folder.glob("*-key.json")):
        assert private.stat().st_mode & 0o777 == 0o600
    assert stack.settings.folder.stat().st_mode & 0o777 == 0o700
    for port in (port for name, port in stack.settings.ports.items() if name != "service"):  # Which waits for a model.
        listening = [
            one for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr[1:] == (port,)
        ]
        assert {tuple(one.laddr) for one in listening} == {("127.0.0.1", port)}


def secrets_of(stack: Stack) -> list[str]:
    return [stack.environment["AWS_SECRET_ACCESS_KEY"], stack.key[1], stack.mlflow_key[1]]


def test_without_the_key_every_path_of_prefects_api_answers_401(stack: Stack) -> None:
    described = httpx.get(f"{stack.prefect_api}/openapi.json", auth=stack.key, timeout=60).json()["paths"]
    some = "00000000-0000-0000-0000-000000000000"
    with httpx.Client(base_url=stack.prefect_url, auth=(stack.key[0], "wrong")) as client:
        let_in = {
            path
            for path, methods in described.items()
            for method in methods
            if client.request(method, f"/api{re.sub('{[^}]*}', some, path.removeprefix('/api'))}").status_code != 401
        }
    assert let_in == {"/health", "/ready"}
    assert len(described) > 100


def test_without_the_key_mlflow_answers_401(stack: Stack) -> None:
    for path in (
        "/",
        "/api/2.0/mlflow/experiments/search",
        "/ajax-api/2.0/mlflow/experiments/search",
        "/static-files/",
        "/get-artifact",
        "/api/2.0/mlflow-artifacts/artifacts",
        "/graphql",
        "/version",
        "/health/",
        "//health",
    ):
        for method in ("GET", "POST", "OPTIONS", "PUT"):
            assert httpx.request(method, f"{stack.mlflow_url}{path}", auth=("pipeline", "no")).status_code == 401
    assert httpx.get(stack.mlflow_url, auth=stack.mlflow_key).status_code == 200
    token = {"Authorization": f"Bearer {stack.mlflow_key[1]}"}
    assert httpx.get(stack.mlflow_url, headers=token).status_code == 200


@pytest.mark.parametrize("server", ["prefect", "mlflow"])
def test_another_name_and_a_page_of_another_origin_are_refused_with_the_key(stack: Stack, server: str) -> None:
    address, path, key = {
        "prefect": (stack.prefect_url, "/api/flow_runs/", stack.key),
        "mlflow": (stack.mlflow_url, "/api/2.0/mlflow/runs/create", stack.mlflow_key),
    }[server]
    with httpx.Client(base_url=address, auth=key) as client:
        assert client.post(path, json={}, headers={"Host": "rebound.example"}).status_code == 403
        # A page of the same machine is another user's as well.
        for origin in ("https://evil.example", "http://127.0.0.1:8888", "http://localhost:8888", "null"):
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            preflight = client.options(path, headers=asked)
            assert preflight.status_code == 403
            assert "access-control-allow-origin" not in preflight.headers
            assert client.post(path, json={}, headers={"Origin": origin}).status_code == 403
        own = client.options(path, headers={"Origin": address, "Access-Control-Request-Method": "POST"})
        assert own.headers.get("access-control-allow-origin", address) == address
        assert client.post(path, json={}, headers={"Origin": address}).status_code not in (401, 403)


@pytest.mark.parametrize("variable", ["command", "env", "working_dir", "env.PATH"])
def test_a_run_may_set_nothing_of_its_process(stack: Stack, variable: str) -> None:
    deployment = stack.deployment("on-demand")
    value = {"PYTHONPATH": "elsewhere"} if variable == "env" else "elsewhere"
    with pytest.raises(httpx.HTTPStatusError) as refused:
        stack.api("POST", f"/deployments/{deployment['id']}/create_flow_run", job_variables={variable: value})
    assert refused.value.response.status_code == 422
    assert f"({variable!r} was unexpected)" in refused.value.response.text


def test_the_deployments_arrived_as_they_are_written(stack: Stack) -> None:
    on_demand, nightly = stack.deployment("on-demand"), stack.deployment("nightly")
    assert on_demand["enforce_parameter_schema"]
    assert nightly["enforce_parameter_schema"]
    search = stack.api("GET", "/deployments/name/search/on-demand")
    assert (search["enforce_parameter_schema"], search["global_concurrency_limit"]["limit"]) == (True, 1)
    assert not search["parameter_openapi_schema"]["additionalProperties"]
    assert on_demand["global_concurrency_limit"]["limit"] == 2
    assert on_demand["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert nightly["parameters"]["if_unreachable"] == "fail"
    (schedule,) = nightly["schedules"]
    assert schedule["active"]
    assert schedule["slug"] == "nightly"
    assert schedule["schedule"]["cron"] == "30 2 * * *"
    assert schedule["schedule"]["timezone"] == "Europe/Berlin"
    names = {automation["name"]: automation["enabled"] for automation in stack.api("POST", "/automations/filter")}
    assert names == {
        "Crash flow runs without a sign of life": True,
        "Crash flow runs that never start": True,
        "Tell of failed runs": True,
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"hyperparameters": {"epochs": 0}},
        {"hyperparameters": {"epochs": "many"}},
        {"hyperparameters": {"epocs": 3}},
        {"gate": "always"},
        {"datset": "mnist"},
    ],
)
def test_a_wrong_parameter_is_refused_before_a_run_starts(stack: Stack, wrong: dict[str, Any]) -> None:
    # Not the nightly one's: the scheduler makes those whenever it comes round.
    ours = {"deployments": {"name": {"any_": ["on-demand"]}}}
    before = stack.api("POST", "/flow_runs/count", **ours)
    with pytest.raises(httpx.HTTPStatusError) as refused:
        stack.submit(**wrong)
    assert next(iter(wrong)) in refused.value.response.text or "datset" in refused.value.response.text
    assert stack.api("POST", "/flow_runs/count", **ours) == before


@pytest.fixture(scope="module")
def side_by_side(stack: Stack) -> list[str]:
    """Two flow runs that were asked for at once, of seeds 1 and 2, completed."""
    runs = [stack.submit(hyperparameters={"seed": seed}, model_name="side-by-side") for seed in (1, 2)]
    for run_id in runs:
        assert stack.wait_for(run_id)["state_name"] == "Completed", stack.flow_log(run_id)
    return runs


def test_runs_side_by_side_give_two_versions_and_one_champion(stack: Stack, side_by_side: list[str]) -> None:
    first, second = side_by_side
    started = [datetime.fromisoformat(stack.flow_run(run_id)["start_time"]) for run_id in (first, second)]
    ended_at = [datetime.fromisoformat(stack.flow_run(run_id)["end_time"]) for run_id in (first, second)]
    assert max(started) < min(ended_at), "one waited for the other"
    runs = [stack.mlflow_run(run_id) for run_id in (first, second)]
    assert [run.status for run in runs] == ["FINISHED", "FINISHED"]
    assert [run.params["seed"] for run in runs] == ["1", "2"]
    versions = [stack.tracker.find_version("side-by-side", run.run_id) for run in runs]
    numbers = {version.version for version in versions if version}
    assert len(numbers) == 2
    champion = stack.tracker.version_by_alias("side-by-side", "champion")
    assert champion is not None
    assert champion.version in numbers
    for number in numbers:
        assert (stack.home / "models" / "side-by-side" / str(number) / "MLmodel").is_file()
    reports = stack.api("POST", "/artifacts/filter", artifacts={"type": {"any_": ["markdown"]}})
    assert all(any(stack.tracker.run_url(run) in report["data"] for report in reports) for run in runs)


@pytest.mark.usefixtures("side_by_side")
def test_a_schedule_that_is_due_fires_and_a_night_without_changes_trains_nothing(stack: Stack) -> None:
    nightly = stack.deployment("nightly")
    # Every 15 s: a single date could pass before the scheduler, which looks every 5 s, has seen the schedule.
    schedule = {"interval": 15, "anchor_date": datetime.now(UTC).isoformat(), "timezone": "UTC"}
    parameters = {"hyperparameters": {**SMALL, "seed": 1}}
    body = [{"schedule": schedule, "active": True, "slug": "test", "parameters": parameters}]
    address = f"{stack.prefect_api}/deployments/{nightly['id']}/schedules"
    created = httpx.post(address, json=body, auth=stack.key).raise_for_status()
    runs: list[dict[str, Any]] = []

    def is_due() -> bool:
        soon = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
        asked = {
            "deployments": {"id": {"any_": [nightly["id"]]}},
            "flow_runs": {"expected_start_time": {"before_": soon}, "state": {"name": {"not_any_": ["Cancelled"]}}},
            "sort": "EXPECTED_START_TIME_ASC",
        }
        runs[:] = [run for run in stack.api("POST", "/flow_runs/filter", **asked) if run["auto_scheduled"]]
        return bool(runs)

    try:
        wait_until(is_due, 200, "the scheduler to make a run", POLL_SECONDS)
        run_id = runs[0]["id"]
        stack.wait_for(run_id, "RUNNING", *ENDED)
    finally:
        # The ticks behind it go with the schedule; one that the worker has taken up by then is refused the only slot.
        (made,) = created.json()
        stack.api("DELETE", f"/deployments/{nightly['id']}/schedules/{made['id']}")
    assert stack.wait_for(run_id)["state_name"] == "Completed", stack.flow_log(run_id)
    stack.wait_for_log(run_id, "nothing is trained", 60)
    wait_until(
        lambda: stack.deployment("nightly")["global_concurrency_limit"]["active_slots"] == 0,
        120,
        "the slot to be free",
        POLL_SECONDS,
    )


@pytest.mark.usefixtures("side_by_side")
def test_ticks_that_were_missed_give_one_run_and_the_others_say_why_not(stack: Stack) -> None:
    runs = [stack.submit("nightly", hyperparameters={"seed": 1}) for _ in range(3)]
    ended = [stack.wait_for(run_id) for run_id in runs]
    assert sorted(run["state_name"] for run in ended) == ["Cancelled", "Cancelled", "Completed"]
    reasons = {run["state"]["message"] for run in ended if run["state_name"] == "Cancelled"}
    assert reasons == {"Deployment concurrency limit reached."}


def test_a_person_uses_the_stack_from_a_terminal_and_may_be_cancelled_in_the_ui(stack: Stack) -> None:
    command = (
        f". {shlex.quote(str(stack.home / 'stack.env'))} && exec {shlex.quote(sys.executable)} -m flows.train_mnist"
    )
    output = stack.home / "by-hand"
    flags = [*QUICK, "--epochs=1000", f"--output-dir={output}"]
    outside = {name: value for name, value in stack.given.items() if not name.startswith(("PIPELINE", "STACK"))}
    log = (stack.folder / "by-hand.txt").open("w")
    person = subprocess.Popen(
        ["sh", "-c", f"{command} {shlex.join(flags)}"], cwd=ROOT, env={**os.environ, **outside}, stderr=log
    )
    found: list[dict[str, str]] = []

    def has_started() -> bool:
        asked = {"flow_runs": {"deployment_id": {"is_null_": True}}, "sort": "START_TIME_DESC", "limit": 1}
        found[:] = stack.api("POST", "/flow_runs/filter", **asked)
        return bool(found) and "epoch 3/1000" in (stack.folder / "by-hand.txt").read_text()

    try:
        wait_until(has_started, 400, "the run by hand to train", POLL_SECONDS)
        run_id = found[0]["id"]
        processes = descendants(person.pid)
        cancel(stack, run_id)
        wait_until(lambda: not still_running(processes), 60, "the processes to end")
        assert person.wait(10) == 128 + signal.SIGTERM
        assert stack.wait_for_both(run_id, 60) == ("Cancelled", "KILLED", "cancelled in Prefect")
    finally:
        person.kill()
        log.close()


def test_killed_flow_processes_are_closed_on_both_sides_and_the_channel_is_told(stack: Stack, channel: Channel) -> None:
    alone, with_its_worker = (stack.submit(hyperparameters={**LONG, "seed": seed}) for seed in (4, 6))
    for run_id in (alone, with_its_worker):
        stack.wait_for_log(run_id, r"epoch 3/1000")
    processes = [one for run_id in (alone, with_its_worker) for one in descendants(stack.process_of(run_id).pid)]
    stack.process_of(alone).kill()
    # Its worker has seen it die; of the other there is nobody who could.
    assert "exited with" in stack.wait_for(alone, limit_seconds=60)["state"]["message"]
    flow, worker = stack.process_of(with_its_worker), stack.part("worker")
    worker.suspend()
    flow.kill()
    worker.kill()
    for run_id in (alone, with_its_worker):
        state, status, cause = stack.wait_for_both(run_id, 120)
        assert (state, status) == ("Crashed", "KILLED")
        assert "its process died without a word" in cause
        name = stack.flow_run(run_id)["name"]
        wait_until(lambda name=name: any(name in said for said in channel.messages), 60, "the channel to be told")  # type: ignore[misc]
    wait_until(lambda: not still_running(processes), 30, "the trainings to follow their flows")
    stack.wait_until_up()


DISTURBED = {"epochs": 120, "seed": 5}
"""A training that takes long enough to be disturbed, and ends."""


@pytest.fixture(scope="module")
def survivor(stack: Stack) -> str:
    """A flow run in the middle of whose training the worker, the servers, the store and the databases were killed."""
    run_id = stack.submit(hyperparameters=DISTURBED)
    stack.wait_for_log(run_id, r"epoch 3/120")
    for part in ("worker", "prefect", "mlflow", "store", "postgres"):
        stack.part(part).kill()
    stack.wait_for(run_id, limit_seconds=300)
    stack.wait_until_up()
    return run_id


def test_servers_and_the_worker_may_die_while_a_training_goes_on(stack: Stack, survivor: str) -> None:
    ended = stack.flow_run(survivor)
    assert ended["state_name"] == "Completed", stack.flow_log(survivor)
    assert ended["run_count"] == 1
    assert stack.mlflow_run(survivor).status == "FINISHED"
    noise = re.findall(r".*(?:Dir\.Remove not empty|delete object failed).*", stack.log)
    assert not noise, "each checkpoint that was removed is in the log"


def test_a_restart_in_the_middle_of_a_training_changes_nothing(stack: Stack, survivor: str) -> None:
    before = what_is_there(stack)
    # In another experiment, where nobody has trained this: what the survivor found is what it must find.
    run_id = stack.submit(hyperparameters=DISTURBED, experiment="interrupted")
    stack.wait_for_log(run_id, r"epoch 3/120")
    assert stack.process
    processes = descendants(stack.process.pid)
    before_the_end = len(stack.log)
    told, pid = time.monotonic(), stack.process.pid
    os.killpg(pid, signal.SIGINT)
    wait_until(lambda: "Ending the stack" in stack.log[before_the_end:], 1, "the stack to say that it ends")
    stack.process.wait(SECONDS_TO_STOP - (time.monotonic() - told))
    assert not still_running(processes)
    stack.start()
    assert what_is_there(stack) == before
    state, status, cause = stack.wait_for_both(run_id, 120)
    assert (state, status) == ("Crashed", "KILLED"), cause
    interrupted = stack.mlflow_run(run_id)

    # The button "Retry" in the UI.
    state_of_retry = {"type": "SCHEDULED", "name": "AwaitingRetry"}
    stack.api("POST", f"/flow_runs/{run_id}/set_state", state=state_of_retry, force=True)
    wait_until(lambda: stack.flow_run(run_id)["run_count"] == 2, 300, "the second attempt", POLL_SECONDS)
    assert stack.wait_for(run_id)["state_name"] == "Completed", stack.flow_log(run_id)
    continued = stack.mlflow_run(run_id)
    assert (continued.run_id, continued.status) == (interrupted.run_id, "FINISHED")
    assert "cause" not in continued.tags
    stack.wait_for_log(run_id, f"Continuing run {interrupted.run_id}", 60)
    assert continued.tags["weights_sha256"] == stack.mlflow_run(survivor).tags["weights_sha256"]


def what_is_there(stack: Stack) -> dict[str, Any]:
    """What a restart must not change."""
    champion = stack.tracker.version_by_alias("keras-dnn-mnist", "champion")
    completed = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    return {
        "deployments": {name: stack.deployment(name)["id"] for name in ("on-demand", "nightly")},
        "schedules": [schedule["id"] for schedule in stack.deployment("nightly")["schedules"]],
        "automations": {one["id"] for one in stack.api("POST", "/automations/filter")},
        "completed flow runs": stack.api("POST", "/flow_runs/count", **completed),
        "finished trainings": {run.run_id for run in stack.tracker.find_runs("keras-mnist", {}, status="FINISHED")},
        "versions": {version.uri: version.run_id for version in stack.tracker.versions("keras-dnn-mnist")},
        "champion": champion and champion.version,
        "keys": secrets_of(stack),
    }


def test_a_second_stack_in_the_same_home_is_refused_and_the_first_one_goes_on(stack: Stack) -> None:
    assert stack.process
    ports = {f"STACK_{name.upper()}_PORT": str(free_port()) for name in stack.settings.ports}
    asked = [sys.executable, "-m", "infra.stack"]
    environment = {**os.environ, **stack.given, **ports}
    started = subprocess.run(asked, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert started.returncode == 2
    assert f"The stack of {stack.home} is running already (process {stack.process.pid})" in started.stderr
    assert "spawned" not in started.stdout
    assert stack.part("prefect").is_running()


def test_no_key_is_in_a_log_a_command_line_or_what_the_servers_keep(stack: Stack) -> None:
    """The last test of all, when trainings have left there what they leave."""
    assert stack.process
    texts = [stack.log.encode(), *(" ".join(one.cmdline()).encode() for one in descendants(stack.process.pid))]
    secrets = [secret.encode() for secret in secrets_of(stack)]
    assert not [text for text in texts if any(secret in text for secret in secrets)]
    for folder in ("logs", "postgres", "store", "prefect"):
        for path in (stack.settings.folder / folder).rglob("*"):
            with suppress(FileNotFoundError):  # A database's files come and go.
                assert not (path.is_file() and any(secret in path.read_bytes() for secret in secrets)), path
