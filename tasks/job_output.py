"""The output of a job that trains, shown and kept; and how far it is, which its events tell."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from infra.addresses import without_secrets
from infra.compute import Compute, Job
from tasks.program_run import ProgramRun
from tasks.progress import ProgressArtifact

LOGGER = logging.getLogger(__name__)

EPOCHS = logging.getLogger(f"{__name__}.epochs")
"""Gets the line of each epoch once more, in a flood too, for who wants nothing else."""
EPOCHS.propagate = False

PHASES = ("preparing", "scaling", "running", "post_processing")
"""Of a job; the run's metrics `phase_..._seconds` say how long each took."""

Line = tuple[str, dict[str, Any]]
"""Its text, and what it tells: see `infra.compute.runner.output.EVENT`. The text is for people alone."""

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
    on_epoch: Callable[[Mapping[str, Any]], None]
    """Called after each epoch, with what its line tells."""
    quiet: bool = False
    """One of several trainings at once, whose lines would run into one another: its log alone has them."""


def run_job(target: Compute, job: Job, audience: Audience) -> dict[str, float]:
    """Run the job, show and keep its output; the seconds of its phases. Raises as `ProgramRun.lines` does."""
    log_file = audience.log_file
    log_file.parent.mkdir(parents=True, exist_ok=True)
    progress = ProgressArtifact(audience.title)
    if not audience.quiet:
        progress.show(0)
    phases = _Phases()
    shown = _Shown()
    known = log_file.read_text().splitlines() if log_file.exists() else []
    with log_file.open("a", buffering=1) as log, closing(ProgramRun(target, job).lines()) as lines:  # type: ignore[type-var]
        try:
            for text, told in _behind(known, ((without_secrets(text), event) for text, event in lines)):
                log.write(text + "\n")
                if "unseen" not in told and not audience.quiet:
                    shown.add(text)
                phases.saw(told)
                if "epoch" in told:
                    EPOCHS.info("%s", text)
                    audience.on_epoch(told)
                    if told["epochs"] and not audience.quiet:
                        progress.show(min(100.0, 100 * told["epoch"] / told["epochs"]))
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


def _behind(known: list[str], lines: Iterator[Line]) -> Iterator[Line]:
    """Those of `lines` that are not in `known` already: of a job that an earlier flow watched to some point."""
    first = next(lines, None)
    if first is None:
        return
    name = first[0]
    before = known[known.index(name) :] if name.startswith("job ") and name in known else []
    for number, line in enumerate(chain([first], lines)):
        if line[0] != (before[number] if number < len(before) else None):
            yield line


class _Phases:
    """Counts the seconds of each phase."""

    def __init__(self) -> None:
        # This machine has no node to wait for: scaling takes no time. A cluster says what it took.
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase = "preparing"
        self._since = time.monotonic()

    def saw(self, event: Mapping[str, Any]) -> None:
        for phase, seconds in event.get("took", {}).items():
            self._seconds[phase] += seconds
        if phase := event.get("phase"):
            self.ended()
            self._phase = phase

    def ended(self) -> dict[str, float]:
        now = time.monotonic()
        self._seconds[self._phase] += now - self._since
        self._since = now
        return self._seconds
