"""A program as the steps run it: its lines, its last words, and what its exit status means."""

import json
from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

from infra.compute import Compute, Job
from infra.compute.runner.exits import (
    EXIT_BAD_DATASET,
    EXIT_INTERRUPTED,
    EXIT_NO_GPU,
    EXIT_TAKEN_OVER,
    EXIT_TERMINATED,
    EXIT_USAGE,
    LAST_WORDS,
)
from infra.compute.runner.output import EVENT
from infra.errors import ArgumentError, ComputeUnavailable, DatasetCorrupted, LeaseLost, PipelineError, TrainingFailed

_MEANINGS: dict[int, type[PipelineError]] = {
    EXIT_USAGE: ArgumentError,
    EXIT_NO_GPU: ComputeUnavailable,
    EXIT_BAD_DATASET: DatasetCorrupted,
    EXIT_TAKEN_OVER: LeaseLost,
}
"""Every other status is `TrainingFailed`."""

LINES_KEPT = 5
"""Of a program that ended without last words, the last lines stand for them."""


class ProgramRun:
    """A job of a program on a compute."""

    def __init__(self, compute: Compute, job: Job) -> None:
        self._compute, self._job = compute, job
        self._latest: deque[str] = deque(maxlen=LINES_KEPT)
        self.last_words: list[str] | None = None
        """The lines by which the program answers or says why it fails; None as long as it has not begun them."""

    def lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Run the job and yield its output line by line, the last words too, each with what it tells, see `EVENT`.

        If it fails, raises what its exit status means, with its own reason: `ArgumentError` for its arguments,
        `ComputeUnavailable`, `DatasetCorrupted`, `LeaseLost` or `TrainingFailed`; and what `Compute.run` raises.
        """
        try:
            with closing(self._compute.run(self._job)) as lines:  # type: ignore[type-var]
                for whole in lines:
                    line, _, told = whole.partition(EVENT)
                    before, mark, _ = line.partition(LAST_WORDS)
                    if self.last_words is not None:
                        self.last_words.append(line)
                    if before or not mark:
                        self._latest.append(before)
                        yield before, _event(told)
                    if mark:
                        self.last_words = []
        except TrainingFailed as error:
            if error.exit_status is None:
                raise
            meaning = _MEANINGS.get(error.exit_status, TrainingFailed)
            # Last words are complete by themselves, and our own program's exit status would be taken for the person's.
            raise meaning(self._reason(error.exit_status) + ("" if self.last_words else f"\n{error}")) from error

    def _reason(self, exit_status: int) -> str:
        if exit_status in (EXIT_TERMINATED, EXIT_INTERRUPTED):
            return "The training program was told to stop, and not by this run. Run the same command again."
        if self.last_words:
            return "\n".join(self.last_words)
        latest = "".join(f"\n  {line}" for line in self._latest)
        return f"The training program ended without a reason; the last that it said:{latest or ' nothing'}"


def _event(told: str) -> dict[str, Any]:
    with suppress(ValueError):  # The log of a lost node ends in the middle of a line.
        return dict(json.loads(told)) if told else {}
    return {}
