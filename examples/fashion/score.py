"""Tell of every test image whether each model has it right: a CSV with the columns model, item and right."""

import argparse
import csv
from pathlib import Path

import keras
from images import read_images

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER", help="once for each model")
parser.add_argument("--data-folder", type=Path, required=True)
parser.add_argument("--output", required=True)
args = parser.parse_args()

folder = args.data_folder / "test"
images = read_images(folder, shuffle=False)
items = [Path(path).relative_to(folder).as_posix() for path in images.file_paths]
labels = [images.class_names.index(item.split("/")[0]) for item in items]

with open(args.output, "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["model", "item", "right"])
    for name, _, model_folder in (model.partition("=") for model in args.model):
        model = keras.saving.load_model(next(Path(model_folder).rglob("*.keras")))
        predicted = model.predict(images, verbose=0).argmax(axis=1)
        rows.writerows((name, *row) for row in zip(items, (predicted == labels).astype(int), strict=True))
