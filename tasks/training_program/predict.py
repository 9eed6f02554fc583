"""What a saved model says about the test set."""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from .dataset import read_files
from .dataset_files import TEST_IMAGES, TEST_LABELS
from .errors import ProgramError
from .model import evaluate, weights_sha256

MODEL_FILE = Path("data", "model.keras")
"""Where MLflow's Keras flavour puts the network, relative to the model's folder."""


@dataclass(frozen=True)
class Prediction:
    """What the model says about the test set."""

    labels: np.ndarray
    predictions: np.ndarray
    """Digits, like `labels` of shape (n,)."""
    test_accuracy: float
    weights_sha256: str

    def comparison(self, images: int) -> str:
        """The first `images` labels over their predictions, with a mark under each mistake."""
        pairs = list(zip(self.labels[:images], self.predictions[:images], strict=True))
        rows = {
            "label": [str(label) for label, _ in pairs],
            "predicted": [str(prediction) for _, prediction in pairs],
            "": [" " if label == prediction else "^" for label, prediction in pairs],
        }
        return "\n".join(f"{name:<10}" + " ".join(row) for name, row in rows.items()).rstrip()


def predict(model_folder: Path, data_uri: str) -> Prediction:
    """Predict the test set under `data_uri` with the model in `model_folder`.

    Raises `ProgramError` if the model cannot be loaded, `BadDataset` if the data set is not what it must be.
    """
    model = load_model(model_folder)
    arrays, _ = read_files(data_uri)
    evaluation = evaluate(model, arrays[TEST_IMAGES], arrays[TEST_LABELS])
    return Prediction(arrays[TEST_LABELS], evaluation.predictions, evaluation.accuracy, weights_sha256(model))


def load_model(folder: Path) -> keras.Model:
    """The network in the folder of an MLflow model; raises `ProgramError` if it cannot be loaded."""
    path = folder / MODEL_FILE
    if not path.is_file():
        raise ProgramError(f"There is no model to load: {path} does not exist.")
    try:
        # Keras's safe mode, on by default, refuses a file that would run code of its own.
        return keras.saving.load_model(path)
    except Exception as error:
        raise ProgramError(f"Cannot load the model {path}:\n{type(error).__name__}: {error}") from error
