"""What the program left under `outputs/`: which of it is the model, and the rest, which is kept with the run."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .exits import RunnerError
from .output import say
from .record import RunRecord

OUTPUTS = "outputs"
MODEL = "model"
FOUND = "found"
"""Folder of the run's artifacts for what looks like a model and is not where one is looked for."""

_WHOLE = (".keras", ".h5", ".hdf5")
"""How files end that hold a model with its weights."""
_WEIGHTS = ".weights.h5"
PICKLES = (".pkl", ".pickle", ".joblib")
_LIKE_MODELS = (*_WHOLE, *PICKLES, ".onnx", ".pt", ".pth", ".tflite")
_SAVED_MODEL = "saved_model.pb"
_SIDE_BY_SIDE = 8
_NAMED = 10


@dataclass(frozen=True)
class ModelSource:
    """Where the model lies."""

    root: Path
    """A folder whose files belong to the model, or a single file."""
    file: Path | None = None
    """What Keras may load; None: nothing here is for Keras."""
    weights: Path | None = None
    """Where `file` is an architecture, its weights."""

    @property
    def beside(self) -> list[Path]:
        """The files of the folder that are not what Keras loads."""
        files = files_under(self.root) if self.root.is_dir() else []
        return [path for path in files if path not in (self.file, self.weights)]


def find_model(outputs: Path, named: str = "") -> ModelSource | None:
    """The model in the folder `outputs`: what the program has `named` there, a folder or a file; what is called
    `model`; what lies there and Keras may load; the only file that looks like a model."""
    model = outputs / named
    if named and model.is_file():
        return _keras_files(None, [model]) or ModelSource(model)
    model = model if named and model.is_dir() else outputs / MODEL
    if model.is_dir() and files_under(model):
        if (model / "MLmodel").is_file():
            return ModelSource(model, next(iter(sorted(model.glob("data/*.keras"))), None))
        return _keras_files(model, files_under(model)) or ModelSource(model)
    if not outputs.is_dir():
        return None
    here = sorted(path for path in outputs.iterdir() if path.is_file())
    found = _keras_files(None, here)
    like = [path for path in here if path.suffix in _LIKE_MODELS]
    called = next((path for path in here if path.stem == MODEL and path.suffix in ("", *_LIKE_MODELS)), None)
    only = called or (like[0] if len(like) == 1 else None)
    return found or (ModelSource(only) if only else None)


def _keras_files(root: Path | None, files: list[Path]) -> ModelSource | None:
    if any(path.name == _SAVED_MODEL for path in files):
        return None
    whole = [path for path in files if path.suffix in _WHOLE and not path.name.endswith(_WEIGHTS)]
    weights = [path for path in files if path.name.endswith(_WEIGHTS)] or [p for p in whole if p.suffix != ".keras"]
    architecture = next((path for path in files if path.suffix == ".json" and _is_architecture(path)), None)
    if keras := [path for path in whole if path.suffix == ".keras"]:
        whole = keras
    elif architecture and weights:
        return ModelSource(root or architecture, architecture, _newest(weights))
    if not whole:
        return None
    chosen = _newest(whole)
    return ModelSource(root or chosen, chosen)


def _newest(files: list[Path]) -> Path:
    """The one called `model`, else the one that was written last."""
    chosen = max(files, key=lambda path: (path.name.partition(".")[0] == MODEL, path.stat().st_mtime_ns))
    if others := [path.name for path in files if path != chosen]:
        say(f"of several, {chosen.name} is the model, as its name says or as the last written; not {', '.join(others)}")
    return chosen


def _is_architecture(path: Path) -> bool:
    try:
        facts = json.loads(path.read_text())
    except (ValueError, OSError):
        return False
    return isinstance(facts, dict) and {"class_name", "config"} <= facts.keys()


def no_model(record: RunRecord, folder: Path, shipped: Path) -> RunnerError:
    """What to say where a program left no model in the folder in which it ran, with its files as they were `shipped`.

    What looks like a model elsewhere is named, and kept with the run, for it may be the work of days.
    """
    before = {path.relative_to(shipped).as_posix() for path in files_under(shipped)}
    new = [path for path in files_under(folder) if path.relative_to(folder).as_posix() not in before]
    elsewhere = [path for path in new if path.suffix in _LIKE_MODELS or path.name == _SAVED_MODEL]
    log_files(record, folder, elsewhere, FOUND)
    names = ", ".join(path.relative_to(folder).as_posix() for path in elsewhere[:_NAMED])
    more = f" and {len(elsewhere) - _NAMED} more" if len(elsewhere) > _NAMED else ""
    found = (
        f"What looks like one lies elsewhere: {names}{more}; it is kept with the run, under {FOUND}/. Save it where\n"
        "it is looked for. "
        if elsewhere
        else "Nothing else in its folder looks like one. "
    )
    return RunnerError(
        "The program ended well, but left no model. Looked for, in this order: a model that it logged with MLflow;\n"
        "outputs/model, a folder; a file outputs/*.keras or outputs/*.h5 (OUTPUTS_FOLDER names the folder).\n"
        f"{found}In Keras: model.save('outputs/model.keras')."
    )


def log_outputs(record: RunRecord, outputs: Path) -> int:
    """Keep everything under `outputs`, but the model's folder, as the run's artifacts; returns the number of files."""
    files = [path for path in files_under(outputs) if outputs / MODEL not in path.parents]
    log_files(record, outputs, files, OUTPUTS)
    return len(files)


def log_files(record: RunRecord, root: Path, files: list[Path], place: str = "") -> None:
    """Keep files under `root` as artifacts under `place`."""

    def log(path: Path) -> None:
        folder = Path(place, path.relative_to(root)).parent.as_posix().removeprefix(".")
        record.do(
            lambda: record.client.log_artifact(record.run_id, str(path), folder or None), f"keep {path.name} in MLflow"
        )

    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        list(pool.map(log, files))


def files_under(folder: Path) -> list[Path]:
    """The files in a folder, at any depth, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
