"""What a deployment's form says of each parameter, and what the server refuses by it before there is a run."""

from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import validate

from flows.form import completed, program_form
from flows.train import train_program
from flows.train_mnist import train_mnist
from tasks.program import read_program


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return completed(train_mnist.parameters.model_dump(), {"mnist", "mnist-5k"})


def test_each_field_tells_its_bounds_and_choices(schema: dict[str, Any]) -> None:
    hyperparameters = schema["definitions"]["Hyperparameters"]["properties"]
    assert hyperparameters["epochs"]["description"].endswith("At least 1, at most 1,000.")
    assert hyperparameters["learning_rate"]["description"].endswith("At least 1e-06, at most 1.")
    assert schema["properties"]["recall_floor"]["description"].endswith("At least 0, at most 1.")
    assert schema["properties"]["dataset"]["enum"] == ["mnist", "mnist-5k"]
    assert schema["properties"]["gate"]["enum"] == ["better", "not-worse"]


def test_the_fields_keep_their_order_in_a_database_that_sorts_keys(schema: dict[str, Any]) -> None:
    for fields in (schema["properties"], schema["definitions"]["Hyperparameters"]["properties"]):
        assert [field["position"] for field in fields.values()] == list(range(len(fields)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"hyperparameters": {"epochs": 0}},
        {"hyperparameters": {"epochs": 2.5}},
        {"hyperparameters": {"epocs": 3}},
        {"recall_floor": 1.5},
        {"model_name": "no/name"},
        {"model_name": ".."},
        {"experiment": ".."},
        {"experiment": ""},
        {"dataset": "mnits"},
        {"gate": "always"},
        {"datset": "mnist"},
    ],
)
def test_wrong_values_and_unknown_keys_are_refused(schema: dict[str, Any], wrong: dict[str, Any]) -> None:
    assert validate(wrong, schema)


def test_the_defaults_are_taken(schema: dict[str, Any]) -> None:
    assert validate({name: field["default"] for name, field in schema["properties"].items()}, schema) == []


MLPROJECT = """
name: shapes
entry_points:
  main:
    parameters:
      data_folder: path
      epochs: {type: int, default: 10, min: 1, max: 1000, description: Passes over all images}
      learning_rate: {type: float, default: 1e-3, max: 0.1}
      filters: {type: int, default: 16, choices: [8, 16]}
      activation: {type: string, default: relu, choices: [relu, gelu], description: "Behind each layer."}
      flip: {type: bool, default: false}
      weights: {type: uri}
    command: >-
      python train.py {data_folder} {epochs} {learning_rate} {filters} {activation} {flip} {weights}
  other:
    command: python train.py
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program's folder."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "MLproject").write_text(MLPROJECT)
    (folder / "train.py").write_text("")
    return folder


def form_of(folder: Path, entry: str | None = None) -> dict[str, Any]:
    return program_form(train_program.parameters.model_dump(), read_program(folder, entry), entry)


def told(**changed: Any) -> dict[str, Any]:
    """The parameters of a run with those of the program that are changed."""
    return {"parameters": {"weights": "s3://here/weights", **changed}}


def test_a_programs_form_has_the_parameters_of_its_mlproject(folder: Path) -> None:
    parameters = form_of(folder)["properties"]["parameters"]
    fields = parameters["properties"]
    assert list(fields) == ["epochs", "learning_rate", "filters", "activation", "flip", "weights"]
    assert fields["epochs"] == {
        "title": "epochs",
        "type": "integer",
        "position": 0,
        "default": 10,
        "minimum": 1,
        "maximum": 1000,
        "description": "Passes over all images. At least 1, at most 1,000.",
    }
    assert (fields["learning_rate"]["type"], fields["learning_rate"]["default"]) == ("number", 0.001)
    assert (fields["filters"]["enum"], fields["activation"]["enum"]) == ([8, 16], ["relu", "gelu"])
    assert (fields["activation"]["description"], fields["flip"]["type"]) == ("Behind each layer.", "boolean")
    assert parameters["required"] == ["weights"]


def test_a_scripts_form_has_its_arguments_and_every_field_is_called_as_its_flag(folder: Path) -> None:
    form = form_of(folder, "train.py")
    assert "parameters" not in form["properties"]
    assert "arguments" in form["properties"]
    for fields in (form["properties"], form["definitions"]["ClusterOptions"]["properties"]):
        assert {name: field["title"] for name, field in fields.items()} == {name: name for name in fields}


def test_right_values_of_a_programs_form_are_taken(folder: Path) -> None:
    right = told(epochs=3, learning_rate=0, filters=8, activation="gelu", flip=True)
    settings = {"program": str(folder), "data": ["shapes"], "seed": 0, "gate": "metric", "gate_margin": 0.1}
    assert validate({**right, **settings}, form_of(folder)) == []
    assert validate({"program": str(folder), "entry": "other"}, form_of(folder, "other")) == []


@pytest.mark.parametrize(
    "wrong",
    [
        told(epochs=0),
        told(epochs=1001),
        told(epochs=2.5),
        told(epochs="many"),
        told(epocs=3),
        told(learning_rate=0.2),
        told(filters=12),
        told(activation="sigmoid"),
        told(flip="perhaps"),
        told(weights="here"),
        told(data_folder="elsewhere"),
        {"parameters": {"epochs": 3}},
        {"program": "/elsewhere"},
        {"entry": "other"},
        {"arguments": ["--epochs=3"]},
        {"seed": -1},
        {"seed": 2**32},
        {"gate": "always"},
        {"gate_margin": -0.1},
        {"model_name": "no/name"},
        {"cluster": {"gpus": -1}},
        {"epochs": 3},
    ],
)
def test_wrong_values_of_a_programs_form_are_refused(folder: Path, wrong: dict[str, Any]) -> None:
    assert validate(wrong, form_of(folder))
