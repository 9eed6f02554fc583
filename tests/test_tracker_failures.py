"""What is said when MLflow refuses or fails: the cause and its remedy, here and in the runner."""

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from infra.compute.runner.exits import RunnerError
from infra.compute.runner.output import wait_until_written
from infra.compute.runner.patience import with_patience
from infra.errors import TrackerError, TrackerUnreachable
from infra.experiment_tracker import ExperimentTracker
from infra.settings import load_settings
from tests.torture.services import small_disk


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home with one run, and the run's id."""
    home = tmp_path_factory.mktemp("made") / "home"
    return home, ExperimentTracker(load_settings({"PIPELINE_HOME": str(home)})).start_run("tests", "first", {})


def other_schema(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")


def older_schema(database: Path) -> None:
    other_schema(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DROP TABLE spans")


def no_database(database: Path) -> None:
    database.write_bytes(b"no database" * 1000)


def a_folder(database: Path) -> None:
    database.unlink()
    database.mkdir()


def only_to_be_read(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        # As SQLite answers for a file that it may not write, which nothing keeps root from.
        refuse = "SELECT RAISE(FAIL, 'attempt to write a readonly database')"
        connection.execute(f"CREATE TRIGGER refuse BEFORE INSERT ON tags BEGIN {refuse}; END")


@pytest.mark.parametrize(
    ("spoil", "cause", "remedy"),
    [
        (other_schema, "made by another version of MLflow", "mlflow db upgrade sqlite:///"),
        (older_schema, "made by another version of MLflow", "mlflow db upgrade sqlite:///"),
        (no_database, "the file is damaged, or no database", "Put a copy"),
        (a_folder, "there is no such file, or it or its folder may not be written to", "Correct the rights"),
        (only_to_be_read, "it may only be read", "Correct the rights"),
    ],
)
def test_a_database_that_cannot_serve_is_refused_at_once_by_its_cause(
    made: tuple[Path, str], tmp_path: Path, spoil: object, cause: str, remedy: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made[0], tmp_path / "home")
    database = tmp_path / "home" / "mlflow" / "mlflow.db"
    tracker = ExperimentTracker(load_settings({"PIPELINE_HOME": str(tmp_path / "home")}))
    if spoil is only_to_be_read:
        tracker.experiments()
    assert callable(spoil)
    spoil(database)
    with pytest.raises(TrackerError, match=f"(?s){cause}.*{remedy}") as caught:
        tracker.set_tags(made[1], {"key": "value"})
    assert not isinstance(caught.value, TrackerUnreachable)
    assert "is up" not in str(caught.value)

    if spoil is a_folder:
        return  # MLflow itself tries to open it ten times; the flow has looked before it starts the program.
    # The runner, with plain MLflow.
    from mlflow import MlflowClient

    with pytest.raises(RunnerError) as said:
        with_patience(lambda: MlflowClient(tracker.uri).set_tag(made[1], "key", "value"), "log it", 30)
    wait_until_written()
    assert "again in" not in capfd.readouterr().out
    assert cause.partition(", or")[0] in str(said.value)


def test_missing_files_and_missing_runs_are_told_apart(made: tuple[Path, str], tmp_path: Path) -> None:
    home, run_id = made
    tracker = ExperimentTracker(load_settings({"PIPELINE_HOME": str(home)}))
    with pytest.raises(TrackerError, match="files that MLflow has on record are missing"):
        tracker.read_file(run_id, "no/such.txt", tmp_path)
    with pytest.raises(TrackerError, match=r"it is not there\.\nFound: Run with id=0{32} not found\nIt was deleted"):
        tracker.get_run("0" * 32)
    logged = tracker._client.create_logged_model(tracker.get_run(run_id).experiment_id, name="model")
    with pytest.raises(TrackerError, match="files that MLflow has on record are missing"):
        tracker.download_model(logged.model_id, tmp_path / "model")


def test_a_full_disk_is_called_one(made: tuple[Path, str], tmp_path: Path) -> None:
    home, run_id = made
    tracker = ExperimentTracker(load_settings({"PIPELINE_HOME": str(home)}))
    tracker.log_text(run_id, "x" * 100_000, "long.txt")
    with small_disk(tmp_path / "disk") as disk:
        if disk is None:
            pytest.skip("this user may not mount a file system")
        disk.fill()
        with pytest.raises(TrackerError, match=r"(?s)the disk is full.*No space left on device.*Make room there"):
            tracker.read_file(run_id, "long.txt", tmp_path / "disk")


def test_a_tag_that_another_process_sets_at_that_moment_is_worth_another_attempt(
    made: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(made[0], tmp_path / "home")
    tracker = ExperimentTracker(load_settings({"PIPELINE_HOME": str(tmp_path / "home")}))
    tracker.experiments()
    with closing(sqlite3.connect(tmp_path / "home" / "mlflow" / "mlflow.db")) as connection, connection:
        # Between MLflow's look and its writing.
        insert = "INSERT INTO tags (key, value, run_uuid) VALUES (NEW.key, 'of another', NEW.run_uuid)"
        connection.execute(f"CREATE TRIGGER meanwhile BEFORE INSERT ON tags WHEN NEW.key = 'key' BEGIN {insert}; END")
    with pytest.raises(TrackerUnreachable, match="another process wrote the same at that moment"):
        tracker.set_tags(made[1], {"key": "value"})


class Answer(BaseHTTPRequestHandler):
    """Answers everything in the same way."""

    status, body = 200, b""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    handler = type("Answers", (Answer,), {"status": status, "body": body})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "cause", "may_pass"),
    [
        (401, b"no", "the server refuses us", False),
        (403, b"no", "the server refuses us", False),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "Not yours"}', "the server refuses us", False),
        (404, b"no", "no MLflow server", False),
        (200, b"<html>hello</html>", "no MLflow server", False),
        (400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "Too long"}', "Found: INVALID_PARAM", False),
        (503, b"no", "the server is in trouble", True),
    ],
)
def test_a_refusal_of_a_server_is_told_from_its_failure(
    monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, cause: str, may_pass: bool
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(status, body) as address, pytest.raises(TrackerError, match=cause) as caught:
        ExperimentTracker(load_settings({"MLFLOW_TRACKING_URI": address})).find_runs("tests", {})
    assert isinstance(caught.value, TrackerUnreachable) == may_pass
    assert ("is up" in str(caught.value)) == may_pass


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "postgresql://me:word@127.0.0.1:9/mlflow"])
def test_nobody_there_may_pass_and_is_told_at_once(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    started = time.monotonic()
    with pytest.raises(TrackerUnreachable, match="nothing listens there") as caught:
        ExperimentTracker(load_settings({"MLFLOW_TRACKING_URI": address})).find_runs("tests", {})
    assert time.monotonic() - started < 30, "MLflow's own attempts take 100 s"
    assert "word" not in str(caught.value)
    assert "MLFLOW_TRACKING_URI" not in os.environ
