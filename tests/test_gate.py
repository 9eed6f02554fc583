"""What follows at the gate from scores, from objectives, and from a program that has neither."""

from dataclasses import replace

import pytest

from infra.errors import ArgumentError
from infra.experiment_tracker import Run
from tasks.gate import RECALL_FLOOR, AnyGate, GateRules, decide, decide_by_objective, rules_for
from tasks.program_project import Goal, Objective
from tasks.registry.comparison import Comparison, compare
from tasks.registry.objective import ObjectiveChange, compare_objectives
from tasks.registry.scores import Scores

ITEMS_OF_A_GROUP = 1_000
BETTER, NOT_WORSE = GateRules("better", RECALL_FLOOR), GateRules("not-worse", RECALL_FLOOR)


def rights(only_champion: dict[int, int], only_challenger: dict[int, int]) -> Comparison:
    """A comparison in which so many items of each group are right of one model alone, all others of both."""
    champion: list[float] = []
    challenger: list[float] = []
    for digit in range(10):
        mine, theirs = only_champion.get(digit, 0), only_challenger.get(digit, 0)
        champion += [0] * theirs + [1] * (ITEMS_OF_A_GROUP - theirs)
        challenger += [1] * (ITEMS_OF_A_GROUP - mine) + [0] * mine
    groups = tuple(f"digit {index // ITEMS_OF_A_GROUP}" for index in range(len(champion)))
    return compare(Scores("right", {"champion": tuple(champion), "challenger": tuple(challenger)}, groups))


def test_without_a_difference_nothing_is_proved() -> None:
    assert decide(rights({}, {}), BETTER).outcome == "kept"
    assert decide(rights({}, {}), NOT_WORSE).outcome == "promoted"


@pytest.mark.parametrize(
    ("only_champion", "only_challenger", "better", "not_worse"),
    [
        (0, 5, "promoted", "promoted"),  # p_better = 0.031
        (0, 4, "kept", "promoted"),  # p_better = 0.063
        (4, 0, "kept", "promoted"),  # p_worse = 0.063
        (5, 0, "kept", "kept"),  # p_worse = 0.031
        (50, 80, "promoted", "promoted"),
        (80, 50, "kept", "kept"),
        (60, 60, "kept", "promoted"),
    ],
)
def test_better_asks_for_evidence_and_not_worse_for_none_against(
    only_champion: int, only_challenger: int, better: str, not_worse: str
) -> None:
    spread = dict.fromkeys(range(1, 10), only_champion // 10)
    comparison = rights(spread | {0: only_champion - 9 * (only_champion // 10)}, {3: only_challenger})
    assert (comparison.only_champion_right, comparison.only_challenger_right) == (only_champion, only_challenger)
    assert decide(comparison, BETTER).outcome == better
    assert decide(comparison, NOT_WORSE).outcome == not_worse


def test_a_group_may_fall_by_just_one_point_and_not_by_an_item_more() -> None:
    rises = {3: 100}
    assert decide(rights({8: 10}, rises), BETTER).outcome == "promoted"
    fallen = rights({8: 11}, rises)
    for rules in (BETTER, NOT_WORSE):
        decision = decide(fallen, rules)
        assert decision.outcome == "kept"
        assert "digit 8 from 1.0000 to 0.9890" in decision.reason
    assert fallen.p_better < 1e-6
    assert decide(fallen, GateRules("better")).outcome == "promoted", "a program without a floor"


def test_the_floor_can_be_moved() -> None:
    comparison = rights({8: 30}, {3: 100})
    assert decide(comparison, GateRules("better", recall_floor=0.03)).outcome == "promoted"
    assert decide(comparison, GateRules("better", recall_floor=0.029)).outcome == "kept"
    assert decide(rights({8: 1}, {3: 100}), GateRules("better", recall_floor=0)).outcome == "kept"


def test_losses_decide_as_rights_do() -> None:
    worse, better = tuple(range(1, 11)), tuple(range(10))
    up = compare(Scores("loss", {"champion": worse, "challenger": better}))
    down = compare(Scores("loss", {"champion": better, "challenger": worse}))
    assert [decide(one, BETTER).outcome for one in (up, down)] == ["promoted", "kept"]
    assert [decide(one, NOT_WORSE).outcome for one in (up, down)] == ["promoted", "kept"]
    reason = decide(up, BETTER).reason
    assert reason == (
        "its mean loss is 4.5, that of the champion 5.5, on 10 items, which is evidence that it is better (p = 0.00098)"
    )
    rows = {what: cells for what, *cells in up.rows()}
    assert rows["mean loss"] == ["5.5", "4.5"]
    assert rows["mean difference of the losses"] == ["", "-1"]
    assert rows["p that it is better"] == ["1", "0.000977"]
    assert "accuracy" not in rows


@pytest.mark.parametrize(
    ("goal", "champion", "challenger", "margin", "outcome"),
    [
        ("maximize", 0.96, 0.97, 0.0, "promoted"),
        ("maximize", 0.96, 0.96, 0.0, "kept"),
        ("minimize", 0.96, 0.97, 0.0, "kept"),
        ("minimize", 0.97, 0.96, 0.0, "promoted"),
        ("minimize", -1.0, -1.1, 0.0, "promoted"),
        # By the margin at least, as the numbers are written: 0.97 - 0.96 is more than 0.01 in binary, 0.3 - 0.2 less
        # than 0.1.
        ("maximize", 0.96, 0.97, 0.01, "promoted"),
        ("minimize", 0.3, 0.2, 0.1, "promoted"),
        ("maximize", 0.96, 0.97, 0.0101, "kept"),
        ("maximize", 0.96, float("nan"), 0.0, "kept"),
        ("minimize", 0.96, float("nan"), 0.0, "kept"),
        ("minimize", 0.96, float("-inf"), 0.0, "kept"),
        ("maximize", float("nan"), 0.96, 0.0, "not compared"),
        ("minimize", float("inf"), 0.96, 0.0, "not compared"),
        ("maximize", float("nan"), float("nan"), 0.0, "kept"),
    ],
)
def test_the_better_objective_is_promoted(
    goal: Goal, champion: float, challenger: float, margin: float, outcome: str
) -> None:
    change = ObjectiveChange("val_loss", goal, champion, challenger, "some")
    assert decide_by_objective(change, margin).outcome == outcome
    assert "weaker evidence" in change.footnote


def finished(objective: float, metric: str = "val_loss", dataset_sha256: str = "a" * 64) -> Run:
    """A run as its training left it."""
    tags = {"dataset_sha256": dataset_sha256, "objective_metric": metric, "objective": "minimize"}
    return Run("r", "0", "FINISHED", tags, {"objective": objective}, {}, ())


def test_objectives_are_compared_on_the_very_same_data_only() -> None:
    asked = Objective("val_loss", "minimize")
    run = finished(0.5)
    change = compare_objectives(run, finished(0.25), asked)
    assert change == ObjectiveChange("val_loss", "minimize", 0.5, 0.25, "a" * 64)
    assert compare_objectives(run, finished(0.25, dataset_sha256="b" * 64), asked) == (
        "its data set bbbbbbbbbbbb is not the one of the champion, aaaaaaaaaaaa"
    )
    none = finished(0.25, dataset_sha256="none")
    assert "names no data set" in str(compare_objectives(none, none, asked))
    assert compare_objectives(run, finished(0.25, "val_accuracy"), asked) == (
        "its run r has the objective val_accuracy (minimize), expected val_loss (minimize)"
    )
    assert str(compare_objectives(run, run, Objective("val_loss", "maximize"))).startswith("the champion's run r has")
    # A run that logged no finite value has none.
    change = compare_objectives(run, replace(run, metrics={}), asked)
    assert isinstance(change, ObjectiveChange)
    assert decide_by_objective(change, 0).outcome == "kept"


def test_the_gate_follows_from_what_the_program_has() -> None:
    objective = Objective("val_loss", "minimize")
    assert rules_for(None, None, True, objective).gate == "better"
    assert rules_for(None, None, False, objective).gate == "by-hand"
    assert rules_for("by-hand", None, True, None).gate == "by-hand"
    rules = rules_for("metric", 0.5, False, objective)
    assert (rules.gate, rules.objective, rules.margin) == ("metric", objective, 0.5)


@pytest.mark.parametrize(
    ("gate", "margin", "has_score", "objective", "told"),
    [
        ("better", None, False, True, "no entry point score"),
        ("not-worse", None, False, True, "no entry point score"),
        ("metric", None, True, False, "names none"),
        (None, 0.1, True, True, "--gate-margin 0.1 is of --gate metric, and the gate is better"),
        ("metric", -0.1, True, True, "expected a number that is not negative"),
        ("metric", float("nan"), True, True, "expected a number that is not negative"),
    ],
)
def test_a_gate_that_the_program_lacks_something_for_is_refused(
    gate: AnyGate | None, margin: float | None, has_score: bool, objective: bool, told: str
) -> None:
    with pytest.raises(ArgumentError, match=told):
        rules_for(gate, margin, has_score, Objective("val_loss", "minimize") if objective else None)
