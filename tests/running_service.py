"""The service as a person starts it: `python -m flows.serve`, on a free port, in a home of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.pipeline import ROOT, wait_until
from tests.registry import MODEL


@dataclass
class RunningService:
    """Started by `start`; what it says goes to `stderr.txt`."""

    folder: Path
    environment: dict[str, str]
    seconds_to_start: float = 0

    @property
    def home(self) -> Path:
        return Path(self.environment["PIPELINE_HOME"])

    def start(self, *flags: str) -> None:
        """Start it and return when it answers."""
        start = time.monotonic()
        with (self.folder / "stderr.txt").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.serve", f"--model-name={MODEL}", "--port=0", "--json", *flags],
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.said
        self.seconds_to_start = time.monotonic() - start
        self.facts: dict[str, Any] = json.loads(line)
        self.address = str(self.facts["address"])

    @property
    def said(self) -> str:
        return (self.folder / "stderr.txt").read_text()

    @property
    def key(self) -> str:
        return str(json.loads(Path(self.facts["key_file"]).read_text())["primary"])

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Another command of the service: `status`, `stop`."""
        return subprocess.run(
            [sys.executable, "-m", "flows.serve", *words, f"--model-name={MODEL}"],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
        )

    def post(self, path: str, **how: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.post(f"{self.address}{path}", headers=headers, timeout=60, trust_env=False, **how)

    def ready(self) -> dict[str, Any]:
        """What it says of itself."""
        return dict(httpx.get(f"{self.address}/v2/health/ready", timeout=60, trust_env=False).json())

    def wait_for(self, what: str, **facts: Any) -> dict[str, Any]:
        """What it says once it says these."""
        wait_until(lambda: facts.items() <= self.ready().items(), 90, what)
        return self.ready()

    def look(self) -> None:
        """Have it look at the alias at once."""
        self.process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """SIGKILL, if it was started."""
        if hasattr(self, "process"):
            self.process.kill()

    def stop(self) -> int:
        """Told to end; its exit status."""
        self.process.terminate()
        return self.process.wait(60)
