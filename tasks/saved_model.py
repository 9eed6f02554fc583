"""A run's model as files: fetched, and compared with what the run logged."""

from pathlib import Path

from infra.compute.runner.manifest import BadManifest, FileEntry, file_entry, files_sha256, parse_manifest
from infra.errors import ModelMismatch
from infra.experiment_tracker import ExperimentTracker, Run
from infra.scratch import temporary_folder

MODEL_FILES = "model_files.json"
"""Artifact of a run: the manifest of its model's files, whose SHA-256 is the run's tag `model_sha256`."""


def fetch_model(tracker: ExperimentTracker, run: Run, files: list[FileEntry], folder: Path) -> None:
    """Bring the model of `run` to `folder`, which is created.

    `files` are those that it must consist of, see `model_files`. Raises `ModelMismatch` if it does not.
    """
    folder.mkdir()
    tracker.download_model(run.model_id, folder)
    if not holds_exactly(folder, files):
        raise ModelMismatch(
            f"The files of model {run.model_id} are not those that run {run.run_id} logged:\n"
            f"{_differences(folder, files)}\n"
            "Somebody changed them in MLflow's artifact store. Train again with --retrain for a new version."
        )


def model_files(tracker: ExperimentTracker, run: Run, scratch: Path) -> list[FileEntry]:
    """The files of the model as `run` logged them; raises `ModelMismatch` if the list is not the run's own."""
    try:
        with temporary_folder(scratch) as folder:
            files = parse_manifest(tracker.read_file(run.run_id, MODEL_FILES, folder))
        found = files_sha256(files)
    except BadManifest as error:
        found = str(error)
    if found != run.tags["model_sha256"]:
        raise ModelMismatch(
            f"{MODEL_FILES} of run {run.run_id} is {found}, expected the digest {run.tags['model_sha256']}.\n"
            "It was changed after the run. Train again with --retrain."
        )
    return files


def holds_exactly(folder: Path, files: list[FileEntry]) -> bool:
    """True if `folder` has these files and no other, by size and SHA-256."""
    return folder.is_dir() and _entries(folder) == sorted(files)


LEFT_BY_FILE_MANAGERS = {".DS_Store", "Thumbs.db", "desktop.ini"}


def names(folder: Path) -> set[str]:
    """What `folder` holds at any depth, relative to it, but folders and what file managers leave there."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in paths if path.name not in LEFT_BY_FILE_MANAGERS}


def _entries(folder: Path) -> list[FileEntry]:
    return sorted(file_entry(folder / name, name) for name in names(folder) if (folder / name).is_file())


def _differences(folder: Path, files: list[FileEntry]) -> str:
    found = {entry.name: entry for entry in _entries(folder)}
    expected = {entry.name: entry for entry in files}
    lines = (
        f"  {name}: expected {expected.get(name, 'no such file')}, found {found.get(name, 'no such file')}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    )
    return "\n".join(lines)
