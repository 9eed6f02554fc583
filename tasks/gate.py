"""The gate in front of the alias `champion`: two models on one test set, compared image by image.

Functions of their arguments; no service is spoken to.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

Gate = Literal["better", "not-worse"]
"""`better`: a challenger must prove that it is better; `not-worse`: it is taken unless it is proved worse."""

Outcome = Literal["promoted", "kept", "not compared"]

SIGNIFICANCE = 0.05
"""The highest one-sided p that counts as evidence."""

RECALL_FLOOR = 0.01
"""How far the recall of a digit may fall by default: 1 point."""


@dataclass(frozen=True)
class GateRules:
    """When a challenger takes the champion's place."""

    gate: Gate
    recall_floor: float = RECALL_FLOOR
    """How far the recall of a digit may fall; 0.01 is one point."""


@dataclass(frozen=True)
class Score:
    """One model on the test set."""

    accuracy: float
    loss: float
    right_per_digit: tuple[int, ...]
    """How many images of each digit it recognises."""
    right: int
    """A bit for each image, 1 where the model is right; the same order for both models."""


@dataclass(frozen=True)
class Comparison:
    """Champion and challenger, scored by the same code on the same images."""

    test_set_sha256: str
    images: int
    images_per_digit: tuple[int, ...]
    champion: Score
    challenger: Score

    @property
    def only_champion_right(self) -> int:
        """Images that the champion recognises and the challenger does not."""
        return (self.champion.right & ~self.challenger.right).bit_count()

    @property
    def only_challenger_right(self) -> int:
        """Images that the challenger recognises and the champion does not."""
        return (self.challenger.right & ~self.champion.right).bit_count()

    @classmethod
    def read(cls, scores: Mapping[str, Any]) -> "Comparison":
        """From what the program's `score` prints of the models `champion` and `challenger`."""

        def one(name: str) -> Score:
            facts = scores["models"][name]
            return Score(facts["accuracy"], facts["loss"], tuple(facts["right_per_digit"]), int(facts["right"], 16))

        return cls(
            test_set_sha256=scores["test_set_sha256"],
            images=scores["images"],
            images_per_digit=tuple(scores["images_per_digit"]),
            champion=one("champion"),
            challenger=one("challenger"),
        )


@dataclass(frozen=True)
class Numbers:
    """What a decision rests on."""

    test_set_sha256: str
    images: int
    champion_accuracy: float
    challenger_accuracy: float
    champion_loss: float
    challenger_loss: float
    only_champion_right: int
    only_challenger_right: int
    p_better: float
    """One-sided p of the exact McNemar test that the challenger is better."""
    p_worse: float
    champion_recall: tuple[float | None, ...]
    """Of each digit, from 0 to 1; None if the test set lacks the digit."""
    challenger_recall: tuple[float | None, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Decision:
    """What becomes of a challenger, and why."""

    outcome: Outcome
    reason: str
    numbers: Numbers | None = None
    """None: nothing had to be, or could be, compared."""


def mcnemar(only_champion_right: int, only_challenger_right: int) -> tuple[float, float]:
    """One-sided p-values of the exact McNemar test: that the challenger is better, and that it is worse.

    Were both models equally good, each image on which exactly one of them is right would fall to either like a fair
    coin: P(X >= k) for X ~ Binomial(n, 1/2), where n counts those images and k is the share of the one model.
    Q. McNemar, Psychometrika 12 (1947) 153-157; the exact conditional form as in M. W. Fagerland, S. Lydersen and
    P. Laake, BMC Medical Research Methodology 13:91 (2013). Integers throughout, rounded once at the end.
    """
    n = only_champion_right + only_challenger_right
    return _upper_tail(n, only_challenger_right), _upper_tail(n, only_champion_right)


def _upper_tail(n: int, k: int) -> float:
    # C(n, i) for i = n, n - 1, ..., k, each from the one before it.
    term, total = 1, 0
    for i in range(n, k - 1, -1):
        total += term
        term = term * i // (n - i + 1)
    return float(total / 2**n)


def decide(comparison: Comparison, rules: GateRules) -> Decision:
    """Whether the challenger takes the champion's place; in every gate, no digit's recall may fall below the floor."""
    p_better, p_worse = mcnemar(comparison.only_champion_right, comparison.only_challenger_right)
    numbers = Numbers(
        test_set_sha256=comparison.test_set_sha256,
        images=comparison.images,
        champion_accuracy=comparison.champion.accuracy,
        challenger_accuracy=comparison.challenger.accuracy,
        champion_loss=comparison.champion.loss,
        challenger_loss=comparison.challenger.loss,
        only_champion_right=comparison.only_champion_right,
        only_challenger_right=comparison.only_challenger_right,
        p_better=p_better,
        p_worse=p_worse,
        champion_recall=_recall(comparison.champion, comparison),
        challenger_recall=_recall(comparison.challenger, comparison),
    )
    counts = (
        f"it alone is right on {comparison.only_challenger_right} of {comparison.images} test images, "
        f"the champion alone on {comparison.only_champion_right}"
    )
    if fallen := _fallen_digits(comparison, rules.recall_floor):
        reason = f"recall falls by more than {rules.recall_floor:g} for {', '.join(fallen)}"
        return Decision("kept", reason, numbers)
    if rules.gate == "better":
        proved = p_better <= SIGNIFICANCE
        outcome: Outcome = "promoted" if proved else "kept"
        return Decision(
            outcome, f"{counts}, which is {'' if proved else 'no '}evidence that it is better ({_p(p_better)})", numbers
        )
    worse = p_worse <= SIGNIFICANCE
    return Decision(
        "kept" if worse else "promoted",
        f"{counts}, which is {'' if worse else 'no '}evidence that it is worse ({_p(p_worse)})",
        numbers,
    )


def _recall(score: Score, comparison: Comparison) -> tuple[float | None, ...]:
    counts = zip(score.right_per_digit, comparison.images_per_digit, strict=True)
    return tuple(right / images if images else None for right, images in counts)


def _fallen_digits(comparison: Comparison, floor: float) -> list[str]:
    # Exact, for a fall of just 1 point is allowed: in floating point 0.97 - 0.96 is more than 0.01.
    allowed = Fraction(repr(floor))
    falls = zip(
        comparison.champion.right_per_digit,
        comparison.challenger.right_per_digit,
        comparison.images_per_digit,
        strict=True,
    )
    return [
        f"digit {digit} from {before / images:.4f} to {after / images:.4f}"
        for digit, (before, after, images) in enumerate(falls)
        if images and Fraction(before - after, images) > allowed
    ]


def _p(value: float) -> str:
    return f"p = {value:.2g}"
