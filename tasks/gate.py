"""The gate in front of the alias `champion`: whether a challenger takes the champion's place, and on what evidence.

Functions of their arguments; no service is spoken to.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from typing import Literal

from infra.errors import ArgumentError
from tasks.program_project import Objective
from tasks.registry.comparison import Comparison
from tasks.registry.objective import ObjectiveChange

Gate = Literal["better", "not-worse"]
"""`better`: a challenger must prove that it is better; `not-worse`: it is taken unless it is proved worse."""

AnyGate = Literal["better", "not-worse", "metric", "by-hand"]
"""The former two need scores. `metric` takes the challenger whose objective is better, which is weaker evidence: of one
number nobody knows what of it is chance. `by-hand`: after the first version a person decides."""

Outcome = Literal["promoted", "kept", "not compared"]

SIGNIFICANCE = 0.05
"""The highest one-sided p that counts as evidence."""

RECALL_FLOOR = 0.01
"""How far the recall of a digit may fall by default: 1 point."""


@dataclass(frozen=True)
class GateRules:
    """When a challenger takes the champion's place."""

    gate: AnyGate
    recall_floor: float | None = None
    """How far the recall of a group may fall; 0.01 is one point. None: as far as it likes."""
    objective: Objective | None = None
    """Of `metric`: what is compared."""
    margin: float = 0.0
    """Of `metric`: by how much the objective must be better, in its own unit."""
    trust_code: bool = False
    """Whether models that need their program's own code are loaded to be scored."""


@dataclass(frozen=True)
class Decision:
    """What becomes of a challenger, and why."""

    outcome: Outcome
    reason: str
    evidence: Comparison | ObjectiveChange | None = None
    """None: nothing had to be, or could be, compared."""


def rules_for(gate: AnyGate | None, margin: float | None, has_score: bool, objective: Objective | None) -> GateRules:
    """The rules for a program that has, or has not, an entry point `score` and an `objective`.

    Without a `gate` it is `better` where there is a `score`, else `by-hand`. Raises `ArgumentError` for a gate that the
    program lacks something for, and a `margin` that means nothing.
    """
    chosen: AnyGate = gate or ("better" if has_score else "by-hand")
    if chosen in ("better", "not-worse") and not has_score:
        raise ArgumentError(
            f"--gate {chosen} compares scores of two models, and the program's MLproject has no entry point score.\n"
            "Add one, take --gate metric, or leave it out: the first version becomes champion, later ones by hand."
        )
    if chosen == "metric" and objective is None:
        raise ArgumentError(
            "--gate metric compares the objectives of two runs, and the program's MLproject names none.\n"
            "Add one, such as objective: {metric: val_accuracy, goal: maximize}, or leave the gate out."
        )
    if margin is not None and chosen != "metric":
        raise ArgumentError(f"--gate-margin {margin:g} is of --gate metric, and the gate is {chosen}.\nLeave it out.")
    if margin is not None and not (isfinite(margin) and margin >= 0):
        raise ArgumentError(f"--gate-margin is {margin:g}, expected a number that is not negative.")
    return GateRules(chosen, objective=objective, margin=margin or 0.0)


def decide(comparison: Comparison, rules: GateRules) -> Decision:
    """Whether the challenger takes the champion's place by its scores; no group's recall may fall below the floor."""
    if rules.recall_floor is not None and (fallen := _fallen(comparison, rules.recall_floor)):
        reason = f"recall falls by more than {rules.recall_floor:g} for {', '.join(fallen)}"
        return Decision("kept", reason, comparison)
    if rules.gate == "better":
        proved, what, p = comparison.p_better <= SIGNIFICANCE, "better", comparison.p_better
    else:
        proved, what, p = comparison.p_worse <= SIGNIFICANCE, "worse", comparison.p_worse
    outcome: Outcome = "promoted" if proved == (rules.gate == "better") else "kept"
    reason = f"{comparison.sentence}, which is {'' if proved else 'no '}evidence that it is {what} (p = {p:.2g})"
    return Decision(outcome, reason, comparison)


def decide_by_objective(change: ObjectiveChange, margin: float) -> Decision:
    """Whether the challenger's objective is better, and by the margin at least. One that is not finite is never better,
    and no yardstick."""
    if not isfinite(change.challenger):
        return Decision("kept", f"its {change.metric} is {change.challenger:g}, which is never better", change)
    if not isfinite(change.champion):
        reason = f"the champion's {change.metric} is {change.champion:g}, with which nothing can be compared"
        return Decision("not compared", reason, change)
    # Exact, as the numbers are written: in floating point 0.97 - 0.96 is more than 0.01.
    gained = Fraction(repr(change.challenger)) - Fraction(repr(change.champion))
    gained = gained if change.goal == "maximize" else -gained
    enough = gained > 0 and gained >= Fraction(repr(margin))
    reason = (
        f"its {change.metric} is {change.challenger:.6g}, that of the champion {change.champion:.6g} ({change.goal}"
    )
    reason += f", by {margin:g} at least)" if margin else ")"
    return Decision("promoted" if enough else "kept", f"{reason}; no test was made", change)


def _fallen(comparison: Comparison, floor: float) -> list[str]:
    # Exact, for a fall of just 1 point is allowed.
    allowed = Fraction(repr(floor))
    return [
        f"{name} from {of.champion_right / of.items:.4f} to {of.challenger_right / of.items:.4f}"
        for name, of in comparison.groups.items()
        if Fraction(of.champion_right - of.challenger_right, of.items) > allowed
    ]
