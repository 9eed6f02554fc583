"""A plain Keras script, as one has it: nothing in it knows of MLflow, or of the pipeline."""

import argparse
from pathlib import Path

import keras
import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True, help="folder with digits.npz")
parser.add_argument("--epochs", type=int, default=10)
args = parser.parse_args()

data = np.load(Path(args.data) / "digits.npz")
images, labels = data["images"] / 16, data["labels"]

model = keras.Sequential(
    [
        keras.Input((8, 8)),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(images, labels, validation_split=0.2, epochs=args.epochs, verbose=2)

print("best val_accuracy:", max(history.history["val_accuracy"]))
Path("outputs").mkdir(exist_ok=True)
model.save("outputs/digits.keras")
