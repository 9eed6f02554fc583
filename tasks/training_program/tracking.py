"""What the program writes on its MLflow run.

The run exists before and is ended by whoever started it: the program neither starts nor ends one. Everything here
can be done again, after an answer that was lost or in a continued training, and appears once all the same.
"""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import mlflow
import mlflow.keras
import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModel, LoggedModelOutput, Metric, Param, RunTag
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from .checkpoint import EpochMetrics
from .dataset_files import FileEntry, bytes_entry, dataset_sha256, manifest_bytes
from .retry import with_patience

MODEL_FILES = "model_files.json"
"""Artifact of the run: the manifest of the logged model's files, whose SHA-256 is the run's tag `model_sha256`."""

DIGEST_CHARACTERS = 36
"""MLflow refuses longer digests of inputs; the whole one is the run's tag `dataset_sha256`."""

SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, 28, 28))]),
    outputs=Schema([TensorSpec(np.dtype("float32"), (-1, 10))]),
)


class RunRecord:
    """The MLflow run with `run_id`, at the address that MLFLOW_TRACKING_URI names."""

    def __init__(self, run_id: str) -> None:
        """Raises `ProgramError` if there is no such run, or no MLflow for two minutes."""
        self._client = mlflow.MlflowClient()
        self._run = with_patience(lambda: self._client.get_run(run_id), f"find run {run_id} in MLflow")
        self._run_id = run_id
        # Epochs are trained again after a damaged checkpoint; their metrics are logged already.
        self._logged = {
            (metric.key, metric.step)
            for key in self._run.data.metrics
            for metric in with_patience(
                lambda key=key: self._client.get_metric_history(run_id, key),  # type: ignore[misc]
                f"read the metrics of run {run_id}",
            )
        }

    def log_start(self, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Log what is known before the first epoch."""
        self._log_batch(
            params=[Param(key, str(value)) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )

    def log_dataset(self, name: str, sha256: str, uri: str) -> None:
        """Record the data set as an input of the run."""
        source = json.dumps({"uri": uri})
        dataset = Dataset(name, sha256[:DIGEST_CHARACTERS], source_type="fsspec", source=source)
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        with_patience(lambda: self._client.log_inputs(self._run_id, datasets=inputs), "log the data set in MLflow")

    def log_epoch(self, metrics: EpochMetrics) -> None:
        """Log the metrics of an epoch, with the epoch as their step; those that the run has are left out."""
        values = asdict(metrics)
        epoch, finished_ms = values.pop("epoch"), values.pop("finished_ms")
        self._log_metrics(values, epoch, finished_ms)

    def log_result(self, values: Mapping[str, float], step: int) -> None:
        """Log what is known after the last epoch."""
        now = time.time_ns() // 1_000_000
        with_patience(lambda: self._log_metrics(values, step, now), "log the result in MLflow")

    def log_model(
        self, model: keras.Model, folder: Path, example: np.ndarray, params: Mapping[str, object], step: int
    ) -> tuple[str, str]:
        """Save `model` in MLflow's format, log that as the run's model, and put its files into `folder`.

        `example` are images as the model takes them. Returns the model's id and the SHA-256 of the manifest of its
        files, which is logged as `model_files.json`.
        """
        # Not mlflow.keras.log_model: it ends or replaces the active run's status, takes the validation of the example
        # twice as long as all the rest, and removes the folder before its files can be hashed.
        texts = {key: str(value) for key, value in params.items()}
        logged = with_patience(lambda: self._own_model(texts), "create a model in MLflow")
        folder.mkdir(parents=True, exist_ok=True)
        # What a person keeps in `folder` is not ours to remove, and not the model's.
        with TemporaryDirectory(prefix=".model-", dir=folder.parent) as saved:
            files = self._save_and_upload(model, Path(saved), logged, example, step)
            shutil.copytree(saved, folder, dirs_exist_ok=True)
        return logged.model_id, dataset_sha256(files)

    def _save_and_upload(
        self, model: keras.Model, folder: Path, logged: LoggedModel, example: np.ndarray, step: int
    ) -> list[FileEntry]:
        mlflow.keras.save_model(
            model,
            str(folder),
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                run_id=self._run_id,
                model_id=logged.model_id,
                model_uuid=logged.model_id,
            ),
            signature=SIGNATURE,
            input_example=example,
            pip_requirements=[f"{name}=={version}" for name, version in libraries().items()],
        )
        files = model_files(folder)

        def upload() -> None:
            self._client.log_model_artifacts(logged.model_id, str(folder))
            self._client.finalize_logged_model(logged.model_id, "READY")
            # MLflow would list the model once more with each repetition.
            outputs = self._client.get_run(self._run_id).outputs
            if logged.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
                self._client.log_outputs(self._run_id, [LoggedModelOutput(logged.model_id, step)])
            self._client.log_text(self._run_id, manifest_bytes(files).decode(), MODEL_FILES)

        with_patience(upload, "upload the model to MLflow")
        return files

    def _own_model(self, params: dict[str, str]) -> LoggedModel:
        """The run's model, which a program that was killed may have created already, or whose answer was lost."""
        experiment_id = self._run.info.experiment_id
        found = self._client.search_logged_models(
            [experiment_id], f"source_run_id = '{self._run_id}'", order_by=[{"field_name": "creation_timestamp"}]
        )
        return (
            found[-1]
            if found
            else self._client.create_logged_model(
                experiment_id, name="model", source_run_id=self._run_id, params=params
            )
        )

    def log_outputs(self, folder: Path) -> None:
        """Keep the folder's content with the run, as its artifacts under `outputs/`."""
        with_patience(
            lambda: self._client.log_artifacts(self._run_id, str(folder), "outputs"), "upload the outputs to MLflow"
        )

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run, all at once."""
        self._log_batch(tags=[RunTag(key, value) for key, value in tags.items()])

    def _log_metrics(self, values: Mapping[str, float], step: int, time_ms: int) -> None:
        # A repetition sends the same timestamp, which a database takes for the same row.
        new = [Metric(key, value, time_ms, step) for key, value in values.items() if (key, step) not in self._logged]
        if new:
            self._client.log_batch(self._run_id, metrics=new, synchronous=True)
            self._logged |= {(metric.key, step) for metric in new}

    def _log_batch(self, params: list[Param] | None = None, tags: list[RunTag] | None = None) -> None:
        with_patience(
            lambda: self._client.log_batch(self._run_id, params=params or (), tags=tags or (), synchronous=True),
            f"log to run {self._run_id} in MLflow",
        )


def libraries() -> dict[str, str]:
    """The versions of the libraries that a saved model needs, by name."""
    import tensorflow as tf

    return {"keras": keras.__version__, "tensorflow": tf.__version__, "numpy": np.__version__}


def model_files(folder: Path) -> list[FileEntry]:
    """The files under a model's folder, with their paths relative to it."""
    return [
        bytes_entry(path.relative_to(folder).as_posix(), path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
