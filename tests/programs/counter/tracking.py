"""Logs metrics on the run that MLFLOW_RUN_ID names: over HTTP by hand, for MLflow takes seconds to import.

A database has no such door; there it is imported.
"""

import base64
import json
import os
import time
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

PATIENCE_SECONDS = 300.0
"""How long MLflow may be away."""


class Run(Protocol):
    """Where metrics go."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log them at `step`."""

    def last_step(self, metric: str) -> int:
        """The last step at which the metric is known there; 0 if there is none."""


def find_run() -> Run:
    """The run of the environment; one that keeps nothing where there is none."""
    run_id, address = os.environ.get("MLFLOW_RUN_ID", ""), os.environ.get("MLFLOW_TRACKING_URI", "")
    if not run_id:
        return NoRun()
    return HttpRun(address, run_id) if address.startswith("http") else DatabaseRun(address, run_id)


class NoRun:
    def log(self, metrics: dict[str, float], step: int) -> None:
        pass

    def last_step(self, metric: str) -> int:
        return 0


class HttpRun:
    def __init__(self, address: str, run_id: str) -> None:
        self._address, self._run_id = urlsplit(address), run_id

    def log(self, metrics: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        points = [{"key": key, "value": value, "step": step, "timestamp": now} for key, value in metrics.items()]
        self._ask("POST", "runs/log-batch", json.dumps({"run_id": self._run_id, "metrics": points}))

    def last_step(self, metric: str) -> int:
        query = urlencode({"run_id": self._run_id, "metric_key": metric})
        points = self._ask("GET", f"metrics/get-history?{query}").get("metrics", [])
        return max((int(point.get("step", 0)) for point in points), default=0)

    def _ask(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        """What it answers, which is asked again while it is away; to log the same again changes nothing."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self._answer(method, path, body)
            except (OSError, HTTPException) as error:
                if time.monotonic() > deadline:
                    raise
                print(f"no answer from MLflow ({error}), again in 1 s", flush=True)
                time.sleep(1)

    def _answer(self, method: str, path: str, body: str | None) -> dict[str, Any]:
        connect = HTTPSConnection if self._address.scheme == "https" else HTTPConnection
        connection = connect(self._address.netloc, timeout=10)
        headers = {"Content-Type": "application/json"}
        name, password, token = (os.environ.get(f"MLFLOW_TRACKING_{key}") for key in ("USERNAME", "PASSWORD", "TOKEN"))
        if name and password:
            headers["Authorization"] = f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"
        elif token:
            headers["Authorization"] = f"Bearer {token}"
        connection.request(method, f"{self._address.path.rstrip('/')}/api/2.0/mlflow/{path}", body, headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"MLflow answered {path} with status {answer.status}: {text[:200]!r}")
        return dict(json.loads(text))


class DatabaseRun:
    def __init__(self, address: str, run_id: str) -> None:
        from mlflow import MlflowClient

        self._client, self._run_id = MlflowClient(address), run_id

    def log(self, metrics: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run_id, [Metric(key, value, now, step) for key, value in metrics.items()])

    def last_step(self, metric: str) -> int:
        return max((point.step for point in self._client.get_metric_history(self._run_id, metric)), default=0)
