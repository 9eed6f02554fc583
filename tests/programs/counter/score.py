"""Tell of every test point whether each model has it right: a CSV with the columns model, item and right."""

import argparse
import csv
from pathlib import Path

import numpy as np
from counter import probability
from points import read_points

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER", help="once for each model")
parser.add_argument("--data-folder", type=Path)
parser.add_argument("--output", type=Path, required=True)
args = parser.parse_args()

points, labels = read_points(args.data_folder, "test")
with args.output.open("w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["model", "item", "right"])
    for name, _, folder in (model.partition("=") for model in args.model):
        with np.load(next(Path(folder).rglob("weights.npz"))) as model:
            right = (probability(model["weights"], points) > 0.5) == labels
        rows.writerows((name, item, int(one)) for item, one in enumerate(right))
