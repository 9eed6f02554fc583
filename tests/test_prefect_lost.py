"""A Prefect server that dies, hangs or loses what it knew costs its pages: neither the training nor the prompt."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.conftest import SmallDataset, small_pipeline
from tests.pipeline import (
    LONG,
    QUICK,
    Pipeline,
    assert_stopped,
    descendants,
    signal_group,
    still_running,
    wait_until,
)
from tests.prefect_server import start_prefect

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of Prefect, of these tests alone."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture
def pipeline(tmp_path: Path, home: Path, small_dataset: SmallDataset) -> Pipeline:
    """A pipeline whose runs start a temporary server."""
    pipeline = small_pipeline(tmp_path, "", small_dataset)
    del pipeline.environment["PREFECT_API_URL"]
    pipeline.environment["PREFECT_HOME"] = str(home)
    return pipeline


def temporary_server(process: subprocess.Popen[str]) -> psutil.Process:
    return next(one for one in descendants(process.pid) if "flows.temporary_server" in one.cmdline())


def last_epoch(pipeline: Pipeline) -> int:
    return max(map(int, re.findall(r"epoch (\d+)/", pipeline.log)))


@pytest.mark.parametrize("fault", ["killed", "hangs", "wiped"])
def test_a_run_ends_well_whatever_becomes_of_its_temporary_server(pipeline: Pipeline, home: Path, fault: str) -> None:
    process = pipeline.start(*QUICK, "--epochs=60")
    pipeline.wait_for_log("epoch 3/60", process)
    server = temporary_server(process)
    if fault == "killed":
        server.kill()
    elif fault == "hangs":
        server.suspend()
    else:
        for file in home.glob("prefect.db*"):
            file.unlink()
    stdout, _ = process.communicate(timeout=180)
    assert process.returncode == 0, pipeline.log
    outcome = json.loads(stdout)
    assert pipeline.tracker.get_run(outcome["run_id"]).status == "FINISHED"
    assert f"files in {pipeline.output_dir}" in pipeline.log
    for word in ("Traceback", "Error logging", "ERROR", "Service ", "Running()", "sqlalchemy"):
        assert word not in pipeline.log
    if fault != "wiped":
        assert pipeline.log.count("Prefect does not know that this run ended well: ") == 1
    if fault != "killed":  # On a busy machine its end may take as long.
        assert ("No answer from Prefect's server for 1" in pipeline.log) == (fault == "hangs")
    wait_until(lambda: not still_running([server]), 10, "the server's end")
    if fault == "wiped":
        again = pipeline.run(*QUICK, "--epochs=60")
        assert again["reused"]
        assert again["run_id"] == outcome["run_id"]
        assert "Prefect does not know" not in pipeline.log


def test_a_training_that_fails_is_told_as_such_without_its_temporary_server(pipeline: Pipeline) -> None:
    process = pipeline.start(*LONG)
    pipeline.wait_for_log("epoch 3/1000", process)
    temporary_server(process).kill()
    next(one for one in descendants(process.pid) if one.cmdline()[-2:] == ["--standby", "train"]).kill()
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert pipeline.log.count("\nTrainingFailed: ") == 1
    assert "Unexpected" not in pipeline.log


@pytest.mark.parametrize("whose", ["the run's own", "a team's"])
def test_a_server_that_hangs_holds_up_neither_the_training_nor_the_prompt(
    pipeline: Pipeline, home: Path, whose: str
) -> None:
    if whose == "a team's":
        pipeline.environment["PREFECT_API_URL"] = start_prefect(home)
    process = pipeline.start(*LONG)
    pipeline.wait_for_log("epoch 3/1000", process, 240)
    started = descendants(process.pid)
    servers = servers_in(home)
    assert servers
    try:
        for one in servers:
            os.kill(one.pid, signal.SIGSTOP)
        before = last_epoch(pipeline)
        wait_until(lambda: last_epoch(pipeline) >= before + 20, 60, "20 epochs beside a server that hangs")
        signal_group(process, signal.SIGINT)
        assert_stopped(pipeline, process, started, 130)
    finally:
        for one in still_running(servers):
            one.resume()
            one.terminate()


def servers_in(home: Path) -> list[psutil.Process]:
    """The processes of Prefect's servers in this home."""
    found = []
    for one in psutil.process_iter():
        try:
            line = " ".join(one.cmdline())
            ours = one.environ().get("PREFECT_HOME") == str(home)
        except psutil.Error:
            continue
        if ours and any(word in line for word in ("temporary_server", "prefect server", "prefect.server")):
            found.append(one)
    return found
