"""Champion and challenger, scored by the challenger's program on this machine."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from infra.compute import Compute, Job
from infra.errors import ArgumentError
from infra.experiment_tracker import Run
from infra.scratch import temporary_folder
from infra.services import Services
from tasks.handoffs import Dataset
from tasks.program import Program
from tasks.program_command import check_command
from tasks.program_run import ProgramRun
from tasks.registry.comparison import Comparison, compare
from tasks.registry.scores import Scores, read_scores
from tasks.training import Training

LOGGER = logging.getLogger(__name__)

LIMIT_SECONDS = 3600.0
"""For both models together, an environment that has to be built for them included."""


def score_command(program: Program, dataset_names: tuple[str, ...]) -> tuple[str, ...] | None:
    """The words of the program's entry point `score`, its parameters at their defaults; None if it has none.

    Raises `ArgumentError` if it could not be started with what is added: `--model`, `--data-folder`, `--output`.
    """
    entry = program.score
    if entry is None:
        return None
    check_command(entry, program.names, program.left_out)
    try:
        as_it_runs = replace(program, entry=None, command=entry.command, parameters=entry.parameters)
        words = as_it_runs.check({}, (), dataset_names).command
    except ArgumentError as error:
        raise ArgumentError(
            f"The entry point score of {program.name} cannot be run, for it is given no parameters:\n{error}\n"
            "The pipeline adds --model NAME=FOLDER for each model, --data-folder FOLDER and --output FILE."
        ) from error
    if words[0] == "bash":
        raise ArgumentError(
            f"The entry point score of {program.name} is a command for a shell: {entry.command}\n"
            "Its end is where --model NAME=FOLDER and the rest are added: give a plain one, such as python score.py."
        )
    return words


class ProgramScores:
    """Compares models by the scores that a program's own code gives them, on this machine."""

    def __init__(
        self,
        program: Program,
        training: Training,
        datasets: Mapping[str, Dataset],
        machine: Compute,
        services: Services,
    ) -> None:
        """`datasets` are those of the training, as the store holds them; `--data-folder` is the first."""
        self._command = score_command(program, tuple(datasets))
        self._training, self._datasets = training, datasets
        self._machine, self._settings = machine, services.settings
        self.limit_seconds = LIMIT_SECONDS

    def __call__(self, models: Mapping[str, Path], run: Run) -> Comparison:
        """Compare `champion` and `challenger`; raises as `score` does."""
        return compare(self.score(models))

    def score(self, models: Mapping[str, Path]) -> Scores:
        """Score the models in these folders; what the program says goes to the log.

        Raises as `ProgramRun.lines` does if it fails or takes too long, and `BadScores` for what it has written.
        """
        assert self._command, "the gate asks for scores only where the program has them"
        with temporary_folder(self._settings.scratch_folder) as folder:
            output = folder / "scores.csv"
            order = {
                "command": list(self._command),
                "models": {name: str(model) for name, model in models.items()},
                "output": str(output),
                "dataset_uris": {name: {"uri": one.uri, "sha256": one.sha256} for name, one in self._datasets.items()},
                "default_dataset": next(iter(self._datasets), None),
                "limit_seconds": self.limit_seconds,
                "home": str(self._settings.home),
            }
            run_of_score = ProgramRun(self._machine, Job(self._training.shipped, ("score", json.dumps(order))))
            for line, _ in run_of_score.lines():
                if run_of_score.last_words is None:
                    LOGGER.info(line)
            return read_scores(output, models.keys())
