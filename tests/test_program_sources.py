"""What is known of a program by reading its sources: nothing of it is run."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from infra.errors import ArgumentError, ProgramInvalid
from tasks.program import read_program
from tasks.program_sources import Sources, key_packages, module_distributions, read_sources

Read = Callable[..., Sources]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads the sources of a program of these files, started by the first."""

    def read(files: Mapping[str, str] | str, command: str = "") -> Sources:
        files = {"train.py": files} if isinstance(files, str) else dict(files)
        if command:
            files["MLproject"] = f"entry_points:\n  main:\n    command: {command}\n"
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return read_sources(read_program(tmp_path, None if command else next(iter(files))))

    return read


IMPORTS = """\
from __future__ import annotations
import os, collections.abc
import numpy as np
from typing import TYPE_CHECKING
from tensorflow import keras
import neighbour
from pack import part
if TYPE_CHECKING:
    import only_types
try:
    import maybe
except ImportError:
    maybe = None
try:
    import surely
finally:
    pass
with open(os.devnull):
    import within
if os.name == "nt":
    import winreg_of_others
def main():
    import mlflow, late
if __name__ == "__main__":
    import at_start
"""


def test_what_is_imported_where_and_whether_the_program_needs_it(read: Read) -> None:
    files = {
        "src/train.py": IMPORTS,
        "src/neighbour.py": "import sklearn\nif __name__ == '__main__':\n    import not_here",
        "src/pack/__init__.py": "from . import other",
        "src/pack/part.py": "from ..neighbour import x\nimport deep",
        "src/pack/other.py": "",
        "unreached.py": "this is no Python",
    }
    sources = read(files)
    assert set(sources.files) == set(files) - {"unreached.py"}
    assert dict(sources.needed) == {
        "numpy": "src/train.py:3",
        "tensorflow": "src/train.py:5",
        "keras": "src/train.py:5",
        "surely": "src/train.py:15",
        "within": "src/train.py:19",
        "at_start": "src/train.py:25",
        "sklearn": "src/neighbour.py:1",
        "deep": "src/pack/part.py:2",
    }
    assert sources.imports == {*sources.needed, "maybe", "winreg_of_others", "mlflow", "late", "not_here"}
    assert (sources.uses_mlflow, sources.uses_keras) == (True, True)
    assert sources.import_ahead == ("numpy", "tensorflow", "keras")
    with pytest.raises(ArgumentError) as caught:
        sources.check({*module_distributions(), "at_start", "deep", "surly", "within"})
    assert str(caught.value).startswith("src/train.py:15: it imports surely, which is neither")
    assert "Did you mean surly?" in str(caught.value)


def test_modules_are_looked_for_where_python_does(read: Read) -> None:
    files = {"src/train.py": "import elsewhere", "lib/elsewhere.py": "import deep"}
    assert set(read(files).needed) == {"elsewhere"}
    assert set(read({**files, "src/train.py": "import sys\nsys.path.append('lib')\nimport elsewhere"}).needed) == {
        "deep"
    }
    assert set(read({**files, "src/train.py": "import elsewhere"}, "PYTHONPATH=lib python src/train.py").needed) == {
        "deep"
    }
    # A folder of modules without an __init__.py is one too.
    assert read({"train.py": "import space.inner", "space/inner/a.py": ""}).needed == {}
    package = {"pkg/__init__.py": "", "pkg/__main__.py": "from . import core", "pkg/core.py": "import pkg.more, deep"}
    assert read(package, "python -m pkg").needed == {"deep": "pkg/core.py:1"}
    assert read(package, "python -m gone").needed == {"gone": "MLproject"}
    assert read({"train.py": "import deep"}, "python ./train.py").needed == {"deep": "train.py:1"}


def test_a_syntax_error_is_refused_with_its_line_wherever_the_entry_reaches(read: Read) -> None:
    sources = read({"train.py": "import lib.model\n", "lib/model.py": "x = 1\ndef f(:\n", "old.py": "print 1"})
    with pytest.raises(ArgumentError, match=r"^lib/model.py:2: invalid syntax\n    def f\(:$"):
        sources.check()
    with pytest.raises(ArgumentError, match=r"train.py:1: a script cannot import by a name that begins with a dot"):
        read("from .lib import model").check()
    with pytest.raises(ArgumentError, match=r"train.py:1"):
        read("x = 1\0").check()
    # As it may be right in the Python that it asks for.
    read({"train.py": "def f(:", "python_env.yaml": "python: '3.99'"}).check()


def test_nothing_is_run_and_any_encoding_is_read(read: Read, tmp_path: Path) -> None:
    (tmp_path / "lib.py").write_bytes(b"# coding: latin-1\nx = '\xe9'\nimport numpy\n")
    sources = read("import lib\nopen('trace', 'w')\nx = '\\d'")
    sources.check()
    assert sources.imports == {"numpy"}
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import os\nos.environ['TF_DETERMINISTIC_OPS'] = '1'", {"TF_DETERMINISTIC_OPS"}),
        ("from os import environ as e\ne.setdefault('KERAS_BACKEND', 'jax')", {"KERAS_BACKEND"}),
        (
            "import os\nos.environ.update({'XLA_FLAGS': ''}, CUDA_VISIBLE_DEVICES='')",
            {"XLA_FLAGS", "CUDA_VISIBLE_DEVICES"},
        ),
        ("import os\nos.environ |= {'TF_X': '1'}", {"TF_X"}),
        ("import os\nos.putenv('TF_X', '1')\ndel os.environ['TF_Y']", {"TF_X", "TF_Y"}),
        ("import os\nfor n in []:\n    os.environ[n] = '1'", {"*"}),
        ("import dotenv\ndotenv.load_dotenv()", {"*"}),
        ("import os\nos.environ['HOME'] = '1'\nx = os.environ['TF_X']", set()),
    ],
)
def test_nothing_is_imported_ahead_of_variables_that_a_program_sets(read: Read, text: str, names: set[str]) -> None:
    sources = read(f"{text}\nimport keras")
    assert set(sources.sets_variables) == names
    assert sources.import_ahead == (() if names else ("keras",))


KERAS_2 = """\
import tensorflow as tf
from keras.utils import np_utils
keras = tf.keras
from tensorflow.keras.callbacks import EarlyStopping, ModelCheckpoint
model.compile(keras.optimizers.RMSprop(lr=0.1))
model.compile(keras.optimizers.Adam(learning_rate=0.1, decay=1e-6))
EarlyStopping(monitor="val_acc")
ModelCheckpoint("outputs/best.hdf5")
ModelCheckpoint("outputs/w.h5", save_weights_only=True)
history = model.fit(x, y, workers=4, use_multiprocessing=True)
history.history["val_acc"]
model.fit_generator(g, samples_per_epoch=10, nb_epoch=2)
model.predict_classes(x)
model.save_weights("outputs/w.h5")
model.save("outputs/folder")
keras.models.save_model(model, "outputs/m.h5", save_format="h5")
model.metrics_names[1]
"""


def test_what_keras_3_does_not_take_is_told_with_its_line(read: Read) -> None:
    found = [(str(finding.line), finding.text) for finding in read(KERAS_2).keras2_idioms]
    assert sorted(found, key=lambda place: int(place[0])) == [
        ("2", "Keras 3 has no module keras.utils.np_utils. Write import from keras.utils."),
        ("5", "RMSprop takes no lr=. Write learning_rate=."),
        ("6", "Adam ignores decay=. Write a schedule of keras.optimizers.schedules as learning_rate=."),
        ("7", "Keras 3 calls no metric 'val_acc', and nothing happens by it. Write 'val_accuracy'."),
        ("8", "Keras 3 saves no model as outputs/best.hdf5. Write a name that ends in .keras."),
        ("9", "weights are saved as NAME.weights.h5 alone, and not as outputs/w.h5. Write 'NAME.weights.h5'."),
        ("10", "fit takes no use_multiprocessing, workers. Write them where the keras.utils.PyDataset is made."),
        ("11", "Keras 3 calls no metric 'val_acc', and it is a KeyError. Write 'val_accuracy'."),
        ("12", "Keras 3 has no fit_generator. Write model.fit."),
        (
            "12",
            "nb_epoch, samples_per_epoch: of Keras 1, and what today's arguments count is something else. "
            "Write epochs= and steps_per_epoch=, in batches.",
        ),
        ("13", "Keras 3 has no predict_classes. Write model.predict(x).argmax(axis=-1)."),
        ("14", "weights are saved as NAME.weights.h5 alone, and not as outputs/w.h5. Write 'NAME.weights.h5'."),
        ("15", "Keras 3 saves no model as a folder, such as outputs/folder. Write a name that ends in .keras."),
        ("16", "save_format= is refused. Write a name that ends in .keras, and leave it out."),
        ("17", "metrics_names[1] is compile_metrics in Keras 3. Write model.evaluate(..., return_dict=True)."),
    ]


def test_what_keras_3_takes_is_not_told_of(read: Read) -> None:
    good = """\
import keras, numpy as np
model.compile(keras.optimizers.Adam(learning_rate=0.1), metrics=["acc"])
keras.callbacks.EarlyStopping(monitor="val_acc")
keras.callbacks.ModelCheckpoint("outputs/best.keras")
keras.callbacks.ModelCheckpoint(f"outputs/{epoch}.weights.h5", save_weights_only=True)
model.fit(x, y).history["val_acc"]
np.save("folder", x)
model.save("outputs/model.keras")
"""
    assert read(good).warnings == ()
    assert read("import torch\nmodel.predict_classes(x)").warnings == ()
    old = "import keras\nmodel.predict_classes(x)\nmodel.save('outputs/m.h5')"
    assert len(read(old).warnings) == 1
    assert read(f"import os\nos.environ['TF_USE_LEGACY_KERAS'] = '1'\n{old}").warnings == ()
    for needs, told in (("tensorflow==2.15.*", 0), ("keras<3", 0), ("keras==3.10", 1), ("tensorflow", 1)):
        assert len(read({"train.py": old, "requirements.txt": needs}).warnings) == told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "model.save('model.keras')",
            "train.py:2: a model is saved as model.keras, where nothing looks for it. Save it as outputs/model.keras.",
        ),
        (
            "P = '/tmp/m.h5'\nmodel.save(P)",
            "train.py:3: a model is saved as /tmp/m.h5, where nothing looks for it. Save it as outputs/m.h5.",
        ),
        ("import os\nmodel.save(os.path.join('models', f'{n}.keras'))", "saved as models/{}.keras"),
        ("from keras.callbacks import ModelCheckpoint\nModelCheckpoint('best.keras')", "saved as best.keras"),
        ("model.fit(x)", "train.py:1: nothing in it saves a model"),
        ("model.save(args.output)", ""),
        ("model.save('a.keras')\nmodel.save('outputs/model.keras')", ""),
        ("import os\nmodel.save(os.environ['OUTPUTS_FOLDER'] + '/m.keras')", ""),
        ("import mlflow\nmlflow.keras.log_model(model, name='m')", ""),
        ("model.save('./outputs/m.keras')\nimage.save('x.png')", ""),
    ],
)
def test_a_model_that_will_not_be_found_is_told_of(read: Read, text: str, said: str) -> None:
    found = list(map(str, read(f"import keras\n{text}").saves_elsewhere))
    assert len(found) == bool(said)
    assert not said or said in found[0]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("from keras.datasets import mnist\nmnist.load_data()", "keras.datasets.mnist.load_data"),
        ("import tensorflow as tf\ntf.keras.datasets.imdb.load_data()", "keras.datasets.imdb.load_data"),
        ("from urllib.request import urlopen as u\nu('http://x')", "urllib.request.urlopen"),
        ("import requests\nrequests.get('http://x')", "requests.get"),
        ("import tensorflow_datasets as tfds\ntfds.load('x')", "tensorflow_datasets.load"),
        ("import keras\nkeras.utils.get_file('x')", "keras.utils.get_file"),
        ("import pandas as pd\npd.read_csv('https://x/a.csv')", "pandas.read_csv"),
        ("from keras.applications import ResNet50\nResNet50()", "keras.applications.ResNet50"),
        ("import pandas as pd\npd.read_csv('a.csv')", ""),
        ("from keras.applications import ResNet50\nResNet50(weights=None)", ""),
    ],
)
def test_data_that_sources_fetch_by_themselves_is_told_of(read: Read, text: str, name: str) -> None:
    found = list(map(str, read(text).fetches_data))
    assert len(found) == bool(name)
    assert not name or found[0].startswith(f"train.py:2: {name} fetches")


def test_the_key_names_what_the_sources_import_or_what_the_mlproject_says(tmp_path: Path, read: Read) -> None:
    sources = read("import keras\ndef f():\n    import sklearn, yaml, gone")
    packages = key_packages(read_program(tmp_path, "train.py"), sources)
    assert list(packages) == ["python", "keras", "numpy", "pyyaml", "scikit-learn", "tensorflow"]
    assert all(re.match(r"\d", version) for version in packages.values())
    assert list(key_packages(read_program(tmp_path, "train.py"), read("import os"))) == ["python"]
    (tmp_path / "MLproject").write_text("key_packages: [numpy]\nentry_points: {main: {command: python train.py}}")
    assert list(key_packages(read_program(tmp_path), sources)) == ["python", "numpy"]
    (tmp_path / "MLproject").write_text("key_packages: [nmpy]\nentry_points: {main: {command: python train.py}}")
    with pytest.raises(ProgramInvalid, match="names nmpy, which is not installed"):
        key_packages(read_program(tmp_path), sources)
