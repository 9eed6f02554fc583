"""MLflow's database at an address on loopback, with a key: for a program whose MLflow may be of another version.

    python -m runner.mlflow_address PORT

MLflow refuses a database of another version's tables; its HTTP API is the same for many. The key is read from standard
input, and the server ends when that does.
"""

import contextlib
import hmac
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from .exits import RunnerError
from .process_tree import spare

_PACKAGE = Path(__file__).parent
SECONDS_TO_START = 120


class MlflowAddress:
    """A server of the database in MLFLOW_TRACKING_URI, on a free port of this machine."""

    def __init__(self, scratch: Path) -> None:
        """Return when it answers. Raises `RunnerError` if it does not."""
        self._key = secrets.token_urlsafe(32)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
        log = scratch / "mlflow.log"
        with log.open("wb") as written:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{_PACKAGE.name}.{Path(__file__).stem}", self._uri.rpartition(":")[2]],
                cwd=_PACKAGE.parent,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdin=subprocess.PIPE,
                stdout=written,
                stderr=written,
            )
        spare(self._process.pid)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(self._key.encode() + b"\n")
            self._process.stdin.flush()
        deadline = time.monotonic() + SECONDS_TO_START
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().splitlines()[-3:]
                raise RunnerError("\n".join(["MLflow cannot be served to the program on loopback:", *said]))
            time.sleep(0.1)

    @property
    def variables(self) -> dict[str, str]:
        """What tells MLflow's client of it."""
        return {"MLFLOW_TRACKING_URI": self._uri, "MLFLOW_TRACKING_TOKEN": self._key}

    def _answers(self) -> bool:
        request = urllib.request.Request(f"{self._uri}/health", headers={"Authorization": f"Bearer {self._key}"})
        # Loopback is reached by no proxy.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with contextlib.suppress(OSError), opener.open(request, timeout=10) as answer:
            return bool(answer.status == 200)
        return False

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


class _Guarded:
    """An ASGI application that wants a key with each request."""

    def __init__(self, application: Any, key: str) -> None:
        self._application, self._expected = application, f"Bearer {key}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        given = dict(scope.get("headers", [])).get(b"authorization", b"")
        if scope["type"] == "lifespan" or hmac.compare_digest(given, self._expected):
            await self._application(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"a key is wanted"})


def _serve(port: int) -> None:
    """Serve the database in MLFLOW_TRACKING_URI."""
    import uvicorn
    from mlflow.environment_variables import _MLFLOW_SGI_NAME
    from mlflow.server import constants, handlers

    key = sys.stdin.readline().strip()
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    database = os.environ.pop("MLFLOW_TRACKING_URI")
    # What its own command sets for the process that serves.
    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: database,
        constants.REGISTRY_STORE_URI_ENV_VAR: database,
        _MLFLOW_SGI_NAME.name: "uvicorn",
    }
    handlers.initialize_backend_stores(database, database, None)
    from mlflow.server.fastapi_app import app

    uvicorn.run(_Guarded(app, key), host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
