"""The programs that are shipped as examples, and the one that other tests train, run without the pipeline."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mlflow_server import MlflowServer
from tests.pipeline import ROOT, wait_until

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
COUNTER = ROOT / "tests" / "programs" / "counter"


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a script of Python as a person does, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def score(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The counter's data."""
    folder = tmp_path_factory.mktemp("points")
    run(COUNTER / "points.py", folder, cwd=folder)
    return folder


def test_the_counter_starts_at_once() -> None:
    code = "import counter, sys; print(sorted({'mlflow', 'keras', 'tensorflow', 'pandas'} & set(sys.modules)))"
    assert run("-c", code, cwd=COUNTER) == "[]\n"


def test_the_counter_killed_anywhere_ends_with_the_same_bytes_and_metrics(points: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    server = MlflowServer(tmp_path / "mlflow")
    server.start()
    try:
        client = MlflowClient(server.uri)
        ran = {}
        for name in ("killed", "whole"):
            (tmp_path / name).mkdir()
            run_id = client.create_run("0").info.run_id
            checkpoints = tmp_path / name / "checkpoints"
            told = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_RUN_ID": run_id, "CHECKPOINT_FOLDER": str(checkpoints)}
            arguments = (str(COUNTER / "counter.py"), "--data-folder", str(points), "--epochs", "6")
            if name == "killed":
                slow = [sys.executable, *arguments, "--seconds", "0.3"]
                process = subprocess.Popen(slow, cwd=tmp_path / name, env={**os.environ, **told})
                wait_until((checkpoints / "state.npz").exists, 60, "a checkpoint")
                process.kill()
                process.wait()
            said = run(*arguments, cwd=tmp_path / name, **told)
            assert ("epoch 1 of 6" in said) == (name == "whole")
            history = {key: client.get_metric_history(run_id, key) for key in ("loss", "val_accuracy")}
            ran[name] = (
                (tmp_path / name / "outputs" / "model" / "weights.npz").read_bytes(),
                {key: [(point.step, point.value) for point in found] for key, found in history.items()},
            )
    finally:
        server.kill()
    assert ran["killed"] == ran["whole"]
    assert [step for step, _ in ran["whole"][1]["loss"]] == [1, 2, 3, 4, 5, 6]


def test_the_counter_learns_and_scores_and_its_arguments_count(points: Path, tmp_path: Path) -> None:
    weights = {}
    for name, arguments in {"short": ("1", "0"), "long": ("20", "0"), "other": ("20", "1")}.items():
        flags = ("--epochs", arguments[0], "--seed", arguments[1], "--data-folder", points)
        run(COUNTER / "counter.py", *flags, cwd=tmp_path, OUTPUTS_FOLDER=str(tmp_path / name))
        weights[name] = (tmp_path / name / "model" / "weights.npz").read_bytes()
    assert len(set(weights.values())) == 3
    models = [word for name in weights for word in ("--model", f"{name}={tmp_path / name}")]
    run(COUNTER / "score.py", *models, "--data-folder", points, "--output", "score.csv", cwd=tmp_path)
    rows = score(tmp_path / "score.csv")
    right = {name: sum(int(row["right"]) for row in rows if row["model"] == name) for name in weights}
    assert len(rows) == 3 * 200
    assert right["long"] > right["short"] > 100
    # Without a folder it draws the very same points.
    run(COUNTER / "counter.py", "--epochs", "20", cwd=tmp_path)
    assert (tmp_path / "outputs" / "model" / "weights.npz").read_bytes() == weights["long"]


def test_mlflow_runs_the_counter_by_its_mlproject(points: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    words = ("-m", "mlflow", "run", COUNTER, "--env-manager", "local", "-P", f"data_folder={points}", "-P", "epochs=2")
    told = {
        "MLFLOW_TRACKING_URI": uri,
        "OUTPUTS_FOLDER": str(tmp_path / "outputs"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    run(*words, cwd=tmp_path, **told)
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (found,) = client.search_runs(["0"])
    assert found.info.status == "FINISHED"
    assert found.data.params["epochs"] == "2"
    # Two epochs are known there, so that a third one alone is logged.
    run(COUNTER / "counter.py", "--epochs", "3", cwd=tmp_path, MLFLOW_RUN_ID=found.info.run_id, **told)
    assert [point.step for point in client.get_metric_history(found.info.run_id, "loss")] == [1, 2, 3]


def test_the_examples_train_and_score(tmp_path: Path) -> None:
    """All in one process, for the import of TensorFlow takes longer than they do."""
    digits, fashion, diabetes = (str(tmp_path / f"data-{name}") for name in ("digits", "fashion", "diabetes"))
    steps = [
        ("keras-script", "make_data.py", digits),
        ("keras-script", "train.py", "--data", digits, "--epochs", "2"),
        ("fashion", "make_data.py", fashion, "--per-class", "30"),
        ("fashion", "train.py", "--data-folder", fashion, "--epochs", "1"),
        ("fashion", "train.py", "--data-folder", fashion, "--epochs", "2"),
        (
            "fashion",
            "score.py",
            "--model",
            "a=outputs",
            "--model",
            "b=.",
            "--data-folder",
            fashion,
            "--output",
            "a.csv",
        ),
        ("tabular", "make_data.py", diabetes),
        ("tabular", "train.py", "--data-folder", diabetes, "--epochs", "2"),
        ("tabular", "score.py", "--model", "a=outputs", "--data-folder", diabetes, "--output", "a.csv"),
    ]
    code = f"""
import json, os, runpy, sys
for example, script, *arguments in json.loads({json.dumps(steps)!r}):
    folder = os.path.join({str(EXAMPLES)!r}, example)
    here = os.path.join({str(tmp_path)!r}, example)
    os.makedirs(here, exist_ok=True)
    os.chdir(here)
    os.environ["CHECKPOINT_FOLDER"] = os.path.join(here, "checkpoint")
    sys.path[0], sys.argv = folder, [script, *arguments]
    print("----", example, script, flush=True)
    runpy.run_path(os.path.join(folder, script), run_name="__main__")
"""
    said = run("-c", code, cwd=tmp_path, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'mlflow.db'}")
    parts = dict(part.split("\n", 1) for part in said.split("---- ")[1:] if "train" in part)
    assert "best val_accuracy:" in parts["keras-script train.py"]
    # The second training of two epochs goes on after the first one's only epoch.
    assert "Epoch 2/2" in parts["fashion train.py"]
    assert "Epoch 1/2" not in parts["fashion train.py"]
    rows = score(tmp_path / "fashion" / "a.csv")
    assert len(rows) == 2 * 60
    assert {row["right"] for row in rows} <= {"0", "1"}
    assert [row["item"] for row in rows[:60]] == [row["item"] for row in rows[60:]]
    losses = score(tmp_path / "tabular" / "a.csv")
    assert len(losses) == 89
    assert all(float(row["loss"]) >= 0 for row in losses)

    from mlflow import MlflowClient

    (found,) = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_runs(["0"])
    assert set(found.data.metrics) == {"loss", "mae", "val_loss", "val_mae"}
