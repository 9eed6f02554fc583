"""The runner as a compute drives it: shipped into a folder of its own, standing by, ordered, ended with its input."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from infra.compute import program_files
from infra.compute.runner.exits import LAST_WORDS
from infra.compute.runner.manifest import (
    MANIFEST,
    FileEntry,
    file_entry,
    files_sha256,
    folder_entries,
    manifest_bytes,
)

RUNNER = Path(__file__).parent.parent / "infra" / "compute" / "runner"


@dataclass
class Running:
    """A runner that has its order."""

    process: subprocess.Popen[bytes]
    work: Path
    """Where it keeps what it makes."""

    def end(self, timeout_seconds: float = 120) -> tuple[int, str]:
        """Wait for its end; the exit status and all that it said."""
        assert self.process.stdout is not None
        try:
            output = self.process.stdout.read().decode()
            return self.process.wait(timeout_seconds), output
        finally:
            self.process.kill()


@dataclass
class Stage:
    """A store, an MLflow and programs."""

    folder: Path
    tracking_uri: str = ""

    def __post_init__(self) -> None:
        self.tracking_uri = self.tracking_uri or f"sqlite:///{self.folder / 'mlflow.db'}"
        self._programs = 0

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.tracking_uri)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def start_run(self) -> str:
        """A new run, with a lease and no checkpoints."""
        found = self.client.get_experiment_by_name("test")
        location = (self.folder / "artifacts").as_uri()
        experiment = found.experiment_id if found else self.client.create_experiment("test", location)
        run_id: str = self.client.create_run(experiment).info.run_id
        self.lease(run_id).parent.mkdir(parents=True, exist_ok=True)
        self.lease(run_id).touch()
        return run_id

    def lease(self, run_id: str) -> Path:
        return self.store / "runs" / run_id / "lease"

    def checkpoints(self, run_id: str) -> Path:
        return self.store / "runs" / run_id / "checkpoints"

    def dataset(self, name: str, files: Mapping[str, bytes]) -> dict[str, str]:
        """Store a data set; what an order says of it."""
        return store_dataset(self.store / "datasets" / name.replace(" ", "-"), files)

    def order(self, run_id: str, datasets: Mapping[str, dict[str, str]] | None = None, **more: Any) -> dict[str, Any]:
        """An order for a run."""
        return {
            "run_id": run_id,
            "dataset_uris": dict(datasets or {}),
            "default_dataset": next(iter(datasets), None) if datasets else None,
            "checkpoint_uri": self.checkpoints(run_id).as_uri(),
            "lease_uri": self.lease(run_id).as_uri(),
            "home": str(self.folder / "home"),
            **more,
        }

    def ship(self, files: Mapping[str, str], events: bool = False, **facts: Any) -> Path:
        """A folder with the runner and, beside it, a program.

        With `events`, the program has the functions `tell(**event)` and `answer()` of a launcher, instead of a hook.
        """
        self._programs += 1
        alone = self.folder / f"alone-{self._programs}"
        for path in program_files(RUNNER):
            target = alone / "runner" / path.relative_to(RUNNER)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        for forbidden in ("prefect", "ray", "psutil"):
            (alone / f"{forbidden}.py").write_text(f"raise ImportError('the runner must do without {forbidden}')\n")
        for name, text in files.items():
            target = alone / "runner" / "program" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        if events:
            (alone / "runner" / "launcher" / "__main__.py").write_text(TELLING_LAUNCHER)
        told = {"name": "test", "command": ["python", next(iter(files))], **facts}
        (alone / "runner" / "program.json").write_text(json.dumps(told))
        return alone

    def start(self, alone: Path, order: Mapping[str, Any], **variables: str) -> Running:
        """Start the runner and give it its order as soon as it stands by."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        process = subprocess.Popen(
            [sys.executable, "-m", "runner", "--standby", "train"],
            cwd=alone,
            env={**environment, "MLFLOW_TRACKING_URI": self.tracking_uri, "CUDA_VISIBLE_DEVICES": "-1", **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps({"arguments": ["train", json.dumps(order)]}).encode() + b"\n")
        process.stdin.flush()
        return Running(process, alone / "work")

    def run(self, alone: Path, order: Mapping[str, Any], status: int = 0, **variables: str) -> str:
        """Run it to its end, which must have this exit status; what it said."""
        found, output = self.start(alone, order, **variables).end()
        assert found == status, output
        return output

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """The points of a metric by step."""
        return sorted((point.step, point.value) for point in self.client.get_metric_history(run_id, metric))


TELLING_LAUNCHER = """
import builtins, json, os, runpy, sys
facts = json.loads(sys.argv[1])
events, orders = os.fdopen(facts["events_fd"], "w", buffering=1), os.fdopen(facts["order_fd"])
builtins.tell = lambda **event: events.write(json.dumps(event) + "\\n")
builtins.answer = lambda: json.loads(orders.readline())
tell(event="ready")
builtins.order = order = answer()
os.environ.clear()
os.environ.update(order["environment"])
sys.argv[:] = order["argv"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def store_dataset(
    folder: Path, files: Mapping[str, bytes], in_place: Mapping[str, Path] | None = None
) -> dict[str, str]:
    """Write a data set into a folder; what an order says of it. Files of `in_place` stay where they are."""
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    entries = folder_entries(folder)
    for name, path in (in_place or {}).items():
        entry = file_entry(path, name)
        entries.append(FileEntry(name, entry.size, entry.sha256, path.as_uri()))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_bytes(manifest_bytes(entries))
    return {"uri": folder.as_uri(), "sha256": files_sha256(entries)}


def last_words(output: str) -> str:
    """What stands behind the mark."""
    before, mark, words = output.rpartition(f"{LAST_WORDS}\n")
    assert mark, output
    assert LAST_WORDS not in before
    return words.strip()
