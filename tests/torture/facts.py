"""What a run left that must not depend on what it went through, and the comparison with an undisturbed run's."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.pipeline import Pipeline
from tests.torture.attempts import processes_of, shown
from tests.torture.subjects import Subject

_OF_THE_RUN = {
    *("run_id", "model_uri", "model_folder", "decided", "champion_decision", "reused"),
    *("epoch_seconds", "seconds", "phases"),
}
"""What a command prints that differs between runs that are the same: ids, places, times, and which of them did it."""


def facts_of(subject: Subject, pipeline: Pipeline, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """All that must be the same, as flat facts with a name each."""
    client, run_id = _client(pipeline), outcome["run_id"]
    facts: dict[str, Any] = {f"outcome {name}": outcome[name] for name in outcome.keys() - _OF_THE_RUN}
    facts |= {f"run {name}": value for name, value in run_facts(client, run_id, subject.name).items()}
    facts |= {f"registry {name}": value for name, value in registry_facts(client, run_id, subject.name).items()}
    facts |= {f"./model {name}": value for name, value in model_facts(pipeline.output_dir).items()}
    stored = stored_facts(pipeline)
    facts["left over in the store"] = stored.pop("runs/")
    facts |= {f"store {name}": value for name, value in stored.items()}
    facts["left over on disk"] = leftovers(pipeline)
    facts["left over processes"] = [shown(one) for one in processes_of(pipeline.folder)]
    if subject.best:
        place = Path(client.download_artifacts(run_id, "logs", str(pipeline.folder)))
        said = re.findall(subject.best, "\n".join(path.read_text() for path in place.rglob("*.log")))
        facts["History is whole"] = bool(said) and float(said[-1]) == max(_values(client, run_id))
    return facts if subject.grade == "exact" else {name: _without_numbers(name, value) for name, value in facts.items()}


def _without_numbers(name: str, value: Any) -> Any:
    """The fact without what the order of the data may change."""
    if name in ("run metric objective", "outcome metrics"):
        return len(value)  # The step of the first is that of the best epoch.
    if name.startswith("run metric ") and isinstance(value, list):
        return [point[0] if isinstance(point, tuple) else point for point in value]
    if name.startswith("./model ") or name == "outcome weights_sha256":
        return "is there"
    return sorted(value) if name == "registry tags" else value


def check_nothing_left(undisturbed: Mapping[str, Any]) -> None:
    """The comparison would not find what the undisturbed run leaves behind too."""
    left = {name: value for name, value in undisturbed.items() if name.startswith("left over") and value}
    assert not left, f"the undisturbed run leaves something behind: {left}"


def objective_of(pipeline: Pipeline, outcome: Mapping[str, Any]) -> float:
    """The best value of the metric, which a script without an MLproject does not name."""
    client, run_id = _client(pipeline), outcome["run_id"]
    tags = client.get_run(run_id).data.tags
    return float(tags["objective_value"]) if "objective_value" in tags else max(_values(client, run_id))


def _values(client: Any, run_id: str) -> list[float]:
    return [point.value for point in client.get_metric_history(run_id, "val_accuracy")]


def _client(pipeline: Pipeline) -> Any:
    import mlflow

    address = pipeline.settings.mlflow_tracking_uri
    return mlflow.MlflowClient(address, address)


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """A line for each fact that is not the same."""
    return [
        f"{name}: expected {_short(expected.get(name, 'nothing'))}, found {_short(found.get(name, 'nothing'))}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def run_facts(client: Any, run_id: str, experiment_name: str) -> dict[str, Any]:
    """What MLflow has of the run, and how many runs are beside it."""
    experiment = client.get_experiment_by_name(experiment_name)
    run = client.get_run(run_id)
    models = client.search_logged_models([experiment.experiment_id])
    facts: dict[str, Any] = {
        "count": len(client.search_runs([experiment.experiment_id])),
        "status": run.info.status,
        "params": run.data.params,
        "inputs": [(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs],
        "artifacts": sorted(set(_artifacts(client, run_id, ""))),
        "logged models": [(one.source_run_id == run_id, str(one.status)) for one in models],
        "model outputs": [(one.model_id == run.data.tags["model_id"], one.step) for one in run.outputs.model_outputs],
        "grade": run.data.tags["continues"],
        "tags": sorted(run.data.tags),
    }
    for key in run.data.metrics:
        history = client.get_metric_history(run_id, key)
        steps = [point.step for point in history]
        if key.startswith("phase_"):
            facts[f"metric {key}"] = len(steps)
        elif key == "epoch_seconds":
            facts[f"metric {key}"] = steps
        else:
            facts[f"metric {key}"] = [(point.step, point.value) for point in history]
    return facts


def _artifacts(client: Any, run_id: str, folder: str) -> Iterator[str]:
    for item in client.list_artifacts(run_id, folder or None):
        if item.is_dir:
            yield from _artifacts(client, run_id, item.path)
        elif item.path != "source/uncommitted.diff":  # Is there or not as the checkout is, whoever edits it.
            # A decision bears its moment; one that was not carried out is there beside the one that was made again.
            yield re.sub(r"(gate/decision)-[^/]*(\.\w+)$", r"\1\2", item.path)


def registry_facts(client: Any, run_id: str, model: str) -> dict[str, Any]:
    """What the registry has of the model."""
    versions = client.search_model_versions(f"name = '{model}'")
    differing = {
        "gate_flow_run_id",
        "prefect.flow_run_id",
        "prefect.flow_run_url",
        "mlflow.source.git.commit",
        "git_dirty",
        "model_sha256",
    }
    return {
        "versions": [(int(one.version), one.run_id == run_id, one.status) for one in versions],
        "champion": int(client.get_model_version_by_alias(model, "champion").version),
        "tags": {key: value for key, value in versions[0].tags.items() if key not in differing},
        "has also": sorted(versions[0].tags.keys() & differing),
    }


def model_facts(folder: Path) -> dict[str, Any]:
    """The files of a downloaded model, each with a digest of what must be the same in it."""
    facts = {}
    for path in (path for path in sorted(folder.rglob("*")) if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".keras":
            facts[name] = _arrays_sha256(path)
        else:
            # In MLmodel stand ids and times.
            facts[name] = "is there" if name in ("MLmodel", "model_files.json") else _sha256(path)
    return facts


def _arrays_sha256(model: Path) -> str:
    """SHA-256 over the weights in a .keras file: the file itself holds the time of its making."""
    import io
    import zipfile

    import h5py

    digest = hashlib.sha256()

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            digest.update(f"{name}\0{item.dtype}\0{item.shape}\0".encode() + item[()].tobytes())

    with zipfile.ZipFile(model) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as weights:
        weights.visititems(add)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def store_folder(pipeline: Pipeline) -> Path:
    """The folder on disk that holds the objects, whoever serves it."""
    named = pipeline.environment.get("STORE_FOLDER")
    return Path(named) if named else pipeline.folder / "home" / "object-store"


def stored_facts(pipeline: Pipeline) -> dict[str, Any]:
    """The objects in the store, each with its digest."""
    root = store_folder(pipeline)
    # Without rclone's own half of a PUT, which the server leaves behind when it is killed itself: it is not ours.
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".rclone_temp_put_"))
    keys = {path.relative_to(root).as_posix(): path for path in files}
    facts: dict[str, Any] = {key: _sha256(path) for key, path in keys.items() if not key.startswith("runs/")}
    # Checkpoints hold times and stand under the run's id.
    return facts | {"runs/": sorted(key.split("/", 2)[2] for key in keys if key.startswith("runs/"))}


def leftovers(pipeline: Pipeline) -> list[str]:
    """What a run keeps on disk while it runs, and no longer."""
    home = pipeline.folder / "home"
    patterns = (
        "datasets/**/*.part",
        "datasets/**/unchecked",
        "scratch/*",
        "runs/*",
        "mlflow/unfinished*",
        "../.model*",
    )
    return sorted(str(path.relative_to(home.parent)) for pattern in patterns for path in home.glob(pattern))
