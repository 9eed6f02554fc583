"""What one step hands the next: identifiers only, the facts live in MLflow and in the store."""

from dataclasses import dataclass
from pathlib import Path

from tasks.dataset_catalog import DatasetDescription


@dataclass(frozen=True)
class DatasetFiles:
    """The checked files of a data set in a folder of this machine."""

    description: DatasetDescription
    folder: Path


@dataclass(frozen=True)
class Dataset:
    """A data set in the object store, under the SHA-256 of its manifest."""

    name: str
    sha256: str
    uri: str


@dataclass(frozen=True)
class TrainingRun:
    """A finished MLflow run."""

    run_id: str
    reused: bool
    """True if an earlier run had the same training key, so that nothing was trained."""


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model, and the run that made it."""

    name: str
    version: int
    run_id: str
