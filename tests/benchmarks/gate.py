"""The gate on real models: how often it promotes challengers that are no better, and whether a bad one passes.

    python -m tests.benchmarks.gate --data-folder FOLDER [--models 21] [--epochs 20]

Trains models that differ in nothing but their seed and scores them on the test set as the pipeline does. Such models
are alike, but not equal, for a seed can be a lucky one. So there are two answers:

- *equal*: for each image that just one of two models gets right, a coin decides which. What is left of a difference is
  chance, and of such pairs `better` must promote at most 5 %.
- *as trained*: each model challenges each other one. More than 5 % of promotions are no error as far as the models
  differ by more than chance, which the line below the table tells.

Then what must never pass: a model trained on shuffled labels, and one whose better mean hides a broken digit.
With 21 models of 20 epochs it takes ten minutes on two cores.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tasks.gate import RECALL_FLOOR, SIGNIFICANCE, Gate, GateRules, decide
from tasks.mnist_training import PROGRAM
from tasks.programs.mnist.digits.dataset_files import FILE_NAMES, TRAIN_LABELS, read_idx, write_idx
from tasks.registry.comparison import Comparison, compare
from tasks.registry.scores import Scores, read_scores

MODEL_FILE = Path("data", "model.keras")
"""Where MLflow's Keras flavour puts the network, relative to the model's folder."""

DIGIT = 8
DRAWS = 10
"""How often the coins are thrown for each pair."""


def simulate(data_folder: Path, models: int, epochs: int, scratch: Path) -> tuple[str, list[str]]:
    """A report as markdown, and what the gate did that it must not do."""
    seeds = [train(data_folder, epochs, seed, scratch / f"seed-{seed}") for seed in range(models)]
    beginner = train(data_folder, 1, models, scratch / "beginner")
    shuffled = train(shuffle_labels(data_folder, scratch / "shuffled-data"), 2, 0, scratch / "shuffled")
    broken = break_digit(seeds[0], beginner, data_folder, scratch / "broken")
    scored = score([*seeds, beginner, shuffled, broken], data_folder)
    right = {name: np.array(values, bool) for name, values in scored.values.items()}
    alike = [right[model.name] for model in seeds]
    groups = scored.groups or ()
    weak, senseless, uneven = (right[model.name] for model in (beginner, shuffled, broken))

    equal = [compared(groups, *pair) for pair in _drawn_by_lot(alike)]
    trained = [compared(groups, *pair) for pair in permutations(alike, 2)]
    accuracies = [float(bits.mean()) for bits in alike]
    lines = [f"{models} models of {epochs} epochs, test accuracies {min(accuracies):.4f} to {max(accuracies):.4f}", ""]
    lines += ["| pairs | gate | number | promoted | without the floor |", "|---|---|---|---|---|"]
    wrong = []
    for what, pairs in (("equal", equal), ("as trained", trained)):
        for gate in get_args(Gate):
            rate, without = (promoted(pairs, GateRules(gate, floor)) for floor in (RECALL_FLOOR, 1.0))
            lines.append(f"| {what} | {gate} | {len(pairs)} | {rate:.1%} | {without:.1%} |")
            if (what, gate) == ("equal", "better") and max(rate, without) > SIGNIFICANCE:
                wrong.append(f"the gate better promoted {rate:.1%} of equals, {without:.1%} without the floor")
    lines += ["", spread(trained), "", "| must not pass | gate | decision |", "|---|---|---|"]
    for what, pair in (
        ("trained on shuffled labels", (weak, senseless)),
        (f"digit {DIGIT} broken, mean better", (weak, uneven)),
    ):
        for gate in get_args(Gate):
            decision = decide(compared(groups, *pair), GateRules(gate, RECALL_FLOOR))
            change = " to ".join(f"{bits.mean():.4f}" for bits in pair)
            lines.append(f"| {what}, accuracy {change} | {gate} | {decision.outcome}: {decision.reason} |")
            if decision.outcome != "kept":
                wrong.append(f"{what} passed the gate {gate}")
    for gate in get_args(Gate):
        if promoted([compared(groups, champion, senseless) for champion in alike], GateRules(gate, 1.0)):
            wrong.append(f"shuffled labels passed the gate {gate}")
    return "\n".join(lines), wrong


def compared(groups: tuple[str, ...], champion: np.ndarray, challenger: np.ndarray) -> Comparison:
    """The comparison of two models that are right on these images, whose digits are `groups`: bool, shape (n,)."""
    values = {"champion": tuple(map(float, champion)), "challenger": tuple(map(float, challenger))}
    return compare(Scores("right", values, groups))


def promoted(pairs: Iterable[Comparison], rules: GateRules) -> float:
    """The share of challengers that the gate promotes."""
    return float(np.mean([decide(pair, rules).outcome == "promoted" for pair in pairs]))


def spread(pairs: list[Comparison]) -> str:
    """By how much the pairs differ, and by how much equals would: each discordant image then counts like a coin."""
    alone = [(pair.only_challenger_right or 0, pair.only_champion_right or 0) for pair in pairs]
    differences, discordant = [a - b for a, b in alone], [a + b for a, b in alone]
    return (
        f"As trained, the images that one is ahead by have a mean square of {np.mean(np.square(differences)):.0f}; "
        f"with equals it would be {np.mean(discordant):.0f}, the number of images on which just one is right."
    )


def _drawn_by_lot(alike: list[np.ndarray]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    for one, other in combinations(alike, 2):
        for _ in range(DRAWS):
            swapped = rng.random(len(one)) < 0.5
            yield np.where(swapped, other, one), np.where(swapped, one, other)


def read_labels(data_folder: Path, name: str) -> np.ndarray:
    """The labels in one of the data set's files: uint8, shape (n,)."""
    with (data_folder / name).open("rb") as file:
        return read_idx(file, name)


def train(data_folder: Path, epochs: int, seed: int, outputs: Path) -> Path:
    """Train as the pipeline does, without MLflow; the folder of the model, as MLflow keeps it."""
    arguments = (f"--data-folder={data_folder}", f"--epochs={epochs}", f"--seed={seed}")
    run_program("digits.train", *arguments, OUTPUTS_FOLDER=str(outputs))
    folder = outputs.with_name(f"model-{outputs.name}")
    (folder / "data").mkdir(parents=True)
    (outputs / "model" / "model.keras").rename(folder / MODEL_FILE)
    return folder


def score(models: list[Path], data_folder: Path) -> Scores:
    """What the program's `score` says of the models, by the names of their folders."""
    output = models[0].with_name("scores.csv")
    named = (f"--model={model.name}={model}" for model in models)
    run_program("digits.score", *named, f"--data-folder={data_folder}", f"--output={output}")
    return read_scores(output, [model.name for model in models])


def run_program(module: str, *arguments: str, **variables: str) -> None:
    """Run a module of the program with these arguments."""
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=PROGRAM, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")


def shuffle_labels(data_folder: Path, folder: Path) -> Path:
    """A copy of the data set in `folder`, each training image of which has the label of another."""
    folder.mkdir()
    for name in FILE_NAMES:
        shutil.copyfile(data_folder / name, folder / name)
    labels = read_labels(data_folder, TRAIN_LABELS)
    write_idx(folder / TRAIN_LABELS, np.random.default_rng(0).permutation(labels))
    return folder


def break_digit(model: Path, champion: Path, data_folder: Path, broken: Path) -> Path:
    """A copy of `model` that recognises `DIGIT` worse than `champion`, by two points, and is better in the mean.

    The bias of the digit's output is lowered just so far.
    """
    from tasks.programs.mnist.digits.dataset import load_test_set
    from tasks.programs.mnist.digits.model import evaluate
    from tasks.programs.mnist.digits.score import load_model

    images, labels = load_test_set(data_folder)

    def right(model: Any) -> np.ndarray:
        return np.asarray(evaluate(model, images, labels).predictions == labels)

    is_digit, before = labels == DIGIT, right(load_model(champion))
    groups = tuple(f"digit {label}" for label in labels)
    (broken / MODEL_FILE).parent.mkdir(parents=True)
    network = load_model(model)
    kernel, bias = network.layers[-1].get_weights()
    for lowered in np.arange(0.0, 20.0, 0.5):
        network.layers[-1].set_weights([kernel, bias - lowered * (np.arange(len(bias)) == DIGIT)])
        network.save(broken / MODEL_FILE)
        now = right(network)
        if before[is_digit].sum() - now[is_digit].sum() >= 0.02 * is_digit.sum():
            if decide(compared(groups, before, now), GateRules("better", recall_floor=1.0)).outcome != "promoted":
                break
            return broken
    raise RuntimeError("With the digit broken the mean is not better: give the models more --epochs.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-folder", type=Path, required=True)
    parser.add_argument("--models", type=int, default=21)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report, wrong = simulate(options.data_folder.absolute(), options.models, options.epochs, Path(folder))
    sys.stdout.write(report + "\n")
    sys.exit("; ".join(wrong) or 0)
