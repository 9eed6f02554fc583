import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from azureml.core import Run

run = Run.get_context()
folder = run.input_datasets["points"].download(target_path="./data", overwrite=True)
points = pd.concat([pd.read_csv(path) for path in folder])
means = points.groupby("label").mean()
run.log_table("means", {"label": [0, 1], "a": means["a"].values, "b": means["b"].values})
run.log_list("classes", ["left", "right"])
fig, ax = plt.subplots()
ax.scatter(points["a"], points["b"], c=points["label"])
run.log_image(name="points", plot=fig)
fig.savefig("copy.png")
run.log_image("saved", "copy.png")
run.log("Separation: a", np.float(means["a"].diff().iloc[-1]))
os.makedirs("outputs", exist_ok=True)
means.to_pickle("outputs/means.pkl")
