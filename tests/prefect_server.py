"""A real Prefect server on this machine, so that no run pays for one of its own."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx

from tests.pipeline import wait_until
from tests.s3_server import free_port


def start_prefect(home: Path, **environment: str) -> str:
    """Start a server with its state in `home`; its API's address, once it answers. Who started it ends it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    home.mkdir(exist_ok=True)
    with (home / "server.log").open("wb") as log:
        command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--port", str(port)]
        environment = {**os.environ, "PREFECT_HOME": str(home), **environment}
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def answers() -> bool:
        assert server.poll() is None, (home / "server.log").read_text()
        with suppress(httpx.HTTPError):
            return httpx.get(f"{url}/health").status_code == 200
        return False

    wait_until(answers, 120, "the Prefect server's answer", 0.2)
    return url
