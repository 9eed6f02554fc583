import os

import numpy as np
from azureml.core import Model, Run, Workspace

run = Run.get_context(allow_offline=True)
run.set_tags({"algorithm": "perceptron", "features": 2})
run.add_properties({"author": "someone"})
mounted = run.input_datasets["points"].as_mount()
rows = np.genfromtxt(os.path.join(mounted, "points.csv"), delimiter=",", skip_header=1)
weights = np.zeros(2)
for epoch in range(5):
    errors = 0
    for a, b, label in rows:
        wrong = label - float(weights @ (a, b) > 0)
        weights += 0.1 * wrong * np.array([a, b])
        errors += abs(wrong)
    run.log("errors", errors)
    run.log("rate", np.float64(errors / len(rows)), step=epoch)
run.log("best epoch", int(np.argmin(run.get_metrics(name="errors")["errors"])))
run.log("verdict", "it learns")
os.makedirs("export", exist_ok=True)
np.save("export/weights.npy", weights)
Model.register(Workspace.from_config(), model_path="export", model_name="perceptron", tags={"kind": "linear"})
