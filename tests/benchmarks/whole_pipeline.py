"""The whole pipeline against the tutorial's bare script, and against a Prefect flow that does nothing.

    python -m tests.benchmarks pipeline

Each ratio is of two commands timed in turn, as whole processes. The mirror is a folder of this machine: what is
measured is the pipeline, not a line.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from operator import sub
from pathlib import Path
from typing import Any

import httpx

from tests.benchmarks.rows import Row

ROOT = Path(__file__).parent.parent.parent

SIX_EMPTY_TASKS = """
from prefect import flow, task

@task
def nothing(): pass

@flow
def six():
    for _ in range(6):
        nothing()

six()
"""


def rows(mirror: Path, pairs: int = 3) -> list[Row]:
    """First run against the bare script, everything but the epochs, nothing changed; `mirror` holds the files."""
    os.environ["MNIST_MIRRORS"] = str(mirror)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        return [*_nothing_changed(scratch, pairs), *_against_the_script(scratch, mirror, pairs)]


def _against_the_script(scratch: Path, mirror: Path, pairs: int) -> list[Row]:
    script: list[float] = []
    known: list[float] = []
    empty: list[float] = []
    reports: list[dict[str, Any]] = []
    prefect_home = scratch / "prefect"
    run_pipeline(scratch / "settled", prefect_home, "--dataset=mnist-5k", "--epochs=1")
    for pair in range(pairs):
        command = [sys.executable, "-m", "tests.benchmarks.plain_script", f"--data-folder={mirror}"]
        script.append(_timed(command)[0])
        seconds, report = run_pipeline(scratch / f"known-{pair}", prefect_home)
        known.append(seconds)
        reports.append(report)
        empty.append(run_pipeline(scratch / f"empty-{pair}", scratch / f"prefect-{pair}")[0])
    beyond = [sum(report["seconds"].values()) - report["epoch_seconds"] for report in reports]
    return [
        Row("whole pipeline, 20 epochs, empty home", known, script, "s", "the tutorial's script; at most 0.65"),
        Row("whole pipeline, everything empty", empty, script, "s", "the tutorial's script; at most 0.85"),
        *(Row(f"step {step}", [r["seconds"][step] for r in reports], None, "s", "") for step in reports[0]["seconds"]),
        Row("the six steps but the epochs", beyond, None, "s", ""),
    ]


def _nothing_changed(scratch: Path, pairs: int) -> list[Row]:
    found = []
    prefect_home = scratch / "prefect"
    home = scratch / "unchanged"
    script = scratch / "six_empty_tasks.py"
    script.write_text(SIX_EMPTY_TASKS)
    run_pipeline(home, prefect_home, "--epochs=1")
    for name, api in (("temporary", None), ("running", running_server(prefect_home))):
        ours, theirs = [], []
        with api or _nobody() as environment:
            for _ in range(pairs):
                theirs.append(_timed([sys.executable, str(script)], prefect_home, **environment)[0])
                ours.append(run_pipeline(home, prefect_home, "--epochs=1", **environment)[0])
        note = f"six empty tasks; at most 2 s more, here {statistics.median(map(sub, ours, theirs)):+.1f} s"
        found.append(Row(f"nothing changed, {name} Prefect server", ours, theirs, "s", note))
    return found


def run_pipeline(home: Path, prefect_home: Path, *flags: str, **environment: str) -> tuple[float, dict[str, Any]]:
    """Seconds of the whole command, and what it reports."""
    command = [sys.executable, "-m", "flows.train_mnist", "--json", f"--output-dir={home}/model", *flags]
    seconds, stdout = _timed(command, prefect_home, PIPELINE_HOME=str(home), **environment)
    return seconds, json.loads(stdout)


def _timed(command: list[str], prefect_home: Path | None = None, **environment: str) -> tuple[float, str]:
    changed = {"DO_NOT_TRACK": "true", **({"PREFECT_HOME": str(prefect_home)} if prefect_home else {}), **environment}
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **changed}, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr}")
    return seconds, done.stdout


@contextmanager
def _nobody() -> Iterator[dict[str, str]]:
    yield {}


@contextmanager
def running_server(prefect_home: Path) -> Iterator[dict[str, str]]:
    """A Prefect server, and the environment of who uses it."""
    port = 4297
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--port", str(port)]
    environment = {**os.environ, "PREFECT_HOME": str(prefect_home), "DO_NOT_TRACK": "true"}
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}/api"
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{url}/health").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield {"PREFECT_API_URL": url}
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
