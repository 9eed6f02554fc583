"""The gate's arithmetic: the exact McNemar test, the floor, and what follows from them."""

import random
from math import comb

import pytest

from tasks.gate import Comparison, GateRules, Score, decide, mcnemar

IMAGES_PER_DIGIT = 1_000


def compare(
    only_champion: dict[int, int], only_challenger: dict[int, int], images_per_digit: int = IMAGES_PER_DIGIT
) -> Comparison:
    """A comparison in which so many images of each digit are recognised by one model alone, and all others by both."""
    champion = challenger = bit = 0
    right_champion, right_challenger = [], []
    for digit in range(10):
        mine, theirs = only_champion.get(digit, 0), only_challenger.get(digit, 0)
        right_champion.append(images_per_digit - theirs)
        right_challenger.append(images_per_digit - mine)
        for index in range(images_per_digit):
            champion |= (not mine <= index < mine + theirs) << bit
            challenger |= (not index < mine) << bit
            bit += 1
    images = 10 * images_per_digit

    def score(right: int, per_digit: list[int]) -> Score:
        return Score(right.bit_count() / images, 0.1, tuple(per_digit), right)

    return Comparison(
        "some",
        images,
        (images_per_digit,) * 10,
        score(champion, right_champion),
        score(challenger, right_challenger),
    )


@pytest.mark.parametrize(
    ("only_champion", "only_challenger", "p_better", "p_worse"),
    [
        # scipy.stats.binomtest(k, n, 0.5, alternative="greater").pvalue
        (0, 5, 0.03125, 1.0),
        (1, 0, 1.0, 0.5),
        (12, 31, 0.0027007863272956456, 0.9990430194993678),
        (100, 100, 0.5281742395046283, 0.5281742395046283),
        (130, 95, 0.9918975457904127, 0.011598753419842697),
    ],
)
def test_p_values_are_those_of_the_binomial_test(
    only_champion: int, only_challenger: int, p_better: float, p_worse: float
) -> None:
    assert mcnemar(only_champion, only_challenger) == pytest.approx((p_better, p_worse), rel=1e-12)


def test_p_values_are_the_sums_of_the_definition() -> None:
    for n in range(30):
        for k in range(n + 1):
            tail = sum(comb(n, i) for i in range(k, n + 1)) / 2**n
            assert mcnemar(n - k, k)[0] == tail
            assert mcnemar(k, n - k)[1] == tail


def test_without_a_difference_nothing_is_proved() -> None:
    assert mcnemar(0, 0) == (1.0, 1.0)
    assert decide(compare({}, {}), GateRules("better")).outcome == "kept"
    assert decide(compare({}, {}), GateRules("not-worse")).outcome == "promoted"


def test_thousands_of_differences_are_counted_exactly() -> None:
    p_better, p_worse = mcnemar(9_000, 100)
    assert (p_better, p_worse) == (1.0, 0.0)
    assert mcnemar(5_000, 5_000)[0] == pytest.approx(0.504, abs=1e-3)


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
    comparison = compare(spread | {0: only_champion - 9 * (only_champion // 10)}, {3: only_challenger})
    assert (comparison.only_champion_right, comparison.only_challenger_right) == (only_champion, only_challenger)
    assert decide(comparison, GateRules("better")).outcome == better
    assert decide(comparison, GateRules("not-worse")).outcome == not_worse


def test_a_digit_may_fall_by_just_one_point_and_not_by_an_image_more() -> None:
    rises = {3: 100}
    assert decide(compare({8: 10}, rises), GateRules("better")).outcome == "promoted"
    for gate in ("better", "not-worse"):
        decision = decide(compare({8: 11}, rises), GateRules(gate))
        assert decision.outcome == "kept"
        assert "digit 8 from 1.0000 to 0.9890" in decision.reason
        assert decision.numbers is not None
        assert decision.numbers.challenger_accuracy > decision.numbers.champion_accuracy
        assert decision.numbers.p_better < 1e-6


def test_the_floor_can_be_moved() -> None:
    comparison = compare({8: 30}, {3: 100})
    assert decide(comparison, GateRules("better", recall_floor=0.03)).outcome == "promoted"
    assert decide(comparison, GateRules("better", recall_floor=0.029)).outcome == "kept"
    assert decide(compare({8: 1}, {3: 100}), GateRules("better", recall_floor=0)).outcome == "kept"


def test_a_digit_that_the_test_set_lacks_cannot_fall() -> None:
    whole = compare({}, {3: 10})
    counts = (0, *whole.images_per_digit[1:])
    champion, challenger = (
        Score(score.accuracy, score.loss, (0, *score.right_per_digit[1:]), score.right)
        for score in (whole.champion, whole.challenger)
    )
    decision = decide(Comparison("some", whole.images, counts, champion, challenger), GateRules("better"))
    assert decision.outcome == "promoted"
    assert decision.numbers is not None
    assert decision.numbers.champion_recall[0] is None


def test_equals_are_promoted_in_at_most_a_twentieth_of_2000_simulations() -> None:
    # Each of 150 images that one of two equally good models misses falls to either like a fair coin.
    coins = random.Random(0)
    promoted = 0
    for _ in range(2_000):
        challenger = sum(coins.random() < 0.5 for _ in range(150))
        promoted += mcnemar(150 - challenger, challenger)[0] <= 0.05
    assert promoted / 2_000 <= 0.05


def test_the_programs_scores_are_read() -> None:
    one = {"accuracy": 0.5, "loss": 1.0, "right_per_digit": [1] + [0] * 9}
    scores = {
        "test_set_sha256": "some",
        "images": 3,
        "images_per_digit": [3] + [0] * 9,
        # Three images, padded to a byte: 101 and 011.
        "models": {"champion": {**one, "right": "a0"}, "challenger": {**one, "right": "60"}},
    }
    comparison = Comparison.read(scores)
    assert (comparison.only_champion_right, comparison.only_challenger_right) == (1, 1)
