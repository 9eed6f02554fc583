"""The output of a job that trains: shown, kept, and read for how far it is."""

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from infra.addresses import without_secrets
from infra.compute import Compute, Job
from infra.compute.local_process import STANDING_BY
from tasks.program_run import ProgramRun
from tasks.progress import ProgressArtifact

LOGGER = logging.getLogger(__name__)

PHASES = ("preparing", "scaling", "running", "post_processing")
"""Of a job; the run's metrics `phase_..._seconds` say how long each took."""

_MEASURED = re.compile(r"(scaling|preparing) took ([\d.]+) s")
_EPOCH_LINE = re.compile(r"epoch (\d+)/(\d+)\b")

WINDOW_SECONDS = 10.0
LINES_SHOWN = 200
"""In a window. Prefect's server takes a few hundred lines a second, and holds the end of the flow up with the rest."""
LAST_LINES_SHOWN = 20
"""Of a flood: how a program ends is said in its last lines."""


@dataclass(frozen=True)
class Audience:
    """Who is told how far a training is."""

    title: str
    """Of the progress bar."""
    log_file: Path
    """Gets every line, those of an earlier attempt before them."""
    on_epoch: Callable[[], None]
    """Called after each epoch."""


def run_job(target: Compute, job: Job, audience: Audience) -> dict[str, float]:
    """Run the job, show and keep its output; the seconds of its phases. Raises as `ProgramRun.lines` does."""
    log_file = audience.log_file
    log_file.parent.mkdir(parents=True, exist_ok=True)
    progress = ProgressArtifact(audience.title)
    progress.show(0)
    phases = _Phases()
    shown = _Shown()
    known = log_file.read_text().splitlines() if log_file.exists() else []
    with log_file.open("a", buffering=1) as log, closing(ProgramRun(target, job).lines()) as lines:  # type: ignore[type-var]
        try:
            for line in _behind(known, map(without_secrets, lines)):
                log.write(line + "\n")
                shown.add(line)
                phases.saw(line)
                if epoch := _EPOCH_LINE.match(line):
                    audience.on_epoch()
                    progress.show(min(100.0, 100 * int(epoch[1]) / max(1, int(epoch[2]))))
        finally:
            shown.catch_up()
    return phases.ended()


class _Shown:
    """Puts lines on the run's pages and the terminal, of a flood the first and the last."""

    def __init__(self) -> None:
        self._until = 0.0
        self._count = self._left_out = 0
        self._held: deque[str] = deque()

    def add(self, line: str) -> None:
        now = time.monotonic()
        if now >= self._until:
            self.catch_up()
            self._until, self._count = now + WINDOW_SECONDS, 0
        self._count += 1
        if self._count <= LINES_SHOWN:
            LOGGER.info("%s", line)
            return
        self._held.append(line)
        if len(self._held) > LAST_LINES_SHOWN:
            self._held.popleft()
            self._left_out += 1

    def catch_up(self) -> None:
        """Show what was held back, for the flood is over for now."""
        if self._left_out:
            LOGGER.info("%s lines are left out here; the run's log, logs/training.log, has all", f"{self._left_out:,}")
        for line in self._held:
            LOGGER.info("%s", line)
        self._held.clear()
        self._left_out = 0


def _behind(known: list[str], lines: Iterator[str]) -> Iterator[str]:
    """Those of `lines` that are not in `known` already: of a job that an earlier flow watched to some point."""
    first = next(lines, None)
    if first is None:
        return
    before = known[known.index(first) :] if first.startswith("job ") and first in known else []
    for number, line in enumerate(chain([first], lines)):
        if line != (before[number] if number < len(before) else None):
            yield line


class _Phases:
    """Tells from the program's lines which phase it is in, and counts the seconds of each."""

    _STARTS = (("running", STANDING_BY), ("post_processing", "post-processing"))

    def __init__(self) -> None:
        # This machine has no node to wait for: scaling takes no time. A cluster says what it took.
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase = "preparing"
        self._since = time.monotonic()

    def saw(self, line: str) -> None:
        if measured := _MEASURED.fullmatch(line):
            self._seconds[measured[1]] += float(measured[2])
        for phase, start in self._STARTS:
            if line.startswith(start):
                self.ended()
                self._phase = phase

    def ended(self) -> dict[str, float]:
        now = time.monotonic()
        self._seconds[self._phase] += now - self._since
        self._since = now
        return self._seconds
