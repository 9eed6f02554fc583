"""Tells of every test image whether each model has it right: a CSV with the columns model, item, right and group.

python -m digits.score --model NAME=FOLDER [--model NAME=FOLDER ...] --data-folder FOLDER --output FILE
"""

import argparse
import csv
import os
import sys
from pathlib import Path

import keras
import numpy as np

from .dataset import load_test_set
from .device import choose_device
from .errors import ProgramError
from .model import evaluate

SHOWN = 30


def load_model(folder: Path) -> keras.Model:
    """The network in the folder of an MLflow model; raises `ProgramError` if it cannot be loaded."""
    path = folder / "data" / "model.keras"
    if not path.is_file():
        raise ProgramError(f"There is no model to load: {path} does not exist.")
    try:
        # Keras's safe mode, on by default, refuses a file that would run code of its own.
        return keras.saving.load_model(path)
    except Exception as error:
        raise ProgramError(f"Cannot load the model {path}: {type(error).__name__}: {error}") from error


def comparison(labels: np.ndarray, predictions: np.ndarray) -> str:
    """Labels over their predictions, with a mark under each mistake."""
    pairs = list(zip(labels, predictions, strict=True))
    rows = {
        "label": [str(label) for label, _ in pairs],
        "predicted": [str(prediction) for _, prediction in pairs],
        "": [" " if label == prediction else "^" for label, prediction in pairs],
    }
    return "\n".join(f"{name:<10}" + " ".join(row) for name, row in rows.items()).rstrip()


def score(models: dict[str, Path], data_folder: Path, output: Path) -> None:
    """Write how the model in each folder does on the test set; of a single one, the first predictions are shown."""
    choose_device("cpu")  # As each training evaluated it, to the last digit.
    images, labels = load_test_set(data_folder)
    with output.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["model", "item", "right", "group"])
        for name, folder in models.items():
            found = evaluate(load_model(folder), images, labels)
            if len(models) == 1:
                print(comparison(labels[:SHOWN], found.predictions[:SHOWN]))
            print(f"{name:<12} test_loss {found.loss:.4f}  test_accuracy {found.accuracy:.4f}")
            right = (found.predictions == labels).astype(int)
            rows.writerows((name, item, one, f"digit {labels[item]}") for item, one in enumerate(right.tolist()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m digits.score", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER", help="once for each model")
    parser.add_argument("--data-folder", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    try:
        named = (model.partition("=") for model in args.model)
        score({name: Path(folder) for name, _, folder in named}, args.data_folder, args.output)
    except ProgramError as error:
        sys.stdout.flush()
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(error.exit_status)
    sys.stdout.flush()
    os._exit(0)  # TensorFlow takes up to a second to wind down.
