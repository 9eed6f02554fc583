"""What a deployment's form says of each parameter, and what the server refuses by it before there is a run."""

from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import validate

from flows.form import completed
from flows.train_mnist import train_mnist


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return completed(train_mnist.parameters.model_dump(), {"mnist", "mnist-5k"})


def test_each_field_tells_its_bounds_and_choices(schema: dict[str, Any]) -> None:
    hyperparameters = schema["definitions"]["Hyperparameters"]["properties"]
    assert hyperparameters["epochs"]["description"].endswith("At least 1, at most 1,000.")
    assert hyperparameters["learning_rate"]["description"].endswith("Above 0, at most 1.")
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
