"""MNIST's champion and challenger on its test set: what its training program answers to `score`, as a comparison."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.compute import Compute
from infra.errors import BadScores
from infra.experiment_tracker import Run
from tasks.registry.comparison import MCNEMAR, Comparison, Group, mcnemar
from tasks.saved_model import ask_program


def compare_on_test_set(models: Mapping[str, Path], run: Run, machine: Compute, data_uri: str) -> Comparison:
    """Score the models in these folders on the test set under `data_uri`, on `machine`.

    Raises as `ask_program` does, and `BadScores` if that is not the test set that the challenger's run names.
    """
    folders = (f"--model={name}={folder}" for name, folder in models.items())
    scores = ask_program(machine, ("score", *folders, f"--data-folder={data_uri}"))
    found, expected = scores["test_set_sha256"], run.tags["test_set_sha256"]
    if found != expected:
        raise BadScores(f"its test set {expected[:12]} is not the one in the store, {found[:12]}")
    return read_comparison(scores)


def read_comparison(scores: Mapping[str, Any]) -> Comparison:
    """Of the models `champion` and `challenger`; each digit that the test set has is a group."""
    champion, challenger = (scores["models"][name] for name in ("champion", "challenger"))
    # A bit for each image, the same order for both.
    before, after = int(champion["right"], 16), int(challenger["right"], 16)
    only_champion, only_challenger = (before & ~after).bit_count(), (after & ~before).bit_count()
    p_better, p_worse = mcnemar(only_champion, only_challenger)
    counts = zip(scores["images_per_digit"], champion["right_per_digit"], challenger["right_per_digit"], strict=True)
    return Comparison(
        items=scores["images"],
        test=MCNEMAR,
        champion_accuracy=champion["accuracy"],
        challenger_accuracy=challenger["accuracy"],
        champion_loss=champion["loss"],
        challenger_loss=challenger["loss"],
        only_champion_right=only_champion,
        only_challenger_right=only_challenger,
        p_better=p_better,
        p_worse=p_worse,
        groups={f"digit {digit}": Group(*count) for digit, count in enumerate(counts) if count[0]},
    )
