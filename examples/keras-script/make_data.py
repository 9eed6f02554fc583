"""Write digits.npz, 1,797 images of digits of 8 x 8 pixels that scikit-learn ships: `python make_data.py FOLDER`."""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
np.savez(folder / "digits.npz", images=digits.images[order].astype("float32"), labels=digits.target[order])
