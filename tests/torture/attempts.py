"""A run under observation: the points that it passes, what it writes, and the processes that it started."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.pipeline import Pipeline, still_running, wait_until
from tests.torture.subjects import EPOCHS

SECONDS_TO_END = 30.0
"""Within which a process ends by itself after its caller was killed; it may be importing TensorFlow."""


def epoch_line(number: int | str) -> str:
    """The pattern of the line that tells of an epoch."""
    return rf"- epoch {number}(?:/| of )"


@dataclass(frozen=True)
class Point:
    """A moment of a run: a line that it writes, or a file that appears under the pipeline's folder."""

    step: str
    line: str = ""
    files: tuple[str, ...] = ()
    epoch: int = 0
    """The line must name this epoch or a later one."""

    def __str__(self) -> str:
        return f"epoch {self.epoch}" if self.epoch else self.step


POINTS = (
    Point("the flow starts", line=r"^"),
    Point("MLflow's database is made", files=("home/mlflow/unfinished-mlflow.db",)),
    Point("download", files=("home/datasets/*/*.part",)),
    Point("downloaded", line=r"Downloaded and checked"),
    Point("upload", files=("home/object-store/datasets/*/*/**/.*.part",)),
    Point("uploading", line=r"- Uploading "),
    Point("provisioned", line=r"- Compute: "),
    Point("run started", line=r"- (Started|Continuing) run "),
    Point("standing by", line=r"- standing by"),
    Point("data set read", line=r"- data set "),
    *(Point("epoch", epoch=number) for number in range(1, EPOCHS + 1)),
    Point("post-processing", line=r"- post-processing"),
    Point("outputs are uploaded", files=("home/mlflow/artifacts/*/*/artifacts/outputs",)),
    Point("outputs are kept", line=r"- kept [\d,]+ files"),
    Point("model is saved", files=("home/mlflow/artifacts/*/models/m-*",)),
    Point("model is uploaded", files=("home/mlflow/artifacts/*/models/*/artifacts/MLmodel",)),
    Point("last tags", line=r"- model saved as "),
    Point("run ends", line=r"- done in "),
    Point("registration", line=r"- Registered run |- Run \w+ is version "),
    Point("decision", line=r"- Version \d+ is "),
    Point("artifacts download", files=(".model.incoming-*",)),
    Point("artifacts are there", line=r"- models:/"),
    Point("verification", line=r"- standing by[\s\S]*- models:/[\s\S]*- standing by"),
    Point("verified", line=r"- The downloaded model has"),
    Point("rename", files=("model/model_files.json", "model/MLmodel")),
)
"""Every point, in the order in which a run passes them; one that a subject does not have is the next that it has."""


class Attempt:
    """The command, running; what it has written, and what has appeared on disk since its start."""

    def __init__(self, pipeline: Pipeline, *flags: str) -> None:
        self.pipeline = pipeline
        self._there_before = {pattern: self._files(pattern) for point in POINTS for pattern in point.files}
        self.process = pipeline.start(*flags)
        self._log = (pipeline.folder / "stderr.txt").open("rb")
        self._written = ""
        self._epochs = 0, 0
        self._reading = threading.Lock()
        self.last: tuple[int, dict[str, Any]] = (0, {})
        """What `wait` returned."""
        self.seconds_to_end = 0.0
        """After a signal."""

    @property
    def written(self) -> str:
        """What the run wrote to stderr so far."""
        with self._reading:
            if new := self._log.read().decode(errors="replace"):
                self._written += new
                told = [int(number) for number in re.findall(epoch_line(r"(\d+)"), self._written)]
                self._epochs = min(told, default=0), max(told, default=0)
            return self._written

    @property
    def epochs(self) -> tuple[int, int]:
        """The first and the last that it told of; 0 if there is none."""
        return self._epochs if self.written else (0, 0)

    @property
    def is_over(self) -> bool:
        return self.process.poll() is not None

    def wait(self, limit_seconds: float = 600) -> tuple[int, dict[str, Any]]:
        """The exit status and what it printed, once the run has ended by itself."""
        stdout, _ = self.process.communicate(timeout=limit_seconds)
        self.last = self.process.returncode, json.loads(stdout) if stdout.strip() else {}
        return self.last

    def signal_group(self, sent: signal.Signals) -> None:
        """Send a signal to the whole process group, as a terminal does. Safe if it has just ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, sent)

    def _files(self, pattern: str) -> set[Path]:
        return set(self.pipeline.folder.glob(pattern))

    def is_at(self, point: Point) -> bool:
        """Whether it has come to the point, or was there already."""
        written = self.written
        if point.epoch:
            return self._epochs[1] >= point.epoch
        if point.line and re.search(point.line, written):
            return True
        return any(self._files(pattern) - self._there_before[pattern] for pattern in point.files)

    def reach(self, point: Point, delay: float = 0) -> Point | None:
        """Wait for the point and so many seconds more; the point that was reached, which may be a later one.

        None if the run has ended before.
        """
        later = POINTS[POINTS.index(point) :]
        deadline = time.monotonic() + 300
        while not self.is_over and not (reached := [one for one in later if self.is_at(one)]):
            assert time.monotonic() < deadline, f"waited 300 s for {point}\n{self.written}"
            time.sleep(0.01)
        if not self.is_over:
            # The delay is drawn, as the point is: it says at which moment the fault falls.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(delay)
        return None if self.is_over else reached[0]

    def wait_for(self, pattern: str, limit_seconds: float = 300) -> None:
        """Wait until the run has written something that `pattern` is found in."""
        found = re.compile(pattern)
        wait_until(lambda: bool(found.search(self.written)) or self.is_over, limit_seconds, f"{pattern!r} in the log")
        assert found.search(self.written), f"the run ended without {pattern!r}\n{self.written}"

    def said_of(self, pattern: str, otherwise: str = "no word of it") -> str:
        """The first message in which `pattern` is found, as a cell of a table."""
        lines = [line for line in self.written.splitlines() if re.search(pattern, line)]
        return cell(lines[0].partition(" - ")[2] or lines[0]) if lines else otherwise

    @property
    def tracebacks(self) -> list[str]:
        """For each traceback that the run showed, where it ends: nobody should see one."""
        return [cell(f"the user saw a traceback: {end}") for end in ends_of_tracebacks(self.written)]

    def said(self) -> str:
        """The last that a person would read, shortened to a cell of a table."""
        log, _, end = self.written.strip().rpartition("\n\n")
        messages = [line.rpartition(" - ")[2] for line in log.splitlines() if " | " in line]
        said = [message for message in messages if not message.startswith(_OF_PREFECT)]
        if " | " in end:
            return cell(" / ".join(dict.fromkeys(said[-2:])))
        # Where the message refers to what the program said last.
        return cell(f"{said[-1]} ... {end}" if "own last lines" in end and said else end)


_OF_PREFECT = ("Finished in state", "Task run failed", "Encountered exception")


def ends_of_tracebacks(text: str) -> list[str]:
    """The last place and the error of each traceback in a text, which may break off anywhere."""
    found = re.findall(r"Traceback \(most recent call last\).*\n?((?:[ \t].*\n|\n)*)(.*)", text)
    return [f"{where.rpartition('File ')[2].strip()}: {error}" for where, error in found]


def cell(text: str) -> str:
    words = re.sub(r"\s+", " ", text.replace("|", "/")).strip() or "nothing"
    return words if len(words) <= 320 else f"{words[:240]} ... {words[-60:]}"


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every living process that was started for a home under `folder`, whoever its parent is by now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            # A program of a person's own is told nothing of the pipeline's home; what it may fill is below that.
            told = {process.environ().get(name, "") for name in ("PIPELINE_HOME", "TMPDIR")}
            if any(place.startswith(f"{folder}/") for place in told) and still_running([process]):
                found.append(process)
    return found


def kill_all_of(folder: Path) -> None:
    """SIGKILL to every process that was started for a home under `folder`."""
    for process in processes_of(folder):
        with contextlib.suppress(psutil.Error):
            process.kill()


_MARKS = {"runner": "runner", "program": "launcher", "tracker process": "infra.tracker_process"}
"""A word of the command of each, or the name of the folder that is run."""


def of_kind(processes: Iterable[psutil.Process], kind: str) -> list[psutil.Process]:
    """Those of them that are a runner, the program or a tracker process; `all` of them."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if kind == "all" or any(word.rpartition("/")[2] == _MARKS[kind] for word in process.cmdline()[1:4]):
                found.append(process)
    return found


def living(pipeline: Pipeline, kind: str) -> list[psutil.Process]:
    """The living processes of this home of one kind, or `all`."""
    return of_kind(processes_of(pipeline.folder), kind)


def shown(process: psutil.Process) -> str:
    """A process in words."""
    try:
        return f"{process.pid} {' '.join(process.cmdline()[-4:])}"
    except psutil.Error:
        return f"{process.pid}, just ended"


def wait_until_all_ended(pipeline: Pipeline, limit_seconds: float = SECONDS_TO_END) -> list[str]:
    """Wait for the end of every process of this home; those that stay are named."""
    deadline = time.monotonic() + limit_seconds
    while (alive := processes_of(pipeline.folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    names = [f"still alive after {limit_seconds:g} s: {shown(one)}" for one in alive]
    for one in alive:
        with contextlib.suppress(psutil.Error):
            one.kill()
    return names
