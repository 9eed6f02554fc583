"""A registry to decide in: a real MLflow on SQLite, runs with small real models, processes that are killed there."""

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from infra.compute import Compute, ComputeDescription, Job, this_machine
from infra.compute.runner.manifest import MANIFEST, files_sha256, folder_entries, manifest_bytes
from infra.experiment_tracker import ExperimentTracker, Version
from infra.services import Services
from infra.settings import Settings, load_settings
from tasks.champion import CHAMPION, PREVIOUS_CHAMPION, Move, history
from tasks.gate import GateRules
from tasks.handoffs import Dataset
from tasks.mnist_training import PROGRAM, mnist_training
from tasks.program import read_program
from tasks.program_scores import ProgramScores
from tasks.programs.mnist.digits.hyperparameters import Hyperparameters
from tasks.promote_version import promote
from tasks.registration import Judge, register
from tasks.registry.version import version_tags
from tests.small_dataset import describe, entries

MODEL = "digits"

# Its children are forked from one quiet process that has MLflow already: each starts in milliseconds.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.registry", "mlflow.store.tracking.sqlalchemy_store", "mlflow.artifacts"])


@dataclass
class Registry:
    """One machine's view of a registry, and what is done there."""

    folder: Path
    data_folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environment = {"PIPELINE_HOME": str(self.folder / "home"), **self.environment}
        self.tracker = ExperimentTracker(self.settings)

    @property
    def settings(self) -> Settings:
        return load_settings(self.environment)

    @property
    def services(self) -> Services:
        return Services(self.settings, self.tracker)

    @property
    def machine(self) -> Compute:
        return this_machine(self.settings, "cpu")

    def other_machine(self) -> "Registry":
        """The same registry, seen from a machine with locks of its own."""
        tracking = {"MLFLOW_TRACKING_URI": self.settings.mlflow_tracking_uri}
        return Registry(self.folder / "other", self.data_folder, tracking)

    def add_run(self, model: Path, test_set_sha256: str, **tags: str) -> str:
        """A finished run with the model in the folder `model`, as MNIST's program would have left it."""
        network = (model / "data" / "model.keras").read_bytes()
        facts = {
            "dataset": "mnist",
            "dataset_sample_of": "",
            "dataset_sha256": "some",
            "test_set_sha256": test_set_sha256,
            "weights_sha256": hashlib.sha256(network).hexdigest(),
        }
        return self.add_finished_run(model, facts | tags, {"test_accuracy": 0.5})

    def add_finished_run(self, model: Path, facts: Mapping[str, str], metrics: Mapping[str, float]) -> str:
        """A finished run with these tags beside those that every run has, and the model in the folder `model`."""
        from mlflow import MlflowClient
        from mlflow.entities import LoggedModelOutput

        run_id = self.tracker.start_run("tests", model.name, {})
        client = MlflowClient(self.settings.mlflow_tracking_uri)
        experiment_id = self.tracker.get_run(run_id).experiment_id
        logged = client.create_logged_model(experiment_id, name="model", source_run_id=run_id)
        client.log_model_artifacts(logged.model_id, str(model))
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
        files = folder_entries(model)
        client.log_text(run_id, manifest_bytes(files).decode(), "model_files.json")
        self.tracker.log_metrics(run_id, metrics)
        made_from = dict.fromkeys(("training_key", "program_sha256", "git_dirty", "mlflow.source.git.commit"), "some")
        made_by = dict.fromkeys(("prefect.flow_run_id", "prefect.flow_run_url"), "none")
        whole = {"model_id": logged.model_id, "model_sha256": files_sha256(files)}
        self.tracker.set_tags(run_id, {**made_from, **made_by, **facts, **whole})
        self.tracker.end_run(run_id, "FINISHED")
        return run_id

    def register(
        self, run_id: str, rules: GateRules, machine: Compute | None = None, flow_run_id: str = "some"
    ) -> Version:
        """Register the run in a flow run; the version as it is afterwards."""
        register(run_id, MODEL, Judge(rules, self.scores(machine or self.machine), flow_run_id), self.services)
        return self.version_of(run_id)

    def scores(self, machine: Compute) -> ProgramScores:
        """Scores MNIST's models on the data in `data_folder`."""
        files = entries(self.data_folder)
        (self.data_folder / MANIFEST).write_bytes(manifest_bytes(files))
        datasets = {"mnist": Dataset("mnist", files_sha256(files), self.data_folder.as_uri())}
        asked = Hyperparameters(validation_images=100)
        training = mnist_training(describe(self.data_folder), asked, self.settings)
        return ProgramScores(read_program(PROGRAM), training, datasets, machine, self.services)

    def add_version(self, run_id: str) -> Version:
        """A version of the run about which nothing is decided."""
        run = self.tracker.get_run(run_id)
        return self.tracker.create_version(MODEL, run, run.model_id, version_tags(run))

    def promote(self, number: int | None, although_refused: bool = False) -> str:
        """Promote by hand."""
        return promote(number, MODEL, "somebody", although_refused, self.services)

    def version_of(self, run_id: str) -> Version:
        """The version that was made of a run."""
        version = self.tracker.find_version(MODEL, run_id)
        assert version is not None
        return version

    def champions(self) -> tuple[int | None, int | None]:
        """The numbers of champion and previous champion."""
        champion, previous = (self.tracker.version_by_alias(MODEL, name) for name in (CHAMPION, PREVIOUS_CHAMPION))
        return (champion.version if champion else None, previous.version if previous else None)

    @property
    def history(self) -> list[Move]:
        return history(self.tracker, MODEL)

    def decisions(self, run_id: str, kind: str = ".json") -> dict[str, str]:
        """The files that decisions left on the run, oldest first, and their texts."""
        from mlflow import MlflowClient

        client = MlflowClient(self.settings.mlflow_tracking_uri)
        names = sorted(file.path for file in client.list_artifacts(run_id, "gate") if file.path.endswith(kind))
        return {name: self.tracker.read_file(run_id, name, self.folder).decode() for name in names}

    def report(self, run_id: str) -> dict[str, Any]:
        """What was last decided about the version of the run."""
        return dict(json.loads(list(self.decisions(run_id).values())[-1]))

    def model_file(self, run_id: str, name: str) -> Path:
        """Where MLflow keeps a file of the run's model."""
        model_id = self.tracker.get_run(run_id).model_id
        (found,) = (self.folder / "home" / "mlflow").rglob(f"{model_id}/artifacts/{name}")
        return found

    def start_registering(self, run_id: str, rules: GateRules, writes: int = 1_000) -> ForkServerProcess:
        """Register in a process of its own, which is killed with SIGKILL when it is about to write once too often."""
        arguments = (self.folder, self.data_folder, self.environment, writes, run_id, rules)
        return _started(_FORKS.Process(target=_register_until_killed, args=arguments))

    def start_promoting(self, number: int, writes: int) -> ForkServerProcess:
        """The same, promoting by hand."""
        arguments = (self.folder, self.data_folder, self.environment, writes, number)
        return _started(_FORKS.Process(target=_promote_until_killed, args=arguments))


class MortalTracker(ExperimentTracker):
    """Kills its process when that is about to write to MLflow once more than it may."""

    writes_left: int

    def _write(self) -> None:
        if self.writes_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.writes_left -= 1

    def log_text(self, run_id: str, text: str, path: str) -> None:
        self._write()
        super().log_text(run_id, text, path)

    def set_version_tags(self, version: Version, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._write()
            super().set_version_tags(version, {key: value})

    def set_model_tag(self, name: str, key: str, value: str) -> None:
        self._write()
        super().set_model_tag(name, key, value)

    def set_alias(self, version: Version, alias: str) -> None:
        self._write()
        super().set_alias(version, alias)


class Interrupting:
    """A machine on which something happens before the first job runs."""

    def __init__(self, machine: Compute, happens: Any) -> None:
        self._machine = machine
        self._happens = happens
        self.jobs: list[Job] = []

    cache: str | None = None
    job_identity: str | None = None
    price_per_hour = 0.0

    def check(self) -> None:
        self._machine.check()

    def gpu_seconds(self) -> Mapping[str, float]:
        return self._machine.gpu_seconds()

    def provision(self, tell: Callable[[str], None] = lambda line: None) -> ComputeDescription:
        return self._machine.provision(tell)

    def run(self, job: Job) -> Iterator[str]:
        if not self.jobs:
            self._happens()
        self.jobs.append(job)
        yield from self._machine.run(job)

    def stand_by(self, program: Path, command: str) -> None:
        self._machine.stand_by(program, command)

    def release(self) -> None:
        self._machine.release()


def _started(process: ForkServerProcess) -> ForkServerProcess:
    process.start()
    return process


def _mortal(folder: Path, data_folder: Path, environment: dict[str, str], writes: int) -> Registry:
    registry = Registry(folder, data_folder, environment)
    tracker = MortalTracker(registry.settings)
    tracker.writes_left = writes
    registry.tracker = tracker
    return registry


def _register_until_killed(
    folder: Path, data_folder: Path, environment: dict[str, str], writes: int, run_id: str, rules: GateRules
) -> None:
    _mortal(folder, data_folder, environment, writes).register(run_id, rules)


def _promote_until_killed(
    folder: Path, data_folder: Path, environment: dict[str, str], writes: int, number: int
) -> None:
    _mortal(folder, data_folder, environment, writes).promote(number)
