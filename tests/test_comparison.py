"""Two models on the same items: the permutation test against references, and what a file of scores must be."""

import random
from collections.abc import Sequence
from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import permutation_test  # type: ignore[import-untyped]

from infra.errors import BadScores
from tasks.registry.comparison import (
    DRAWS,
    MCNEMAR,
    SIGN_FLIP,
    SIGN_FLIP_DRAWN,
    Group,
    _drawn_sums,
    compare,
    mcnemar,
    sign_flip,
)
from tasks.registry.scores import read_scores

MODELS = ("champion", "challenger")


def losses(seed: int, count: int, better_by: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Those of a champion and of a challenger that is better by so much in the mean, in an item's spread of 1."""
    generator = np.random.default_rng(seed)
    champion = generator.gamma(1.0, 1.0, count)
    return champion, champion - better_by - generator.normal(0, 1, count)


def test_few_pairs_give_the_share_of_all_choices_of_signs_and_many_come_near_it() -> None:
    for seed, count in enumerate((1, 2, 5, 9)):
        # Whole numbers: many choices have the very sum that was found.
        champion, challenger = (np.random.default_rng(10 * seed + one).integers(0, 4, count) for one in (0, 1))
        found = int((champion - challenger).sum())
        sums = [
            sum(sign * int(d) for sign, d in zip(signs, champion - challenger, strict=True))
            for signs in product((1, -1), repeat=count)
        ]
        better, worse, test = sign_flip(champion / 10, challenger / 10)
        assert better == sum(one >= found for one in sums) / 2**count
        assert worse == sum(one <= found for one in sums) / 2**count
        assert test == SIGN_FLIP

    champion, challenger = losses(1, 12, 0.3)
    reference = permutation_test(
        (champion, challenger), lambda a, b: (a - b).sum(), permutation_type="samples", n_resamples=2**12
    )
    assert reference.null_distribution.size == 2**12, "all of them"
    at_least = (reference.null_distribution >= reference.statistic * (1 - 1e-12)).mean()
    assert sign_flip(champion, challenger)[0] == pytest.approx(at_least, abs=1e-15)

    for seed, better_by in ((2, 0.0), (3, 0.4), (4, -0.4)):
        champion, challenger = losses(seed, 28, better_by)
        # Two halves, each with all its choices: every choice of the whole is a sum of one of each.
        halves = [
            np.sort([np.dot(s, d) for s in product((1, -1), repeat=14)]) for d in np.split(champion - challenger, 2)
        ]
        found = (champion - challenger).sum() - 1e-12
        exact = (2**14 - np.searchsorted(halves[0], found - halves[1])).sum() / 2**28
        better, worse, test = sign_flip(champion, challenger)
        # Five standard errors of a share of so many draws.
        assert abs(better - exact) < 5 * (exact * (1 - exact) / DRAWS) ** 0.5 + 1 / DRAWS
        assert abs(better + worse - 1) <= 2 / DRAWS
        assert test == SIGN_FLIP_DRAWN


def test_each_sign_is_drawn_as_often_as_the_other() -> None:
    sums = _drawn_sums(np.ones(8))
    # Of DRAWS sums of eight fair signs: the mean within three standard errors, and every sum that there is.
    assert abs(sums.mean()) < 3 * (8 / DRAWS) ** 0.5
    assert np.unique(sums).tolist() == [-8, -6, -4, -2, 0, 2, 4, 6, 8]


@pytest.mark.parametrize("count", [3, 20, 21, 500])
def test_champion_and_challenger_in_each_others_place_swap_the_p_values(count: int) -> None:
    champion, challenger = losses(count, count, 0.1)
    better, worse, _ = sign_flip(champion, challenger)
    assert sign_flip(champion, challenger)[:2] == (better, worse), "the same scores, the same p"
    assert sign_flip(challenger, champion)[:2] == (worse, better)
    assert 0 < better <= 1
    assert 0 < worse <= 1
    assert sign_flip(champion * 2.0**70, challenger * 2.0**70)[:2] == (better, worse), "the unit does not matter"


def test_items_without_a_difference_count_for_nothing() -> None:
    assert sign_flip([1.0, 2.0], [1.0, 2.0])[:2] == (1.0, 1.0)
    champion, challenger = losses(0, 18)
    alike = np.linspace(0, 1, 5_000)
    with_alike = sign_flip(np.concatenate((champion, alike)), np.concatenate((challenger, alike)))
    assert with_alike == sign_flip(champion, challenger)


def test_sums_that_only_rounding_tells_apart_count_as_equal() -> None:
    # Differences of just 0.1 each, which no two of these losses have in binary: of the 8 choices 4 give 0.1 or more.
    assert len({1000.3 - 1000.2, 0.3 - 0.2, 7.7 - 7.6}) == 3
    assert sign_flip([1000.3, 0.3, 7.6], [1000.2, 0.2, 7.7])[:2] == (0.5, 0.875)
    # A difference that dwarfs the rest decides alone, and is not lost in what rounding may do.
    assert sign_flip([1.0, 1e-9], [0.0, 0.0])[:2] == (0.25, 1.0)


def test_a_clear_difference_is_proved_and_p_is_never_zero() -> None:
    champion, challenger = losses(7, 2_000, 0.5)
    better, worse, _ = sign_flip(champion, challenger)
    assert better == 1 / (DRAWS + 1)
    assert worse == 1.0


@pytest.mark.parametrize(("count", "pairs"), [(12, 2_000), (25, 200)])
def test_equals_are_proved_better_in_at_most_a_twentieth_of_simulations(count: int, pairs: int) -> None:
    # Skewed losses of equals: each is as likely the one as the other's.
    better = [sign_flip(*np.random.default_rng(seed).gamma(0.5, 1.0, (2, count)))[0] <= 0.05 for seed in range(pairs)]
    # Three standard errors above what is allowed, for this is a draw of the simulations too.
    assert 0.02 < np.mean(better) < 0.05 + 3 * (0.05 * 0.95 / pairs) ** 0.5


@pytest.mark.parametrize(
    ("only_champion", "only_challenger", "p_better", "p_worse"),
    [
        # scipy.stats.binomtest(k, n, 0.5, alternative="greater").pvalue
        (0, 0, 1.0, 1.0),
        (0, 5, 0.03125, 1.0),
        (1, 0, 1.0, 0.5),
        (12, 31, 0.0027007863272956456, 0.9990430194993678),
        (100, 100, 0.5281742395046283, 0.5281742395046283),
        (130, 95, 0.9918975457904127, 0.011598753419842697),
        (9_000, 100, 1.0, 0.0),
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


def test_equals_are_promoted_in_at_most_a_twentieth_of_2000_simulations() -> None:
    # Each of 150 items that one of two equally good models misses falls to either like a fair coin.
    coins = random.Random(0)
    promoted = 0
    for _ in range(2_000):
        challenger = sum(coins.random() < 0.5 for _ in range(150))
        promoted += mcnemar(150 - challenger, challenger)[0] <= 0.05
    assert promoted / 2_000 <= 0.05


def written(folder: Path, *lines: str) -> Path:
    """A file with these lines."""
    file = folder / "scores.csv"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def test_rights_are_compared_whatever_the_order_of_the_lines(tmp_path: Path) -> None:
    lines = ["challenger,b,1,3", "champion,a,1,3", "champion,b,0,3", "challenger,c,1,7", "champion,c,0,7"]
    scores = read_scores(written(tmp_path, "model,item,right,group", *lines, "challenger,a,1,3"), MODELS)
    assert scores.values == {"champion": (1, 0, 0), "challenger": (1, 1, 1)}
    found = compare(scores)
    assert (found.items, found.only_champion_right, found.only_challenger_right) == (3, 0, 2)
    assert (found.champion_accuracy, found.challenger_accuracy) == pytest.approx((1 / 3, 1))
    assert (found.p_better, found.p_worse, found.test) == (0.25, 1.0, MCNEMAR)
    assert found.groups == {"3": Group(2, 1, 2), "7": Group(1, 0, 1)}
    assert (found.champion_loss, found.challenger_loss) == (None, None)


def test_losses_are_compared(tmp_path: Path) -> None:
    lines = (
        f"{model},{item},{loss}"
        for model, of in (("champion", 2), ("challenger", -1e-3))
        for item, loss in ((one, of * one) for one in range(1, 6))
    )
    found = compare(read_scores(written(tmp_path, "\ufeffmodel,item,loss", *lines), MODELS))
    assert (found.champion_loss, found.challenger_loss) == pytest.approx((6, -3e-3))
    assert (found.p_better, found.p_worse) == (1 / 32, 1.0)
    assert found.only_champion_right is None


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "line 1 is '', expected model,item,loss or model,item,right or"),
        (["champion,1,0.5"], "line 1 is 'champion,1,0.5', expected model,item,loss"),
        (["model,item,loss"], "nothing was scored"),
        (["model,item,loss", "champion,1"], r"line 2: expected 3 fields \(model,item,loss\), found 2"),
        (["model,item,loss", ""], "line 2: expected 3 fields"),
        (["model,item,loss", "winner,1,2"], "line 2: there is no model 'winner', expected champion or challenger"),
        (["model,item,loss", "champion,1,2", "champion,1,2"], "line 3: a second line for item '1' of champion"),
        (["model,item,loss", "champion,1,nan"], "line 2: the loss 'nan' is not finite"),
        (["model,item,loss", "champion,1,-inf"], "line 2: the loss '-inf' is not finite"),
        (["model,item,loss", "champion,1,1e400"], "line 2: the loss '1e400' is not finite"),
        (["model,item,loss", "champion,1,low"], "line 2: 'low' is no loss, expected a number"),
        (["model,item,right", "champion,1,0.5"], r"line 2: '0.5' is neither 1 \(right\) nor 0 \(wrong\)"),
        (["model,item,right", "champion,1,True"], "line 2: 'True' is neither 1"),
        (
            ["model,item,right", "champion,1,1", "champion,2,1", "challenger,2,1"],
            r"challenger has no score of item '1' \(1 of 2 are missing\)",
        ),
        (["model,item,right", "challenger,1,1"], "champion has no score of item '1'"),
        (
            ["model,item,right,group", "champion,1,1,cat", "challenger,1,1,dog"],
            "line 3: item '1' is in group 'dog' here, and in 'cat' above",
        ),
        (["model,item,loss", 'champion,"1,2'], "unexpected end of data"),
        (["model,item,loss", "champion,1," + "9" * 200_000], "field larger than field limit"),
        (["model,item,loss", "champion,1," + "x" * 500], r"line 2: 'x{100}\.\.\.' is no loss"),
    ],
)
def test_a_file_that_is_no_scores_is_refused_with_its_line(tmp_path: Path, lines: Sequence[str], reason: str) -> None:
    with pytest.raises(BadScores, match=reason):
        read_scores(written(tmp_path, *lines), MODELS)


def test_no_file_and_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadScores, match=r"scores\.csv was not written"):
        read_scores(tmp_path / "scores.csv", MODELS)
    (tmp_path / "scores.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadScores, match="not text in UTF-8"):
        read_scores(tmp_path / "scores.csv", MODELS)
