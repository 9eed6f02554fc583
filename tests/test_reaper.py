"""A run of the tests that is killed leaves nothing running."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.pipeline import signal_group, still_running, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

TESTS = """
import os, subprocess, sys, time, pytest

def start(name):
    # Of its own session, as the servers and flows of the tests are, and with a child that it does not look after.
    sleep = "subprocess.Popen(['sleep', '600'])"
    script = f"import subprocess; {sleep}; open('{name}', 'w').close(); {sleep}.wait()"
    return subprocess.Popen([sys.executable, "-c", script], start_new_session=True)

@pytest.fixture(scope="session")
def server():
    start("server")
    yield

def test_that_takes_long(server):
    start("flow")
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGTERM, ()), (signal.SIGTERM, ("-n2",)), (signal.SIGKILL, ()), (signal.SIGINT, ("-n2",))],
)
def test_what_a_test_run_has_started_ends_with_it(number: int, workers: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "test_long.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: (tmp_path / "flow").exists(), 60, "the test in the middle of its work")
        started = [one for one in psutil.process_iter() if is_in(one, tmp_path)]
        assert len(started) >= 6
        # As `kill` and a terminal do: only what belongs to the run's own group hears of it.
        if number == signal.SIGINT:
            signal_group(run, number)
        else:
            run.send_signal(number)
        run.wait(30)
        wait_until(lambda: not still_running(started), 30, "the end of all that the run had started")
    finally:
        run.kill()
        run.wait()


def is_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cwd() == str(folder)
    except psutil.Error:
        return False
