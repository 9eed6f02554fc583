"""MLflow in a process of its own: the same answers, and what happens when one of the two processes dies."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import psutil
import pytest

from infra import tracker_process
from infra.errors import TrackerError
from infra.experiment_tracker import ExperimentTracker
from infra.settings import Settings, load_settings
from infra.tracker_process import TrackerProcess
from tests.http_server import Behaviour, HttpServer, serving
from tests.pipeline import ROOT, still_running, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"PIPELINE_HOME": str(tmp_path)})


@pytest.fixture
def tracker(settings: Settings) -> TrackerProcess:
    return TrackerProcess(settings)


def child() -> psutil.Process:
    """The process that speaks to MLflow for this one."""
    tracker_process.start()
    return psutil.Process(tracker_process._started[-1]._process.pid)


def during_a_call(happens: Callable[[], None]) -> Thread:
    """Let something happen once an answer is waited for."""

    def wait_for_it() -> None:
        wait_until(lambda: bool(tracker_process._started[-1]._owed), 10, "the call")
        happens()

    thread = Thread(target=wait_for_it)
    thread.start()
    return thread


def test_it_answers_as_mlflow_does_in_this_process(settings: Settings, tracker: TrackerProcess) -> None:
    run_id = tracker.start_run("tests", "first", {"training_key": "0" * 64})
    tracker.log_metrics(run_id, {"test_accuracy": 0.5})
    tracker.end_run(run_id, "FINISHED")
    here = ExperimentTracker(settings)
    assert tracker.find_runs("tests", {}, status="FINISHED") == here.find_runs("tests", {}) == [here.get_run(run_id)]
    assert tracker.version_by_alias("no-such-model", "champion") is None


def test_a_failure_is_the_same_and_says_where_it_came_from(settings: Settings, tracker: TrackerProcess) -> None:
    raised = []
    for one in (tracker, ExperimentTracker(settings)):
        with pytest.raises(TrackerError) as caught:
            one.get_run("0" * 32)
        raised.append(caught.value)
    assert str(raised[0]) == str(raised[1])
    assert "in get_run" in raised[0].__notes__[0]


def test_a_call_that_is_interrupted_leaves_the_next_its_own_answer(tracker: TrackerProcess) -> None:
    run_id = tracker.start_run("tests", "first", {})
    process = child()
    process.suspend()

    interrupter = during_a_call(lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            tracker.get_run(run_id)
    finally:
        process.resume()
        interrupter.join()
    assert tracker.experiments() == ["tests", "Default"]


def test_a_child_that_is_killed_has_a_successor_that_repeats_what_may_be_repeated(tracker: TrackerProcess) -> None:
    run_id = tracker.start_run("tests", "first", {})
    for call, repeated in (
        (lambda: tracker.get_run(run_id), True),
        (lambda: tracker.start_run("tests", "2", {}), False),
    ):
        process = child()
        process.suspend()
        killer = during_a_call(process.kill)
        if repeated:
            assert call()
        else:
            with pytest.raises(TrackerError, match=f"pid {process.pid}. ended with exit status -9 before it answered"):
                call()
        killer.join()
    assert [run.run_id for run in tracker.find_runs("tests", {})] == [run_id]


@pytest.fixture
def silent() -> Iterator[HttpServer]:
    """A server that takes each request and answers none."""
    with serving() as server:
        server.behaviour["get-by-name"] = Behaviour(silent=True)
        yield server


def test_it_ends_with_its_caller_in_the_middle_of_a_call(silent: HttpServer) -> None:
    code = """
        import os, signal, sys
        from infra import tracker_process
        from infra.settings import load_settings
        tracker = tracker_process.TrackerProcess(load_settings())
        tracker_process.start()
        print(tracker_process._started[-1]._process.pid, flush=True)
        tracker.find_runs("tests", {})
    """
    caller = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env={**os.environ, "MLFLOW_TRACKING_URI": silent.address},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert caller.stdout
    process = psutil.Process(int(caller.stdout.readline()))
    wait_until(lambda: bool(silent.requests), 60, "the request")
    caller.kill()
    caller.communicate()
    wait_until(lambda: not still_running([process]), 5, "the child to follow")


def test_its_caller_imports_no_mlflow_and_leaves_nothing_behind(tmp_path: Path) -> None:
    code = """
        import contextlib, pathlib, sys
        from infra import tracker_process
        from infra.errors import TrackerError
        from infra.settings import load_settings
        tracker = tracker_process.TrackerProcess(load_settings())
        run_id = tracker.start_run("tests", "first", {})
        tracker.log_text(run_id, "text", "file.txt")
        assert tracker.read_file(run_id, "file.txt", pathlib.Path("home", "scratch")) == b"text"
        with contextlib.suppress(TrackerError):
            tracker.download_model("m-" + "0" * 32, pathlib.Path("home", "scratch"))
        with contextlib.suppress(TrackerError):
            tracker.create_version("model", tracker.get_run(run_id), "m-" + "0" * 32, {})
        print(tracker_process._started[-1]._process.pid, "mlflow" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env={**os.environ, "PIPELINE_HOME": "home", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    pid, imported = done.stdout.split()
    assert imported == "False"
    assert not psutil.pid_exists(int(pid))
    assert (tmp_path / "home" / "mlflow" / "mlflow.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["home"], "nor MLflow's own default, a mlflow.db here"
