"""What our modules log belongs to the run in which they log it: on its pages, and under its name at a terminal.
In a notebook a line an epoch is enough.

Prefect's own way, PREFECT_LOGGING_EXTRA_LOGGERS, is read while Prefect is imported, which a worker does ahead of
anything of ours; it leaves the loggers at WARNING, and shows a module's name where a person looks for the step.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from prefect import get_run_logger
from prefect.exceptions import MissingContextError

from tasks.job_output import EPOCHS


def carry_lines() -> None:
    """From now on lines of our modules' loggers become lines of the run in which they are written, if there is one."""
    for package in ("flows", "tasks", "infra"):
        logger = logging.getLogger(package)
        if not any(isinstance(handler, _ToTheRun) for handler in logger.handlers):
            logger.addHandler(_ToTheRun())
            logger.setLevel(logging.getLogger("prefect").getEffectiveLevel())
            logger.propagate = False


@contextmanager
def epochs_alone() -> Iterator[None]:
    """Print a line for each epoch meanwhile, and of the log warnings alone; the run's pages get all of it."""
    handlers, printed = list(logging.getLogger().handlers), _Printed()
    EPOCHS.addHandler(printed)
    EPOCHS.setLevel(logging.INFO)
    for handler in handlers:
        handler.addFilter(_is_warning)
    try:
        yield
    finally:
        EPOCHS.removeHandler(printed)
        for handler in handlers:
            handler.removeFilter(_is_warning)


def _is_warning(record: logging.LogRecord) -> bool:
    # A failure with its traceback is what the caller is given as an exception.
    return record.levelno >= logging.WARNING and not record.exc_info


class _Printed(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        sys.stdout.write(f"{record.getMessage()}\n")
        sys.stdout.flush()


class _ToTheRun(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            run = get_run_logger()
        except MissingContextError:
            # In a thread of its own, or before the run: as without this handler.
            if record.levelno >= logging.getLogger().level:
                logging.getLogger().handle(record)
            return
        logger = run.logger if isinstance(run, logging.LoggerAdapter) else run
        if logger.isEnabledFor(record.levelno):
            record.name = logger.name
            vars(record).update(getattr(run, "extra", None) or {})
            logger.handle(record)
