"""What is tried next: a function of (space, seed, number of the trial, trials that it may see), and of nothing else."""

import hashlib
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tasks.program_parameters import Value
from tasks.program_project import Goal
from tasks.search.space import Dimension, Space, drawn, grid
from tasks.search.trial import Trial

Sampler = Literal["random", "tpe", "grid"]


@dataclass(frozen=True)
class Sampling:
    """How values are drawn."""

    space: Space
    sampler: Sampler
    seed: int
    goal: Goal
    first: Mapping[str, Value]
    """Those of trial 0."""
    warm: tuple[Trial, ...] = ()
    """Trials of earlier searches, that the sampler sees before this one's."""

    def propose(self, number: int, seen: Sequence[Trial]) -> dict[str, Value] | None:
        """The values of trial `number`; `seen` are the trials before it, those of which no end is known running.

        None: the grid has no more points.
        """
        if number == 0:
            return drawn(self.space, self.first)
        if self.sampler == "grid":
            points = [point for point in grid(self.space) if point != drawn(self.space, self.first)]
            random.Random(self.seed).shuffle(points)
            return points[number - 1] if number <= len(points) else None
        return self._ask(number, seen)

    def _ask(self, number: int, seen: Sequence[Trial]) -> dict[str, Value]:
        import optuna

        seed = int.from_bytes(hashlib.sha256(f"{self.seed} {number}".encode()).digest()[:4])
        samplers = optuna.samplers
        sampler = samplers.TPESampler(seed=seed) if self.sampler == "tpe" else samplers.RandomSampler(seed=seed)
        study = new_study(self.goal, sampler=sampler)
        for trial in (*self.warm, *seen) if self.sampler == "tpe" else ():
            study.add_trial(frozen(trial, self.space, self.goal))
        asked = study.ask()
        values: dict[str, Value] = {}
        for dimension in self.space:
            if dimension.is_drawn(values):
                values[dimension.name] = _suggested(asked, dimension)
        return values


def new_study(goal: Goal, **parts: Any) -> Any:
    """A study of Optuna that is kept nowhere."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)  # What the median rule makes of such a curve.
    return optuna.create_study(direction=goal, **parts)


def frozen(trial: Trial, space: Space, goal: Goal, **more: Any) -> Any:
    """The trial as Optuna has it; one whose values no draw could give, or without a finite value, as a failed one."""
    from optuna.trial import TrialState, create_trial

    best = trial.best(goal)
    dimensions = {one.name: one for one in space if one.name in trial.parameters}
    known = all(name in dimensions and dimensions[name].holds(value) for name, value in trial.parameters.items())
    states = {"running": TrialState.RUNNING, "finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED}
    state = states.get(trial.status, TrialState.FAIL) if known else TrialState.FAIL
    if state.is_finished() and best is None:
        state = TrialState.FAIL
    return create_trial(
        state=state,
        value=best if state == TrialState.COMPLETE else None,
        params=dict(trial.parameters) if known else {},
        distributions={name: _distribution(one) for name, one in dimensions.items()} if known else {},
        # To Optuna infinity would be the best of all.
        intermediate_values={n: v if math.isfinite(v) else math.nan for n, v in enumerate(trial.values, 1)},
        **more,
    )


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.kind == "choices":
        return CategoricalDistribution(dimension.values)
    low, high = dimension.values
    if dimension.step:
        high = dimension.points()[-1]  # Optuna warns of an end that no step reaches.
    if dimension.kind == "int":
        return IntDistribution(int(low), int(high), step=int(dimension.step or 1))
    return FloatDistribution(float(low), float(high), log=dimension.kind == "loguniform", step=dimension.step)


def _suggested(asked: Any, dimension: Dimension) -> Value:
    if dimension.kind == "choices":
        value: Value = asked.suggest_categorical(dimension.name, dimension.values)
        return value
    spread = _distribution(dimension)
    if dimension.kind == "int":
        return int(asked.suggest_int(dimension.name, spread.low, spread.high, step=spread.step))
    return float(asked.suggest_float(dimension.name, spread.low, spread.high, step=spread.step, log=spread.log))
