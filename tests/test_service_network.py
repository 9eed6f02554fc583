"""Keras models of any kind as the service loads them: their shapes, their examples, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infra.compute.runner.keras_model import OUTPUT_EXAMPLE
from infra.errors import ModelMismatch
from infra.service.network import Network

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MAKE_MODELS = """
import pathlib, sys, keras, numpy as np
from infra.compute.runner.keras_model import answer
folder = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(folder))
from net import Twice, halved

def save(name, model):
    model.save(folder / f"{name}.keras")
    facts = {"location": "nowhere", "run_id": "none", "model_id": "m-1"}
    return answer({"path": str(folder / f"{name}.keras"), "folder": str(folder / name), "model": facts})

a, b = keras.Input((None, 3), name="a"), keras.Input((1,), dtype="int32", name="b")
joined = keras.layers.Concatenate()([keras.layers.GlobalAveragePooling1D()(a), keras.layers.Embedding(5, 2)(b)[:, 0]])
outputs = {"two": keras.layers.Dense(2)(joined), "one": keras.layers.Dense(1)(joined)}
save("several", keras.Model([a, b], outputs))
words = keras.Input((1,), dtype="string", name="words")
save("words", keras.Model(words, keras.layers.Hashing(3)(words)))
assert "refused" in save("own", keras.Sequential([keras.Input((4,)), Twice(), keras.layers.Activation(halved)]))
"""

NET = """
import keras

@keras.saving.register_keras_serializable("of-the-program")
class Twice(keras.layers.Layer):
    def call(self, x):
        return x * {factor}

def halved(x):
    return x / 2
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the models, in MLflow's format."""
    folder = tmp_path_factory.mktemp("networks")
    (folder / "net.py").write_text(NET.format(factor=2))
    subprocess.run([sys.executable, "-c", MAKE_MODELS, str(folder)], check=True, capture_output=True)
    for factor in (2, 4):
        own = folder / f"own-{factor}"
        (own / "code").mkdir(parents=True)
        (own / "MLmodel").write_text("{}")
        shutil.copy(folder / "own.keras", own)
        (own / "code" / "net.py").write_text(NET.format(factor=factor))
    return folder


def test_several_named_inputs_and_outputs_are_answered_as_they_were_logged(models: Path) -> None:
    network = Network(models / "several")
    assert [str(tensor) for tensor in network.contract.inputs] == [
        "float32 rows of shape (any, 3)",
        "int32 rows of shape (1)",
    ]
    assert network.check_example()
    given = {"a": [[[1, 2, 3]] * 4] * 2, "b": [[1], [4]]}
    outputs = network(network.contract.invocations({"inputs": given}))
    answer = network.contract.predicted(outputs)["predictions"]
    assert {name: array.shape for name, array in answer.items()} == {"one": (2, 1), "two": (2, 2)}
    one, many = network.seconds
    assert one > 0
    assert many > 0
    logged = json.loads((models / "several" / OUTPUT_EXAMPLE).read_text())
    (models / "several" / OUTPUT_EXAMPLE).write_text(
        json.dumps({**logged, "one": {"shape": [1, 1], "values": [[9.0]]}})
    )
    with pytest.raises(ModelMismatch, match="otherwise than its run did"):
        network.check_example()


def test_text_is_an_input_too(models: Path) -> None:
    network = Network(models / "words")
    (found,) = network(network.contract.invocations({"instances": [["one"], ["two"]]}))
    assert found.shape == (2, 1)
    assert network.check_example()


def test_a_program_s_own_classes_are_loaded_where_they_are_trusted_and_those_of_the_version(models: Path) -> None:
    with pytest.raises(ModelMismatch, match=r"Keras does not load own\.keras"):
        Network(models / "own-2")
    for factor in (2, 4, 2):
        folder = models / f"own-{factor}"
        (found,) = Network(folder, code=folder / "code")([np.ones((1, 4), np.float32)])
        assert found.tolist() == [[factor / 2] * 4]


def test_a_file_that_is_cut_short_or_not_there_is_refused_by_name(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "words", tmp_path / "words")
    file = tmp_path / "words" / "data" / "model.keras"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ModelMismatch, match=r"Keras does not load model\.keras"):
        Network(tmp_path / "words")
    file.unlink()
    with pytest.raises(ModelMismatch, match=r"Keras does not load model\.keras"):
        Network(tmp_path / "words")
