"""Points of a plane in two classes, as training and scoring read them; `python points.py FOLDER` writes some."""

import sys
from pathlib import Path

import numpy as np


def read_points(folder: Path | None, part: str) -> tuple[np.ndarray, np.ndarray]:
    """The points, of shape (n, 2), and their classes, 0 or 1, in `train.csv` or `test.csv`; drawn without a folder."""
    table = draw_points(part) if folder is None else np.loadtxt(folder / f"{part}.csv", delimiter=",", ndmin=2)
    return table[:, :2], table[:, 2]


def draw_points(part: str) -> np.ndarray:
    """Two clouds that touch: x, y and the class of 200 points."""
    draw = np.random.default_rng(len(part))
    classes = np.arange(200) % 2
    return np.column_stack([draw.normal(size=(200, 2)) + 1.2 * classes[:, None], classes])


def write_points(folder: Path) -> None:
    """Write `train.csv` and `test.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        np.savetxt(folder / f"{part}.csv", draw_points(part), delimiter=",", fmt="%.17g")


if __name__ == "__main__":
    write_points(Path(sys.argv[1]))
