"""What is tortured: programs that are trained, how each is asked for, and what its result may differ by."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra.compute.runner.manifest import file_entry
from tests.pipeline import ROOT
from tests.small_dataset import write_catalog, write_small_dataset

EPOCHS = 30
"""Of the subjects that faults strike, each of about 0.1 s, so that a kill can fall into any of them."""

LARGE_BYTES = 25_000_000
"""Sent to S3 in parts, of 5 MiB, which take long enough to be seen."""


@dataclass(frozen=True)
class Subject:
    """A program, and how it is asked for."""

    name: str
    """Of the subject, of its data set in the catalog, of the experiment and of the model."""
    flags: tuple[str, ...]
    make_data: Callable[[Path], None]
    """Writes its data set into a folder."""
    epochs: int = EPOCHS
    module: str = "flows.train"
    """The flow, a module that is a command."""
    words: tuple[str, ...] = ()
    """What a script itself takes."""
    grade: str = "exact"
    """How it continues: exact or, with its data in another order from then on, epoch."""
    metric: str = "val_accuracy"
    """Its objective."""
    best: str = ""
    """How it prints the best value of `metric`, found in its `History`."""
    in_folders: bool = False
    """Its data set has folders, and is given as a folder; others are files of a mirror, named in a catalog."""

    def command(self, data: Path, *more: str) -> list[str]:
        """The flags of its flow, and `more`; `data` is the folder that `make_data` wrote."""
        given = str(data) if self.in_folders else self.name
        asked = [] if self.module == "flows.train_mnist" else [f"--data={given}"]
        return [*asked, *self.flags, *more, *(["--", *self.words] if self.words else [])]

    def write_catalog(self, path: Path, data: Path, mirror: str) -> None:
        """Write a catalog that knows the data set, and where it is downloaded."""
        if self.module == "flows.train_mnist":
            write_catalog(path, data, self.name, (mirror,))
            return
        lines = []
        if not self.in_folders:
            entries = [file_entry(file, file.name) for file in sorted(data.iterdir())]
            files = [f'"{one.name}" = {{ size = {one.size}, sha256 = "{one.sha256}" }}' for one in entries]
            lines = [f"[{self.name}]", f"mirrors = ['{mirror}']", f"[{self.name}.files]", *files]
        path.write_text("\n".join(lines) + "\n")


def _written_by(script: str, *words: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        subprocess.run([sys.executable, ROOT / script, folder, *words], check=True, capture_output=True)

    return write


def _points(folder: Path) -> None:
    _written_by("tests/programs/counter/points.py")(folder)
    (folder / "unread.bin").write_bytes(np.random.default_rng(0).bytes(LARGE_BYTES))


def _images(folder: Path) -> None:
    write_small_dataset(folder, training_images=9_000, test_images=1_000)  # As many as exceed 5 MiB packed.


COUNTER = Subject(
    "counter",
    (f"--program={ROOT / 'tests/programs/counter'}", f"--param=epochs={EPOCHS}", "--param=seconds=0.1"),
    _points,
)
"""NumPy alone, and the same to the bit."""

MNIST = Subject(
    "mnist",
    (
        *("--experiment=mnist", "--model-name=mnist", f"--epochs={EPOCHS}", "--batch-size=50"),
        *("--validation-images=500", "--first-layer-neurons=256", "--second-layer-neurons=64"),
    ),
    _images,
    module="flows.train_mnist",
)
"""Keras, and the same to the bit."""

SUBJECTS = {
    one.name: one
    for one in (
        COUNTER,
        MNIST,
        Subject(
            "keras-script",
            (f"--program={ROOT / 'examples/keras-script'}", "--entry=train.py", "--seed=0"),
            _written_by("examples/keras-script/make_data.py"),
            epochs=6,
            words=("--data", "{data_folder}", "--epochs", "6"),
            grade="epoch",
            best=r"best val_accuracy: (\S+)",
        ),
        Subject(
            "fashion",
            (f"--program={ROOT / 'examples/fashion'}", "--param=epochs=5", "--seed=0"),
            _written_by("examples/fashion/make_data.py", "--per-class=50"),
            epochs=5,
            grade="epoch",
            in_folders=True,
        ),
        Subject(
            "tabular",
            (f"--program={ROOT / 'examples/tabular'}", "--param=epochs=20", "--seed=0"),
            _written_by("examples/tabular/make_data.py"),
            epochs=20,
            grade="epoch",
            metric="val_loss",
        ),
    )
}
"""By name; those with fewer epochs are killed, and no fault strikes them."""
