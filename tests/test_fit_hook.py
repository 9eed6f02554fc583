"""Scripts that know nothing of checkpoints, killed in the middle of their fits, with real Keras in real processes."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launched import ENVIRONMENT, Ended, Launched

pytestmark = pytest.mark.slow


def numbered(ended: Ended) -> list[tuple[int, int]]:
    return [(each["fit"], each["epoch"]) for each in ended.of("epoch")]


@pytest.fixture
def launched(tmp_path: Path) -> Launched:
    folder = tmp_path / "program"
    folder.mkdir()
    shutil.copy(Path(__file__).parent / "fits.py", folder)
    return Launched(folder, tmp_path)


def test_a_killed_script_goes_on_and_ends_as_it_would_have_without_the_hook(launched: Launched) -> None:
    plain = subprocess.run(
        [sys.executable, "fits.py"], cwd=launched.folder, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert plain.returncode == 7, plain.stderr
    shutil.rmtree(launched.folder / "own", ignore_errors=True)

    # In fits whose model has no input shape, and two more optimizers; and after the last epoch of the last fit.
    seen: list[tuple[int, int]] = []
    for kill_at in (("checkpoint", 9, 1), ("checkpoint", 10, 1), ("checkpoint", 15, 2), None):
        ended = launched.run("fits.py", import_ahead=("keras",), kill_at=kill_at)
        seen += [each for each in numbered(ended) if each[0] != 13 or kill_at]
        assert ended.returncode == (-9 if kill_at else 7)
        assert "keras-at-scale:" not in ended.stderr
    assert ended.stdout == plain.stdout
    assert len(seen) == len(set(seen)) == 30
    fits: dict[int, Any] = {each["fit"]: each for each in ended.of("fit")}
    assert fits[4] == {"fit": 4, "epochs": 5, "initial_epoch": 5}


ODD = """
import os, sys
from pathlib import Path
import keras, numpy as np
images, labels = np.ones((8, 4)), np.ones((8, 1))

def model(units):
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dense(1)])
    made.compile("sgd", "mse", run_eagerly=True)
    return made

class Unsaved(keras.Sequential):
    def save_weights(self, *arguments, **options):
        raise RuntimeError("not this one")

usual = dict(verbose=0, batch_size=8)
print(model(int(sys.argv[1])).fit(images, labels, epochs=2, **usual).epoch)
print(model(2).fit(images, labels, epochs=2, **usual).epoch)
unsaved = Unsaved([keras.Input((4,)), keras.layers.Dense(1)])
unsaved.compile("sgd", "mse", run_eagerly=True)
print(unsaved.fit(images, labels, epochs=2, **usual).epoch)
large = model(1_800_000)
for _ in range(4):
    history = large.fit(images * 1e-6, labels, **usual)
print(history.history, float(abs(large.get_weights()[0]).sum()))
if sys.argv[2:]:
    Path(os.environ["CHECKPOINT_FOLDER"], "mine").write_text("what the program keeps")
"""


def test_what_cannot_be_used_is_said_and_no_script_ends_by_it(launched: Launched) -> None:
    (launched.folder / "odd.py").write_text(ODD)
    first = launched.run("odd.py", "3")
    assert first.returncode == 0, first.stderr
    said = [line for line in first.stderr.splitlines() if line.startswith("keras-at-scale:")]
    assert said == ["keras-at-scale: no further backup of fit 3: RuntimeError: not this one"]
    assert len(numbered(first)) == 10

    # What a loop of fits leaves is bounded: at most 32 MiB beside the last one.
    state = launched.taken / ".keras-fit"
    kept = sorted(path.parent.name for path in state.rglob("*.weights.h5"))
    assert kept == ["fit-1", "fit-2", "fit-7"]
    # Other layers; a file that is broken.
    (state / "fit-2" / "epoch-2.weights.h5").write_bytes(b"broken")
    second = launched.run("odd.py", "4", "keeps its own")
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout
    assert numbered(second) == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]
    said = [line.split(": ")[1] for line in second.stderr.splitlines() if line.startswith("keras-at-scale:")]
    assert said == [
        "the backup of fit 1 is not used, and it begins anew",
        "the backup of fit 2 is not used, and it begins anew",
        "no further backup of fit 3",
    ]

    # A program that keeps checkpoints itself knows where it goes on.
    (launched.taken / "mine").write_text("")
    (state / "history.json").write_text("{")
    third = launched.run("odd.py", "3")
    assert third.returncode == 0, third.stderr
    assert numbered(third) == numbered(first)
    assert "what was kept of earlier fits cannot be read" in third.stderr
