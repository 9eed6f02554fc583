"""Old spellings in scripts of Azure ML's SDK: those that are refused by reading, and those that are taken."""

import re
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ArgumentError
from tasks.azureml_sources import accepted, old_spellings
from tasks.program import read_program
from tasks.program_sources import Sources, read_sources
from tests.launched import Ended, Launched

HEAD = "from azureml.core import Run\nrun = Run.get_context()\n"

REFUSED = {
    "Adadelta()": [
        "from keras.optimizers import Adadelta\nAdadelta()",
        "import tensorflow as tf\nm.compile(loss='mse', optimizer=tf.keras.optimizers.Adadelta(rho=0.9))",
        "import keras\nm.compile(optimizer='adadelta')",
    ],
    "Adagrad()": ["import keras\nkeras.optimizers.Adagrad()", "import keras\nm.compile('Adagrad', 'mse')"],
    "Adamax()": ["from keras import optimizers\noptimizers.Adamax(beta_1=0.9)"],
    "Nadam()": ["from tensorflow.keras.optimizers import Nadam\nNadam()"],
    "keras.layers.LSTM()": ["from keras.layers import LSTM\nLSTM(3)"],
    "keras.layers.GRU()": ["import keras\nkeras.layers.GRU(3)"],
    "decay=": ["import keras\nkeras.optimizers.SGD(lr=0.1, decay=1e-6)"],
    "metrics_names[1]": ["import keras\nprint(m.metrics_names[1])"],
    "nb_epoch=": ["import keras\nm.fit(x, y, nb_epoch=3)"],
    "predict_classes": ["import keras\nm.predict_classes(x)"],
    "keras.preprocessing.text": ["from keras.preprocessing.text import Tokenizer"],
    "keras.wrappers.scikit_learn": ["from keras.wrappers.scikit_learn import KerasClassifier"],
    "sklearn.externals": ["from sklearn.externals import joblib", "import sklearn.externals.joblib as jl"],
    "sklearn.cross_validation": ["from sklearn.grid_search import GridSearchCV"],
    "sklearn.preprocessing.Imputer": ["from sklearn.preprocessing import Imputer"],
    "sklearn.datasets.load_boston": ["from sklearn import datasets\ndatasets.load_boston()"],
    "tf.Session": ["import tensorflow as tf\nwith tf.Session() as s: pass"],
    "tf.contrib": ["import tensorflow as tf\ntf.contrib.learn.x()"],
    "tf.train.AdamOptimizer": ["import tensorflow as tf\ntf.train.AdamOptimizer(0.1)"],
    "azureml.core.Keyvault": ["from azureml.core.keyvault import Keyvault"],
    "azureml.interpret": ["from azureml.contrib.interpret.explanation import x"],
    "azureml.train": ["from azureml.train.automl import AutoMLConfig"],
    "azureml.pipeline": ["import azureml.pipeline.core"],
}
NOT_REFUSED = [
    "from keras.optimizers import Adadelta\nAdadelta(1.0)\nAdadelta(lr=1.0)\nAdadelta(learning_rate=1)",
    "from tensorflow.keras.layers import LSTM\nfrom keras.layers import GRU\nLSTM(3)\n"
    "GRU(3, recurrent_activation='sigmoid')",
    "import tensorflow.compat.v1 as tf\nwith tf.Session() as s: pass",
    "try:\n    import joblib\nexcept ImportError:\n    from sklearn.externals import joblib",
    "import tensorflow as tf\nif tf.__version__ < '2':\n    tf.set_random_seed(1)\nelse:\n    tf.random.set_seed(1)",
    "if run.id.startswith('OfflineRun'):\n    from azureml.core import Keyvault\n",
    "import keras\nm.compile('adam', 'mse')\nkeras.optimizers.Adam(lr=1)\nm.fit_generator(g, workers=2)\n"
    "m.save_weights('outputs/x.h5')\nprint(m.fit().history['acc'])",
    "import numpy as np\nnp.float(1)\nfrom keras.utils import np_utils",
]


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(text: str, requirements: str = "") -> Sources:
        (tmp_path / "train.py").write_text(HEAD + text)
        if requirements:
            (tmp_path / "requirements.txt").write_text(requirements)
        return read_sources(read_program(tmp_path, "train.py"))

    return read


def test_each_row_says_what_it_is_and_where_that_is_written_down() -> None:
    assert len({row["old"] for row in old_spellings()}) == len(old_spellings())
    for row in old_spellings():
        assert row["source"].startswith("https://")
        assert ("accept" in row) != ({"refuse", "instead"} <= row.keys())
    assert {row["old"] for row in old_spellings() if "refuse" in row} == REFUSED.keys()


@pytest.mark.parametrize(
    ("old", "text"),
    [(old, text) for old, texts in REFUSED.items() for text in texts],
    ids=lambda value: re.sub(r"\W+", "-", value)[:40],
)
def test_what_has_another_meaning_or_none_is_refused_with_its_line(old: str, text: str, read: Any) -> None:
    sources = read(text)
    line = HEAD.count("\n") + text.count("\n") + 1
    assert [(one.file, one.line) for one in sources.azureml_refused][-1] == ("train.py", line)
    assert "Write" in sources.azureml_refused[-1].text
    with pytest.raises(ArgumentError, match=rf"train.py:{line}: "):
        sources.check()


@pytest.mark.parametrize(
    "line",
    [
        "m.save('outputs/folder')",
        "m.save('outputs/x.h5', save_format='h5')",
        "m.save_weights('outputs/checkpoint')",
        "keras.callbacks.ModelCheckpoint('outputs/best')",
        "m.fit(x, y, samples_per_epoch=10)",
        "from keras.engine.topology import Layer",
    ],
)
def test_what_would_die_at_its_end_is_refused_at_its_beginning(line: str, read: Any) -> None:
    assert [one.line for one in read(f"import keras\n{line}").azureml_refused] == [4]


@pytest.mark.parametrize("text", NOT_REFUSED, ids=range(len(NOT_REFUSED)))
def test_what_means_the_same_or_is_not_reached_is_not_refused(text: str, read: Any) -> None:
    sources = read(text)
    assert sources.azureml_refused == ()
    assert sources.keras2_idioms == ()
    sources.check()


def test_it_is_for_such_scripts_and_keras_3_alone(read: Any, tmp_path: Path) -> None:
    text = "import keras, sklearn.externals\nkeras.optimizers.Adadelta()\nkeras.optimizers.SGD(decay=1e-6)"
    assert [one.line for one in read(text).azureml_refused] == [3, 4, 5]
    old = read(text, "tensorflow==2.12")
    assert [one.line for one in old.azureml_refused] == [3]
    assert old.old_spellings is None
    (tmp_path / "train.py").write_text(text)
    plain = read_sources(read_program(tmp_path, "train.py"))
    assert (plain.azureml_refused, plain.old_spellings) == ((), None)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run.submit_child(x)", "Run.submit_child has no stand-in"),
        ("run.experiment.workspace.get_default_keyvault()", "Workspace.get_default_keyvault has no stand-in"),
        ("ws = run.experiment.workspace\nws.models", "Workspace.models"),
        ("with run.child_run() as child:\n    child.cancel()", "Run.cancel"),
        ("run.input_datasets['x'].to_spark_dataframe()", "DataFolder.to_spark_dataframe"),
        ("from azureml.core import Dataset\nDataset.File.from_files('x')", "Dataset.File"),
        ("from azureml.core import Dataset\ndata = Dataset.get_by_name(ws, 'x')\ndata.to_dask()", "DataFolder.to_dask"),
        ("model = run.register_model('a')\nmodel.deploy()", "Model.deploy"),
        ("from azureml.core import ScriptRunConfig", "azureml.core.ScriptRunConfig has no stand-in"),
        ("from azureml.core.authentication import MsiAuthentication", "azureml.core.authentication.MsiAuthentication"),
        ("import azureml.widgets", "azureml.widgets has no stand-in"),
    ],
)
def test_parts_of_the_sdk_that_are_not_there_are_found_by_reading(line: str, said: str, read: Any) -> None:
    found = [one.text for one in read(line).azureml_refused]
    assert any(text.startswith(said) for text in found), found


def test_what_is_there_is_not_refused(read: Any) -> None:
    text = """
from azureml.core import Dataset, Datastore, Experiment, Model, Workspace
from azureml.core.run import _OfflineRun
ws = run.experiment.workspace if not isinstance(run, _OfflineRun) else Workspace.from_config()
run.log_row("x", a=1)
frame = run.input_datasets["x"].to_pandas_dataframe().dropna()
train, test = Dataset.get_by_name(ws, "x").random_split(0.5)
run.parent.log("a", 1)
model = run.register_model(model_name="m", model_path="outputs/m.pkl")
print(model.name, model.version, model.id, run.get_details()["runId"].upper())
run = other()
run.anything()
"""
    assert read(text).azureml_refused == ()


def take(tmp_path: Path, text: str, **more: Any) -> Ended:
    (tmp_path / "program").mkdir(exist_ok=True)
    (tmp_path / "program" / "train.py").write_text(text)
    return Launched(tmp_path / "program", tmp_path).run("train.py", old_spellings=accepted(), **more)


def said(ended: Ended) -> list[str]:
    return [one["spelling"] for one in ended.of("azureml")]


def test_names_of_numpy_are_what_they_were(tmp_path: Path) -> None:
    rows = {old: new for old, new in accepted().items() if old.startswith("numpy.")}
    text = "import builtins, importlib, numpy\nfrom numpy import float as f\nassert f is float\n"
    for old, new in rows.items():
        module, _, name = new.rpartition(".")
        # Of its own name today, `numpy.bool` is NumPy's, and as a type of arrays the same.
        same = f"numpy.dtype({old}) == numpy.dtype(bool)" if old == "numpy.bool" else f"{old} is {module}.{name}"
        text += f"for _ in range(2): assert {same}, {old!r}\n"
    ended = take(tmp_path, text + "try:\n    numpy.nothing\nexcept AttributeError as error:\n    print(error)")
    assert ended.returncode == 0, ended.stderr
    assert "has no attribute 'nothing'" in ended.stdout
    assert sorted(said(ended)) == sorted(old for old in rows if old != "numpy.bool")
    assert ended.stderr.count("old spelling numpy.float: taken for builtins.float") == 1


KERAS = """
import json, os, pickle, sys
import h5py, keras, numpy as np
from keras.utils import np_utils
from keras.utils.np_utils import to_categorical
from keras.layers.core import Dense
from keras.layers.advanced_activations import LeakyReLU
import tensorflow as tf
from tensorflow.keras.layers.convolutional import Conv2D
assert (np_utils.to_categorical, Dense, Conv2D) == (keras.utils.to_categorical, keras.layers.Dense, keras.layers.Conv2D)
assert LeakyReLU is keras.layers.LeakyReLU
assert float(keras.optimizers.RMSprop(lr=0.25).learning_rate) == 0.25
assert float(tf.keras.optimizers.Adam(lr=0.5, beta_1=0.8).learning_rate) == 0.5
assert float(keras.optimizers.SGD(0.125).learning_rate) == 0.125
x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
y = to_categorical((x[:, 0] > 0).astype(int), 2)
def made():
    model = keras.Sequential([keras.Input((4,)), Dense(3, activation="relu"), Dense(2, activation="softmax")])
    model.compile(keras.optimizers.Adam(lr=0.01), "categorical_crossentropy", metrics=["accuracy"])
    return model
seen = []
class Seen(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        seen.append((logs["acc"], logs.get("val_acc"), logs.get("none")))
model = made()
stop = keras.callbacks.EarlyStopping(monitor="val_acc", patience=5)
best = keras.callbacks.ModelCheckpoint("w-{epoch:02d}-{val_acc:.2f}.hdf5", monitor="val_acc", save_weights_only=True)
whole = keras.callbacks.ModelCheckpoint("best.hdf5", monitor="acc", save_best_only=True)
callbacks = [Seen(), stop, best, whole]
history = model.fit(x, y, validation_data=(x, y), epochs=2, verbose=0, callbacks=callbacks)
assert history.history["acc"] == history.history["accuracy"] == [acc for acc, _, _ in seen]
assert type(pickle.loads(pickle.dumps(history.history))) is dict
assert [val for _, val, none in seen] == history.history["val_accuracy"]
assert stop.monitor == "val_accuracy" and stop.best > 0
assert len([name for name in os.listdir(".") if name.startswith("w-0") and name.endswith(".hdf5")]) == 2
assert (keras.models.load_model("best.hdf5").predict(x, verbose=0) is not None)
def batches():
    while True:
        yield x, y
model.fit_generator(batches(), 2, epochs=1, verbose=0, workers=2, max_queue_size=3)
assert np.allclose(model.evaluate_generator(batches(), steps=1, workers=1), model.evaluate(x, y, verbose=0))
assert model.predict_generator(batches(), 1).shape == (32, 2)
model.fit(x, y, verbose=0, workers=4)
wanted = model.predict(x, verbose=0)
model.save_weights("model.h5")
assert os.path.exists("model.h5") and not os.path.exists("model.h5.weights.h5")
other = made()
other.load_weights("model.h5")
assert (other.predict(x, verbose=0) == wanted).all()
model.save("legacy.h5")
with h5py.File("legacy.h5") as file, h5py.File("old.h5", "w") as old:
    for name in file["model_weights"]:
        file.copy(f"model_weights/{name}", old)
    old.attrs.update(file["model_weights"].attrs)
os.rename("old.h5", "old.weights.h5")
for name in ("old.weights.h5",):
    third = made()
    third.load_weights(name)
    assert (third.predict(x, verbose=0) == wanted).all()
os.rename("old.weights.h5", "old.h5")
made().load_weights("old.h5")
made().load_weights("old.h5", by_name=True)
"""


@pytest.mark.slow
def test_names_of_keras_are_what_they_were(tmp_path: Path) -> None:
    ended = take(tmp_path, KERAS)
    assert ended.returncode == 0, ended.stderr
    assert sorted(said(ended)) == sorted(
        [
            *("keras.utils.np_utils", "keras.layers.core", "keras.layers.advanced_activations"),
            *("keras.layers.convolutional", "lr=", "acc", "workers=", "ModelCheckpoint('x.hdf5')"),
            *("save_weights('x.h5')", "load_weights('x.h5')"),
            *("fit_generator", "evaluate_generator", "predict_generator"),
        ]
    )
