"""Plays the runner to a launched program: the two pipes, the answers, the copies of checkpoints, and SIGKILL."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAUNCHER = Path(__file__).parent.parent / "infra" / "compute" / "runner" / "launcher"

ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": os.environ.get("HOME", "/"),
    "KERAS_BACKEND": "tensorflow",
    "KERAS_HOME": os.devnull,
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass
class Ended:
    """How a launched program ended; `returncode` is that of `subprocess`."""

    returncode: int
    stdout: str
    stderr: str
    events: list[dict[str, Any]]

    def of(self, event: str) -> list[dict[str, Any]]:
        """The events of this name, without it."""
        return [
            {key: value for key, value in each.items() if key != "event"}
            for each in self.events
            if each["event"] == event
        ]


@dataclass
class Launched:
    """A program in `folder`, to be run again and again with what was taken of its checkpoints."""

    folder: Path
    scratch: Path
    order: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def taken(self) -> Path:
        """The last copy that the runner took of CHECKPOINT_FOLDER."""
        return self.scratch / "taken"

    def run(
        self, *argv: str, import_ahead: tuple[str, ...] = (), kill_at: tuple[str, int, int] | None = None, **order: Any
    ) -> Ended:
        """Run it to its end, or until the event `kill_at` (name, fit, epoch), whose checkpoint is taken before."""
        checkpoints = self.scratch / "checkpoints"
        shutil.rmtree(checkpoints, ignore_errors=True)
        if self.taken.exists():
            shutil.copytree(self.taken, checkpoints)
        checkpoints.mkdir(exist_ok=True)
        environment = ENVIRONMENT | self.environment | {"CHECKPOINT_FOLDER": str(checkpoints)}
        lines = self.scratch / "stdout", self.scratch / "stderr"
        with Process(self.folder, import_ahead, environment, *lines) as process:
            process.give({"argv": argv, "module": False, "environment": environment, "hook": True, "seed": None,
                          "checkpoint_folder": str(checkpoints), "run": None, **self.order, **order})  # fmt: skip
            for event in process.events():
                if event["event"] == "checkpoint":
                    shutil.rmtree(self.taken, ignore_errors=True)
                    shutil.copytree(checkpoints, self.taken)
                if kill_at == (event["event"], event.get("fit"), event.get("epoch")):
                    process.kill()
                elif event["event"] == "checkpoint":
                    process.give({"taken": True})
            status = process.popen.wait(60)
        return Ended(status, lines[0].read_text(), lines[1].read_text(), process.told)


class Process:
    """The launcher's process, ready for its order, with our ends of the pipes."""

    def __init__(self, folder: Path, import_ahead: tuple[str, ...], environment: dict[str, str], out: Path, err: Path):
        order_fd, self._order = os.pipe()
        self._events, events_fd = os.pipe()
        settings = {"import_ahead": import_ahead, "order_fd": order_fd, "events_fd": events_fd}
        with out.open("wb") as stdout, err.open("wb") as stderr:
            self.popen = subprocess.Popen(
                [sys.executable, str(LAUNCHER), json.dumps(settings)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(order_fd, events_fd),
                start_new_session=True,
            )
        os.close(order_fd)
        os.close(events_fd)
        self.told: list[dict[str, Any]] = []

    def give(self, line: dict[str, Any]) -> None:
        """Write a line of JSON to the launcher."""
        os.write(self._order, (json.dumps(line) + "\n").encode())

    def events(self) -> Any:
        """The events, as they come, until no process of the program has the pipe open."""
        with open(self._events, "rb", closefd=False) as lines:
            for line in lines:
                self.told.append(json.loads(line))
                yield self.told[-1]

    def kill(self) -> None:
        """As a machine that loses power does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)

    def leave(self) -> None:
        """As a runner that is killed: its end of the order's pipe is closed by the kernel."""
        os.close(self._order)
        self._order = -1

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self.popen.wait(60)
        for fd in (self._order, self._events):
            if fd >= 0:
                os.close(fd)
