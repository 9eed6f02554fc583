"""The tutorial's recipe, written plainly in today's Keras: the yardstick for our training.

    python -m tests.benchmarks.plain_script --data-folder FOLDER [--epochs 20] [--seed 0] [--output FILE.keras]

What it does like the tutorial, and we do not: pixels as float64 arrays, one-hot labels, no validation images of its
own (it looks at the test set after each epoch), the last epoch's weights, no checkpoint.
"""

import argparse
import gzip
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np


def load(path: Path, header: int) -> np.ndarray:
    """The bytes of a gzipped IDX file after its header, as uint8."""
    with gzip.open(path) as file:
        return np.frombuffer(file.read()[header:], np.uint8)


parser = argparse.ArgumentParser()
parser.add_argument("--data-folder", type=Path, required=True)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", type=Path)
options = parser.parse_args()
keras.utils.set_random_seed(options.seed)

x_train = load(options.data_folder / "train-images-idx3-ubyte.gz", 16).reshape(-1, 784) / 255.0
x_test = load(options.data_folder / "t10k-images-idx3-ubyte.gz", 16).reshape(-1, 784) / 255.0
y_train = keras.utils.to_categorical(load(options.data_folder / "train-labels-idx1-ubyte.gz", 8), 10)
y_test = keras.utils.to_categorical(load(options.data_folder / "t10k-labels-idx1-ubyte.gz", 8), 10)

model = keras.Sequential(
    [
        keras.Input((784,)),
        keras.layers.Dense(300, activation="relu"),
        keras.layers.Dense(100, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile(
    loss="categorical_crossentropy",
    optimizer=keras.optimizers.RMSprop(learning_rate=0.001),
    metrics=["accuracy"],
)


class EpochLines(keras.callbacks.Callback):  # type: ignore[misc]
    """Says how long each epoch took, validation included, in the lines that our program writes."""

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        values = "  ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
        seconds = time.perf_counter() - self.started
        sys.stdout.write(f"epoch {epoch + 1}/{options.epochs}  {values}  {seconds:.2f} s\n")
        sys.stdout.flush()


model.fit(
    x_train,
    y_train,
    batch_size=50,
    epochs=options.epochs,
    validation_data=(x_test, y_test),
    verbose=0,
    callbacks=[EpochLines()],
)
test_loss, test_accuracy = model.evaluate(x_test, y_test, verbose=0)
sys.stdout.write(f"test_loss {test_loss:.4f}  test_accuracy {test_accuracy:.4f}\n")
if options.output:
    model.save(options.output)
