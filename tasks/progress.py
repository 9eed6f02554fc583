"""How a task shows that long work goes on: a bar in a terminal, lines elsewhere, an artifact in the UI."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any
from uuid import UUID

Logger = logging.Logger | logging.LoggerAdapter[Any]

SECONDS_BEFORE_FIRST = 2.0
"""Work that ends sooner shows no line and no artifact: they would only be noise."""
SECONDS_BETWEEN = 2.0


@contextmanager
def byte_progress(title: str, total: int, logger: Logger) -> Iterator[Callable[[int], None]]:
    """Yield a function to call, from any thread, with the number of bytes that were just done.

    `total` is in bytes. A negative number takes back what had to be thrown away.
    """
    # Not above: a command without steps takes nothing but the name of a logger from here, and starts without Prefect.
    from prefect.artifacts import create_progress_artifact, update_progress_artifact
    from prefect.context import FlowRunContext, TaskRunContext
    from tqdm import tqdm

    started = time.monotonic()
    shown = started + SECONDS_BEFORE_FIRST - SECONDS_BETWEEN
    done = 0
    lock = Lock()
    artifact: UUID | None = None
    in_task_run = TaskRunContext.get() is not None or FlowRunContext.get() is not None
    terminal = sys.stderr.isatty()

    with tqdm(desc=title, total=total, unit="B", unit_scale=True, disable=not terminal, leave=False) as bar:

        def advance(count: int) -> None:
            nonlocal done, shown, artifact
            with lock:
                done += count
                bar.update(count)
                now = time.monotonic()
                if now - shown < SECONDS_BETWEEN:
                    return
                shown = now
                percent = 100 * done / total if total else 100.0
                if not terminal:
                    logger.info("%s: %.0f %% of %.1f MB", title, percent, total / 1e6)
                if not in_task_run:
                    return
                if artifact is None:
                    artifact = create_progress_artifact(percent, description=title)  # type: ignore[assignment]
                else:
                    update_progress_artifact(artifact, percent)

        yield advance
    if artifact is not None:
        update_progress_artifact(artifact, 100.0)
