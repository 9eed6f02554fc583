"""Scoring: the program's own code tells how models do on its data, in a file that it writes."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty

from .data import bring
from .exits import RunnerError
from .order import DatasetOrder, no_order_refused, python_words, read_datasets, with_folders
from .stage import Stage


@dataclass(frozen=True)
class ScoreOrder:
    """Models to be scored."""

    command: tuple[str, ...]
    """Words; `{data_folder}` and `{data_folder_NAME}` in them stand for folders."""
    models: Mapping[str, str]
    """The folder of each, by the name that it has in what is written."""
    output: Path
    """The file that the program writes."""
    datasets: tuple[DatasetOrder, ...]
    default_dataset: str | None
    limit_seconds: float
    home: Path


def parse_score_order(text: str) -> ScoreOrder:
    """The order in a line of JSON. Raises `UsageError` if it is none."""
    with no_order_refused():
        facts = json.loads(text)
        datasets, default = read_datasets(facts)
        return ScoreOrder(
            command=tuple(map(str, facts["command"])),
            models={name: str(folder) for name, folder in facts["models"].items()},
            output=Path(facts["output"]),
            datasets=datasets,
            default_dataset=default,
            limit_seconds=float(facts["limit_seconds"]),
            home=Path(facts["home"]).expanduser(),
        )


def score(stage: Stage, order: ScoreOrder) -> None:
    """Let the program score the models. Raises `RunnerError` and its kinds unless it ends well, and in time."""
    deadline = time.monotonic() + order.limit_seconds
    stage.build_environment(order.home)
    folders = {one.name: stage.data / one.name for one in order.datasets}
    for one in order.datasets:
        bring(one, folders[one.name])
    words = [with_folders(word, folders, order.default_dataset) for word in order.command]
    words += [word for name, folder in order.models.items() for word in ("--model", f"{name}={folder}")]
    words += ["--data-folder", str(folders[order.default_dataset])] if order.default_dataset else []
    words += ["--output", str(order.output)]
    found = python_words(words)
    module, argv = found or (False, tuple(words))
    stage.started.begin(
        {
            "argv": argv,
            "module": module,
            "command": found is None,
            "environment": stage.variables,
            "hook": False,
            "seed": None,
        }
    )
    stage.started.check_end(_end_of(stage, deadline, order.limit_seconds), f"score ({argv[0]})")


def _end_of(stage: Stage, deadline: float, limit_seconds: float) -> int:
    """The exit status of the program; raises `RunnerError` if it does not end in time."""
    while True:
        try:
            event = stage.inbox.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            stage.started.stop()
            raise RunnerError(f"score had not ended after {limit_seconds:,.0f} s, and was stopped.") from None
        if isinstance(event, int):
            return event
        if isinstance(event, BaseException):
            raise event
