"""Tell by how much each model misses each row of test.csv: a CSV with the columns model, item and loss."""

import argparse
import csv
from pathlib import Path

import keras
from table import read_table

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER", help="once for each model")
parser.add_argument("--data-folder", type=Path, required=True)
parser.add_argument("--output", required=True)
args = parser.parse_args()

inputs, targets = read_table(args.data_folder / "test.csv")
with open(args.output, "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["model", "item", "loss"])
    for name, _, folder in (model.partition("=") for model in args.model):
        model = keras.saving.load_model(next(Path(folder).rglob("*.keras")))
        losses = (model.predict(inputs, verbose=0) - targets) ** 2
        rows.writerows((name, item, loss) for item, loss in enumerate(losses[:, 0].tolist()))
