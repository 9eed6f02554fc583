"""A program of a person's own through the whole flow, as the person starts it, on real parts."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pytest

from tests.pipeline import ROOT, Pipeline, descendants, still_running, wait_until

pytestmark = pytest.mark.slow

COUNTER = ROOT / "tests" / "programs" / "counter"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Pipeline:
    """A pipeline, with a copy of the counter and points for it beside each other."""
    folder = tmp_path_factory.mktemp("train")
    shutil.copytree(COUNTER, folder / "counter", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, COUNTER / "points.py", folder / "points"], check=True)
    return Pipeline(folder, {"PREFECT_API_URL": prefect_api}, module="flows.train")


@pytest.fixture(scope="module")
def flags(place: Pipeline) -> list[str]:
    return [f"--program={place.folder / 'counter'}", f"--data={place.folder / 'points'}"]


@pytest.fixture(scope="module")
def outcome(place: Pipeline, flags: list[str]) -> dict[str, Any]:
    return place.run(*flags, "--param", "epochs=3")


def progress_of(run_id: str, place: Pipeline, prefect_api: str) -> list[float]:
    """How far the bars on the pages of its flow run are, in per cent."""
    only = {"flow_runs": {"id": {"any_": [place.tracker.get_run(run_id).tags["prefect.flow_run_id"]]}}}
    artifacts = httpx.post(f"{prefect_api}/artifacts/filter", json=only).json()
    return [one["data"] for one in artifacts if one["type"] == "progress"]


def test_a_program_ends_as_a_version_with_its_files(place: Pipeline, outcome: dict[str, Any], prefect_api: str) -> None:
    assert (outcome["model_name"], outcome["model_version"], outcome["champion"]) == ("counter", 1, 1)
    assert (outcome["dataset"], outcome["weights_sha256"], outcome["reused"]) == ("points", None, False)
    assert 0.7 < outcome["metrics"]["val_accuracy"] < 0.9
    assert "test_accuracy" not in outcome
    with np.load(place.output_dir / "weights.npz") as model:
        assert model["weights"].shape == (3,)
    run = place.tracker.get_run(outcome["run_id"])
    assert (run.status, run.params["epochs"], run.tags["continues"]) == ("FINISHED", "3", "exact")
    client = mlflow.MlflowClient(place.settings.mlflow_tracking_uri)
    assert [point.step for point in client.get_metric_history(run.run_id, "val_accuracy")] == [1, 2, 3]
    # By the steps of the objective, for it calls no fit. It says itself how far it is: nobody says it again.
    assert "epoch 3 of 3" in place.log
    assert "step 3" not in place.log
    assert progress_of(outcome["run_id"], place, prefect_api) == [100]
    source = {Path(file.path).name for file in client.list_artifacts(run.run_id, "source/program")}
    assert source == {path.name for path in COUNTER.iterdir() if path.is_file()}
    home = place.folder / "home"
    for folder in ("runs", "scratch", "object-store/runs", "object-store/leases"):
        assert not (home / folder).exists() or list((home / folder).iterdir()) == [], folder


def test_nothing_that_a_program_prints_moves_anything(place: Pipeline, prefect_api: str) -> None:
    done = place.run(f"--program={ROOT / 'tests' / 'programs' / 'forger'}", "--entry=train.py")
    assert "epoch 7/7  loss 0.1  1.00 s" in place.log
    phases = done["phases"]
    assert phases["scaling"] == 0
    assert phases["preparing"] < 900
    assert phases["running"] > 2, "it sleeps for 2 s after its last line"
    run = place.tracker.get_run(done["run_id"])
    assert not run.metrics.keys() & {"loss", "epoch_seconds"}
    assert progress_of(done["run_id"], place, prefect_api) == [0]


def test_the_same_again_trains_nothing(place: Pipeline, flags: list[str], outcome: dict[str, Any]) -> None:
    again = place.run(*flags, "--param", "epochs=3")
    assert again["reused"]
    assert (again["run_id"], again["model_version"]) == (outcome["run_id"], 1)
    assert "Nothing that was asked for has changed since run" in place.log


def test_another_parameter_is_planned_told_trained_and_scored_against_the_champion(
    place: Pipeline, flags: list[str], outcome: dict[str, Any]
) -> None:
    planned = place.run(*flags, "--param", "epochs=4", "--plan")
    assert (planned["nearest_run"], planned["differences"]) == (outcome["run_id"], ["epochs 3 -> 4"])
    assert planned["finished_run"] is None
    other = place.run(*flags, "--param", "epochs=4")
    assert other["training_key"] == planned["training_key"]
    assert f"The nearest finished run is {outcome['run_id']}. Since then: epochs 3 -> 4\n" in place.log
    assert (other["model_version"], other["decided"]) == (2, True)
    assert "of 200 items" in other["champion_decision"]
    assert place.run(*flags, "--param", "epochs=4", "--plan")["finished_run"] == other["run_id"]


def test_a_killed_training_is_continued_to_the_same_weights(
    place: Pipeline, flags: list[str], outcome: dict[str, Any]
) -> None:
    slow = [*flags, "--param", "epochs=6", "--param", "seconds=0.5", "--model-name=killed"]
    process = place.start(*slow)
    place.wait_for_log("epoch 4 of 6", process)
    started = descendants(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: still_running(started) == [], 60, "the end of all that was started")
    (run,) = place.tracker.find_runs("counter", {}, status="RUNNING")
    continued = place.run(*slow)
    assert continued["run_id"] == run.run_id
    assert f"Continuing run {run.run_id}" in place.log
    assert "epoch 1 of 6" not in place.log
    client = mlflow.MlflowClient(place.settings.mlflow_tracking_uri)
    assert [point.step for point in client.get_metric_history(run.run_id, "loss")] == [1, 2, 3, 4, 5, 6]
    with np.load(place.output_dir / "weights.npz") as model:
        weights = model["weights"]
    undisturbed = place.run(*flags, "--param", "epochs=6", "--model-name=undisturbed")
    assert undisturbed["metrics"] == continued["metrics"]
    with np.load(place.output_dir / "weights.npz") as model:
        assert (model["weights"] == weights).all()


CELL = """
import asyncio
from flows.train import train

async def cell():  # The loop of a notebook runs while a cell does.
    return train(program={program!r}, data={data!r}, parameters={{"epochs": 2}}, output_dir="model")

print(asyncio.run(cell())._repr_markdown_())
"""


def test_a_cell_of_a_notebook_shows_a_line_an_epoch_and_the_report(place: Pipeline, tmp_path: Path) -> None:
    # In a folder of the person's own, where nothing of ours is configured, and without a Prefect server.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PIPELINE_HOME": str(tmp_path / "home")}
    environment["PREFECT_HOME"] = str(tmp_path / "prefect")
    environment.pop("PREFECT_API_URL", None)
    cell = CELL.format(program=str(place.folder / "counter"), data=str(place.folder / "points"))
    command = [sys.executable, "-c", cell]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second, *shown = done.stdout.splitlines()
    assert [line.partition("  val_accuracy 0.")[0] for line in (first, second)] == ["step 1", "step 2"]
    assert shown[0].startswith("# counter version 1")
    assert "data:image/svg+xml" in shown[-1]
    assert [line for line in done.stderr.splitlines() if "temporary server" not in line] == []
    assert (tmp_path / "model" / "weights.npz").is_file()
    assert (tmp_path / "prefect" / "temporary-server.log").is_file()


def test_a_script_takes_its_arguments_as_they_stand(place: Pipeline, flags: list[str]) -> None:
    words = ["--data-folder", "{data_folder}", "--epochs", "2"]
    done = place.run(*flags, "--entry=counter.py", "--model-name=script", "--", *words)
    recorded = json.loads(place.tracker.get_run(done["run_id"]).tags["training"])
    assert recorded["arguments"] == {"--entry": "counter.py", "arguments": words}
