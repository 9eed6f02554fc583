"""Step: bring a version's files to this machine, and see that they are the model that the run trained."""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Set
from glob import escape
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from infra.compute.runner.manifest import BadManifest, bytes_entry, manifest_bytes, parse_manifest
from infra.errors import ArgumentError
from infra.experiment_tracker import Run
from infra.lock import hold
from infra.services import Services
from infra.settings import Settings
from tasks.handoffs import ModelVersion
from tasks.retrying import is_worth_a_retry
from tasks.saved_model import MODEL_FILES, fetch_model, holds_exactly, model_files, names

LOGGER = logging.getLogger(__name__)


@task(
    name="download artifacts",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=exponential_backoff(2),
    retry_condition_fn=is_worth_a_retry,
)
def download_artifacts(
    version: ModelVersion, output_dir: Path, verify: Callable[[Path, Run], None] | None, services: Services
) -> Path:
    """Every file of the version's model in `output_dir`, verified there; nothing is copied if they are there.

    `verify` tries the downloaded model in a folder, and raises `ModelMismatch` if it is not what the run logged; None:
    the files' digests say all that is known. Raises `ModelMismatch` if the files are not those of the run too;
    `output_dir` is then as it was before.
    """
    settings, tracker = services.settings, services.tracker
    run = tracker.get_run(version.run_id)
    files = model_files(tracker, run, settings.scratch_folder)

    def on_wait(holder: str) -> None:
        LOGGER.info("%s brings a model to %s; waiting for it", holder.capitalize(), output_dir)

    with hold(_lock_file(output_dir, settings), on_wait):
        # What a killed process left, of whichever version.
        for leftover in output_dir.parent.glob(f".{escape(output_dir.name)}.incoming-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        manifest = manifest_bytes(files)
        if holds_exactly(output_dir, [*files, bytes_entry(MODEL_FILES, manifest)]):
            LOGGER.info("%s holds the files of version %d already, each with its digest", output_dir, version.version)
            return output_dir
        check_output_dir(output_dir, {file.name for file in files})
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        # Beside its final place, for a rename does not cross file systems.
        incoming = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.incoming-", dir=output_dir.parent))
        try:
            model = incoming / "model"
            fetch_model(tracker, run, files, model)
            for file in files:
                LOGGER.info("models:/%s/%d/%s -> %s", version.name, version.version, file.name, output_dir / file.name)
            if verify:
                verify(model, run)
            (model / MODEL_FILES).write_bytes(manifest)
            _put_in_place(model, output_dir, incoming / "previous")
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    return output_dir


def filled_in(output_dir: Path, version: ModelVersion) -> Path:
    """`output_dir` with `{model_name}` and `{version}` replaced: a folder of its own for each version."""
    filled = str(output_dir).replace("{model_name}", version.name).replace("{version}", str(version.version))
    return Path(filled)


def _lock_file(output_dir: Path, settings: Settings) -> Path:
    # Not beside the folder, which is the user's own.
    place = hashlib.sha256(str(output_dir.absolute()).encode()).hexdigest()
    return settings.locks_folder / f"output-{place[:16]}.lock"


def check_output_dir(folder: Path, new: Set[str] = frozenset()) -> None:
    """Raise `ArgumentError` if `folder` cannot be made, or holds anything but a downloaded model: it will be replaced.

    A download lists its files beside them. One without a list may have those in `new`, if they are known already.
    """
    # Not Path.exists, which raises where it may not look: the folder that forbids it is then the one to name.
    place = next(one for one in folder.absolute().parents if os.path.exists(one))  # noqa: PTH110
    if not os.access(place, os.W_OK | os.X_OK):
        raise ArgumentError(
            f"The output folder {folder} cannot be made: nothing may be written to {place}.\n"
            "Name another with --output-dir."
        )
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise ArgumentError(f"The output folder {folder} may not be read.\nName another with --output-dir.")
    found = names(folder) if folder.is_dir() else set()
    if not found and (folder.is_dir() or not os.path.lexists(folder)):
        return
    if "MLmodel" not in found:
        raise ArgumentError(
            f"The output folder {folder} exists and is not a downloaded model (there is no file MLmodel in it).\n"
            "It would be replaced as a whole. Name another with --output-dir, or move it away."
        )
    if foreign := sorted(found - (_listed(folder) or new or found)):
        told = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if foreign[5:] else "")
        raise ArgumentError(
            f"The output folder {folder} holds what no download has put there: {told}.\n"
            "It would be replaced as a whole. Move that away, or name another folder with --output-dir."
        )


def _listed(folder: Path) -> set[str]:
    """The files that a download has put into `folder`, by its own list; none if it has no list."""
    try:
        return {MODEL_FILES, *(file.name for file in parse_manifest((folder / MODEL_FILES).read_bytes()))}
    except (OSError, BadManifest):
        return set()


def _put_in_place(model: Path, output_dir: Path, previous: Path) -> None:
    # A folder cannot take the place of another in one step on every system. Between the two renames there is
    # no model, never half of one, and the next run brings it.
    if output_dir.exists():
        output_dir.rename(previous)
    model.rename(output_dir)
