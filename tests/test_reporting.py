"""The outcome as JSON, and as a notebook shows it."""

import math
import re
from base64 import b64decode
from xml.etree import ElementTree

from flows.learning_curve import learning_curve
from flows.reporting import MnistReport, TrainingReport, summary

FACTS = {
    "run_id": "r",
    "model_name": "some-model",
    "model_version": 3,
    "model_uri": "models:/some-model/3",
    "model_folder": "model",
    "dataset": "some data",
    "dataset_sha256": "1" * 64,
    "training_key": "2" * 64,
    "weights_sha256": None,
    "champion": None,
    "decided": True,
    "champion_decision": "Version 3 became champion: there was none",
    "reused": False,
    "epoch_seconds": 1.5,
    "seconds": {"train": 2.0},
    "phases": {"running": 1.0},
    "page": "# A report",
}


def test_a_report_is_json_lines_and_markdown() -> None:
    metrics = {"loss": 0.25, "objective": 0.75, "val_accuracy": 0.75}
    report = TrainingReport(**FACTS, metrics=metrics, objective_metric="val_accuracy")  # type: ignore[arg-type]
    facts = report.as_dict()
    assert facts["metrics"] == metrics
    assert "page" not in facts
    assert report._repr_markdown_() == "# A report"
    assert "some-model version 3: best val_accuracy 0.75, some data\n" in summary(report)


def test_the_digit_classifiers_figures_have_names_of_their_own() -> None:
    metrics = {"best_val_accuracy": 0.5, "test_accuracy": 0.25, "test_loss": 2.0, "loss": 1.0}
    report = MnistReport(**FACTS, metrics=metrics)  # type: ignore[arg-type]
    facts = report.as_dict()
    assert "metrics" not in facts
    assert (facts["validation_accuracy"], facts["test_accuracy"], facts["test_loss"]) == (0.5, 0.25, 2.0)
    assert "test accuracy 0.2500 (validation 0.5000)" in summary(report)


def test_the_learning_curve_is_drawn_with_losses_apart() -> None:
    curve = learning_curve(
        {
            "loss": [(1, 2.0), (2, 1.0), (3, math.nan)],
            "val_accuracy": [(1, 0.5), (2, 0.75)],
            "a<b": [(1, 0.1), (2, 0.2)],
            "once": [(1, 1.0)],
        }
    )
    drawings = [ElementTree.fromstring(b64decode(data)) for data in re.findall(r'base64,([^"]+)"', curve)]
    texts = [{text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")} for drawing in drawings]
    assert len(drawings) == 2
    assert {"loss", "1", "2"} <= texts[0]
    assert {"val_accuracy", "a<b", "0.75", "0.1"} <= texts[1]
    assert learning_curve({"once": [(1, 1.0)]}) == ""
