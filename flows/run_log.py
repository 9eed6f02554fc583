"""What our modules log belongs to the run in which they log it: on its pages, and under its name at a terminal.

Prefect's own way, PREFECT_LOGGING_EXTRA_LOGGERS, is read while Prefect is imported, which a worker does ahead of
anything of ours; it leaves the loggers at WARNING, and shows a module's name where a person looks for the step.
"""

import logging

from prefect import get_run_logger
from prefect.exceptions import MissingContextError


def carry_lines() -> None:
    """From now on lines of our modules' loggers become lines of the run in which they are written, if there is one."""
    for package in ("flows", "tasks", "infra"):
        logger = logging.getLogger(package)
        if not any(isinstance(handler, _ToTheRun) for handler in logger.handlers):
            logger.addHandler(_ToTheRun())
            logger.setLevel(logging.getLogger("prefect").getEffectiveLevel())
            logger.propagate = False


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
