"""Write train.csv and test.csv, the 442 patients of scikit-learn's diabetes data: `python make_data.py FOLDER`."""

import sys
from pathlib import Path

from sklearn.datasets import load_diabetes

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
patients = load_diabetes(as_frame=True, scaled=False).frame.sample(frac=1, random_state=0)
patients[:353].to_csv(folder / "train.csv", index=False)
patients[353:].to_csv(folder / "test.csv", index=False)
