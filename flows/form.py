"""What a deployment's form in the Prefect UI says and refuses, beyond what Prefect takes from the flow by itself."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.context import FlowRunContext

from infra.errors import PipelineError, UsageError
from tasks.cancellation import UNREACHABLE, ask
from tasks.program import Parameter, Program, read_program

LOGGER = logging.getLogger(__name__)

_JSON_TYPES = {"int": "integer", "float": "number", "bool": "boolean"}


def completed(schema: Mapping[str, Any], datasets: Collection[str] = ()) -> dict[str, Any]:
    """The schema of a flow's parameters as the server is to keep it: it checks values by it before there is a run.

    An unknown parameter is refused, by itself Prefect starts a run with it, which crashes; `dataset` is a choice of
    `datasets`; each field is called as its flag is; and bounds are told with each description, for the form shows them
    when they are broken and not before.
    """
    properties = {name: _told(name, field) for name, field in schema["properties"].items()}
    if "dataset" in properties:
        properties["dataset"]["enum"] = sorted(datasets)
    definitions = {
        name: {**model, "properties": {key: _told(key, field) for key, field in model.get("properties", {}).items()}}
        for name, model in schema.get("definitions", {}).items()
    }
    return {**schema, "properties": properties, "definitions": definitions, "additionalProperties": False}


def program_form(schema: Mapping[str, Any], program: Program, entry: str | None) -> dict[str, Any]:
    """The schema of the flow `train` for one program and entry: with the parameters that its `MLproject` declares.

    Which these are stands in no field of the form, and can be no others.
    """
    form = completed(schema)
    properties = form["properties"]
    del properties["program"], properties["entry"]
    if program.command is None:
        del properties["parameters"]
    else:
        del properties["arguments"]
        properties["parameters"] = {**properties["parameters"], **_parameters(program.parameters)}
    fixed = {"program": str(program.folder), "entry": entry}
    return {**form, "required": [], "patternProperties": {f"^{name}$": {"const": fixed[name]} for name in fixed}}


@contextmanager
def compared_with_form(folder: Path, entry: str | None) -> Iterator[None]:
    """Say, in the log and beside what the block refuses, if this run's deployment has the form of another MLproject."""
    outdated = _outdated(folder, entry)
    if outdated:
        LOGGER.warning("%s", outdated)
    try:
        yield
    except UsageError as error:
        if outdated is None:
            raise
        raise type(error)(f"{error}\n{outdated}") from error


def _outdated(folder: Path, entry: str | None) -> str | None:
    # Prefect's runtime.deployment asks the server, for a run without a deployment too.
    context = FlowRunContext.get()
    deployment_id = context.flow_run.deployment_id if context and context.flow_run else None
    if deployment_id is None:
        return None
    try:
        deployment = ask("tell the form of this run's deployment", partial(_read_deployment, deployment_id))
        now = _parameters(read_program(folder, entry).parameters)
    except (*UNREACHABLE, PipelineError):
        return None  # Whoever needs the program says what is wrong with it.
    then = (deployment.parameter_openapi_schema or {}).get("properties", {}).get("parameters", {})
    if all(then.get(key, now[key]) == now[key] for key in ("properties", "required")):
        return None
    return (
        f"The parameters of {folder} have changed since the deployment {deployment.name} was made, whose form has "
        "those of then.\nDeploy the program again, with the command by which it was: "
        f"python -m flows.deploy --program {folder} ..."
    )


def _read_deployment(deployment_id: UUID) -> DeploymentResponse:
    with get_client(sync_client=True) as client:
        return client.read_deployment(deployment_id)


def _parameters(declared: Collection[Parameter]) -> dict[str, Any]:
    """What a form says of the parameters of an `MLproject`; the folders of the data are not among them."""
    shown = [parameter for parameter in declared if parameter.dataset is None]
    return {
        "description": "Parameters of the program, as its MLproject declares them.",
        "properties": {one.name: _told(one.name, _field(one, position)) for position, one in enumerate(shown)},
        "required": [one.name for one in shown if one.default is None],
        "default": {one.name: one.default for one in shown if one.default is not None},
        "additionalProperties": False,
    }


def _field(parameter: Parameter, position: int) -> dict[str, Any]:
    words = parameter.description
    facts = {
        "description": words if not words or words.endswith((".", "!", "?")) else f"{words}.",
        "default": parameter.default,
        "minimum": parameter.minimum,
        "maximum": parameter.maximum,
        "enum": list(parameter.choices) or None,
        "pattern": r"^[A-Za-z][\w+.-]*:" if parameter.type == "uri" else None,
    }
    known = {key: fact for key, fact in facts.items() if fact is not None}
    return {"type": _JSON_TYPES.get(parameter.type, "string"), "position": position, **known}


def _told(name: str, field: Mapping[str, Any]) -> dict[str, Any]:
    told = {**field, "title": name}
    if {"type": "null"} in field.get("anyOf", ()):
        # What may be left out has one kind of value: the form would ask for the kind, each time.
        (kind,) = (kind for kind in told.pop("anyOf") if kind != {"type": "null"})
        del told["default"]
        told |= kind
    bounds = [
        f"{words} {told[keyword]:,}"
        for keyword, words in (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"))
        if keyword in told
    ]
    if bounds:
        text = ", ".join(bounds)
        told["description"] = f"{told.get('description', '')} {text[0].upper()}{text[1:]}.".strip()
    return told
