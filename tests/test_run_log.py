"""What our modules log is a line of the run in which they log it, at the terminal and on Prefect's pages."""

import logging
import time
from uuid import UUID

import pytest
from prefect import flow, runtime, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.run_log import carry_lines

pytestmark = pytest.mark.slow

LINES = logging.getLogger("tasks.some_step")


@task(name="some step")
def step() -> None:
    LINES.info("from the %s", "step")
    LINES.debug("too much")


@flow(name="some flow")
def some_flow() -> str:
    carry_lines()
    carry_lines()
    LINES.warning("from the flow")
    step()
    return str(runtime.flow_run.id)


def test_a_line_is_of_the_run_in_which_it_was_logged(prefect_api: str, caplog: pytest.LogCaptureFixture) -> None:
    packages = [logging.getLogger(name) for name in ("flows", "tasks", "infra")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in packages]
    try:
        with temporary_settings({PREFECT_API_URL: prefect_api}):
            flow_run_id = some_flow()
            LINES.info("outside, and of no interest")
            LINES.warning("outside")
            APILogHandler().flush()
            wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[UUID(flow_run_id)]))
            deadline = time.monotonic() + 30
            with get_client(sync_client=True) as client:
                while "from the step" not in (found := {log.message: log for log in client.read_logs(wanted)}):
                    assert time.monotonic() < deadline, found
                    time.sleep(0.1)
    finally:
        for logger, (level, propagate, handlers) in zip(packages, before, strict=True):
            logger.level, logger.propagate, logger.handlers = level, propagate, handlers
    ours = [(record.name, record.getMessage()) for record in caplog.records if record.module == __name__.split(".")[-1]]
    assert ours == [
        ("prefect.flow_runs", "from the flow"),
        ("prefect.task_runs", "from the step"),
        ("tasks.some_step", "outside"),
    ]
    assert found["from the flow"].task_run_id is None
    assert found["from the step"].task_run_id is not None
    assert "too much" not in found
