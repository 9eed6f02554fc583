"""Ten scripts in the ways that people wrote them for Azure ML, run as they are; what is in MLflow afterwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.settings import load_settings
from tasks.program import read_program
from tasks.program_training import Asked, program_training
from tests.pipeline import ROOT
from tests.runner_stage import Stage

pytestmark = pytest.mark.slow

SCRIPTS = ROOT / "tests" / "programs" / "azureml"
FOLDER = ("--data-folder", "{data_folder}")
CURVES = {"Loss": 3, "Accuracy": 3, "loss": 3, "accuracy": 3, "val_loss": 3, "val_accuracy": 3}

ARRIVED: dict[str, tuple[tuple[str, ...], dict[str, int], dict[str, str], set[str]]] = {
    "keras_sequential": (
        FOLDER,
        {**CURVES, "Final test loss": 1},
        {"old_spellings": "acc, lr=, save_weights('x.h5')", "model_kind": "keras", "continues": "epoch"},
        {"images/Loss v.s. Accuracy.png"},
    ),
    "keras_functional": (
        (),
        {"loss": 3, "val_accuracy": 3, "Validation accuracy": 3},
        {"old_spellings": "ModelCheckpoint('x.hdf5'), acc, lr=", "model_kind": "keras", "framework": "tf.keras"},
        {"tables/Validation accuracy.jsonl", "outputs/best.h5"},
    ),
    "tf_data": (
        FOLDER,
        {"loss": 2, "mean squared error": 1},
        {"old_spellings": "lr=", "model_kind": "keras"},
        {"outputs/network.h5"},
    ),
    "keras_generator": (
        (),
        {"loss": 2, "accuracy": 2, "result/acc": 1, "result/loss": 1},
        {
            "old_spellings": "acc, fit_generator, keras.layers.core, keras.layers.normalization, keras.utils.np_utils, "
            "lr=, numpy.float, numpy.int, save_weights('x.h5'), load_weights('x.h5')",
            "model_kind": "keras",
        },
        {"tables/result.jsonl"},
    ),
    "sklearn_joblib": (
        FOLDER,
        {"accuracy": 1, "regularization rate": 1},
        {"register_as": "points", "model_kind": "files", "model_path": "sklearn_points.joblib"},
        {"outputs/sklearn_points.joblib"},
    ),
    "sklearn_children": (
        (),
        {"depths/depth": 3, "depths/accuracy": 3, "best accuracy": 1},
        {"model_kind": "files"},
        {"outputs/tree.pkl", "tables/depths.jsonl"},
    ),
    "pipeline_step": (
        ("--input", "{data_folder}"),
        {"rows": 1, "weights": 2},
        {"step": "train", "register_as": "step-model", "model_kind": "files"},
        {"results/weights.npz"},
    ),
    "offline_guard": (
        (),
        {"test rows": 1},
        {"model_kind": "files", "continues": "none"},
        {"tables/Confusion matrix.json", "outputs/svc.joblib"},
    ),
    "tables": (
        (),
        {"means/label": 2, "means/a": 2, "means/b": 2, "Separation: a": 1},
        {"old_spellings": "numpy.float", "model_kind": "files"},
        {"tables/means.jsonl", "tables/classes.jsonl", "images/points.png", "images/saved.png"},
    ),
    "numpy_loop": (
        (),
        {"errors": 5, "rate": 5, "best epoch": 1},
        {
            "algorithm": "perceptron",
            "features": "2",
            "author": "someone",
            "verdict": "it learns",
            "register_as": "perceptron",
            "register_tags": '{"kind": "linear"}',
        },
        {"outputs/export/weights.npy"},
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, tuple[str, ...]], tuple[Stage, str]]:
    """Runs a script of the folder as `flows.train` ships it, with the data set `points`; the stage and the run's id."""
    stage = Stage(tmp_path_factory.mktemp("azureml"))
    numbers = np.random.default_rng(0).normal(size=(80, 2))
    rows = "\n".join(f"{a},{b},{int(a > 0)}" for a, b in numbers)
    points = stage.dataset("points", {"points.csv": f"a,b,label\n{rows}\n".encode()})
    settings = load_settings({"PIPELINE_HOME": str(stage.folder / "home")})

    def run(name: str, words: tuple[str, ...]) -> tuple[Stage, str]:
        program = read_program(SCRIPTS, f"{name}.py")
        bundle = stage.folder / name
        training = program_training(program, Asked(arguments=words), {"points": ""}, bundle, settings)
        run_id = stage.start_run()
        stage.run(training.shipped.parent, stage.order(run_id, {"points": points}))
        return stage, run_id

    return run


def files(stage: Stage, run_id: str, folder: str = "") -> set[str]:
    found: set[str] = set()
    for one in stage.client.list_artifacts(run_id, folder):
        found |= files(stage, run_id, one.path) if one.is_dir else {one.path}
    return found


@pytest.mark.parametrize("name", ARRIVED)
def test_a_script_runs_as_it_is_and_all_of_it_arrives(name: str, run: Any) -> None:
    words, metrics, tags, kept = ARRIVED[name]
    stage, run_id = run(name, words)
    found = stage.client.get_run(run_id).data
    for metric, points in metrics.items():
        assert len(stage.history(run_id, metric)) == points, metric
        assert [step for step, _ in stage.history(run_id, metric)][-1] in (points, points - 1)
    wanted = {key: sorted(text.split(", ")) if key == "old_spellings" else text for key, text in tags.items()}
    there = {key: sorted(text.split(", ")) if key == "old_spellings" else text for key, text in found.tags.items()}
    assert wanted.items() <= {key: there[key] for key in wanted if key in there}.items()
    assert ("old_spellings" in there) == ("old_spellings" in wanted)
    assert kept <= files(stage, run_id)
    assert f"| `{name}` |" in Path(ROOT, "docs", "from-azure-ml.md").read_text()
    if name == "sklearn_children":
        children = stage.client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{run_id}'")
        assert {one.info.run_name for one in children} == {"depth 1", "depth 2", "depth 3"}
        assert all(one.data.metrics.keys() == {"depth", "accuracy"} for one in children)
