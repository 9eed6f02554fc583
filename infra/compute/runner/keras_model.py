"""A process with Keras, in the runner's environment, that loads a program's model and saves it in MLflow's format.

    python -m runner.keras_model

It imports what it needs, then reads a request, a line of JSON, and answers with one. Nothing of the program's is
imported or run: what Keras does not load in safe mode is not loaded. It ends when its input does.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

_OWN_CODE = re.compile(
    r"could not locate|unknown (layer|object|loss|metric|optimizer|initializer)|custom_objects|lambda|unsafe|safe_mode",
    re.IGNORECASE,
)
"""What Keras says of a model that is made of the program's own classes or functions."""

OUTPUT_EXAMPLE = "output_example.json"
"""Beside MLflow's `input_example.json`: what the model gave for it, `shape` and `values` of each output."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What became of the model in `path`, whose weights lie in `weights` if that is an architecture.

    `weights_sha256`, and with `folder` also `note` on what could not be saved there; or `refused`, why it cannot be
    loaded, and `own_code`, whether it needs the program's.
    """
    try:
        model = load(request["path"], request.get("weights"))
    except Exception as error:
        return {"refused": reason(error), "own_code": bool(_OWN_CODE.search(str(error)))}
    note = _save(model, Path(request["folder"]), request["model"]) if "folder" in request else ""
    if "folder" in request and request.get("weights") and not _predicts_the_same(model, Path(request["folder"])):
        shutil.rmtree(request["folder"])
        return {"refused": "what would be saved of it does not predict the same", "own_code": False}
    return {"weights_sha256": weights_sha256(model), "note": note}


def reason(error: Exception) -> str:
    """Why Keras does not load a file, in a line."""
    # It puts the reason behind a config of any length.
    said = " ".join(str(error).rpartition("Exception encountered:")[2].split())[:300]
    return f"{type(error).__name__}: {said}"


def load(path: str, weights: str | None = None, own_classes: dict[str, Any] | None = None) -> Any:
    """The model in a file, in Keras's safe mode; or the architecture in it, with these weights.

    Only who trusts its program gives `own_classes`, by name: then code that the file itself holds is run too.
    """
    import keras

    if weights:
        model = keras.models.model_from_json(Path(path).read_text())
        import h5py

        with h5py.File(weights) as file, tempfile.TemporaryDirectory() as folder:
            # Keras takes the layout from the name, and people gave the one of their days to both.
            link = Path(
                folder, "model.h5" if "layer_names" in file.attrs or "model_weights" in file else "model.weights.h5"
            )
            link.symlink_to(Path(weights).absolute())
            model.load_weights(str(link))
        return model
    try:
        return keras.saving.load_model(path, own_classes, safe_mode=own_classes is None)
    except Exception:
        # Loss, metrics and optimizer may be the program's own, and only training needs them.
        return keras.saving.load_model(path, own_classes, compile=False, safe_mode=own_classes is None)


def _save(model: Any, folder: Path, facts: dict[str, str]) -> str:
    """Save it in MLflow's format, with an example if one can be made; returns what is missing, and why."""
    try:
        example = _input_example(model)
        outputs = model(example, training=False)
        _write(model, folder, facts, signature=_signature(model), input_example=example)
        (folder / OUTPUT_EXAMPLE).write_text(json.dumps(_as_json(outputs)))
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        _write(model, folder, facts)
        return f"without an input example: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def _predicts_the_same(model: Any, folder: Path) -> bool:
    """Whether what was saved gives, for one example of normal numbers, what the model gives; True without one."""
    import keras

    try:
        example, numbers = _input_example(model), np.random.default_rng(0)
    except Exception:
        return True
    named = example if isinstance(example, dict) else {"": example}
    drawn = {name: numbers.normal(size=one.shape) if one.dtype.kind == "f" else one for name, one in named.items()}
    drawn = {name: one.astype(named[name].dtype) for name, one in drawn.items()}
    given = drawn if isinstance(example, dict) else drawn[""]
    saved = keras.saving.load_model(next(folder.glob("data/*.keras")), compile=False, safe_mode=True)
    before, after = (keras.tree.flatten(one(given, training=False)) for one in (model, saved))
    return all(np.allclose(one, other, rtol=1e-5, equal_nan=True) for one, other in zip(before, after, strict=True))


def _write(model: Any, folder: Path, facts: dict[str, str], **example: Any) -> None:
    import keras
    import mlflow.keras
    import tensorflow as tf
    from mlflow.models import Model

    folder.mkdir(parents=True)
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__, "numpy": np.__version__}
    mlflow.keras.save_model(
        model,
        str(folder),
        mlflow_model=Model(
            artifact_path=facts["location"],
            run_id=facts["run_id"],
            model_id=facts["model_id"],
            model_uuid=facts["model_id"],
        ),
        pip_requirements=[f"{name}=={version}" for name, version in versions.items()],
        **example,
    )


def _input_example(model: Any) -> Any:
    """Zeros of the shapes and types that the model takes: one of a batch; unknown dimensions have length 1."""
    zeros = {
        tensor.name: np.full([size or 1 for size in tensor.shape], "" if tensor.dtype == "string" else 0, _type(tensor))
        for tensor in model.inputs
    }
    return zeros if len(zeros) > 1 else next(iter(zeros.values()))


def _type(tensor: Any) -> np.dtype:
    return np.dtype(str if tensor.dtype == "string" else tensor.dtype)


def _signature(model: Any) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(tensors: list[Any], names: list[str]) -> Schema:
        several = len(tensors) > 1
        return Schema(
            [
                # MLflow wants the first to be unknown, the number of a batch.
                TensorSpec(_type(tensor), (-1, *(size or -1 for size in tensor.shape[1:])), name if several else None)
                for tensor, name in zip(tensors, names, strict=True)
            ]
        )

    return ModelSignature(
        inputs=schema(model.inputs, [tensor.name for tensor in model.inputs]),
        outputs=schema(model.outputs, list(getattr(model, "output_names", [""]))),  # A Sequential has one, unnamed.
    )


def _as_json(outputs: Any) -> Any:
    if isinstance(outputs, dict):
        return {name: _as_json(output) for name, output in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return [_as_json(output) for output in outputs]
    array = np.asarray(outputs)
    return {"shape": list(array.shape), "values": array.astype(object).tolist()}


def weights_sha256(model: Any) -> str:
    """SHA-256 over the name, shape, dtype and bytes of each weight, in the model's order."""
    # Not `weight.path`: in a loaded model it begins with the model's name, in a built one it does not.
    return digest_arrays(
        (f"{layer.name}/{weight.name}", weight.numpy()) for layer in model.layers for weight in layer.weights
    )


def digest_arrays(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    """SHA-256 over name, shape, dtype and bytes (C order) of each array, in order."""
    digest = hashlib.sha256()
    for name, array in arrays:
        digest.update(f"{name} {array.shape} {array.dtype.str}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def main() -> None:
    """Answer each line of standard input with one on standard output, where nothing else is written."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Keras imports scikit-learn where it is installed, for wrappers that nothing here uses.
    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]
    import keras  # noqa: F401
    import mlflow.keras
    import mlflow.models  # noqa: F401

    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
