"""The whole flow, as a person starts it, on real parts."""

import getpass
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import mlflow
import psutil
import pytest

from tasks.dataset_catalog import describe_dataset
from tasks.download_artifacts import check_output_dir
from tasks.job_output import PHASES
from tasks.programs.mnist.digits.dataset_files import FILE_NAMES, TEST_IMAGES, TRAIN_IMAGES
from tests.conftest import SmallDataset, small_pipeline
from tests.pipeline import (
    LONG,
    QUICK,
    ROOT,
    Pipeline,
    assert_stopped,
    descendants,
    signal_group,
    still_running,
    wait_until,
)
from tests.s3_server import KEY_ID, SECRET, s3_server

pytestmark = pytest.mark.slow

STEPS = ["download", "upload", "provision", "train", "register", "download artifacts"]


@pytest.fixture(scope="module")
def outcome(pipeline: Pipeline) -> dict[str, Any]:
    """What the first run of the module's pipeline printed."""
    return pipeline.run(*QUICK)


def test_a_run_ends_with_a_registered_champion_and_its_files(pipeline: Pipeline, outcome: dict[str, Any]) -> None:
    assert outcome["test_accuracy"] > 0.9
    assert outcome["model_version"] == 1
    assert outcome["model_uri"] == "models:/keras-dnn-mnist/1"
    assert not outcome["reused"]
    assert (outcome["champion"], outcome["decided"]) == (1, True)
    assert outcome["champion_decision"] == "Version 1 became champion: there was none"
    assert list(outcome["phases"]) == list(PHASES)
    assert list(outcome["seconds"]) == STEPS
    assert (pipeline.output_dir / "MLmodel").is_file()
    check_output_dir(pipeline.output_dir)
    champion = pipeline.tracker.version_by_alias("keras-dnn-mnist", "champion")
    assert champion is not None
    assert champion.run_id == outcome["run_id"]
    assert champion.tags["weights_sha256"] == outcome["weights_sha256"]
    assert champion.tags["dataset_sha256"] == outcome["dataset_sha256"]
    assert champion.tags["training_key"] == outcome["training_key"]


def test_a_run_leaves_nothing_behind_but_what_it_made(pipeline: Pipeline, outcome: dict[str, Any]) -> None:
    home = pipeline.folder / "home"
    for folder in ("runs", "scratch", "object-store/runs", "object-store/leases"):
        assert not (home / folder).exists() or list((home / folder).iterdir()) == [], folder
    assert [path for path in (home / "locks").iterdir() if not path.name.startswith("flow-run-")] == []


def test_the_run_says_what_made_it(pipeline: Pipeline, outcome: dict[str, Any]) -> None:
    run = pipeline.tracker.get_run(outcome["run_id"])
    assert run.status == "FINISHED"
    assert run.params["epochs"] == "2"
    assert run.params["learning_rate"] == "0.005"
    assert run.tags["dataset"] == "mnist"
    assert run.tags["prefect.flow_run_id"] != "none"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.tags["mlflow.source.git.commit"] == commit.stdout.strip()
    for phase in ("preparing", "scaling", "running", "post_processing"):
        assert run.metrics[f"phase_{phase}_seconds"] >= 0


def test_every_epoch_is_in_the_history_once(pipeline: Pipeline, outcome: dict[str, Any]) -> None:
    client = mlflow.MlflowClient(pipeline.settings.mlflow_tracking_uri)
    for metric in ("loss", "accuracy", "val_loss", "val_accuracy", "epoch_seconds"):
        assert [point.step for point in client.get_metric_history(outcome["run_id"], metric)] == [1, 2]


def test_the_run_keeps_its_log_its_plots_and_its_program(pipeline: Pipeline, outcome: dict[str, Any]) -> None:
    client = mlflow.MlflowClient(pipeline.settings.mlflow_tracking_uri)

    def names(folder: str) -> set[str]:
        return {Path(file.path).name for file in client.list_artifacts(outcome["run_id"], folder)}

    assert "training.log" in names("logs")
    assert len([name for name in names("outputs") if name.endswith(".png")]) >= 4
    program = ROOT / "tasks" / "programs" / "mnist"
    assert names("source/program") == {"MLproject", "digits"}
    assert names("source/program/digits") == {path.name for path in program.rglob("*.py")}


def test_the_flow_run_has_six_tasks_a_report_and_progress(
    pipeline: Pipeline, outcome: dict[str, Any], prefect_api: str
) -> None:
    flow_run_id = pipeline.tracker.get_run(outcome["run_id"]).tags["prefect.flow_run_id"]
    only = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
    # The server takes the events of task runs in as they arrive, after the run's own end.
    wait_until(lambda: len(httpx.post(f"{prefect_api}/task_runs/filter", json=only).json()) == 6, 30, "six task runs")
    tasks = httpx.post(f"{prefect_api}/task_runs/filter", json=only).json()
    assert sorted(task["name"].rpartition("-")[0] for task in tasks) == sorted(
        [
            "download dataset",
            "upload dataset",
            "provision compute",
            "train model",
            "register model",
            "download artifacts",
        ]
    )
    artifacts = httpx.post(f"{prefect_api}/artifacts/filter", json=only).json()
    report = next(artifact for artifact in artifacts if artifact["type"] == "markdown")
    assert outcome["run_id"] in report["data"]
    assert any(artifact["type"] == "progress" and artifact["data"] == 100 for artifact in artifacts)
    logs = httpx.post(f"{prefect_api}/logs/filter", json={"logs": {"flow_run_id": {"any_": [flow_run_id]}}}).json()
    assert any("epoch 2/2" in line["message"] for line in logs)


def test_a_run_with_nothing_changed_trains_and_sends_nothing(pipeline: Pipeline, outcome: dict[str, Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in pipeline.output_dir.rglob("*")}
    log_of_an_attempt = pipeline.folder / "home" / "runs" / outcome["run_id"] / "training.log"
    log_of_an_attempt.parent.mkdir(parents=True)
    log_of_an_attempt.write_text("epoch 1 of an attempt that was killed; another machine finished the run")
    again = pipeline.run(*QUICK)
    assert not log_of_an_attempt.parent.exists()
    assert again["reused"]
    assert (again["champion"], again["decided"], again["phases"], again["epoch_seconds"]) == (1, False, {}, 0)
    assert again["champion_decision"].startswith(
        "Nothing was decided. Version 1 of keras-dnn-mnist is champion, since 20"
    )
    assert "became champion" not in pipeline.log
    assert "of the training" not in pipeline.log, "those seconds are of an earlier run"
    same = ("run_id", "model_version", "weights_sha256", "test_accuracy", "training_key")
    assert {name: again[name] for name in same} == {name: outcome[name] for name in same}
    assert {path: path.stat().st_mtime_ns for path in pipeline.output_dir.rglob("*")} == before
    assert "epoch 1/2" not in pipeline.log


def test_in_a_copy_of_the_home_a_changed_model_folder_is_brought_back_and_the_original_is_left_alone(
    pipeline: Pipeline, outcome: dict[str, Any], tmp_path: Path
) -> None:
    # By another process: who reads an SQLite file past SQLite and closes it lets go of all locks that he has on it.
    for name in ("home", "model"):
        subprocess.run(["cp", "-a", pipeline.folder / name, tmp_path / name], check=True)
    before = {path: path.stat().st_mtime_ns for path in (pipeline.folder / "home").rglob("*")}
    copy = Pipeline(tmp_path, {**pipeline.environment, "PIPELINE_HOME": str(tmp_path / "home")})
    copy.tracker._client.delete_registered_model_alias("keras-dnn-mnist", "champion")
    (copy.output_dir / "MLmodel").write_text("nonsense")
    (copy.output_dir / ".DS_Store").write_text("a file manager's")
    again = copy.run(*QUICK)
    assert again["reused"]
    assert again["run_id"] == outcome["run_id"]
    assert (copy.output_dir / "MLmodel").read_bytes() == (pipeline.output_dir / "MLmodel").read_bytes()
    assert "The downloaded model has the run's test accuracy" in copy.log
    # The champion is gone as well.
    assert (again["champion"], again["decided"]) == (None, False)
    assert "Nothing was decided. No version of keras-dnn-mnist is champion, since 20" in copy.log
    assert "python -m flows.promote --model-name keras-dnn-mnist --version N" in copy.log
    assert {path: path.stat().st_mtime_ns for path in (pipeline.folder / "home").rglob("*")} == before


def flip_a_bit(path: Path) -> bytes:
    """Do so in the middle of a file; what it was before."""
    before = path.read_bytes()
    path.write_bytes(before[:1000] + bytes([before[1000] ^ 1]) + before[1001:])
    return before


def test_another_seed_trains_and_a_bit_that_flipped_in_the_stored_data_is_mended_whichever_step_finds_it(
    pipeline: Pipeline, outcome: dict[str, Any]
) -> None:
    stored = pipeline.folder / "home" / "object-store" / "datasets" / "mnist" / outcome["dataset_sha256"]
    before = flip_a_bit(stored / TRAIN_IMAGES)
    other = pipeline.run(*QUICK, "--seed=7")
    assert not other["reused"]
    assert "Since then: seed 0 -> 7\n" in pipeline.log
    for name in ("training_key", "weights_sha256"):
        assert other[name] != outcome[name]
    assert (stored / TRAIN_IMAGES).read_bytes() == before
    assert f"{TRAIN_IMAGES} in the store is damaged" in pipeline.log
    assert "It is sent again from the checked download" in pipeline.log
    (run,) = pipeline.tracker.find_runs("keras-mnist", {"training_key": other["training_key"]})
    assert run.status == "FINISHED"
    assert "cause" not in run.tags

    before = flip_a_bit(stored / TEST_IMAGES)
    shutil.rmtree(pipeline.output_dir)
    assert pipeline.run(*QUICK, "--seed=7")["reused"]
    assert (stored / TEST_IMAGES).read_bytes() == before
    assert f"{TEST_IMAGES} in the store is damaged" in pipeline.log
    assert (pipeline.output_dir / "MLmodel").is_file()


def test_an_output_folder_with_other_files_is_refused_before_anything_starts(fresh_pipeline: Pipeline) -> None:
    fresh_pipeline.output_dir.mkdir()
    (fresh_pipeline.output_dir / "thesis.txt").write_text("years of work")
    fresh_pipeline.run(*QUICK, status=2)
    assert "is not a downloaded model" in fresh_pipeline.log
    assert (fresh_pipeline.output_dir / "thesis.txt").read_text() == "years of work"
    assert not (fresh_pipeline.folder / "home" / "datasets").exists()


def test_with_an_s3_store_it_ends_the_same_to_retrain_sends_nothing_and_no_login_is_kept(
    fresh_pipeline: Pipeline, outcome: dict[str, Any], tmp_path: Path, prefect_home: Path
) -> None:
    given = fresh_pipeline.environment
    for name in ("PREFECT_API_URL", "MNIST_MIRRORS"):
        given[name] = given[name].replace("://", "://me:address-w0rd@")
    store = "s3://{}:{}@bucket/some/prefix"
    with s3_server(tmp_path / "s3", "bucket") as server:
        given |= {**server.environment, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
        given |= {"OBJECT_STORE_URI": store.format(KEY_ID, SECRET)}
        on_s3 = fresh_pipeline.run(*QUICK)
        assert on_s3["weights_sha256"] == outcome["weights_sha256"]
        stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "s3").rglob("*.gz")}
        assert len(stored) == 4
        again = fresh_pipeline.run(*QUICK, "--retrain")
        assert not again["reused"]
        assert again["run_id"] != on_s3["run_id"]
        assert again["model_version"] > on_s3["model_version"]
        assert again["weights_sha256"] == on_s3["weights_sha256"]
        assert "nothing was sent" in fresh_pipeline.log
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s3").rglob("*.gz")} == stored
        logs = fresh_pipeline.log

        given["OBJECT_STORE_URI"] = store.format(KEY_ID, "wrong-w0rd")
        fresh_pipeline.run(*QUICK, status=1)
        assert "ObjectStoreError" in fresh_pipeline.log
        kept = [path for folder in (tmp_path, prefect_home) for path in folder.rglob("*") if path.is_file()]
        everything = [logs.encode(), json.dumps(on_s3).encode(), *(path.read_bytes() for path in kept)]
        for secret in (SECRET, "address-w0rd", "wrong-w0rd"):
            assert not any(secret.encode() in text for text in everything), secret
        assert server.endpoint in fresh_pipeline.log


def test_without_a_mirror_the_sample_is_used_and_is_never_champion(tmp_path: Path, prefect_api: str) -> None:
    nobody = "http://127.0.0.1:9/"
    pipeline = Pipeline(tmp_path, {"PREFECT_API_URL": prefect_api, "MNIST_MIRRORS": nobody})
    outcome = pipeline.run("--epochs=2")
    assert outcome["dataset"] == "mnist-5k"
    assert outcome["test_accuracy"] > 0.7
    tracker = pipeline.tracker
    assert tracker.get_run(outcome["run_id"]).tags["dataset"] == "mnist-5k"
    assert tracker.get_run(outcome["run_id"]).params["validation_images"] == "500"
    assert tracker.version_by_alias("keras-dnn-mnist", "champion") is None
    assert "not champion" in outcome["champion_decision"]
    assert pipeline.log.count("mnist-5k") > 3


def test_a_gpu_that_is_not_there_is_refused_before_training(fresh_pipeline: Pipeline) -> None:
    from infra.compute.runner.devices import visible_gpus

    if visible_gpus():
        pytest.skip("this machine has a GPU")
    fresh_pipeline.run(*QUICK, "--accelerator=gpu", status=1)
    assert "nvidia-smi lists no device" in fresh_pipeline.log
    assert fresh_pipeline.tracker.find_runs("keras-mnist", {}) == []


def test_two_machines_with_one_mlflow_and_one_store_train_the_same_once(
    tmp_path: Path, prefect_api: str, small_dataset: SmallDataset
) -> None:
    # Two homes know nothing of each other's locks and processes, as two machines that have the same name.
    shared = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "OBJECT_STORE_URI": (tmp_path / "store").as_uri(),
    }
    machines = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        machines.append(small_pipeline(tmp_path / name, prefect_api, small_dataset))
        machines[-1].environment |= shared
    machines[0].tracker.start_run("made before", "by nobody of them", {})
    epochs = 60
    processes = [machine.start(*QUICK, f"--epochs={epochs}") for machine in machines]
    answers = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "".join(machine.log for machine in machines)
    outcomes = list(map(json.loads, answers))
    assert outcomes[0]["run_id"] == outcomes[1]["run_id"]
    assert sorted(outcome["reused"] for outcome in outcomes) == [False, True]
    waited = [f"{getpass.getuser()}@{socket.gethostname()}, process {process.pid}, since 20" for process in processes]
    assert sorted(told in machine.log for told, machine in zip(waited[::-1], machines, strict=True)) == [False, True]
    (run,) = machines[0].tracker.find_runs("keras-mnist", {})
    assert run.status == "FINISHED"
    client = mlflow.MlflowClient(shared["MLFLOW_TRACKING_URI"])
    points = [point.step for point in client.get_metric_history(run.run_id, "loss")]
    assert points == list(range(1, epochs + 1))
    assert list((tmp_path / "store" / "leases").iterdir()) == []


def test_sigterm_ends_everything_and_is_told(fresh_pipeline: Pipeline, prefect_api: str) -> None:
    process = fresh_pipeline.start(*LONG)
    fresh_pipeline.wait_for_log("epoch 3/1000", process)
    started = descendants(process.pid)
    maps = {one.pid: Path(f"/proc/{one.pid}/maps").read_text() for one in started}
    assert any("tensorflow" in text for text in maps.values())
    assert "tensorflow" not in maps[process.pid], "it is for the program alone"
    # A second one, while it leaves things in order.
    signal_group(process, signal.SIGTERM)
    wait_until(lambda: not still_running(started[1:]) or process.poll() is not None, 10, "the program's end")
    signal_group(process, signal.SIGTERM)
    run = assert_stopped(fresh_pipeline, process, started, 143)
    assert run.tags["cause"] == "told to stop (SIGTERM)"
    flow_run = httpx.get(f"{prefect_api}/flow_runs/{run.tags['prefect.flow_run_id']}").json()
    assert flow_run["state_type"] in ("CRASHED", "CANCELLED")


def test_ctrl_c_in_a_terminal_ends_a_run_with_a_temporary_prefect_server(
    tmp_path: Path, small_dataset: SmallDataset
) -> None:
    given = {"MNIST_MIRRORS": small_dataset.server.address, "DATASET_CATALOG": str(small_dataset.catalog)}
    pipeline = Pipeline(tmp_path, {"PREFECT_HOME": str(tmp_path / "prefect"), **given})
    keyboard, terminal = pty.openpty()
    try:
        process = pipeline.start(*LONG, terminal=terminal)
        pipeline.wait_for_log("epoch 3/1000", process)
        started = descendants(process.pid)
        assert any("temporary_server" in " ".join(one.cmdline()) for one in started)
        os.write(keyboard, b"\x03\x03")
        run = assert_stopped(pipeline, process, started, 130)
    finally:
        os.close(keyboard)
        os.close(terminal)
    assert run.tags["cause"] == "told to stop (SIGINT)"


def test_a_run_whose_output_is_read_no_further_ends_soon_as_any_program_does(fresh_pipeline: Pipeline) -> None:
    line = '{ "$@" 2>&1; echo "status $?" >&2; } | sed "/epoch 3/q"'
    command = [sys.executable, "-m", "flows.train_mnist", f"--output-dir={fresh_pipeline.output_dir}", *LONG]
    environment = {**os.environ, **fresh_pipeline.environment}
    done = subprocess.run(
        ["bash", "-c", line, "bash", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1].count("epoch 3/1000") == 1
    assert done.stderr == "status 141\n"
    (run,) = fresh_pipeline.tracker.find_runs("keras-mnist", {"dataset": "mnist"})
    assert (run.status, run.tags["cause"]) == ("KILLED", "told to stop (SIGPIPE)")


def test_a_training_that_dies_fails_the_run_and_the_next_one_continues_it(fresh_pipeline: Pipeline) -> None:
    epochs = (*QUICK, "--epochs=60")
    process = fresh_pipeline.start(*epochs)
    fresh_pipeline.wait_for_log("epoch 3/60", process)
    runs = fresh_pipeline.folder / "home" / "object-store" / "runs"
    wait_until(lambda: any(runs.glob("*/checkpoints/*/manifest.json")), 30, "a checkpoint")
    runner = next(one for one in descendants(process.pid) if one.cmdline()[-2:] == ["--standby", "train"])
    runner.kill()
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert "was ended by SIGKILL" in fresh_pipeline.log
    assert "Traceback" not in fresh_pipeline.log
    (run,) = fresh_pipeline.tracker.find_runs("keras-mnist", {"dataset": "mnist"})
    assert run.status == "FAILED"
    assert "SIGKILL" in run.tags["cause"]

    outcome = fresh_pipeline.run(*epochs)
    assert outcome["run_id"] == run.run_id
    assert "epoch 1/60" not in fresh_pipeline.log


@pytest.mark.skipif("MNIST_MIRRORS" not in os.environ, reason="MNIST_MIRRORS names no mirror of the real MNIST")
def test_the_real_mnist_with_a_temporary_prefect_server(tmp_path: Path, prefect_home: Path) -> None:
    pipeline = Pipeline(tmp_path, {"PREFECT_HOME": str(tmp_path / "prefect")})
    outcome = pipeline.run("--epochs=2")
    assert outcome["dataset"] == "mnist"
    assert outcome["test_accuracy"] > 0.96
    assert outcome["dataset_sha256"] == describe_dataset("mnist", pipeline.settings.dataset_catalog).sha256
    assert {path.name for path in (tmp_path / "home" / "datasets" / "mnist").iterdir()} >= set(FILE_NAMES)


def test_both_ways_to_start_it_work_whatever_lies_on_the_path_for_imports(tmp_path: Path) -> None:
    for foreign in ("infra", "tasks"):
        (tmp_path / foreign).mkdir()
        (tmp_path / foreign / "__init__.py").write_text("raise RuntimeError('not ours')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for start in (["-m", "flows.train_mnist"], [f"{ROOT}/flows/train_mnist.py"]):
        command = [sys.executable, *start, "--help"]
        done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=True)
        assert "--first-layer-neurons" in done.stdout


def test_nothing_of_the_tests_is_left_running() -> None:
    ours = still_running(psutil.Process().children(recursive=True))
    assert [one for one in ours if "runner" in " ".join(one.cmdline())] == []
