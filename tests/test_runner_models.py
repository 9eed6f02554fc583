"""What becomes of a program's model: any form in which Keras saves, and what Keras cannot load by itself."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.compute.runner.keras_process import KerasProcess
from tests.pipeline import wait_until
from tests.runner_stage import Stage

pytestmark = pytest.mark.slow

MAKE_MODELS = """
import sys, pathlib, keras, numpy as np
folder = pathlib.Path(sys.argv[1])
inputs = keras.Input((4,), name="x")
plain = keras.Sequential([inputs, keras.layers.Dense(2, name="d")], name="plain")
plain.compile(optimizer="sgd", loss="mse", metrics=["mae"])
plain.save(folder / "plain.keras")
plain.save(folder / "plain.h5")
(folder / "architecture.json").write_text(plain.to_json())
plain.save_weights(folder / "plain.weights.h5")

def own_loss(y_true, y_pred):
    return keras.ops.mean(keras.ops.abs(y_true - y_pred))

plain.compile(optimizer="sgd", loss=own_loss, metrics=[own_loss])
plain.fit(np.ones((2, 4)), np.zeros((2, 2)), verbose=0)
plain.save(folder / "own_loss.keras")

class Own(keras.layers.Layer):
    def call(self, x):
        return x * 2

keras.Sequential([keras.Input((4,)), Own()]).save(folder / "own_layer.keras")
keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2)]).save(folder / "lambda.keras")
a, b = keras.Input((None, 3), name="a"), keras.Input((1,), dtype="int32", name="b")
joined = keras.layers.Concatenate()([keras.layers.GlobalAveragePooling1D()(a), keras.layers.Embedding(5, 2)(b)[:, 0]])
keras.Model([a, b], [keras.layers.Dense(1, name="one")(joined), keras.layers.Dense(2, name="two")(joined)]).save(
    folder / "several.keras"
)
words = keras.Input((), dtype="string", name="words")
keras.Model(words, keras.layers.Hashing(3)(words)).save(folder / "words.keras")
unbuilt = keras.Sequential([keras.layers.Dense(2)])
unbuilt.save(folder / "unbuilt.keras")
(folder / "broken.keras").write_bytes((folder / "plain.keras").read_bytes()[:500])
"""


@dataclass
class Models:
    """Files of models, and the process that loads them."""

    folder: Path
    process: KerasProcess

    def ask(self, name: str, save: bool = True, **more: str) -> dict[str, Any]:
        """What becomes of a model, saved again or not."""
        request: dict[str, Any] = {"path": str(self.folder / name), **more}
        if save:
            request |= {
                "folder": str(self.saved(name)),
                "model": {"location": "file:///nowhere", "run_id": "0" * 32, "model_id": "m-1"},
            }
        return self.process.ask(request)

    def saved(self, name: str) -> Path:
        """Where it is saved again."""
        return self.folder / "saved" / name


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    folder = tmp_path_factory.mktemp("models")
    process = KerasProcess(folder)
    process.start()
    subprocess.run([sys.executable, "-c", MAKE_MODELS, str(folder)], check=True, capture_output=True)
    yield Models(folder, process)
    process.stop()


def described(folder: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((folder / "MLmodel").read_text()))


def test_a_model_has_one_digest_of_its_weights_in_whatever_form_it_was_saved(models: Models) -> None:
    whole = models.ask("plain.keras")
    assert whole.pop("note") == ""
    (digest,) = whole.values()
    assert len(digest) == 64
    assert models.ask("plain.h5", save=False)["weights_sha256"] == digest
    weights = str(models.folder / "plain.weights.h5")
    assert models.ask("architecture.json", save=False, weights=weights)["weights_sha256"] == digest
    assert models.ask("own_loss.keras", save=False)["weights_sha256"] != digest


def test_it_is_saved_with_signature_example_what_it_gave_and_requirements(models: Models) -> None:
    assert models.ask("own_loss.keras")["note"] == ""
    folder = models.saved("own_loss.keras")
    facts = described(folder)
    assert facts["flavors"].keys() == {"keras", "python_function"}
    assert json.loads(facts["signature"]["inputs"]) == [
        {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 4]}}
    ]
    assert json.loads((folder / "input_example.json").read_text())
    assert json.loads((folder / "output_example.json").read_text())["shape"] == [1, 2]
    named = {line.partition("==")[0] for line in (folder / "requirements.txt").read_text().splitlines()}
    assert {"keras", "tensorflow", "numpy"} <= named
    # The loss was the program's: what is saved loads without it, compiled or not.
    assert "weights_sha256" in models.process.ask({"path": str(folder / "data" / "model.keras")})


def test_several_inputs_and_outputs_are_told_apart_by_name(models: Models) -> None:
    assert models.ask("several.keras")["note"] == ""
    folder = models.saved("several.keras")
    inputs = json.loads(described(folder)["signature"]["inputs"])
    assert [(one["name"], one["tensor-spec"]) for one in inputs] == [
        ("a", {"dtype": "float32", "shape": [-1, -1, 3]}),
        ("b", {"dtype": "int32", "shape": [-1, 1]}),
    ]
    outputs = json.loads((folder / "output_example.json").read_text())
    assert [one["shape"] for one in outputs] == [[1, 1], [1, 2]]


def test_a_model_of_words_is_saved_and_one_without_a_shape_says_what_it_lacks(models: Models) -> None:
    assert "weights_sha256" in models.ask("words.keras")
    assert (models.saved("words.keras") / "data" / "model.keras").exists()
    assert models.ask("unbuilt.keras")["note"].startswith("without an input example: ")
    assert "signature" not in described(models.saved("unbuilt.keras"))


@pytest.mark.parametrize(
    ("name", "own_code", "said"),
    [
        ("own_layer.keras", True, "Own"),
        ("lambda.keras", True, "Lambda"),
        ("broken.keras", False, "broken.keras"),
        ("absent.h5", False, "absent.h5"),
    ],
)
def test_what_keras_refuses_is_told_from_what_needs_the_programs_code(
    models: Models, name: str, own_code: bool, said: str
) -> None:
    answer = models.ask(name)
    assert answer["own_code"] is own_code, answer
    assert said in answer["refused"]
    assert not models.saved(name).exists()


LEARNS = """
import os, pathlib, sys, time
import keras
import numpy as np

rng = np.random.default_rng(1)
x = rng.normal(size=(200, 4)).astype("float32")
y = (x.sum(axis=1) > 0).astype("float32")
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1, "sigmoid")])
model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])

class Wait(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3 and pathlib.Path(sys.argv[1]).exists():
            time.sleep(600)

history = model.fit(x, y, epochs=5, validation_split=0.2, verbose=0, callbacks=[Wait()])
assert len(history.history["loss"]) == 5, history.history
model.save("outputs/model.keras")
pathlib.Path("outputs/notes.txt").write_text("kept")
"""


def test_a_keras_script_that_knows_nothing_continues_and_has_its_model_logged(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    wait = tmp_path / "wait"
    wait.touch()
    alone = stage.ship(
        {"train.py": LEARNS},
        command=["python", "train.py", str(wait)],
        import_ahead=["tensorflow", "keras"],
        uses_keras=True,
        seed=3,
        objective={"metric": "val_accuracy", "goal": "maximize"},
    )
    run_id = stage.start_run()
    first = stage.start(alone, stage.order(run_id))
    wait_until(lambda: len(stage.history(run_id, "loss")) == 3, 120, "three epochs")
    wait_until((stage.checkpoints(run_id) / "3" / "manifest.json").exists, 60, "the third checkpoint")
    first.process.kill()
    first.end()
    wait.unlink()
    output = stage.run(alone, stage.order(run_id))
    for metric in ("loss", "accuracy", "val_loss", "val_accuracy", "epoch_seconds"):
        assert [step for step, _ in stage.history(run_id, metric)] == [1, 2, 3, 4, 5], (metric, output)
    run = stage.client.get_run(run_id)
    tags = run.data.tags
    assert (tags["continues"], tags["model_kind"]) == ("epoch", "keras")
    assert len(tags["weights_sha256"]) == 64
    assert {"keras_version", "tensorflow_version", "numpy_version"} <= tags.keys()
    accuracies = [value for _, value in stage.history(run_id, "val_accuracy")]
    assert run.data.metrics["objective"] == max(accuracies)
    assert "epoch 5/5  loss" in output
    assert output.splitlines()[0].startswith("standing by")
    assert "absl" not in output, "nobody needs what TensorFlow says when it is imported"
    folder = Path(stage.client.get_logged_model(tags["model_id"]).artifact_location.removeprefix("file://"))
    assert described(folder)["model_id"] == tags["model_id"]
    assert {file.path for file in stage.client.list_artifacts(run_id, "outputs")} == {
        "outputs/model.keras",
        "outputs/notes.txt",
    }


def test_a_model_of_the_programs_own_layers_is_kept_with_its_source_and_not_loaded(
    models: Models, tmp_path: Path
) -> None:
    stage = Stage(tmp_path)
    run_id = stage.start_run()
    text = (
        "import pathlib, shutil, sys\npathlib.Path('outputs/model').mkdir()\nshutil.copy(sys.argv[1], 'outputs/model')"
    )
    given = str(models.folder / "own_layer.keras")
    output = stage.run(stage.ship({"train.py": text}, command=["python", "train.py", given]), stage.order(run_id))
    tags = stage.client.get_run(run_id).data.tags
    assert (tags["model_kind"], tags["needs_code"], tags["weights_sha256"]) == ("needs_code", "true", "none")
    folder = Path(stage.client.get_logged_model(tags["model_id"]).artifact_location.removeprefix("file://"))
    assert (folder / "code" / "train.py").read_text() == text
    assert (folder / "own_layer.keras").exists()
    assert not described(folder).get("flavors")
    assert "needs the program's own code" in output
