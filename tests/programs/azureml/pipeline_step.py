import argparse
import os

import numpy as np
from azureml.core import Run

run = Run.get_context()
parser = argparse.ArgumentParser("train")
parser.add_argument("--input", type=str)
parser.add_argument("--output", type=str, default="step_output")
args = parser.parse_args()
os.makedirs(args.output, exist_ok=True)
rows = np.genfromtxt(os.path.join(args.input, "points.csv"), delimiter=",", skip_header=1)
weights = np.linalg.lstsq(rows[:, :2], rows[:, 2], rcond=None)[0]
np.savez(os.path.join(args.output, "weights.npz"), weights=weights)
run.parent.log("rows", len(rows))
run.parent.tag("step", "train")
run.log("weights", weights)
run.upload_folder(name="results", path=args.output)
run.parent.register_model("step-model", model_path="results")
