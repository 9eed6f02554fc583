"""A real MLflow server on this machine."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.pipeline import wait_until
from tests.s3_server import free_port


class MlflowServer:
    """On a port of its own, which stays the same when it is killed and started again; its state lies in `folder`."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self._folder = folder
        self._host = host
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://{self._host}:{self._port}"

    def start(self) -> None:
        """Start it and return when it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", self._host),
                    *("--port", str(self._port), "--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"),
                    *("--artifacts-destination", str(self._folder / "artifacts"), "--serve-artifacts"),
                ],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

        def answers() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(f"{self.uri}/health").status_code == 200
            return False

        wait_until(answers, 120, "the MLflow server's answer")

    def stop(self) -> None:
        """SIGSTOP to it and its workers: they take connections, and answer nobody any more."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to it and its workers. Safe to call twice."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
