"""A program's own MLflow, in all the ways in which its points would end in another run, or in an error."""

from pathlib import Path

import mlflow
import pytest

from tests.launched import Launched

pytestmark = pytest.mark.slow

SCRIPT = """
import mlflow, os, numpy as np
mlflow.set_tracking_uri("http://127.0.0.1:1")
mlflow.set_experiment("mine")
mlflow.autolog()
with mlflow.start_run(run_name="x"):
    mlflow.log_param("epochs", 9)
    mlflow.log_params({"epochs": 7, "more": 1})
    for step in range(3):
        mlflow.log_metric("score", step, step=step)
    with mlflow.start_run(nested=True, run_name="child"):
        mlflow.log_metric("score", 5)
mlflow.log_metrics({"loss": 1.0, "score": 9.0}, step=1)
mlflow.end_run()
with mlflow.start_run(nested=True, run_name="child 2"):
    mlflow.log_param("epochs", 3)
with mlflow.start_run() as run:
    mlflow.set_tag("block", run.info.run_id)
    open("f.txt", "w").write("x")
    mlflow.log_artifact("f.txt")
import keras
mlflow.keras.autolog()
mlflow.log_metric("mae", 7.0, step=9)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse", metrics=["mae", "mape"], run_eagerly=True)
curves = model.fit(np.ones((8, 4)), np.zeros(8), epochs=2, verbose=0).history
for step in range(2):
    mlflow.log_metric("mape", curves["mape"][step], step=step + 1)
    mlflow.log_metrics({name: curve[step] for name, curve in curves.items()}, step=step)
mlflow.log_metric("mape", -1.0, step=1)
mlflow.keras.log_model(model, name="model", pip_requirements=["keras"])
print(os.environ.get("MLFLOW_RUN_ID"))
"""


def test_blocks_experiments_and_what_was_logged_before_end_in_the_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("pipeline", artifact_location=(tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    client.log_param(run_id, "epochs", 5)
    client.log_metric(run_id, "score", 0, step=0)
    known = {"run_id": run_id, "logged": [["score", 0]], "params": {"epochs": "5"}}
    environment = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_RUN_ID": run_id, "GIT_PYTHON_REFRESH": "quiet"}

    ended = Launched(folder, tmp_path, {"run": known}, environment).run("train.py")
    assert ended.returncode == 0, ended.stderr
    for said in (
        "set_tracking_uri()",
        "set_experiment('mine')",
        "mlflow.autolog()",
        "mlflow.keras.autolog()",
        "'9' is",
        "mape was logged at each epoch already",
    ):
        assert ended.stderr.count(said) == 1, said
    # What MLflow copies to the logged model, and what a child logs, are no points of the run.
    assert ended.of("metric") == [
        {"key": "score", "step": 1},
        {"key": "score", "step": 2},
        {"key": "loss", "step": 1},
        {"key": "score", "step": 1},
        # The program's own before the fit: all of them are. Of those that the fit has told, what is new alone.
        {"key": "mae", "step": 9},
        *({"key": name, "step": step} for step in range(2) for name in ("loss", "mae")),
        {"key": "mape", "step": 1},
    ]
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"epochs": "5", "more": "1"}
    assert run.data.tags["block"] == run_id
    points = [(each.step, each.value) for each in client.get_metric_history(run_id, "score")]
    assert sorted(points) == [(0, 0.0), (1, 1.0), (1, 9.0), (2, 2.0)]
    assert [each.path for each in client.list_artifacts(run_id)] == ["f.txt"]
    assert len(run.outputs.model_outputs) == 1
    others = [each for each in client.search_runs([experiment]) if each.info.run_id != run_id]
    assert {each.info.run_name for each in others} == {"child", "child 2"}
    assert {(each.data.tags["mlflow.parentRunId"], each.info.status) for each in others} == {(run_id, "FINISHED")}
    assert {each.name for each in client.search_experiments()} == {"Default", "pipeline"}
    assert not client.search_runs(["0"])
