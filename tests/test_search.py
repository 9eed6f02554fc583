"""A search as a person starts it, on real parts: its trials, its stops, its winner; and killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.search.stopping import Stopping
from tasks.search.trial import Trial
from tests.pipeline import ROOT, Pipeline, descendants, still_running, wait_until

pytestmark = pytest.mark.slow

COUNTER = ROOT / "tests" / "programs" / "counter"
RULES = ("--trials=6", "--at-once=2", "--seed=1", "--sampler=tpe", "--evaluation-interval=1", "--param", "epochs=4")


def pipeline(folder: Path, prefect_api: str) -> Pipeline:
    """A home, with a copy of the counter and points for it beside each other."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(COUNTER, folder / "counter", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, COUNTER / "points.py", folder / "points"], check=True)
    return Pipeline(folder, {"PREFECT_API_URL": prefect_api}, module="flows.search")


def program(place: Pipeline) -> list[str]:
    return [f"--program={place.folder / 'counter'}", f"--data={place.folder / 'points'}"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Pipeline:
    return pipeline(tmp_path_factory.mktemp("search"), prefect_api)


@pytest.fixture(scope="module")
def outcome(place: Pipeline) -> dict[str, Any]:
    return place.run(*program(place), *RULES, timeout_seconds=600)


def told(outcome: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What a search is, and no kill or delay may change."""
    names = ("number", "parameters", "values", "status", "stopped_at", "reason", "reused")
    return [tuple(trial[name] for name in names) for trial in outcome["trials"]]


def test_a_search_ends_as_a_version_and_its_trials_are_children(place: Pipeline, outcome: dict[str, Any]) -> None:
    trials = outcome["trials"]
    assert [trial["number"] for trial in trials] == list(range(6))
    assert trials[0]["parameters"] == {"steps": 20, "seed": 0}  # The program's defaults.
    finished = [trial for trial in trials if trial["status"] == "finished"]
    best = max(finished, key=lambda trial: (max(trial["values"]), -trial["number"]))
    assert (outcome["best_trial"], outcome["best_run_id"]) == (best["number"], best["run_id"])
    assert outcome["objective"] == max(best["values"])
    run = place.tracker.get_run(outcome["best_run_id"])
    assert (run.status, run.metrics["objective"]) == ("FINISHED", outcome["objective"])
    parent = place.tracker.get_run(outcome["parent_run_id"])
    assert (parent.status, parent.metrics["best"]) == ("FINISHED", outcome["objective"])
    children = place.tracker.find_runs("counter", {"mlflow.parentRunId": outcome["parent_run_id"]})
    assert sorted(int(child.tags["search.trial"]) for child in children) == list(range(6))
    for child in children:
        trial = trials[int(child.tags["search.trial"])]
        assert child.params["steps"] == str(trial["parameters"]["steps"])
        curve = place.tracker.metric_histories(child.run_id, ["val_accuracy"])["val_accuracy"]
        assert curve == list(enumerate(trial["values"], 1))
        assert child.tags.get("search.reason") == trial["reason"]
        assert child.tags.get("search.reused_run", "") == (trial["run_id"] if trial["reused"] else "")
    version = place.tracker.versions("counter")[0]
    assert version.tags["search.run_id"] == outcome["parent_run_id"]
    assert version.tags["search.trials"] == "6"
    assert version.tags["search.lead"] == outcome["lead"]
    assert (place.output_dir / "weights.npz").is_file()
    # Of the others the test was not made, and what could be continued is kept.
    for trial in finished:
        if trial["run_id"] != outcome["best_run_id"]:
            other = place.tracker.get_run(trial["run_id"])
            assert ("model_sha256" in other.tags, other.tags["trained"]) == (False, "before_test")
    assert any(trial["status"] == "stopped" for trial in trials)


def test_the_stops_are_those_of_the_rule_on_the_recorded_curves(outcome: dict[str, Any]) -> None:
    rule = Stopping("bandit", "maximize", evaluation_interval=1, last=4)
    trials = [Trial(one["number"], {}, tuple(one["values"]), one["status"]) for one in outcome["trials"]]
    for trial in trials:
        found = rule.first(trial.values, trials[: max(0, trial.number - 1)])
        assert (found and found[0]) == outcome["trials"][trial.number]["stopped_at"]


def test_the_same_search_is_the_answer_and_its_winner_is_not_trained_again(
    place: Pipeline, outcome: dict[str, Any]
) -> None:
    before = len(place.tracker.find_runs("counter", {}))
    again = place.run(*program(place), *RULES)
    assert {**again, "seconds": None, "champion_decision": None} == {
        **outcome,
        "seconds": None,
        "champion_decision": None,
    }
    assert len(place.tracker.find_runs("counter", {})) == before
    values = outcome["trials"][outcome["best_trial"]]["parameters"]
    single = Pipeline(place.folder, place.environment, module="flows.train")
    flags = [word for name, value in values.items() for word in ("--param", f"{name}={value}")]
    alone = single.run(*program(place), *flags, "--param", "epochs=4")
    assert (alone["reused"], alone["run_id"]) == (True, outcome["best_run_id"])


def test_another_rule_judges_what_was_trained_before(place: Pipeline, outcome: dict[str, Any]) -> None:
    other = place.run(*program(place), *RULES, "--stop=halving", "--sampler=random", "--trials=4")
    assert other["parent_run_id"] != outcome["parent_run_id"]
    first = other["trials"][0]
    assert (first["reused"], first["run_id"]) == (True, outcome["trials"][0]["run_id"])


def test_a_search_may_begin_with_what_another_has_learnt(place: Pipeline, outcome: dict[str, Any]) -> None:
    warm = f"--warm-start={outcome['parent_run_id']}"
    learnt = place.run(*program(place), *RULES[1:], warm, "--trials=3", "--max-seconds=600")
    parent = place.tracker.get_run(learnt["parent_run_id"])
    assert parent.params["warm"] == "6"
    assert [trial["number"] for trial in learnt["trials"]] == [0, 1, 2]
    assert learnt["trials"][0]["reused"]
    place.run(*program(place), *RULES, "--warm-start=unknown", status=1)


def test_killed_again_and_again_it_is_the_same_search(
    outcome: dict[str, Any], tmp_path: Path, prefect_api: str
) -> None:
    killed = pipeline(tmp_path / "killed", prefect_api)
    draw = random.Random(1)
    # Slower by the wall, and not by what decides: the parameter is part of the key, and of nothing that is compared.
    words = [*program(killed), *RULES, "--param", "seconds=0.2"]
    for trials, number in ((1, signal.SIGINT), (3, signal.SIGKILL)):
        process = killed.start(*words)
        killed.wait_for_log(f"trial {trials:>3}  ", process, 300)
        time.sleep(draw.uniform(0, 1))
        started = descendants(process.pid)
        os.killpg(process.pid, number)
        process.communicate(timeout=60)
        wait_until(lambda: still_running(started) == [], 60, "the end of all that was started")  # noqa: B023
        (parent,) = [run for run in killed.tracker.find_runs("counter", {}) if "search.key" in run.tags]
        if number == signal.SIGINT:
            assert (process.returncode, parent.status) == (130, "KILLED")
            assert "Stopped. Run the same command again: it continues where this one ended." in killed.log
    process = killed.start(*words)
    killed.wait_for_log("Task run 'trial 4' - Continuing run", process, 300)

    def workers() -> list[psutil.Process]:
        return [one for one in descendants(process.pid) if "runner" in one.cmdline()]

    wait_until(lambda: bool(workers()), 60, "a trial's process")
    for worker in workers():
        worker.kill()
    stdout, _ = process.communicate(timeout=600)
    assert process.returncode == 0, killed.log
    done = json.loads(stdout)
    assert told(done) == told(outcome)
    assert done["objective"] == outcome["objective"]
    children = killed.tracker.find_runs("counter", {"mlflow.parentRunId": done["parent_run_id"]})
    assert sorted(int(child.tags["search.trial"]) for child in children) == list(range(6))
    assert done["parent_run_id"] == parent.run_id
    assert (killed.output_dir / "weights.npz").read_bytes() == (outcome_files(outcome) / "weights.npz").read_bytes()


def outcome_files(outcome: dict[str, Any]) -> Path:
    return Path(outcome["model_folder"])
