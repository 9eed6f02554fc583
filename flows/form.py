"""What a deployment's form in the Prefect UI says and refuses, beyond what Prefect takes from the flow by itself."""

from collections.abc import Collection, Mapping
from typing import Any


def completed(schema: Mapping[str, Any], datasets: Collection[str]) -> dict[str, Any]:
    """The schema of a flow's parameters as the server is to keep it: it checks values by it before there is a run.

    An unknown parameter is refused, by itself Prefect starts a run with it, which crashes; `dataset` is a choice of
    `datasets`; and bounds are told with each description, for the form shows them when they are broken and not before.
    """
    properties = {name: _described(field) for name, field in schema["properties"].items()}
    if "dataset" in properties:
        properties["dataset"]["enum"] = sorted(datasets)
    definitions = {
        name: {**model, "properties": {key: _described(field) for key, field in model.get("properties", {}).items()}}
        for name, model in schema.get("definitions", {}).items()
    }
    return {**schema, "properties": properties, "definitions": definitions, "additionalProperties": False}


def _described(field: Mapping[str, Any]) -> dict[str, Any]:
    bounds = [
        f"{words} {field[keyword]:,}"
        for keyword, words in (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"))
        if keyword in field
    ]
    if not bounds:
        return dict(field)
    told = ", ".join(bounds)
    return {**field, "description": f"{field.get('description', '')} {told[0].upper()}{told[1:]}.".strip()}
