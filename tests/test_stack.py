"""The servers, the deployments and what happens when parts of them die: `make stack`, real and whole."""

import os
import shlex
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psutil
import pytest

from tasks.cancellation import life_file
from tests.pipeline import QUICK, descendants, still_running, wait_until
from tests.stack import ROOT, SMALL, Channel, Stack

# The first of them waits for the stack as well.
pytestmark = pytest.mark.timeout(900)

LONG = {"epochs": 1000}
"""Minutes of training, to be interrupted."""


def start_long(stack: Stack, deployment: str = "on-demand", seed: int = 0) -> str:
    """A flow run in the middle of a training that would take minutes."""
    run_id = stack.submit(deployment, hyperparameters={**LONG, "seed": seed})
    stack.wait_for_log(run_id, r"epoch 3/1000")
    return run_id


def process_of(stack: Stack, run_id: str) -> psutil.Process:
    """The process of a flow run; it writes its number into the file that it keeps locked."""
    return psutil.Process(int(life_file(stack.pipeline_settings, run_id).read_text().split()[1]))


def wait_for_both(stack: Stack, run_id: str, limit_seconds: float) -> tuple[str, str, str]:
    """What Prefect and MLflow say once both have ended the training, and the cause."""
    state = stack.wait_for(run_id, limit_seconds=limit_seconds)["state_name"]
    wait_until(lambda: stack.mlflow_run(run_id).status != "RUNNING", limit_seconds, "MLflow to end the run")
    run = stack.mlflow_run(run_id)
    return state, run.status, run.tags.get("cause", "")


def cancel(stack: Stack, run_id: str) -> None:
    """What the button in the UI does."""
    state = {"type": "CANCELLING", "message": "Cancelled from the UI."}
    stack.api("POST", f"/flow_runs/{run_id}/set_state", state=state)


def test_every_part_answers_and_nobody_else_is_let_in(stack: Stack) -> None:
    assert httpx.get(stack.prefect_url, follow_redirects=True).status_code == 200
    assert httpx.get(f"{stack.mlflow_url}/health").status_code == 200
    assert httpx.get(f"{stack.settings.store_url}/pipeline").status_code in (400, 403), (
        "the store let in somebody without a key"
    )
    for private in (stack.home / "stack.env", stack.settings.folder / "store-key.json"):
        assert private.stat().st_mode & 0o777 == 0o600
    assert stack.settings.postgres_folder.stat().st_mode & 0o777 == 0o700
    for port in stack.settings.ports.values():
        listening = [
            one for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr[1:] == (port,)
        ]
        assert {tuple(one.laddr) for one in listening} == {("127.0.0.1", port)}
    secret = stack.environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in stack.log
    assert all(secret not in argument for part in ("store", "mlflow") for argument in stack.part(part).cmdline())


def test_the_deployments_arrived_as_they_are_written(stack: Stack) -> None:
    on_demand, nightly = stack.deployment("on-demand"), stack.deployment("nightly")
    assert on_demand["enforce_parameter_schema"]
    assert nightly["enforce_parameter_schema"]
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


def test_runs_side_by_side_give_two_versions_and_one_champion(stack: Stack) -> None:
    first, second = (stack.submit(hyperparameters={"seed": seed}, model_name="side-by-side") for seed in (1, 2))
    for run_id in (first, second):
        ended = stack.wait_for(run_id)
        assert ended["state_name"] == "Completed", stack.flow_log(run_id)
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


def test_a_schedule_that_is_due_fires_and_a_night_without_changes_trains_nothing(stack: Stack) -> None:
    nightly = stack.deployment("nightly")
    stack.wait_for(stack.submit(hyperparameters={"seed": 1}))
    # Every 30 s: a single date could pass before the scheduler, which looks every 5 s, has seen the schedule.
    schedule = {"interval": 30, "anchor_date": datetime.now(UTC).isoformat(), "timezone": "UTC"}
    parameters = {"hyperparameters": {**SMALL, "seed": 1}}
    body = [{"schedule": schedule, "active": True, "slug": "test", "parameters": parameters}]
    created = httpx.post(f"{stack.prefect_api}/deployments/{nightly['id']}/schedules", json=body).raise_for_status()
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
        wait_until(is_due, 200, "the scheduler to make a run")
        run = runs[0]
        assert stack.wait_for(run["id"])["state_name"] == "Completed", stack.flow_log(run["id"])
        stack.wait_for_log(run["id"], "nothing is trained", 60)
    finally:
        (made,) = created.json()
        stack.api("DELETE", f"/deployments/{nightly['id']}/schedules/{made['id']}")


def test_ticks_that_were_missed_give_one_run_and_the_others_say_why_not(stack: Stack) -> None:
    runs = [stack.submit("nightly", hyperparameters={"seed": 1}) for _ in range(3)]
    ended = [stack.wait_for(run_id) for run_id in runs]
    assert sorted(run["state_name"] for run in ended) == ["Cancelled", "Cancelled", "Completed"]
    reasons = {run["state"]["message"] for run in ended if run["state_name"] == "Cancelled"}
    assert reasons == {"Deployment concurrency limit reached."}


def test_cancelling_leaves_nothing_running_and_both_sides_agree(stack: Stack) -> None:
    run_id = start_long(stack, seed=3)
    processes = descendants(process_of(stack, run_id).pid)
    assert len(processes) > 1, "the training is a process of its own"
    cancel(stack, run_id)
    wait_until(lambda: not still_running(processes), 60, "the processes to end")
    assert wait_for_both(stack, run_id, 60) == ("Cancelled", "KILLED", "cancelled in Prefect")
    assert stack.deployment("on-demand")["global_concurrency_limit"]["active_slots"] == 0


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
        wait_until(has_started, 400, "the run by hand to train")
        run_id = found[0]["id"]
        processes = descendants(person.pid)
        cancel(stack, run_id)
        wait_until(lambda: not still_running(processes), 60, "the processes to end")
        assert person.wait(10) == 128 + signal.SIGTERM
        assert wait_for_both(stack, run_id, 60) == ("Cancelled", "KILLED", "cancelled in Prefect")
    finally:
        person.kill()
        log.close()


def test_a_killed_flow_process_is_closed_on_both_sides_and_the_channel_is_told(stack: Stack, channel: Channel) -> None:
    run_id = start_long(stack, seed=4)
    processes = descendants(process_of(stack, run_id).pid)
    process_of(stack, run_id).kill()
    state, status, cause = wait_for_both(stack, run_id, 120)
    assert (state, status) == ("Crashed", "KILLED")
    assert "its process died without a word" in cause
    wait_until(lambda: not still_running(processes), 30, "the training to follow its flow")
    name = stack.flow_run(run_id)["name"]
    wait_until(lambda: any(name in message for message in channel.messages), 60, "the channel to be told")


def test_servers_and_the_worker_may_die_while_a_training_goes_on(stack: Stack) -> None:
    run_id = stack.submit(hyperparameters={"epochs": 150, "seed": 5})
    stack.wait_for_log(run_id, r"epoch 3/150")
    for part in ("worker", "prefect", "mlflow", "store", "postgres"):
        stack.part(part).kill()
    ended = stack.wait_for(run_id, limit_seconds=300)
    assert ended["state_name"] == "Completed", stack.flow_log(run_id)
    run = stack.mlflow_run(run_id)
    assert run.status == "FINISHED"
    assert ended["run_count"] == 1
    stack.wait_until_up()


def test_a_flow_that_died_with_its_worker_is_found(stack: Stack) -> None:
    run_id = start_long(stack, seed=6)
    flow, worker = process_of(stack, run_id), stack.part("worker")
    worker.suspend()  # So that it cannot see its flow die first.
    flow.kill()
    worker.kill()
    state, status, cause = wait_for_both(stack, run_id, 120)
    assert (state, status) == ("Crashed", "KILLED")
    assert "its process died without a word" in cause
    stack.wait_until_up()


def test_a_port_in_use_is_told_with_its_owner_and_nothing_is_started(stack: Stack) -> None:
    asked = [sys.executable, "-m", "infra.stack"]
    started = subprocess.run(asked, cwd=ROOT, env={**os.environ, **stack.given}, capture_output=True, text=True)
    assert started.returncode == 2
    port = stack.settings.ports["prefect"]
    owner = next(
        one.pid for one in psutil.net_connections("tcp") if one.laddr[1:] == (port,) and one.status == "LISTEN"
    )
    assert f"Port {port} of 127.0.0.1, for prefect, is in use by process {owner} (" in started.stderr
    assert "spawned" not in started.stdout
