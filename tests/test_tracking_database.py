"""MLflow's database as a file: it follows its home, a copy is a copy, and what is no history is not taken for one."""

import os
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text

from infra import tracking_database, waiting
from infra.errors import SettingsError, TrackerError
from infra.experiment_tracker import ExperimentTracker
from infra.settings import child_environment, load_settings
from tests.pipeline import wait_until


def tracker_in(home: Path, **environment: str) -> ExperimentTracker:
    return ExperimentTracker(load_settings({"PIPELINE_HOME": str(home), **environment}))


def old_home(home: Path) -> str:
    """The same, made by another process: MLflow remembers for good where the files of a run are."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(home_of_the_first_version, home).result()


def home_of_the_first_version(home: Path) -> str:
    """A home as it was before its database followed it, with a run, a model and its version; the run's id."""
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, DatasetInput
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    (home / "mlflow").mkdir(parents=True)
    uri = f"sqlite:///{home}/mlflow/mlflow.db"
    SqlAlchemyStore(uri, (home / "mlflow" / "artifacts").as_uri()).engine.dispose()
    client = MlflowClient(uri, uri)
    experiment = client.create_experiment("tests", f"{(home / 'mlflow' / 'artifacts').as_uri()}/tests")
    run_id = str(client.create_run(experiment, tags={"dataset_uri": f"file://{home}/object-store/data"}).info.run_id)
    source = f'{{"uri": "file://{home}/object-store/data"}}'
    client.log_inputs(run_id, datasets=[DatasetInput(Dataset("mnist", "0" * 36, "fsspec", source))])
    client.log_text(run_id, "kept", "folder/file.txt")
    logged = client.create_logged_model(experiment, name="model", source_run_id=run_id)
    made = home.parent / "made"
    made.mkdir()
    (made / "MLmodel").write_text("flavors: {}\n")
    client.log_model_artifacts(logged.model_id, str(made))
    client.finalize_logged_model(logged.model_id, "READY")
    client.create_registered_model("model")
    # Looks the model up at the address of the process: so the files' own is given, as it would find it.
    client.create_model_version("model", logged.artifact_location, run_id)
    client.set_tag(run_id, "model_id", logged.model_id)
    return run_id


def all_text(database: Path) -> str:
    with closing(sqlite3.connect(database)) as connection:
        return "\n".join(connection.iterdump())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_home_that_was_moved_has_its_history_and_its_files(tmp_path: Path) -> None:
    run_id = old_home(tmp_path / "old höme")
    home = (tmp_path / "old höme").rename(tmp_path / "new höme")

    tracker = tracker_in(home)
    run = tracker.get_run(run_id)
    assert tracker.read_file(run_id, "folder/file.txt", tmp_path / "scratch") == b"kept"
    tracker.download_model(run.model_id, tmp_path / "brought")
    assert contents(tmp_path / "brought") == {"MLmodel": b"flavors: {}\n"}
    assert run.tags["dataset_uri"] == f"{home.as_uri()}/object-store/data"
    assert "/old" not in all_text(home / "mlflow" / "mlflow.db")
    new = tracker.start_run("tests", "second", {})
    tracker.log_text(new, "also kept", "file.txt")
    assert not (tmp_path / "old höme").exists()

    # Plain MLflow, which knows nothing of us.
    code = f"""
import mlflow, pathlib
assert len(mlflow.search_runs(experiment_names=["tests"], output_format="list")) == 2
print(pathlib.Path(mlflow.artifacts.download_artifacts("models:/model/1"), "MLmodel").read_text())
print(mlflow.artifacts.load_text("runs:/{new}/file.txt"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow/mlflow.db"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "flavors: {}\n\nalso kept\n", done.stderr


def test_a_copy_of_a_home_writes_nothing_into_the_original(tmp_path: Path) -> None:
    run_id = old_home(tmp_path / "original")
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    before = contents(tmp_path / "original")

    copy = tracker_in(tmp_path / "copy")
    copy.log_text(run_id, "changed", "folder/file.txt")
    copy.log_text(copy.start_run("tests", "second", {}), "text", "file.txt")
    assert copy.read_file(run_id, "folder/file.txt", tmp_path / "scratch") == b"changed"
    assert contents(tmp_path / "original") == before
    original = tracker_in(tmp_path / "original")
    assert original.read_file(run_id, "folder/file.txt", tmp_path / "scratch") == b"kept"


def test_another_name_of_the_same_home_changes_nothing(tmp_path: Path) -> None:
    run_id = home_of_the_first_version(tmp_path / "home")
    (tmp_path / "link").symlink_to("home")
    tracker = tracker_in(tmp_path / "link")
    assert tracker.read_file(run_id, "folder/file.txt", tmp_path / "scratch") == b"kept"
    assert str(tmp_path / "link") not in all_text(tmp_path / "home" / "mlflow" / "mlflow.db")


def test_a_database_elsewhere_follows_a_home_that_is_gone_and_no_other(tmp_path: Path) -> None:
    there = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/elsewhere.db"}
    run_id = tracker_in(tmp_path / "home", **there).start_run("tests", "first", {})
    tracker_in(tmp_path / "home", **there).log_text(run_id, "kept", "file.txt")
    tracker_in(tmp_path / "other", **there).get_run(run_id)
    assert tracker_in(tmp_path / "other", **there).read_file(run_id, "file.txt", tmp_path / "scratch") == b"kept"

    (tmp_path / "home").rename(tmp_path / "moved")
    assert tracker_in(tmp_path / "moved", **there).read_file(run_id, "file.txt", tmp_path / "scratch") == b"kept"


@pytest.mark.parametrize("of", ["default", "named"])
def test_a_file_without_a_history_is_refused_by_name(tmp_path: Path, of: str) -> None:
    file = tmp_path / "home" / "mlflow" / "mlflow.db" if of == "default" else tmp_path / "named.db"
    file.parent.mkdir(parents=True, exist_ok=True)
    named = {} if of == "default" else {"MLFLOW_TRACKING_URI": f"sqlite:///{file}"}
    file.touch()
    with pytest.raises(TrackerError, match=rf"(?s){file} is empty \(0 bytes\).*remove it"):
        tracker_in(tmp_path / "home", **named).experiments()
    assert file.stat().st_size == 0

    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE holidays (day TEXT)")
    with pytest.raises(TrackerError, match="none of MLflow's tables"):
        tracker_in(tmp_path / "home", **named).experiments()


def test_readers_go_on_while_somebody_writes(tmp_path: Path) -> None:
    run_id = home_of_the_first_version(tmp_path / "home")
    tracker_in(tmp_path / "home").experiments()
    with closing(sqlite3.connect(tmp_path / "home" / "mlflow" / "mlflow.db", isolation_level=None)) as writer:
        assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        writer.execute("BEGIN EXCLUSIVE")
        assert tracker_in(tmp_path / "home").get_run(run_id).status == "RUNNING"


def test_a_relative_database_is_the_same_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings({"PIPELINE_HOME": "home", "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db?timeout=9"})
    assert settings.mlflow_tracking_uri == f"sqlite:///{tmp_path}/mlflow.db?timeout=9"
    assert settings.mlflow_database_file == tmp_path / "mlflow.db"
    for store in ("file://store", "store", "./store", f"file://localhost{tmp_path}/store"):
        found = load_settings({"OBJECT_STORE_URI": store, "MNIST_MIRRORS": store})
        assert found.object_store_uri == f"file://{tmp_path}/store"
        assert found.dataset_mirrors[0].removeprefix("file://") == f"{tmp_path}/store"
    for elsewhere in ("sqlite:///", "sqlite:///:memory:"):
        with pytest.raises(SettingsError, match="another database in each process"):
            load_settings({"MLFLOW_TRACKING_URI": elsewhere})
    monkeypatch.setenv("AWS_CONFIG_FILE", "aws.ini")
    assert child_environment()["AWS_CONFIG_FILE"] == str(tmp_path / "aws.ini")


WRITER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_who_waits_for_a_stopped_writer_is_told_its_name_and_goes_on_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, journal: str
) -> None:
    monkeypatch.setattr(waiting, "SECONDS_BEFORE", 0.2)
    monkeypatch.setattr(tracking_database, "_is_on_network", lambda path: journal == "delete")
    tracker = tracker_in(tmp_path / "home")
    run_id = tracker.start_run("tests", "first", {})
    file = tmp_path / "home" / "mlflow" / "mlflow.db"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout
        assert writer.stdout.readline() == "locked\n"
        process = psutil.Process(writer.pid)
        process.suspend()
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, 10, "the writer to stop")
        who = f"process {writer.pid} (python"

        monkeypatch.setattr(tracking_database, "WAIT_SECONDS", 1)
        with pytest.raises(TrackerError) as caught:
            tracker.end_run(run_id, "FINISHED")
        assert f"{file} was locked for 1 s, by {who}" in str(caught.value)
        assert f"which is stopped (kill -CONT {writer.pid}" in str(caught.value)
        assert tracker.get_run(run_id).status == "RUNNING", "readers go on"

        caplog.clear()
        monkeypatch.setattr(tracking_database, "WAIT_SECONDS", 60)
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(tracker.end_run, run_id, "FINISHED")
            wait_until(lambda: who in caplog.text, 20, "the line that names the writer")
            writer.kill()
            ended.result(30)
        assert tracker.get_run(run_id).status == "FINISHED"
    finally:
        writer.kill()
        writer.communicate()


def test_mlflows_own_sessions_wait_for_a_lock_as_long_as_is_said(tmp_path: Path) -> None:
    tracker = tracker_in(tmp_path / "home")
    tracker.start_run("tests", "first", {})
    with tracker._client._tracking_client.store.ManagedSessionMaker() as session:
        assert session.execute(text("PRAGMA busy_timeout")).scalar() == tracking_database.WAIT_SECONDS * 1000
