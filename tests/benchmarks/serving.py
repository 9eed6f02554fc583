"""The service against MLflow's own server and against the floor: the same JSON through FastAPI to a NumPy product.

    python -m tests.benchmarks serve [--pairs 3]

All three serve the tutorial's network and are asked in turn, from this machine, by clients that keep their connections.
"""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.benchmarks.rows import Row
from tests.pipeline import ROOT, descendants
from tests.registry import Registry
from tests.running_service import RunningService
from tests.s3_server import free_port
from tests.served_models import IMAGES, add_version, make_models

SECONDS = 5.0
LOADS = ((1, 1), (1, 16), (30, 1), (30, 16))
"""Images in a request, and connections."""


@dataclass
class Server:
    """One of those that are compared."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    path: str
    raw: bool
    """Takes MLflow's JSON with pixels, in place of the tutorial's."""
    headers: dict[str, str] = field(default_factory=dict)
    seconds_to_start: float = 0

    def body(self, images: int) -> bytes:
        rows = np.resize(IMAGES, (images, 28, 28))
        told = {"instances": rows.tolist()} if self.raw else {"data": (rows.reshape(images, -1) / 255).tolist()}
        return json.dumps(told).encode()

    def wait_until_it_answers(self, since: float) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self._ask(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60), self.body(1)) == 200:
                    self.seconds_to_start = time.monotonic() - since
                    return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"{self.name} does not answer")

    def _ask(self, connection: http.client.HTTPConnection, body: bytes) -> int:
        headers = {"Content-Type": "application/json", **self.headers}
        connection.request("POST", self.path, body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status

    def measure(self, images: int, connections: int) -> tuple[float, float]:
        """Calls a second, and the 99th percentile of their milliseconds."""
        body, took = self.body(images), list[float]()
        until = time.monotonic() + SECONDS

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            while time.monotonic() < until:
                start = time.monotonic()
                if self._ask(connection, body) != 200:
                    raise RuntimeError(f"{self.name} refuses")
                took.append(time.monotonic() - start)

        clients = [threading.Thread(target=ask) for _ in range(connections)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        return len(took) / SECONDS, 1000 * float(np.percentile(took, 99))

    @property
    def megabytes(self) -> float:
        """Of it and its children, what they share counted once."""
        found = [one.memory_full_info().pss for one in descendants(self.process.pid)]
        return float(sum(found)) / 1e6


def rows(pairs: int) -> list[Row]:
    """Calls, latency, memory and start, against MLflow's server and against the floor."""
    with tempfile.TemporaryDirectory() as folder, _servers(Path(folder)) as (ours, mlflow, floor):
        found: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
        for _ in range(pairs):
            for images, connections in LOADS:
                for server in (ours, mlflow, floor):
                    measured = server.measure(images, connections)
                    found.setdefault((server.name, images, connections), []).append(measured)
        lines = []
        for images, connections in LOADS:
            load = f"{images} image{'s' * (images > 1)}, {connections} connection{'s' * (connections > 1)}"
            for other, target in ((mlflow, "at least 50"), (floor, "at least 0.5")):
                mine, theirs = (found[name, images, connections] for name in (ours.name, other.name))
                calls = ([calls for calls, _ in mine], [calls for calls, _ in theirs])
                lines.append(Row(f"calls a second, {load}", *calls, "", f"{other.name}; {target}"))
                late = ([late for _, late in mine], [late for _, late in theirs])
                lines.append(
                    Row(f"99th percentile, {load}", *late, "ms", other.name + ("; 0.1" if other is mlflow else ""))
                )
        for other in (mlflow, floor):
            lines.append(Row("memory", [ours.megabytes], [other.megabytes], "MB", other.name))
            lines.append(
                Row("start to first answer", [ours.seconds_to_start], [other.seconds_to_start], "s", other.name)
            )
        return lines


@contextmanager
def _servers(folder: Path) -> Iterator[tuple[Server, Server, Server]]:
    (model,) = make_models(folder, "tutorial")
    registry = Registry(folder, folder)
    registry.tracker.set_alias(add_version(registry, model), "champion")
    service = RunningService(folder, registry.environment)
    started: list[Server] = []
    try:
        since = time.monotonic()
        service.start()
        key = {"Authorization": f"Bearer {service.key}"}
        port = int(service.address.rpartition(":")[2])
        ours = Server("the service", service.process, port, "/score", False, key)  # type: ignore[arg-type]
        started.append(ours)
        ours.wait_until_it_answers(since)
        started.append(_mlflow(model.folder))
        started.append(_floor(folder))
        yield started[0], started[1], started[2]
    finally:
        for server in started:
            for one in descendants(server.process.pid):
                one.kill()
            server.process.kill()


def _mlflow(model: Path) -> Server:
    port, since = free_port(), time.monotonic()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "-p", str(port)]
    # MLflow's commands look for programs of the environment by their names.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    process = subprocess.Popen(
        [*command, "--env-manager", "local"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    server = Server("`mlflow models serve`", process, port, "/invocations", raw=True)
    server.wait_until_it_answers(since)
    return server


def _floor(folder: Path) -> Server:
    port, since = free_port(), time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "tests.benchmarks.serving", str(port)], cwd=ROOT)
    server = Server("FastAPI and NumPy", process, port, "/score", raw=False)
    server.wait_until_it_answers(since)
    return server


def serve_floor(port: int) -> None:
    """The tutorial's network as products of NumPy, behind the least of FastAPI."""
    import orjson
    import uvicorn
    from fastapi import FastAPI, Request
    from starlette.responses import Response

    draw = np.random.default_rng(0)
    first, second, last = (draw.standard_normal(shape, np.float32) for shape in ((784, 300), (300, 100), (100, 10)))
    app = FastAPI()

    @app.post("/score")
    async def score(request: Request) -> Response:
        data = np.array(orjson.loads(await request.body())["data"], np.float32)
        hidden = np.maximum(np.maximum(data @ first, 0) @ second, 0)
        found = (hidden @ last).argmax(axis=1)
        return Response(orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    serve_floor(int(sys.argv[1]))
