"""Scoring by a program's own code: the real runner, in processes of its own, as the gate calls it."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from infra.compute import this_machine
from infra.errors import ArgumentError, BadScores, DatasetCorrupted, TrainingFailed
from infra.experiment_tracker import ExperimentTracker, Run
from infra.services import Services
from infra.settings import load_settings
from tasks.handoffs import Dataset
from tasks.program import read_program
from tasks.program_scores import ProgramScores, score_command
from tasks.program_training import Asked, program_training
from tasks.registry.comparison import MCNEMAR
from tests.runner_stage import store_dataset

COUNTER = Path(__file__).parent / "programs" / "counter"
RUN = Run("r", "0", "FINISHED", {}, {}, {}, ())

MLPROJECT = """
name: own
entry_points:
  main: {parameters: {data_folder: path}, command: "python train.py {data_folder}"}
  score: {parameters: {scale: {type: float, default: 2}}, command: "python scoring/score.py --scale {scale}"}
"""

SCORE = """
import argparse, json, os, pathlib, subprocess, sys, time
import neighbour
parser = argparse.ArgumentParser()
for name in ("--scale", "--data-folder", "--output"):
    parser.add_argument(name, required=True)
parser.add_argument("--model", action="append")
told = parser.parse_args()
models = dict(model.split("=", 1) for model in told.model)
seen = {"cwd": os.getcwd(), "environment": dict(os.environ), "stdin": sys.stdin.read(), "pid": os.getpid()}
seen |= vars(told)
pathlib.Path(os.environ["SEEN"]).write_text(json.dumps(seen))
print("scoring", *models)
step = pathlib.Path(told.data_folder, "step").read_text()
if step == "fail":
    raise LookupError("no such layer")
if step == "hang":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    time.sleep(600)
if step != "silence":
    lines = [f"{name},{item},{item * float(pathlib.Path(models[name], 'n').read_text())}"
             for name in models for item in range(1, 6)]
    pathlib.Path(told.output).write_text("\\n".join(["model,item,loss", *lines]))
"""


@pytest.fixture(autouse=True)
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.json"))


@pytest.fixture
def scored(tmp_path: Path) -> Callable[..., Any]:
    """Scores a champion of loss 2 and a challenger of loss 1, on data whose file `step` says what the program does."""
    program = tmp_path / "own"
    for name, text in (
        ("MLproject", MLPROJECT),
        ("train.py", ""),
        ("scoring/score.py", SCORE),
        ("scoring/neighbour.py", ""),
    ):
        (program / name).parent.mkdir(parents=True, exist_ok=True)
        (program / name).write_text(text)

    def scored(step: str, limit_seconds: float = 60, spoil: bool = False) -> Any:
        stored = store_dataset(tmp_path / "store" / step, {"step": step.encode()})
        if spoil:
            (tmp_path / "store" / step / "step").write_text("other")
        models = {}
        for name, loss in (("champion", 2), ("challenger", 1)):
            models[name] = tmp_path / "models" / name
            models[name].mkdir(parents=True, exist_ok=True)
            (models[name] / "n").write_text(str(loss))
        scores = scores_of(program, {"steps": Dataset("steps", stored["sha256"], stored["uri"])}, tmp_path)
        scores.limit_seconds = limit_seconds
        return scores(models, RUN)

    return scored


def scores_of(folder: Path, datasets: Mapping[str, Dataset], home: Path, entry: str | None = None) -> ProgramScores:
    """What scores by the program in `folder`, its bundle made as for its training."""
    settings = load_settings({"PIPELINE_HOME": str(home / "home")})
    program = read_program(folder, entry)
    digests = {name: dataset.sha256 for name, dataset in datasets.items()}
    training = program_training(program, Asked(variables=["SEEN"]), digests, home / "bundle", settings)
    services = Services(settings, ExperimentTracker(settings))
    return ProgramScores(program, training, datasets, this_machine(settings, "cpu"), services)


def test_the_programs_own_score_compares_two_models(
    scored: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    with caplog.at_level(logging.INFO):
        found = scored("well")
    assert (found.champion_loss, found.challenger_loss) == (6, 3)
    assert (found.p_better, found.p_worse) == (1 / 32, 1)
    assert "scoring champion challenger" in caplog.messages
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["scale"] == "2"
    assert seen["stdin"] == ""
    assert Path(seen["cwd"]).name == "program"
    assert Path(seen["data_folder"]).name == "steps"
    assert seen["environment"]["CUDA_VISIBLE_DEVICES"] == "-1"
    assert "hush" not in str(seen)
    assert not Path(seen["cwd"]).exists(), "nothing is left of it"
    assert not Path(seen["output"]).exists()


def test_a_score_that_fails_says_why(scored: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(
        TrainingFailed, match=r"scoring/score\.py.* ended with exit status 1; .*LookupError: no such layer"
    ):
        scored("fail")
    with pytest.raises(BadScores, match=r"scores\.csv was not written"):
        scored("silence")
    with pytest.raises(DatasetCorrupted, match="its file step"):
        scored("spoilt", spoil=True)
    (tmp_path / "seen.json").unlink()
    started = time.monotonic()
    with pytest.raises(TrainingFailed, match="score had not ended after 5 s, and was stopped"):
        scored("hang", limit_seconds=5)
    assert time.monotonic() - started < 60
    assert not psutil.pid_exists(json.loads((tmp_path / "seen.json").read_text())["pid"])


def test_the_programs_in_the_tests_and_examples_can_score() -> None:
    for folder in (COUNTER, *(COUNTER.parent.parent.parent / "examples" / name for name in ("fashion", "tabular"))):
        program = read_program(folder)
        assert score_command(program, ("data",)) == ("python", "score.py")
        assert score_command(replace(program, score=None), ("data",)) is None


def test_rights_of_a_program_without_data_are_compared(tmp_path: Path) -> None:
    models = {}
    for name, side in (("champion", -1), ("challenger", 1)):
        models[name] = tmp_path / "models" / name / "data"
        models[name].mkdir(parents=True)
        np.savez(models[name] / "weights.npz", weights=side * np.array([1, 1, -1.2]))
    found = scores_of(COUNTER, {}, tmp_path, "without_data")(models, RUN)
    assert (found.test, found.items) == (MCNEMAR, 200)
    assert (found.only_champion_right or 0) + (found.only_challenger_right or 0) == 200, (
        "one is right where the other is wrong"
    )
    assert found.p_better < 0.001


@pytest.mark.parametrize(
    ("score", "told"),
    [
        ('{command: "python scores.py"}', r"scores\.py"),
        (
            '{parameters: {models: string}, command: "python scoring/score.py {models}"}',
            "cannot be run, for it is given no parameters",
        ),
        ('{command: "python scoring/score.py | tee log"}', "a command for a shell"),
    ],
)
def test_a_score_that_could_not_be_started_is_refused(
    scored: Callable[..., Any], tmp_path: Path, score: str, told: str
) -> None:
    folder = tmp_path / "own"
    project = MLPROJECT.replace(MLPROJECT.partition("  score: ")[2].strip(), score)
    (folder / "MLproject").write_text(project)
    with pytest.raises(ArgumentError, match=told):
        score_command(read_program(folder), ("steps",))
