"""Reads an `MLproject`: MLflow's own format, and beside it what MLflow ignores and this pipeline asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from infra.errors import ArgumentError
from tasks.program_parameters import Parameter, read_parameter
from tasks.yaml_values import YamlValue, closest, read_yaml

_KEYS = (
    *("name", "entry_points", "python_env", "conda_env"),
    *("objective", "continues", "key_packages", "import_ahead", "search", "trial"),
)
_GOALS = {"max": "maximize", "maximise": "maximize", "min": "minimize", "minimise": "minimize"}

Goal = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Objective:
    """What a training is judged by."""

    metric: str
    """Its name in MLflow: `val_accuracy`."""
    goal: Goal


@dataclass(frozen=True)
class EntryPoint:
    """A command of an `MLproject`, with `{name}` in it for each parameter's value."""

    name: str
    parameters: tuple[Parameter, ...]
    command: str


@dataclass(frozen=True)
class Project:
    """What an `MLproject` says; all of it empty where there is none."""

    name: str = ""
    entry_points: Mapping[str, EntryPoint] = field(default_factory=dict)
    environment: str = ""
    """Path of the file that it names for its environment, relative to the folder."""
    objective: Objective | None = None
    continues: str | None = None
    key_packages: tuple[str, ...] | None = None
    import_ahead: tuple[str, ...] | None = None
    search: YamlValue | None = None
    """What a search may try, as it stands: see `tasks.search.space`."""
    trial: str | None = None
    exists: bool = False


def read_project(folder: Path) -> Project:
    """What the `MLproject` in `folder` says, its name in capitals or not as MLflow has it.

    Raises `ArgumentError` with the line of what is wrong.
    """
    path = next(
        (file for file in sorted(folder.iterdir()) if file.name.lower() == "mlproject" and file.is_file()), None
    )
    if path is None:
        return Project()
    document = read_yaml(path)
    fields = document.mapping("`name` and `entry_points`")
    for key, instead in (
        ("docker_env", "Name its packages in a python_env.yaml: the pipeline starts no containers."),
        ("databricks_spark_job", "Give a command under entry_points: the pipeline speaks to no Databricks."),
    ):
        if key in fields:
            raise fields[key].wrong(f"{key} cannot be served here.\n{instead}")
    document.refuse_unknown(_KEYS, near_only=True)
    if "python_env" in fields and "conda_env" in fields:
        raise fields["conda_env"].wrong("python_env and conda_env are both there, and MLflow takes one of them only.")
    environment = fields.get("python_env") or fields.get("conda_env")
    return Project(
        name=fields["name"].words("a name") if "name" in fields and not fields["name"].is_empty else "",
        entry_points=_entry_points(fields["entry_points"]) if "entry_points" in fields else {},
        environment=environment.words("the path of a file") if environment else "",
        objective=_objective(fields["objective"]) if "objective" in fields else None,
        continues=_continues(fields["continues"]) if "continues" in fields else None,
        key_packages=_key_packages(fields["key_packages"]) if "key_packages" in fields else None,
        import_ahead=_import_ahead(fields["import_ahead"]) if "import_ahead" in fields else None,
        search=fields.get("search"),
        trial=_trial(fields["trial"], "continues" in fields) if "trial" in fields else None,
        exists=True,
    )


def _entry_points(given: YamlValue) -> dict[str, EntryPoint]:
    return {name: _entry_point(name, entry) for name, entry in given.mapping("entry points by their names").items()}


def _entry_point(name: str, given: YamlValue) -> EntryPoint:
    fields = given.mapping("`command`, and `parameters` if there are any")
    given.refuse_unknown(("parameters", "command"), near_only=True)
    if "command" not in fields:
        raise given.wrong(f"the entry point {name} has no command.")
    parameters: dict[str, YamlValue] = {}
    if "parameters" in fields and not fields["parameters"].is_empty:
        parameters = fields["parameters"].mapping("parameters by their names")
    return EntryPoint(
        name,
        tuple(read_parameter(key, replace(value, name=f"{key} of {name}")) for key, value in parameters.items()),
        fields["command"].words("a command such as python train.py").strip(),
    )


def _objective(given: YamlValue) -> Objective:
    expected = "`metric`, a metric's name, and `goal`, maximize or minimize"
    fields = given.mapping(expected)
    given.refuse_unknown(("metric", "goal"))
    if missing := [key for key in ("metric", "goal") if key not in fields]:
        raise given.wrong(f"objective lacks {' and '.join(missing)}: expected {expected}.")
    goal = fields["goal"].text
    metric = fields["metric"].words("a metric's name, such as val_accuracy")
    if goal == "maximize":
        return Objective(metric, "maximize")
    if goal == "minimize":
        return Objective(metric, "minimize")
    guess = _GOALS.get(goal.lower()) or closest(goal, ("maximize", "minimize"))
    error = f"goal of objective is {fields['goal'].found}, expected maximize or minimize."
    raise fields["goal"].wrong(error + (f" Did you mean {guess}?" if guess else ""))


def _continues(given: YamlValue) -> str:
    if given.text != "exact":
        raise given.wrong(
            f"continues is {given.found}, expected exact: with its checkpoint the program ends with the very\n"
            "weights of an undisturbed run. Leave it out if it does not: how else it continues is seen while it runs."
        )
    return "exact"


def _trial(given: YamlValue, exact: bool) -> str:
    if given.text != "before_test" or not exact:
        raise given.wrong(
            f"trial is {given.found}, expected before_test, beside continues: exact. With TRIAL in its environment\n"
            "the program ends after its last epoch, before its test, and goes on from there when it is started without."
        )
    return "before_test"


def _key_packages(given: YamlValue) -> tuple[str, ...]:
    entries = given.sequence("a list of packages such as [keras, tensorflow, numpy]")
    return tuple(entry.words("the name of a package") for entry in entries)


def _import_ahead(given: YamlValue) -> tuple[str, ...]:
    expected = "a list of modules such as [package.module]"
    names = tuple(entry.words(expected) for entry in given.sequence(expected))
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise given.wrong(f"import_ahead names {name!r}, which is no module's name.\nExpected {expected}.")
    return names


def entry_point(project: Project, name: str) -> EntryPoint:
    """The entry point of that name; raises `ArgumentError` with those that are there."""
    if name in project.entry_points:
        return project.entry_points[name]
    known = ", ".join(project.entry_points) or "none"
    raise ArgumentError(f"The MLproject has no entry point {name}; it has {known}.\nName one: --entry NAME.")
