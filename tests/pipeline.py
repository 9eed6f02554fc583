"""The pipeline as a person starts it: its own process, in a home of its own."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from infra.experiment_tracker import ExperimentTracker, Run
from infra.services import Services
from infra.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
QUICK = (
    "--epochs=2",
    "--batch-size=10",
    "--validation-images=100",
    "--first-layer-neurons=32",
    "--second-layer-neurons=16",
    "--learning-rate=0.005",
)
"""Hyperparameters with which the small data set takes seconds."""
LONG = (*QUICK, "--epochs=1000")
"""The same for more than a minute."""


@dataclass
class Pipeline:
    """Where one set of runs keeps its state, and how it is told."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    within: tuple[str, ...] = ()
    """A command that becomes the one that it is given, in other surroundings."""
    module: str = "flows.train_mnist"
    """The flow, a module that is a command."""

    def __post_init__(self) -> None:
        self.environment = {"PIPELINE_HOME": str(self.folder / "home"), **self.environment}

    @property
    def output_dir(self) -> Path:
        return self.folder / "model"

    @property
    def settings(self) -> Settings:
        return load_settings(self.environment)

    @property
    def tracker(self) -> ExperimentTracker:
        return ExperimentTracker(self.settings)

    @property
    def services(self) -> Services:
        return Services(self.settings, self.tracker)

    def start(self, *flags: str, terminal: int | None = None) -> subprocess.Popen[str]:
        """Start the flow in a process group of its own; with `--json`, its outcome on stdout.

        `terminal` is the descriptor of a terminal, whose keys then reach that group.
        """
        command = [
            *self.within,
            sys.executable,
            "-m",
            self.module,
            "--json",
            f"--output-dir={self.output_dir}",
            *flags,
        ]
        log = (self.folder / "stderr.txt").open("w")
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if terminal else None,
        )

    def run(self, *flags: str, status: int = 0, timeout_seconds: float = 240) -> dict[str, Any]:
        """Run the flow to its end and return the JSON that it printed; `status` is what it must exit with."""
        process = self.start(*flags)
        try:
            stdout, _ = process.communicate(timeout=timeout_seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == status, f"exit status {process.returncode}\n{self.log}"
        if status:
            assert stdout == ""
            return {}
        return dict(json.loads(stdout))

    @property
    def log(self) -> str:
        """What the last run wrote to stderr."""
        return (self.folder / "stderr.txt").read_text()

    def wait_for_log(self, text: str, process: subprocess.Popen[str], limit_seconds: float = 120) -> None:
        """Wait until the running flow has written `text`."""
        wait_until(lambda: text in self.log or process.poll() is not None, limit_seconds, f"{text!r} in the log")
        assert text in self.log, self.log


def signal_group(process: subprocess.Popen[str], *numbers: int) -> None:
    """Send signals one after another as a terminal does, to all that it started and that still belongs to it."""
    for number in numbers:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def wait_until(condition: Callable[[], bool], limit_seconds: float, what: str, poll_seconds: float = 0.05) -> None:
    """Wait for a condition, with a limit."""
    deadline = time.monotonic() + limit_seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_seconds} s for {what}"
        time.sleep(poll_seconds)


def descendants(pid: int) -> list[psutil.Process]:
    """Every process that `pid` started, directly or not, and itself."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def still_running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that are alive; a zombie is not."""
    found = []
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # It ends between the two questions.
            if one.is_running() and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def assert_stopped(
    pipeline: Pipeline, process: subprocess.Popen[str], started: list[psutil.Process], status: int
) -> Run:
    """That the flow, which was told to, ends at once and has left everything in order; returns its run."""
    began = time.monotonic()
    process.communicate(timeout=60)
    # 3 s where nothing else runs, and the tests do not run alone.
    assert time.monotonic() - began < 10
    assert process.returncode == status
    wait_until(lambda: not still_running(started), 5, "the end of what the flow had started")
    (run,) = pipeline.tracker.find_runs("keras-mnist", {"dataset": "mnist"})
    assert run.status == "KILLED"
    assert list((pipeline.folder / "home" / "scratch").iterdir()) == []
    assert pipeline.log.count("Stopped. Run the same command again") == 1
    for word in ("Traceback", "Crash", "Running()"):
        assert word not in pipeline.log
    return run
