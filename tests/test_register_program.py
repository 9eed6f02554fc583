"""Registering versions of any program at the gate: by hand, by the objective, by scores; in a real MLflow."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from infra.errors import TrainingFailed
from infra.experiment_tracker import Run, Version
from tasks.champion import DECISION
from tasks.gate import GateRules, rules_for
from tasks.program_project import Objective
from tasks.registration import Judge, register
from tasks.registry.comparison import Comparison, compare
from tasks.registry.decision import GATE_DECISION, OUTCOME
from tasks.registry.scores import read_scores
from tests.registry import MODEL, Registry

VAL_LOSS = Objective("val_loss", "minimize")
BY_HAND = rules_for(None, None, has_score=False, objective=VAL_LOSS)
METRIC = rules_for("metric", 0.01, has_score=False, objective=VAL_LOSS)
BETTER = rules_for(None, None, has_score=True, objective=VAL_LOSS)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path, tmp_path)


@pytest.fixture
def add(registry: Registry) -> Callable[..., str]:
    """Gives the id of a finished run whose model is a file with this text, and whose objective is this."""

    def add(text: str, objective: float = 0.5, **tags: str) -> str:
        model = registry.folder / "models" / text
        model.mkdir(parents=True, exist_ok=True)
        (model / "MLmodel").write_text(text)
        facts = {
            "dataset_sha256": "a" * 64,
            "weights_sha256": "none",
            "model_kind": "files",
            "objective_metric": "val_loss",
            "objective": "minimize",
        }
        return registry.add_finished_run(model, facts | tags, {"objective": objective})

    return add


def losses_written_by(folder: Path) -> Callable[[Mapping[str, Path], Run], Comparison]:
    """Scores models by the number that their file holds: that is their loss on each of ten items, and a little more."""

    def compare_models(models: Mapping[str, Path], run: Run) -> Comparison:
        lines = ["model,item,loss"]
        for name, model in models.items():
            lines += [f"{name},{item},{float((model / 'MLmodel').read_text()) + item / 100}" for item in range(10)]
        (folder / "scores.csv").write_text("\n".join(lines))
        return compare(read_scores(folder / "scores.csv", models.keys()))

    return compare_models


def never(models: Mapping[str, Path], run: Run) -> Comparison:
    """For gates that score nothing."""
    raise AssertionError("nothing was to be scored")


def at_the_gate(
    registry: Registry, run_id: str, rules: GateRules, how: Callable[[Mapping[str, Path], Run], Comparison] = never
) -> Version:
    """The version of the run after it stood before the gate."""
    register(run_id, MODEL, Judge(rules, how, "some"), registry.services)
    return registry.version_of(run_id)


def test_without_score_the_first_version_is_champion_and_a_person_decides_about_later_ones(
    registry: Registry, add: Callable[..., str]
) -> None:
    first = at_the_gate(registry, add("1"), BY_HAND)
    assert first.tags[DECISION] == "Version 1 became champion: there was none"
    assert "test_accuracy" not in first.tags
    assert (first.tags["objective"], first.tags["model_kind"]) == ("0.5", "files")

    second = add("2", objective=0.1)
    version = at_the_gate(registry, second, BY_HAND)
    assert (version.tags[OUTCOME], version.tags["gate"]) == ("not compared", "by-hand")
    assert version.tags[DECISION] == (
        "Version 2 is not champion: it was not compared: after the first version a person decides: "
        f"python -m flows.promote --model-name {MODEL} --version 2. Version 1 stays."
    )
    kept = registry.decisions(second)
    at_the_gate(registry, second, BY_HAND)
    assert registry.decisions(second) == kept, "that is no attempt that failed, to be made again"
    registry.promote(2)
    assert registry.champions() == (2, 1)
    assert "although" not in registry.version_of(second).tags[DECISION]

    again = add("1")
    version = at_the_gate(registry, again, BY_HAND)
    assert version.tags[OUTCOME] == "not compared", "the files of version 1, which is not champion"
    same = at_the_gate(registry, add("2"), BY_HAND)
    assert "it has the very files of the champion" in same.tags[DECISION]
    # The same version before another gate, which can decide.
    assert at_the_gate(registry, again, METRIC).tags[OUTCOME] == "kept"
    assert registry.champions() == (2, 1)


def test_by_the_objective_the_better_is_promoted_on_the_same_data_only(
    registry: Registry, add: Callable[..., str]
) -> None:
    at_the_gate(registry, add("1"), METRIC)
    better = add("2", objective=0.4)
    version = at_the_gate(registry, better, METRIC)
    assert version.tags[GATE_DECISION] == (
        "Version 2 became champion in place of version 1: its val_loss is 0.4, that of the champion 0.5 (minimize, by "
        "0.01 at least); no test was made"
    )
    tags = {key: value for key, value in version.tags.items() if key.startswith("gate_") and "decision" not in key}
    assert tags == {
        "gate_outcome": "promoted",
        "gate_compared_with": "1",
        "gate_margin": "0.01",
        "gate_champion_objective": "0.5",
        "gate_challenger_objective": "0.4",
        "gate_dataset_sha256": "a" * 64,
        "gate_flow_run_id": "some",
    }
    (text,) = registry.decisions(better, ".md").values()
    assert "| val_loss | 0.5 | 0.4 |" in text
    assert "weaker evidence" in text

    no_number = add("3", objective=float("nan"))
    assert at_the_gate(registry, no_number, METRIC).tags[OUTCOME] == "kept"
    (written,) = registry.decisions(no_number).values()
    report = json.loads(written, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report["numbers"]["challenger"] == "nan"
    elsewhere = at_the_gate(registry, add("4", objective=0.1, dataset_sha256="b" * 64), METRIC)
    assert elsewhere.tags[OUTCOME] == "not compared"
    assert "its data set bbbbbbbbbbbb is not the one of the champion" in elsewhere.tags[DECISION]
    assert registry.champions() == (2, 1)


def test_by_losses_the_better_is_promoted_and_the_numbers_are_kept(
    registry: Registry, add: Callable[..., str], tmp_path: Path
) -> None:
    score = losses_written_by(tmp_path)
    at_the_gate(registry, add("0.5"), BETTER, score)
    better = add("0.25")
    version = at_the_gate(registry, better, BETTER, score)
    assert version.tags[DECISION] == (
        "Version 2 became champion in place of version 1: its mean loss is 0.295, that of the champion 0.545, on 10 "
        "items, which is evidence that it is better (p = 0.00098)"
    )
    assert float(version.tags["gate_loss_difference"]) == pytest.approx(-0.25)
    assert "gate_only_champion_right" not in version.tags
    assert "gate_recall_floor" not in version.tags
    numbers = registry.report(better)["numbers"]
    assert numbers["test"] == "Exact paired sign-flip permutation test"
    assert (numbers["champion_loss"], numbers["challenger_loss"]) == pytest.approx((0.545, 0.295))
    assert (numbers["p_better"], numbers["p_worse"], numbers["items"]) == (1 / 1024, 1.0, 10)
    (text,) = registry.decisions(better, ".md").values()
    for row in ("| mean loss | 0.545 | 0.295 |", "| mean difference of the losses |  | -0.25 |"):
        assert row in text
    assert "Exact paired sign-flip permutation test, one-sided, on 10 items." in text
    assert f"dataset_sha256 `{'a' * 64}`" in text

    worse = at_the_gate(registry, add("0.75"), BETTER, score)
    assert worse.tags[OUTCOME] == "kept"
    assert registry.champions() == (2, 1)


def test_what_cannot_be_scored_leaves_the_champion(registry: Registry, add: Callable[..., str], tmp_path: Path) -> None:
    score = losses_written_by(tmp_path)
    at_the_gate(registry, add("0.5"), BETTER, score)
    version = at_the_gate(registry, add("nan"), BETTER, score)
    assert version.tags[OUTCOME] == "not compared"
    assert "BadScores: scores.csv: line 12: the loss 'nan' is not finite. Version 1 stays." in version.tags[DECISION]

    def fails(models: Mapping[str, Path], run: Run) -> Comparison:
        raise TrainingFailed("The program's score ended with exit status 3.", 3)

    run_id = add("0.25")
    version = at_the_gate(registry, run_id, BETTER, fails)
    assert "TrainingFailed: The program's score ended with exit status 3. Version 1 stays." in version.tags[DECISION]
    assert at_the_gate(registry, run_id, BETTER, score).tags[OUTCOME] == "promoted", "the next run tries again"

    own_classes = add("0.1", model_kind="needs_code", weights_sha256="c" * 64)
    version = at_the_gate(registry, own_classes, BETTER, never)
    assert "its model needs its program's own code to be loaded, which --trust-code allows" in version.tags[DECISION]
    trusting = GateRules("better", trust_code=True)
    assert at_the_gate(registry, own_classes, trusting, score).tags[OUTCOME] == "promoted"
    version = at_the_gate(registry, add("0.05"), BETTER, never)
    assert "the champion's model needs its program's own code" in version.tags[DECISION]
    assert registry.champions() == (4, 3)
