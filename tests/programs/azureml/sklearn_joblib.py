import argparse
import os

import joblib
import pandas as pd
from azureml.core.run import Run
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

run = Run.get_context()
parser = argparse.ArgumentParser()
parser.add_argument("--data-folder", type=str, dest="data_folder")
parser.add_argument("--reg", type=float, default=0.5)
args = parser.parse_args()
points = pd.read_csv(os.path.join(args.data_folder, "points.csv"))
x, x_test, y, y_test = train_test_split(points[["a", "b"]], points["label"], random_state=0)
model = LogisticRegression(C=1.0 / args.reg, solver="liblinear").fit(x, y)
run.log("regularization rate", float(args.reg))
run.log("accuracy", (model.predict(x_test) == y_test).mean())
os.makedirs("outputs", exist_ok=True)
joblib.dump(value=model, filename="outputs/sklearn_points.joblib")
registered = run.register_model(
    model_name="points", model_path="outputs/sklearn_points.joblib", tags={"area": "points"}, description="Two classes"
)
print(registered.name, registered.id, registered.version, sep="\t")
