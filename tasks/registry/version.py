"""What a model version is made of: a finished run with a whole model, and the tags that say what made it."""

import json
from pathlib import Path

from infra.errors import RunNotRegistrable
from infra.experiment_tracker import ExperimentTracker, Run
from infra.scratch import temporary_folder
from tasks.saved_model import fetch_model, model_files

REQUIRED_TAGS = (
    "dataset_sha256",
    "training_key",
    "weights_sha256",
    "model_sha256",
    "program_sha256",
    "mlflow.source.git.commit",
    "git_dirty",
    "prefect.flow_run_id",
    "prefect.flow_run_url",
)
"""What a version says of its making: these tags of its run, all of which must be there."""

FURTHER_TAGS = (
    "dataset",
    "dataset_sample_of",
    "test_set_sha256",
    "model_kind",
    "needs_code",
    "continues",
    "objective_metric",
    "score_scale",
)
"""Those that a run has or has not, by what its program is."""

METRICS = ("objective", "test_accuracy", "test_loss", "best_val_accuracy")
"""Metrics of a run that become tags of its version, where it has them."""


REGISTER_AS, REGISTER_TAGS = "register_as", "register_tags"
"""Tags of a run whose program has said under which name, and with which tags in JSON, its model is to be registered."""


def check_registrable(run: Run) -> str:
    """The id of the model that `run` logged; raises `RunNotRegistrable` unless a version can be made of it."""
    lacks = [f"the tag {tag}" for tag in REQUIRED_TAGS if tag not in run.tags]
    lacks += [] if run.model_id in run.model_ids else ["its logged model"]
    if run.status != "FINISHED":
        lacks.insert(0, f"the status FINISHED (it is {run.status})")
    if lacks:
        raise RunNotRegistrable(
            f"Run {run.run_id} cannot become a model version: it lacks {', '.join(lacks)}.\n"
            "Run the flow again: it continues or repeats the training."
        )
    return run.model_id


def version_tags(run: Run) -> dict[str, str]:
    """The tags of the version that is made of `run`: what made it, and how good it is."""
    tags = {name: run.tags[name] for name in (*REQUIRED_TAGS, *FURTHER_TAGS) if name in run.tags}
    given: dict[str, str] = json.loads(run.tags.get(REGISTER_TAGS, "{}"))
    return given | tags | {name: repr(run.metrics[name]) for name in METRICS if name in run.metrics}


def fetch_registered(tracker: ExperimentTracker, run: Run, folder: Path) -> None:
    """Bring the model of a version's run to `folder`.

    Raises `RunNotRegistrable` or `ModelMismatch` unless run and model are whole.
    """
    check_registrable(run)
    fetch_model(tracker, run, model_files(tracker, run, folder.parent), folder)


def check_intact(tracker: ExperimentTracker, run: Run, scratch: Path) -> None:
    """Raise `RunNotRegistrable` or `ModelMismatch` unless run and model are whole; `scratch` is where it is tried."""
    with temporary_folder(scratch) as folder:
        fetch_registered(tracker, run, folder / "model")
