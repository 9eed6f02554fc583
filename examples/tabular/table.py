"""The table as training and scoring read it."""

from pathlib import Path

import numpy as np


def read_table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The inputs, float32 of shape (rows, columns - 1), and the targets (rows, 1): the last column of the CSV."""
    table = np.loadtxt(path, delimiter=",", skiprows=1, dtype="float32", ndmin=2)
    return table[:, :-1], table[:, -1:]
