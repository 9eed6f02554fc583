"""Two models on the same items, compared pair by pair: two numbers for each item, which the items' difficulty joins.

Functions of their arguments; the same scores give the same p-values, to the last bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tasks.registry.scores import Scores

if TYPE_CHECKING:
    import numpy as np

    Losses = Sequence[float] | np.ndarray

ENUMERATED = 20
"""Up to so many pairs that differ, every choice of signs is tried: 2^20 sums in 40 ms."""

DRAWS = 100_000
"""How many choices of signs are drawn for more pairs. At p = 0.05 their standard error is 0.0007."""

SEED = 0

MCNEMAR = "Exact McNemar test"
SIGN_FLIP = "Exact paired sign-flip permutation test"
SIGN_FLIP_DRAWN = f"Paired sign-flip permutation test with {DRAWS:,} draws"


@dataclass(frozen=True)
class Group:
    """The items of one kind."""

    items: int
    champion_right: int
    challenger_right: int


@dataclass(frozen=True)
class Comparison:
    """Champion and challenger, scored by the same code on the same items."""

    items: int
    test: str
    """What was computed, in words."""
    champion_accuracy: float | None
    """None where the scores are losses."""
    challenger_accuracy: float | None
    champion_loss: float | None
    """The mean; None where it is not known."""
    challenger_loss: float | None
    only_champion_right: int | None
    """Items on which the champion is right and the challenger is not; None where the scores are losses."""
    only_challenger_right: int | None
    p_better: float
    """One-sided p that the challenger is better."""
    p_worse: float
    groups: Mapping[str, Group] = field(default_factory=dict)
    """By name; empty where the scores name none."""

    @property
    def sentence(self) -> str:
        """What was found, of the challenger."""
        if self.only_champion_right is None:
            return (
                f"its mean loss is {self.challenger_loss:.6g}, that of the champion {self.champion_loss:.6g}, "
                f"on {self.items:,} items"
            )
        return (
            f"it alone is right on {self.only_challenger_right} of {self.items:,} items, "
            f"the champion alone on {self.only_champion_right}"
        )

    @property
    def footnote(self) -> str:
        """What was done, and on what."""
        return f"{self.test}, one-sided, on {self.items:,} items."

    def rows(self) -> list[tuple[str, str, str]]:
        """A table: what, of the champion, of the challenger."""
        rows = [
            (name, f"{champion:{form}}", f"{challenger:{form}}")
            for name, form, champion, challenger in (
                ("accuracy", ".4f", self.champion_accuracy, self.challenger_accuracy),
                ("mean loss", ".6g", self.champion_loss, self.challenger_loss),
                ("it alone is right", "d", self.only_champion_right, self.only_challenger_right),
            )
            if champion is not None and challenger is not None
        ]
        if self.loss_difference is not None:
            rows.append(("mean difference of the losses", "", f"{self.loss_difference:+.6g}"))
        rows.append(("p that it is better", f"{self.p_worse:.3g}", f"{self.p_better:.3g}"))
        return rows + [
            (f"recall of {name}", f"{of.champion_right / of.items:.4f}", f"{of.challenger_right / of.items:.4f}")
            for name, of in self.groups.items()
        ]

    @property
    def loss_difference(self) -> float | None:
        """The challenger's mean loss less the champion's; None where it is not known of both."""
        if self.champion_loss is None or self.challenger_loss is None:
            return None
        return self.challenger_loss - self.champion_loss

    def as_dict(self) -> dict[str, Any]:
        """For JSON, but that its numbers may not be finite."""
        return {**asdict(self), "loss_difference": self.loss_difference}

    def tags(self) -> dict[str, str]:
        """For the version of the challenger."""
        chosen = ("p_better", "p_worse", "only_champion_right", "only_challenger_right", "loss_difference")
        return {name: str(value) for name in chosen if (value := getattr(self, name)) is not None}


def compare(scores: Scores) -> Comparison:
    """Compare the models that were given the names `champion` and `challenger`."""
    champion, challenger = scores.values["champion"], scores.values["challenger"]
    return (
        _compare_rights(scores, champion, challenger)
        if scores.kind == "right"
        else _compare_losses(champion, challenger)
    )


def _compare_rights(scores: Scores, champion: Sequence[float], challenger: Sequence[float]) -> Comparison:
    pairs = list(zip(champion, challenger, strict=True))
    only_champion, only_challenger = pairs.count((1, 0)), pairs.count((0, 1))
    p_better, p_worse = mcnemar(only_champion, only_challenger)
    members: dict[str, list[tuple[float, float]]] = {}
    for name, pair in zip(scores.groups or (), pairs, strict=bool(scores.groups)):
        members.setdefault(name, []).append(pair)
    return Comparison(
        items=len(pairs),
        test=MCNEMAR,
        champion_accuracy=sum(champion) / len(pairs),
        challenger_accuracy=sum(challenger) / len(pairs),
        champion_loss=None,
        challenger_loss=None,
        only_champion_right=only_champion,
        only_challenger_right=only_challenger,
        p_better=p_better,
        p_worse=p_worse,
        groups={
            name: Group(len(of), sum(int(a) for a, _ in of), sum(int(b) for _, b in of))
            for name, of in sorted(members.items())
        },
    )


def _compare_losses(champion: Sequence[float], challenger: Sequence[float]) -> Comparison:
    p_better, p_worse, test = sign_flip(champion, challenger)
    return Comparison(
        items=len(champion),
        test=test,
        champion_accuracy=None,
        challenger_accuracy=None,
        champion_loss=fmean(champion),
        challenger_loss=fmean(challenger),
        only_champion_right=None,
        only_challenger_right=None,
        p_better=p_better,
        p_worse=p_worse,
    )


def mcnemar(only_champion_right: int, only_challenger_right: int) -> tuple[float, float]:
    """One-sided p-values of the exact McNemar test: that the challenger is better, and that it is worse.

    Were both models equally good, each item on which exactly one of them is right would fall to either like a fair
    coin: P(X >= k) for X ~ Binomial(n, 1/2), where n counts those items and k is the share of the one model.
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


def sign_flip(champion: "Losses", challenger: "Losses") -> tuple[float, float, str]:
    """The paired sign-flip permutation test: its one-sided p that the challenger is better, that it is worse; its name.

    Takes the losses of both on the same items. Were both models equally good, each item's difference would be as
    likely with the other sign: p is the share of all choices of signs for which the sum of the differences is at least
    as far on that side as it is (R. A. Fisher, The Design of Experiments (1935), section 21). Items without a
    difference change no sum. All choices are tried for up to `ENUMERATED` differences. For more, `DRAWS` are drawn
    from a fixed seed, and of them r are at least as far: p = (r + 1) / (DRAWS + 1), which keeps the test's size
    (B. Phipson and G. K. Smyth, Statistical Applications in Genetics and Molecular Biology 9:39 (2010), section 3).
    Sums that rounding alone can tell apart count as equal, which makes p larger, never smaller.
    """
    import numpy as np

    before, after = np.asarray(champion, float), np.asarray(challenger, float)
    differences = before - after
    # Of rounding the losses to 53 bits, of subtracting them, and of adding the differences in any order.
    rounding = np.finfo(float).eps * (
        np.abs(before).sum() + np.abs(after).sum() + len(differences) * np.abs(differences).sum()
    )
    differences = differences[differences != 0]
    exact = len(differences) <= ENUMERATED
    sums = _all_sums(differences) if exact else _drawn_sums(differences)
    found = differences.sum()
    better = int((sums >= found - rounding).sum())
    worse = int((sums <= found + rounding).sum())
    if exact:
        return better / len(sums), worse / len(sums), SIGN_FLIP
    return (better + 1) / (DRAWS + 1), (worse + 1) / (DRAWS + 1), SIGN_FLIP_DRAWN


def _all_sums(differences: "np.ndarray") -> "np.ndarray":
    """The sum of the differences for each choice of signs, shape (2^n,)."""
    import numpy as np

    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate((sums + difference, sums - difference))
    return sums


def _drawn_sums(differences: "np.ndarray") -> "np.ndarray":
    """The sum of the differences for `DRAWS` random choices of signs, shape (DRAWS,).

    Eight differences have 256 sums, of which a random byte picks one: an eighth of the work, in constant memory.
    """
    import numpy as np

    generator = np.random.default_rng(SEED)
    sums = np.zeros(DRAWS)
    for eight in np.pad(differences, (0, -len(differences) % 8)).reshape(-1, 8):
        sums += _all_sums(eight)[generator.integers(0, 256, DRAWS, dtype=np.uint8)]
    return sums
