"""The model of a training: found, tried, and logged with MLflow as the run's."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from .exits import RunnerError
from .keras_process import KerasProcess
from .manifest import FileEntry, files_sha256, folder_entries, manifest_bytes
from .output import say
from .outputs import PICKLES, ModelSource, find_model, no_model
from .patience import with_patience
from .record import RunRecord

MODEL_FILES = "model_files.json"
"""Artifact of the run: the manifest of the logged model's files, whose SHA-256 is the run's tag `model_sha256`."""

MODEL_PATH = "model_path"
"""Tag of the run: which file or folder of its outputs is the model, where the program has said it."""

NONE = "none"
_MADE_BY = "made_by"


@dataclass(frozen=True)
class KeptModel:
    """A model that is logged."""

    model_id: str
    kind: str
    """`keras`: loads in safe mode; `needs_code`: of classes of the program's own; `files`: whatever else."""
    weights_sha256: str
    model_sha256: str

    @property
    def tags(self) -> dict[str, str]:
        """What the run says of it, but the digest that marks the run as complete."""
        code = {"needs_code": "true"} if self.kind == "needs_code" else {}
        return {"model_kind": self.kind, "weights_sha256": self.weights_sha256, "model_id": self.model_id, **code}


@dataclass
class ModelLogging:
    """What is needed to log a model."""

    record: RunRecord
    keras: KerasProcess
    scratch: Path
    program: Path
    """The folder in which the program ran."""
    source: Path
    """The program's files as they were shipped."""
    step: int = 0
    params: dict[str, str] = field(default_factory=dict)

    def log(self, outputs: Path) -> KeptModel:
        """Log the model that the program logged itself, or left under `outputs`; raises `RunnerError` without one."""
        if own := self._logged_by_program():
            say(f"the program logged its model itself: {own.model_id}")
            return self._finish_own(own)
        source = find_model(outputs, self.record.tags.get(MODEL_PATH, ""))
        if source is None:
            raise no_model(self.record, self.program, self.source)
        model = self._own_model()
        folder = self.scratch / "model"
        shutil.rmtree(folder, ignore_errors=True)
        kind, weights = self._save(source, folder, model)
        files = folder_entries(folder)
        self.record.do(
            lambda: self.record.client.log_model_artifacts(model.model_id, str(folder)), "upload the model to MLflow"
        )
        return self._finish(model, kind, weights, files)

    def _search(self) -> list[LoggedModel]:
        return list(
            with_patience(
                lambda: self.record.client.search_logged_models(
                    [self.record.experiment_id],
                    f"source_run_id = '{self.record.run_id}'",
                    order_by=[{"field_name": "creation_timestamp"}],
                ),
                f"search the models of run {self.record.run_id}",
            )
        )

    def _logged_by_program(self) -> LoggedModel | None:
        found = [model for model in self._search() if _MADE_BY not in model.tags]
        ready = [model for model in found if str(model.status) == "READY"]
        return (ready or found or [None])[-1]

    def _own_model(self) -> LoggedModel:
        """The model of ours, which an attempt that was killed may have created already."""
        found = [model for model in self._search() if _MADE_BY in model.tags]
        return (
            found[-1]
            if found
            else self.record.do(
                lambda: self.record.client.create_logged_model(
                    self.record.experiment_id,
                    name="model",
                    source_run_id=self.record.run_id,
                    params=self.params,
                    tags={_MADE_BY: "runner"},
                ),
                "create a model in MLflow",
            )
        )

    def _finish_own(self, model: LoggedModel) -> KeptModel:
        folder = self.scratch / "model"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # Not mlflow.artifacts, which keeps the reason of a failure to itself.
        place = get_artifact_repository(model.artifact_location)
        with_patience(lambda: place.download_artifacts("", str(folder)), f"read model {model.model_id} from MLflow")
        files = folder_entries(folder)
        if not files:
            raise RunnerError(f"The program logged model {model.model_id} with MLflow, and there are no files of it.")
        file = next(iter(sorted(folder.glob("data/*.keras"))), None)
        kind, weights = ("files", NONE)
        if file:
            kind, weights = self._judge(self.keras.ask({"path": str(file)}), file.name)
        return self._finish(model, kind, weights, files)

    def _save(self, source: ModelSource, folder: Path, model: LoggedModel) -> tuple[str, str]:
        """Save a model in MLflow's format into `folder`; its kind and the digest of its weights."""
        kind, weights = "files", NONE
        is_mlflow = source.root.is_dir() and (source.root / "MLmodel").is_file()
        if source.file:
            request: dict[str, Any] = {"path": str(source.file)}
            request |= {"weights": str(source.weights)} if source.weights else {}
            if not is_mlflow:
                facts = {"location": model.artifact_location, "run_id": self.record.run_id, "model_id": model.model_id}
                request |= {"folder": str(folder), "model": facts}
            kind, weights = self._judge(self.keras.ask(request), source.file.name)
        if is_mlflow:
            shutil.copytree(source.root, folder)
        elif kind == "keras":
            _copy_beside(source, folder)
        else:
            self._save_files(source, folder, model, kind)
        return kind, weights

    def _judge(self, answer: dict[str, Any], name: str) -> tuple[str, str]:
        if "refused" not in answer:
            if answer["note"]:
                say(f"the model is saved {answer['note']}")
            return "keras", answer["weights_sha256"]
        if answer["own_code"]:
            say(f"{name} needs the program's own code: it is kept with the program's source, and was not loaded.")
            say(f"  {answer['refused']}")
            return "needs_code", NONE
        say(f"Keras does not load {name}, so it is kept as a file: {answer['refused']}")
        return "files", NONE

    def _save_files(self, source: ModelSource, folder: Path, model: LoggedModel, kind: str) -> None:
        from mlflow.models import Model

        folder.mkdir(parents=True, exist_ok=True)
        if source.root.is_dir():
            shutil.copytree(source.root, folder, dirs_exist_ok=True)
        else:
            for path in filter(None, {source.root, source.file, source.weights}):
                shutil.copy2(path, folder / path.name)
        if kind == "needs_code":
            shutil.copytree(self.source, folder / "code", dirs_exist_ok=True)
        else:
            say("the model is kept as files: nothing here loads it")
            if any(file.suffix in PICKLES for file in folder.rglob("*")):
                say("  to load a pickle runs what is written in it: do it only where its program is trusted")
        # Without a flavour: MLflow knows it, and loads it with none of its own.
        described = Model(
            artifact_path=model.artifact_location,
            run_id=self.record.run_id,
            model_id=model.model_id,
            model_uuid=model.model_id,
        )
        described.save(str(folder / "MLmodel"))

    def _finish(self, model: LoggedModel, kind: str, weights: str, files: list[FileEntry]) -> KeptModel:
        client, run_id = self.record.client, self.record.run_id

        def finish() -> None:
            client.finalize_logged_model(model.model_id, "READY")
            # MLflow would list the model once more with each repetition.
            outputs = client.get_run(run_id).outputs
            if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
                client.log_outputs(run_id, [LoggedModelOutput(model.model_id, self.step)])
            client.log_text(run_id, manifest_bytes(files).decode(), MODEL_FILES)

        self.record.do(finish, "log the model in MLflow")
        return KeptModel(model.model_id, kind, weights, files_sha256(files))


def _copy_beside(source: ModelSource, folder: Path) -> None:
    """Let what the program put beside its model stay beside it, where MLflow has no file of that name."""
    for path in source.beside:
        target = folder / path.relative_to(source.root)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
