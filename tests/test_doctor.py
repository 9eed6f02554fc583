"""What the doctor finds after a run was killed outright, and what it mends and leaves alone."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from flows.doctor import examine
from infra.lease import Claims, Lease, claimant, hold_lease
from infra.lock import hold
from infra.object_store import ObjectStore
from tasks.training_runs import close_orphans
from tests.pipeline import QUICK, ROOT, Pipeline, descendants, still_running, wait_until


def examined(pipeline: Pipeline) -> str:
    findings = examine(pipeline.services, "keras-mnist", "keras-dnn-mnist")
    return "".join(f"{finding.what}\n" for finding in findings)


def doctor(pipeline: Pipeline, *flags: str) -> str:
    command = [sys.executable, "-m", "flows.doctor", *flags]
    environment = {**os.environ, **pipeline.environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_a_killed_run_is_found_and_closed_and_its_checkpoints_are_kept(fresh_pipeline: Pipeline) -> None:
    flags = (*QUICK, "--epochs=300")
    process = fresh_pipeline.start(*flags)
    fresh_pipeline.wait_for_log("epoch 3/300", process)
    (run,) = fresh_pipeline.tracker.find_runs("keras-mnist", {}, status="RUNNING")
    assert f"run {run.run_id} says RUNNING" not in examined(fresh_pipeline), "it is alive"

    started = descendants(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: still_running(started) == [], 60, "the end of all that was started")
    incomplete = Path(fresh_pipeline.folder, "home", "object-store", "datasets", "mnist", "0" * 64)
    incomplete.mkdir()
    (incomplete / "train-images-idx3-ubyte.gz").write_bytes(b"half")

    found = doctor(fresh_pipeline)
    assert f"run {run.run_id} says RUNNING, and its process has died" in found
    assert f"{incomplete} is incomplete" in found
    assert "working folder" in found
    assert fresh_pipeline.tracker.get_run(run.run_id).status == "RUNNING", "a look changes nothing"

    assert ": done" in doctor(fresh_pipeline, "--repair")
    closed = fresh_pipeline.tracker.get_run(run.run_id)
    assert closed.status == "KILLED"
    assert "its process died" in closed.tags["cause"]
    assert not list(incomplete.glob("*"))
    assert examined(fresh_pipeline) == f"checkpoints of run {run.run_id}, KILLED\n"


def test_a_run_without_a_living_owner_is_closed_and_others_are_left_alone(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    tracker, locks = pipeline.tracker, pipeline.settings.locks_folder

    def run(key: str, lease: str) -> str:
        return tracker.start_run("keras-mnist", key, {"lease": lease, "training_key": key * 64})

    dead, alive = run("a", f"{claimant(locks)}.1"), run("b", f"{claimant(locks)}.2")
    elsewhere, dead_elsewhere, unseen = run("c", "other.3"), run("d", "other.4"), run("e", "other.5")
    store = ObjectStore(pipeline.settings.object_store_uri)
    # A machine that was killed leaves a claim like this; one that has another store, none.
    claim = {"holder": "somebody@elsewhere", "since": "today", "seconds": 0.5}
    store.put_bytes(f"leases/training-{'d' * 16}.other.4", json.dumps(claim).encode())
    store.put_bytes(f"leases/training-{'d' * 16}.other.4.1.0.holds", b"")

    def statuses() -> list[str]:
        return [tracker.get_run(run_id).status for run_id in (dead, alive, elsewhere, dead_elsewhere, unseen)]

    with (
        hold(locks / f"training-{'b' * 16}.lock", on_wait=lambda holder: None),
        hold_lease(Lease(store, f"training-{'c' * 16}", "other", 0.5), lambda holder: None) as lease,
    ):
        tracker.set_tags(elsewhere, {"lease": lease.name})
        closed = close_orphans(pipeline.services, "keras-mnist")
        assert [one.run_id for one in closed] == [dead]
        assert statuses() == ["KILLED", "RUNNING", "RUNNING", "RUNNING", "RUNNING"]
        claims = Claims(store)
        look = partial(close_orphans, pipeline.services, "keras-mnist", claims=claims)
        assert look() == []
        wait_until(lambda: bool(look()), 10, "the end of the dead one's lease")
        assert statuses() == ["KILLED", "RUNNING", "RUNNING", "KILLED", "RUNNING"]
    assert f"run {elsewhere} says RUNNING" not in examined(pipeline), "it has ended its lease itself"


def test_a_look_creates_nothing(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    assert doctor(pipeline) == "Nothing is left over.\n"
    assert list(tmp_path.iterdir()) == []
    assert pipeline.tracker.experiments() == []
    assert pipeline.tracker.versions("keras-dnn-mnist") == []
    assert list(tmp_path.iterdir()) == []
