"""The pipeline on a stack that has seen 2,000 runs, against the same stack before them.

    python -m tests.benchmarks history [--pairs 3]

Timed are whole commands at a terminal that uses the stack, each a training of its own; what their epochs took is
left out. The data set is in the store and there is a champion to be compared with, before and after.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.rows import Row
from tests.history import MLFLOW, PREFECT, copy_run
from tests.stack import Stack

ROOT = Path(__file__).parent.parent.parent

RUNS = 2_000
EPOCHS = 3


def rows(mirror: Path, pairs: int = 3, runs: int = RUNS) -> list[Row]:
    """A training, and a run with nothing to train, each with and without `runs` earlier ones on both sides."""
    # Not under a longer name: the database's socket is in it.
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder), {"MNIST_MIRRORS": str(mirror)})
        stack.start()
        try:
            _, champion = _timed(stack, seed=0)
            without = _measure(stack, first_seed=1, pairs=pairs)
            _fill(stack, champion["run_id"], runs)
            filled = _measure(stack, first_seed=1 + pairs, pairs=pairs)
        finally:
            stack.stop()
    note = "the same stack before them; at most 1.20"
    return [
        Row(f"{what}, after {runs:,} runs and versions", ours, theirs, "s", note)
        for (what, theirs), ours in zip(without.items(), filled.values(), strict=True)
    ]


def _measure(stack: Stack, first_seed: int, pairs: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"everything but the epochs": [], "nothing changed": []}
    steps: dict[str, list[float]] = {}
    for seed in range(first_seed, first_seed + pairs):
        seconds, report = _timed(stack, seed)
        found["everything but the epochs"].append(seconds - report["epoch_seconds"])
        found["nothing changed"].append(_timed(stack, seed)[0])
        for step, value in report["seconds"].items():
            spent = value - report["epoch_seconds"] if step == "train" else value
            steps.setdefault(f"step {step} but the epochs" if step == "train" else f"step {step}", []).append(spent)
    return {**found, **steps}


def _timed(stack: Stack, seed: int) -> tuple[float, dict[str, Any]]:
    command = [sys.executable, "-m", "flows.train_mnist", "--json", f"--epochs={EPOCHS}", f"--seed={seed}"]
    command.append(f"--output-dir={stack.home}/model-{seed}")
    environment = {**os.environ, **stack.environment, "PREFECT_HOME": str(stack.home / "prefect")}
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr}")
    return seconds, json.loads(done.stdout)


def _fill(stack: Stack, run_id: str, runs: int) -> None:
    flow_run_id = stack.tracker.get_run(run_id).tags["prefect.flow_run_id"]
    database = f"postgresql+psycopg2://pipeline@/{{name}}?host={stack.settings.postgres_folder}"
    copy_run(database.format(name="mlflow"), MLFLOW, run_id, runs)
    copy_run(database.format(name="prefect"), PREFECT, flow_run_id, runs)
    found = len(stack.tracker.find_runs("keras-mnist", {"dataset": "mnist"}))
    counted = stack.api("POST", "/flow_runs/count")
    if min(found, counted, len(stack.tracker.versions("keras-dnn-mnist"))) < runs:
        raise SystemExit(f"Of {runs:,} copies MLflow finds {found:,} and Prefect {counted:,}.")
