"""How a task shows that long work goes on: a bar in a terminal, lines elsewhere, an artifact in the UI."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from threading import Lock
from uuid import UUID

from infra.background import in_background

LOGGER = logging.getLogger(__name__)

SECONDS_BEFORE_FIRST = 2.0
"""Work that ends sooner shows no line and no artifact: they would only be noise."""
SECONDS_BETWEEN = 2.0


class ProgressArtifact:
    """A bar on the pages of a flow run and its task run. It is for the eye: a server that is away, or hangs, ends no
    work and holds none up."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._id: UUID | None = None
        self._lock = Lock()
        self._wanted: float | None = None
        self._busy = False

    @property
    def shown(self) -> bool:
        return self._wanted is not None

    def show(self, percent: float) -> None:
        """Returns at once; of what comes while the server is slow, the last is shown."""
        with self._lock:
            self._wanted = round(percent, 1)  # The pages show every digit.
            if not self._busy:
                self._busy = True
                # In this context, where Prefect finds the run.
                in_background(partial(copy_context().run, self._send))

    def _send(self) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        from tasks.cancellation import UNREACHABLE

        sent: float | None = None
        while True:
            with self._lock:
                if sent == self._wanted:
                    self._busy = False
                    return
                sent = self._wanted
            assert sent is not None
            with suppress(*UNREACHABLE):
                if self._id is None:
                    self._id = create_progress_artifact(sent, description=self._title)  # type: ignore[assignment]
                else:
                    update_progress_artifact(self._id, sent)


@contextmanager
def byte_progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to call, from any thread, with the number of bytes that were just done.

    `total` is in bytes. A negative number takes back what had to be thrown away.
    """
    from prefect.context import FlowRunContext, TaskRunContext
    from tqdm import tqdm

    started = time.monotonic()
    shown = started + SECONDS_BEFORE_FIRST - SECONDS_BETWEEN
    done = 0
    lock = Lock()
    artifact = ProgressArtifact(title)
    in_task_run = TaskRunContext.get() is not None or FlowRunContext.get() is not None
    terminal = sys.stderr.isatty()

    with tqdm(desc=title, total=total, unit="B", unit_scale=True, disable=not terminal, leave=False) as bar:

        def advance(count: int) -> None:
            nonlocal done, shown
            with lock:
                done += count
                bar.update(count)
                now = time.monotonic()
                if now - shown < SECONDS_BETWEEN:
                    return
                shown = now
                percent = 100 * done / total if total else 100.0
                if not terminal:
                    LOGGER.info("%s: %.0f %% of %.1f MB", title, percent, total / 1e6)
                if in_task_run:
                    artifact.show(percent)

        yield advance
    if artifact.shown:
        artifact.show(100.0)
