"""Networks to be served: small ones of Keras in MLflow's format, and in which ways a version can be bad.

    python -m tests.served_models FOLDER NAME...

makes FOLDER/NAME, as the runner would log it, and FOLDER/NAME.npz with what it answers. A number is the seed of a small
network; any other name is that of one of the tutorial's size, and `learned` has seen digits.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from infra.compute.runner.keras_model import OUTPUT_EXAMPLE, answer
from infra.errors import PipelineError
from infra.experiment_tracker import Version
from tasks.programs.mnist.digits.dataset_files import FILE_NAMES, read_idx
from tasks.registry.version import version_tags
from tasks.sample_dataset import write_sample
from tests.registry import MODEL, Registry

IMAGES = np.random.default_rng(7).integers(0, 256, (20, 28, 28), np.uint8)
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class ServedModel:
    """A model in a folder, in MLflow's format."""

    folder: Path
    weights_sha256: str
    shares: np.ndarray
    """float32, (20, 10): what the model itself answers to `IMAGES`."""
    accuracy: float
    """Of the learned one, on the test images of the sample."""

    @property
    def digits(self) -> list[int]:
        """The class of each of `IMAGES`."""
        return [int(digit) for digit in self.shares.argmax(axis=1)]

    def spoiled(self, how: str) -> "ServedModel":
        """A copy that is bad: `signature`, or `answers` that differ from those that were logged."""
        copy = self.folder.with_name(f"{self.folder.name}-{how}")
        shutil.copytree(self.folder, copy)
        if how == "signature":
            described = (copy / "MLmodel").read_text()
            assert described.count("28,") == 1
            (copy / "MLmodel").write_text(described.replace("28,", "27,"))
        else:
            logged = json.loads((copy / OUTPUT_EXAMPLE).read_text())
            logged["values"][0][0] += 2e-5
            (copy / OUTPUT_EXAMPLE).write_text(json.dumps(logged))
        return replace(self, folder=copy)


def make_models(folder: Path, *names: str) -> list[ServedModel]:
    """Networks by their names, made in a process of their own."""
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_BACKEND": "tensorflow",
    }
    words = [sys.executable, "-m", "tests.served_models", str(folder), *names]
    subprocess.run(words, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    made = []
    for name in names:
        kept = np.load(folder / f"{name}.npz")
        facts = (str(kept["weights_sha256"]), kept["shares"], float(kept["accuracy"]))
        made.append(ServedModel(folder / name, *facts))
    return made


def add_version(registry: Registry, model: ServedModel, **tags: str) -> Version:
    """A version of `tests.registry.MODEL` with this model, about which nothing is decided."""
    facts = {"dataset": "mnist", "dataset_sha256": "some", "test_set_sha256": "some", "model_kind": "keras"}
    facts |= {"weights_sha256": model.weights_sha256, "score_scale": "255"}
    run_id = registry.add_finished_run(model.folder, facts | tags, {"test_accuracy": model.accuracy})
    run = registry.tracker.get_run(run_id)
    return registry.tracker.create_version(MODEL, run, run.model_id, version_tags(run))


def _make(folder: Path, name: str) -> None:
    import keras

    from tasks.programs.mnist.digits.hyperparameters import Hyperparameters

    sys.path.insert(0, str(ROOT / "tasks" / "programs" / "mnist"))
    from digits.model import build_model  # type: ignore[import-not-found]

    small = {"first_layer_neurons": 32, "second_layer_neurons": 16, "seed": int(name)} if name.isdecimal() else {}
    network = build_model(Hyperparameters(**small))
    accuracy = 0.0
    if name == "learned":
        write_sample(folder)
        images, labels, *test = (read_idx((folder / file).open("rb"), file) for file in FILE_NAMES)
        network.fit(images, labels, epochs=5, batch_size=32, verbose=0)
        accuracy = float(np.mean(np.argmax(network(test[0]), axis=1) == test[1]))
    file = folder / f"{name}.keras"
    network.save(file)
    facts = {"location": "made-by-tests", "run_id": "none", "model_id": f"m-{name}"}
    said: dict[str, Any] = answer({"path": str(file), "folder": str(folder / name), "model": facts})
    if said.get("note", "no model"):
        raise PipelineError(str(said))
    shares = np.asarray(keras.saving.load_model(file)(IMAGES, training=False))
    np.savez(folder / f"{name}.npz", shares=shares, weights_sha256=said["weights_sha256"], accuracy=accuracy)


if __name__ == "__main__":
    for one in sys.argv[2:]:
        _make(Path(sys.argv[1]), one)
