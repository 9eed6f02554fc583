"""Several saved models on one test set: scored by the same code, in one process, to be compared image by image."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .dataset import read_files, test_set_sha256
from .dataset_files import CLASSES, TEST_IMAGES, TEST_LABELS
from .model import Evaluation, evaluate
from .predict import load_model


@dataclass(frozen=True)
class Scores:
    """How models do on the same images."""

    test_set_sha256: str
    labels: np.ndarray
    """uint8, shape (n,)."""
    evaluations: Mapping[str, Evaluation]
    """By the name that each model was given."""

    def as_dict(self) -> dict[str, object]:
        """For JSON; `right` holds a bit for each image, 1 where the model is right, as hexadecimal digits."""
        images = np.bincount(self.labels, minlength=CLASSES)
        models = {}
        for name, evaluation in self.evaluations.items():
            right = evaluation.predictions == self.labels
            models[name] = {
                "accuracy": evaluation.accuracy,
                "loss": evaluation.loss,
                "right_per_digit": np.bincount(self.labels[right], minlength=CLASSES).tolist(),
                "right": np.packbits(right).tobytes().hex(),
            }
        return {
            "test_set_sha256": self.test_set_sha256,
            "images": len(self.labels),
            "images_per_digit": images.tolist(),
            "models": models,
        }


def score(model_folders: Mapping[str, Path], data_uri: str) -> Scores:
    """Evaluate the model in each folder on the test set under `data_uri`.

    Raises `ProgramError` if a model cannot be loaded, `BadDataset` if the data set is not what it must be.
    """
    arrays, entries = read_files(data_uri)
    images, labels = arrays[TEST_IMAGES], arrays[TEST_LABELS]
    evaluations = {name: evaluate(load_model(folder), images, labels) for name, folder in model_folders.items()}
    return Scores(test_set_sha256(entries), labels, evaluations)
