"""Early stopping equals a reference that computes it from the curves alone."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tasks.program_project import Goal
from tasks.search.stopping import MEDIAN_OF, Stop, Stopping
from tasks.search.trial import Trial, ranked

Curves = Sequence[Sequence[float]]


def search(rule: Stopping, curves: Curves, at_once: int = 1) -> list[Trial]:
    """The trials of a search whose trainings would give these curves."""
    trials: list[Trial] = []
    for number, curve in enumerate(curves):
        found = rule.first(curve, trials[: max(0, number - at_once + 1)])
        cut = found[0] if found else len(curve)
        trials.append(
            Trial(number, {}, tuple(curve[:cut]), "stopped" if found else "finished", found[1] if found else "")
        )
    return trials


def random_curves(goal: Goal, seed: int, shift: float = 0.0) -> list[list[float]]:
    """Learning curves of 30 trials with 9 reports each."""
    draw = np.random.default_rng(seed)
    ends, speeds = draw.uniform(0.1, 0.9, 30), draw.uniform(0.2, 2, 30)
    reports = np.arange(1, 10)
    rise = ends[:, None] * (1 - np.exp(-speeds[:, None] * reports)) + draw.normal(0, 0.02, (30, 9))
    curves: list[list[float]] = ((rise if goal == "maximize" else 1 - rise) + shift).tolist()
    return curves


def best(values: Sequence[float], goal: Goal) -> float:
    return max(values) if goal == "maximize" else min(values)


def bandit(curve: Sequence[float], seen: Curves, goal: Goal, factor: float = 0.1) -> int | None:
    for report in range(2, len(curve), 2):
        others = [best(one[:report], goal) for one in seen]
        if not others:
            return None
        own, yardstick = best(curve[:report], goal), best(others, goal)
        if goal == "maximize" and own * (1 + factor) < yardstick:
            return report
        if goal == "minimize" and own > yardstick * (1 + factor):
            return report
    return None


def median(curve: Sequence[float], seen: Curves, goal: Goal) -> int | None:
    whole = [one for one in seen if len(one) == len(curve)]
    if len(whole) < MEDIAN_OF:
        return None
    for report in range(2, len(curve), 2):
        middle = float(np.median([one[report - 1] for one in whole]))
        own = best(curve[:report], goal)
        if (own < middle) if goal == "maximize" else (own > middle):
            return report
    return None


def halving(curve: Sequence[float], seen: Curves, goal: Goal) -> int | None:
    report = 2
    while report < len(curve):
        there = [one[report - 1] for one in seen if len(one) >= report] + [curve[report - 1]]
        place = sorted(there, reverse=goal == "maximize").index(curve[report - 1])
        if place >= max(1, len(there) // 2):
            return report
        report *= 2
    return None


REFERENCES: dict[Stop, Callable[[Sequence[float], Curves, Goal], int | None]] = {
    "bandit": bandit,
    "median": median,
    "halving": halving,
    "none": lambda curve, seen, goal: None,
}


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("rule", REFERENCES)
def test_decisions_are_those_of_a_reference(rule: Stop, at_once: int, goal: Goal) -> None:
    stops = 0
    for seed in range(4):
        curves = random_curves(goal, seed)
        trials = search(Stopping(rule, goal, last=9), curves, at_once)
        for number, trial in enumerate(trials):
            seen = [one.values for one in trials[: max(0, number - at_once + 1)]]
            expected = REFERENCES[rule](curves[number], seen, goal)
            assert (len(trial.values) if trial.status == "stopped" else None) == expected, (seed, number)
            stops += trial.status == "stopped"
            assert bool(trial.reason) == (trial.status == "stopped")
    assert stops > 20 or rule == "none"


def test_the_bandit_of_azures_own_examples() -> None:
    rule = Stopping("bandit", "maximize", evaluation_interval=1, slack_factor=0.2)
    others = [Trial(0, {}, (0.8, 0.9), "finished")]
    assert rule.first([0.67], others) is None
    assert rule.first([0.66], others) is not None  # 0.8 / 1.2 is 0.667.
    amount = Stopping("bandit", "maximize", evaluation_interval=1, slack_amount=0.2)
    assert amount.first([0.61], others) is None
    assert amount.first([0.59], others) is not None
    later = Stopping("bandit", "maximize", evaluation_interval=2, delay_evaluation=3)
    assert [later._looks_at(report) for report in range(1, 7)] == [False, False, False, True, False, True]


def mirrored(values: Sequence[float]) -> list[float]:
    return [-value for value in values]


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
def test_a_slack_is_a_slack_for_negative_objectives_too(goal: Goal) -> None:
    other: Goal = "minimize" if goal == "maximize" else "maximize"
    sign = 1 if goal == "maximize" else -1

    def stops(own: float, yardstick: float, towards: Goal = goal) -> bool:
        rule = Stopping("bandit", towards, evaluation_interval=1)
        return rule.first([own], [Trial(0, {}, (yardstick,), "finished")]) is not None

    # Equal, or better, is never stopped; by a little worse neither, whatever the sign.
    for own, yardstick in (
        (-1.0, -1.0),
        (-1.0 + sign * 0.5, -1.0),
        (-1.0 - sign * 0.05, -1.0),
        (1.0 - sign * 0.05, 1.0),
    ):
        assert not stops(own, yardstick)
    for own, yardstick in (
        (-1.0 - sign * 0.3, -1.0),
        (1.0 - sign * 0.3, 1.0),
        (-sign * 0.01, sign * 0.01),
        (-sign * 1.0, 0.0),
    ):
        assert stops(own, yardstick)
    # The very search, seen in a mirror.
    draw = np.random.default_rng(5)
    for own, yardstick in draw.normal(0, 1, (200, 2)).tolist():
        assert stops(own, yardstick) == stops(-own, -yardstick, other)


@pytest.mark.parametrize("rule", ["bandit", "median", "halving"])
def test_what_is_not_finite_is_never_best_and_no_yardstick(rule: Stop) -> None:
    good = [Trial(number, {}, (0.5, 0.5, 0.5), "finished") for number in range(6)]
    stopping = Stopping(rule, "maximize", evaluation_interval=1, last=3)
    assert stopping.first([math.nan, math.nan, math.nan], good) is not None
    assert stopping.first([math.inf, math.inf, math.inf], good) is not None
    odd = [Trial(number, {}, (math.inf, math.nan, math.inf), "finished") for number in range(6)]
    assert stopping.first([0.4, 0.4, 0.4], odd) is None
    assert stopping.first([0.4, 0.4, 0.4], [Trial(0, {}, (0.9, 0.9), "failed")]) is None
    assert [trial.number for trial in ranked([*odd, *good, Trial(9, {}, (0.9,), "stopped")], "maximize")] == list(
        range(6)
    )


def test_nothing_is_stopped_at_its_last_epoch() -> None:
    good = [Trial(number, {}, (0.9, 0.9), "finished") for number in range(6)]
    rules: tuple[Stop, ...] = ("bandit", "median", "halving")
    for rule in rules:
        assert Stopping(rule, "maximize", last=2).first([0.1, 0.1], good) is None
        found = Stopping(rule, "maximize").first([0.1, 0.1], good)
        assert found
        assert found[0] == 2
