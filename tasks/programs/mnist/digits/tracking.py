"""What the program writes on the MLflow run that MLFLOW_RUN_ID names, which somebody else starts and ends."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from threading import Timer

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException

from .checkpoint import EpochMetrics

PATIENCE_SECONDS = 120.0
"""How long MLflow may be away: a server's restart takes less."""


class RunRecord:
    """The MLflow run with `run_id`, at the address that MLFLOW_TRACKING_URI names."""

    def __init__(self, run_id: str) -> None:
        self._client = MlflowClient()
        self._run_id = run_id

    def log_epoch(self, metrics: EpochMetrics) -> None:
        """Log the metrics of an epoch, with the epoch as their step."""
        values = asdict(metrics)
        epoch, finished_ms = values.pop("epoch"), values.pop("finished_ms")
        self._log([Metric(key, value, finished_ms, epoch) for key, value in values.items()], f"epoch {epoch}")

    def log_result(self, values: Mapping[str, float], step: int) -> None:
        """Log what is known after the last epoch."""
        now = time.time_ns() // 1_000_000
        self._log([Metric(key, value, now, step) for key, value in values.items()], "the result")

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run, all at once."""
        told = [RunTag(key, value) for key, value in tags.items()]
        _patiently(lambda: self._client.log_batch(self._run_id, tags=told, synchronous=True), "log tags")

    def _log(self, metrics: list[Metric], what: str) -> None:
        # A repetition sends the same timestamp, which a database takes for the same row.
        _patiently(lambda: self._client.log_batch(self._run_id, metrics=metrics, synchronous=True), f"log {what}")


def _patiently(action: Callable[[], None], purpose: str) -> None:
    """Do it, again while MLflow is away; raises `MlflowException` for what waiting does not mend, and after 2 min."""
    deadline, wait = time.monotonic() + PATIENCE_SECONDS, 0.5
    while True:
        # A server that hangs says nothing itself.
        timer = Timer(10, print, [f"no answer for 10 s, to {purpose} in MLflow; still waiting"])
        timer.daemon = True
        timer.start()
        try:
            return action()
        except MlflowException as error:
            refused = 400 <= error.get_http_status_code() < 500 and error.get_http_status_code() != 429
            if refused or time.monotonic() + wait > deadline:
                raise
            print(f"cannot {purpose} in MLflow; again in {wait:g} s")
        finally:
            timer.cancel()
        time.sleep(wait)
        wait = min(2 * wait, 8.0)
