"""What the runner is told: facts of the program, which are shipped with it, and the order, which comes later."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .exits import UsageError

PROGRAM_FACTS = "program.json"


@dataclass(frozen=True)
class Requirements:
    """An environment of the program's own."""

    python: str | None
    """`3.11`; None: the version of the runner's."""
    lock: str
    """A requirements file in which every package has its version and its hashes."""


@dataclass(frozen=True)
class Objective:
    """What a training is good for."""

    metric: str
    goal: str
    """`maximize` or `minimize`."""


@dataclass(frozen=True)
class Program:
    """Facts of the program that are known before it is ordered."""

    name: str
    command: tuple[str, ...]
    """Words; `{data_folder}` and `{data_folder_NAME}` in them stand for folders."""
    import_ahead: tuple[str, ...] = ()
    """Modules that are imported before there is an order to train."""
    import_ahead_of_score: tuple[str, ...] = ()
    requirements: Requirements | None = None
    uses_mlflow: bool = False
    uses_keras: bool = False
    uses_azureml: bool = False
    """It gets the stand-in for Azure ML's SDK."""
    old_spellings: Mapping[str, str] | None = None
    """What it may spell as its libraries had it once, each with what that is today."""
    hook: bool = True
    continues: str | None = None
    objective: Objective | None = None
    seed: int | None = None
    variables: tuple[str, ...] = ()
    """Names of those variables of the runner's that the program gets too, for a person named them."""
    sets_variables: tuple[str, ...] = ()
    """Names of variables that its sources set: those have no value before."""
    parameters: Mapping[str, Any] | None = None
    """By name; None: it has arguments alone."""
    trial: str | None = None
    """`before_test`: with TRIAL in its environment it ends before its test, and goes on from there without."""

    @property
    def python_words(self) -> tuple[bool, tuple[str, ...]] | None:
        """Whether it is a module, and the name of module or file with its arguments; None: it is no Python program."""
        return python_words(self.command)

    @property
    def entry(self) -> str:
        """What a person calls the program: its script or module, else its command."""
        found = self.python_words
        return found[1][0] if found else self.command[0]


def python_words(command: Sequence[str]) -> tuple[bool, tuple[str, ...]] | None:
    """Whether a command runs a module, and the name of module or file with its arguments; None: it is no Python."""
    first, *rest = command
    if not Path(first).name.startswith("python") or not rest:
        return None
    if rest[0] == "-m" and len(rest) > 1:
        return True, tuple(rest[1:])
    return None if rest[0].startswith("-") else (False, tuple(rest))


def with_folders(word: str, folders: Mapping[str, Path], default: str | None) -> str:
    """A word of a command, with the folders of data sets in place of what stands for them."""
    for name, folder in folders.items():
        word = word.replace(f"{{data_folder_{name}}}", str(folder))
    return word.replace("{data_folder}", str(folders[default])) if default else word


def read_program(path: Path) -> Program:
    """The facts in a file of JSON. Raises `UsageError` if they are not what they must be."""
    try:
        facts = json.loads(path.read_text())
        lists: dict[str, Any] = {
            name: tuple(map(str, facts.pop(name, ())))
            for name in ("import_ahead", "import_ahead_of_score", "variables", "sets_variables")
        }
        requirements, objective = facts.pop("requirements", None), facts.pop("objective", None)
        program = Program(
            command=tuple(map(str, facts.pop("command"))),
            requirements=Requirements(requirements.get("python"), requirements["lock"]) if requirements else None,
            objective=Objective(objective["metric"], objective["goal"]) if objective else None,
            **lists,
            **facts,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{path} does not hold the facts of a program: {error!r}") from error
    if not program.command:
        raise UsageError(f"{path} names no command")
    return program


@dataclass(frozen=True)
class DatasetOrder:
    """A data set in a store."""

    name: str
    uri: str
    """A folder, with the manifest in it."""
    sha256: str
    """Of the manifest's bytes."""


@dataclass(frozen=True)
class Order:
    """A training to be done."""

    run_id: str
    datasets: tuple[DatasetOrder, ...]
    default_dataset: str | None
    checkpoint_uri: str
    lease_uri: str | None = None
    accelerator: str = "auto"
    cache: Path | None = None
    home: Path = Path("~/.cache/keras-at-scale")
    rebuild_environment: bool = False
    trial: bool = False
    """It is one of a search, which may end it at any report."""
    instead: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the program in place of those that it was shipped with: `command`, `parameters`, `seed`."""


def read_datasets(facts: Mapping[str, Any]) -> tuple[tuple[DatasetOrder, ...], str | None]:
    """The data sets of an order, and the name of the default one; raises `KeyError` for what is missing."""
    datasets = {name: DatasetOrder(name, one["uri"], one["sha256"]) for name, one in facts["dataset_uris"].items()}
    default = facts.get("default_dataset")
    if default is not None and default not in datasets:
        raise KeyError(default)
    return tuple(datasets.values()), default


@contextmanager
def no_order_refused() -> Iterator[None]:
    """Raise `UsageError` where the block finds no order."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        missing = f", without {error}" if isinstance(error, KeyError) else ""
        raise UsageError(f"Expected an order in a line of JSON, found something else{missing}.") from error


def parse_order(text: str) -> Order:
    """The order in a line of JSON. Raises `UsageError` if it is none."""
    with no_order_refused():
        facts = json.loads(text)
        datasets, default = read_datasets(facts)
        home = facts.get("home") or Order.home
        return Order(
            run_id=str(facts["run_id"]),
            datasets=datasets,
            default_dataset=default,
            checkpoint_uri=str(facts["checkpoint_uri"]),
            lease_uri=facts.get("lease_uri"),
            accelerator=str(facts.get("accelerator", "auto")),
            cache=Path(facts["cache"]).expanduser() if facts.get("cache") else None,
            home=Path(home).expanduser(),
            rebuild_environment=bool(facts.get("rebuild_environment")),
            trial=bool(facts.get("trial")),
            instead={**told, "command": tuple(told["command"])} if (told := facts.get("instead")) else {},
        )
