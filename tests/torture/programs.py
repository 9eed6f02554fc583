"""Programs of a person's own, each killed at many points of its whole length, and compared with undisturbed runs.

A program that continues exactly must end with the files of an undisturbed run. One that continues after an epoch has
its data in another order from then on: its objective may differ by what five seeds differ by, and all else not at all.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.pipeline import ROOT, Pipeline
from tests.torture.cases import (
    SECONDS_TO_END,
    Attempt,
    Bench,
    Case,
    Kill,
    Point,
    check_nothing_left,
    differences,
    kill_all_of,
    leftovers,
    model_facts,
    processes_of,
    reach,
    registry_facts,
    run_facts,
    shown,
    stored_facts,
    wait_until_all_ended,
)

SEEDS = 5
"""Of so many undisturbed runs the objective says by how much it differs by chance."""

VICTIMS = ("flow", "runner", "program", "all")

Tell = Callable[[Case], None]


@dataclass(frozen=True)
class Subject:
    """A program, and how it is asked for."""

    folder: str
    make_data: tuple[str, ...]
    """Its script that makes data, and the words after the folder."""
    epochs: int
    grade: str
    """How it continues: exact, or epoch."""
    metric: str
    """Its objective."""
    flags: tuple[str, ...]
    words: tuple[str, ...] = ()
    """What the script itself takes."""
    best: str = ""
    """How it prints the best value of `metric`, found in its `History`."""

    @property
    def name(self) -> str:
        """That of the experiment and the model."""
        return Path(self.folder).name

    def command(self, data: Path, *more: str) -> list[str]:
        """The flags of `flows.train`."""
        after = ["--", *self.words] if self.words else []
        return [f"--program={ROOT / self.folder}", f"--data={data}", *self.flags, *more, *after]

    @property
    def points(self) -> tuple[Point, ...]:
        """The moments of its run, in the order in which it passes them."""
        epochs = (Point("epoch", epoch=number) for number in range(1, self.epochs + 1))
        return (*_BEFORE_TRAINING, *epochs, *_AFTER_TRAINING)


SUBJECTS = (
    Subject(
        "tests/programs/counter",
        ("points.py",),
        6,
        "exact",
        "val_accuracy",
        # An epoch's checkpoint counts when its folder has been quiet for a second.
        ("--param=epochs=6", "--param=seconds=1.5"),
    ),
    Subject(
        "examples/keras-script",
        ("make_data.py",),
        6,
        "epoch",
        "val_accuracy",
        ("--entry=train.py",),
        ("--data", "{data_folder}", "--epochs", "6"),
        r"best val_accuracy: (\S+)",
    ),
    Subject("examples/fashion", ("make_data.py", "--per-class=50"), 5, "epoch", "val_accuracy", ("--param=epochs=5",)),
    Subject("examples/tabular", ("make_data.py",), 20, "epoch", "val_loss", ("--param=epochs=20",)),
)

_BEFORE_TRAINING = (
    Point("the flow starts", line=r"^"),
    Point("upload", files=("home/object-store/datasets/*/*/**/.*.part",)),
    Point("provisioned", line=r"- Compute: "),
    Point("run started", line=r"- (Started|Continuing) run "),
    Point("data set read", line=r"- data set "),
)
_AFTER_TRAINING = (
    Point("post-processing", line=r"- post-processing"),
    Point("outputs are kept", line=r"- kept [\d,]+ files"),
    Point("model is logged", files=("home/mlflow/artifacts/*/models/*/artifacts/MLmodel",)),
    Point("last tag", line=r"- model saved as "),
    Point("run ends", line=r"- done in "),
    Point("registration", line=r"- Registered run |- Run \w+ is version "),
    Point("download", files=(".model.incoming-*",)),
    Point("files are there", line=r"- models:/"),
    Point("rename", files=("model/model_files.json", "model/MLmodel")),
)


@contextlib.contextmanager
def bench_of_programs(folder: Path, prefect_api: str, seed: int) -> Iterator[Bench]:
    """A bench without MNIST's data set and undisturbed run."""
    import mlflow  # noqa: F401  Several threads will want it, and its modules import each other.

    try:
        yield Bench(folder, {"PREFECT_API_URL": prefect_api}, {}, Future(), seed=seed)
    finally:
        kill_all_of(folder)


@dataclass(frozen=True)
class Undisturbed:
    """What is compared with."""

    facts: dict[str, Any]
    objective: float
    spread: float
    """By how much the objective differs between seeds."""
    seconds: float
    """How long a run takes here."""


def torture_program(bench: Bench, subject: Subject, kills: int, chains: int, tell: Tell) -> None:
    """Run it undisturbed; then so often, in a fresh home, kill it again and again until it is done; a case each."""
    data = bench.folder / subject.name
    script, *words = subject.make_data
    subprocess.run([sys.executable, ROOT / subject.folder / script, data, *words], check=True, capture_output=True)
    undisturbed = _run_undisturbed(bench, subject, data)
    for number in range(chains):
        chain = plan(subject, bench.rng(f"{subject.name} {number}"), kills, undisturbed.seconds)
        tell(run_chain(bench, subject, data, chain, undisturbed))


def _pipeline(bench: Bench) -> Pipeline:
    pipeline = bench.fresh()
    pipeline.module = "flows.train"
    return pipeline


def _run_undisturbed(bench: Bench, subject: Subject, data: Path) -> Undisturbed:
    pipeline = _pipeline(bench)
    seed = [] if subject.grade == "exact" else ["--seed=0"]
    started = time.monotonic()
    outcome = pipeline.run(*subject.command(data, *seed), timeout_seconds=600)
    seconds = time.monotonic() - started
    facts = facts_of(subject, pipeline, outcome)
    check_nothing_left(facts)
    assert facts["run grade"] == subject.grade, f"{subject.name} continues: {facts['run grade']}"
    objectives = [_objective(pipeline, outcome)]
    for number in range(1, SEEDS if seed else 0):
        # A model of its own: it is not to be compared with the one before.
        apart = (f"--seed={number}", f"--model-name=seed-{number}", "--experiment=seeds")
        outcome = pipeline.run(*subject.command(data, *apart), timeout_seconds=600)
        objectives.append(_objective(pipeline, outcome))
    return Undisturbed(facts, objectives[0], max(objectives) - min(objectives), seconds)


def _objective(pipeline: Pipeline, outcome: Mapping[str, Any]) -> float:
    """The best value of the metric, which a script without an MLproject does not name."""
    tags = pipeline.tracker.get_run(outcome["run_id"]).tags
    return float(tags["objective_value"]) if "objective_value" in tags else max(_values(pipeline, outcome))


def _values(pipeline: Pipeline, outcome: Mapping[str, Any]) -> list[float]:
    history = _client(pipeline).get_metric_history(outcome["run_id"], "val_accuracy")
    return [point.value for point in history]


def _client(pipeline: Pipeline) -> Any:
    import mlflow

    address = pipeline.settings.mlflow_tracking_uri
    return mlflow.MlflowClient(address, address)


# What a run left


def facts_of(subject: Subject, pipeline: Pipeline, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """All that must not depend on what the run went through, as flat facts with a name each."""
    client, run_id = _client(pipeline), outcome["run_id"]
    facts: dict[str, Any] = {f"outcome {name}": outcome[name] for name in ("training_key", "dataset", "model_version")}
    facts |= {f"run {name}": value for name, value in run_facts(client, run_id, subject.name).items()}
    facts["run grade"] = client.get_run(run_id).data.tags["continues"]
    facts |= {f"registry {name}": value for name, value in registry_facts(client, run_id, subject.name).items()}
    facts |= {f"./model {name}": value for name, value in model_facts(pipeline.output_dir).items()}
    stored = stored_facts(pipeline)
    facts["left over in the store"] = stored.pop("runs/")
    facts |= {f"store {name}": value for name, value in stored.items()}
    facts["left over on disk"] = leftovers(pipeline)
    facts["left over processes"] = [shown(one) for one in processes_of(pipeline.folder)]
    if subject.best:
        said = re.findall(subject.best, _training_log(client, run_id, pipeline.folder))
        facts["History is whole"] = bool(said) and float(said[-1]) == max(_values(pipeline, outcome))
    return facts if subject.grade == "exact" else {name: _without_numbers(name, value) for name, value in facts.items()}


def _training_log(client: Any, run_id: str, folder: Path) -> str:
    place = client.download_artifacts(run_id, "logs", str(folder))
    return "\n".join(path.read_text() for path in Path(place).rglob("*.log"))


def _without_numbers(name: str, value: Any) -> Any:
    """The fact without what the order of the data may change."""
    if name == "run metric objective":
        return len(value)  # Its step is that of the best epoch.
    if name.startswith("run metric ") and isinstance(value, list):
        return [point[0] if isinstance(point, tuple) else point for point in value]
    if name.startswith("./model "):
        return "is there"
    return sorted(value) if name == "registry tags" else value


# Kills


def plan(subject: Subject, rng: random.Random, kills: int, seconds: float) -> list[Kill]:
    """Kills over the whole length of a run that takes so many `seconds`, the victims in turn.

    Three of five fall at a point of what the run says and leaves, the others at any time after its start.
    """
    points = subject.points
    victims = [VICTIMS[number % len(VICTIMS)] for number in range(kills)]
    rng.shuffle(victims)
    placed = []
    at_points = -(-kills * 3 // 5)
    for point in rng.sample(points, min(at_points, len(points))):
        delay = round(rng.uniform(0, 0.5) if rng.random() < 0.5 else 0, 2)
        placed.append((points.index(point) / len(points), point, delay))
    while len(placed) < kills:
        delay = round(rng.uniform(0, seconds), 2)
        placed.append((delay / seconds, points[0], delay))
    return [
        Kill(point, victim, delay, rng.random() < 0.5)
        for (_, point, delay), victim in zip(sorted(placed, key=lambda one: one[0]), victims, strict=True)
    ]


def run_chain(bench: Bench, subject: Subject, data: Path, chain: list[Kill], undisturbed: Undisturbed) -> Case:
    """In a fresh home run the command and kill it, again and again, let it finish, and compare."""
    pipeline = _pipeline(bench)
    flags = subject.command(data, *([] if subject.grade == "exact" else ["--seed=0"]))
    struck: list[str] = []
    found: list[str] = []
    draws = bench.rng(f"{subject.name} late")
    for kill in chain:
        when = _run_and_kill(pipeline, flags, subject, kill, found)
        if not when:
            # It was done before. The same command, which now has nothing to train, is killed too.
            late = Kill(subject.points[0], kill.victim, round(draws.uniform(0, 3), 2), kill.at_once)
            when = _run_and_kill(pipeline, flags, subject, late, found)
        struck += [when] if when else []
    case = Case(f"{subject.name}: {len(struck)} kills", "; ".join(struck), times=len(struck), differences=found)
    attempt = Attempt(pipeline, *flags, points=subject.points)
    status, outcome = attempt.wait()
    if status:
        case.differences.append(f"the command again ended with {status}: {attempt.said()}")
        return case
    case.differences += wait_until_all_ended(pipeline)
    case.differences += differences(undisturbed.facts, facts_of(subject, pipeline, outcome))
    if subject.grade == "exact":
        case.saw = "the model of the undisturbed run, to the bit"
        return case
    objective = _objective(pipeline, outcome)
    expected = f"{undisturbed.objective:.4g} undisturbed, {SEEDS} seeds differ by {undisturbed.spread:.2g}"
    case.saw = f"{subject.metric} {objective:.4g}; {expected}"
    # An accuracy is a count: as far as that is not further, whatever the last digit says.
    if abs(objective - undisturbed.objective) > undisturbed.spread + 1e-9:
        case.differences.append(f"{subject.metric}: {objective:.6g} is too far from {expected}")
    return case


def _run_and_kill(pipeline: Pipeline, flags: list[str], subject: Subject, kill: Kill, found: list[str]) -> str:
    """When and whom it struck, empty if the run had ended before; what is wrong with its end goes to `found`."""
    orphans = processes_of(pipeline.folder)
    attempt = Attempt(pipeline, *flags, points=subject.points)
    reached = reach(attempt, kill.point, kill.delay, subject.points)
    when = ""
    if reached:
        when = f"{_strike(attempt, kill.victim)} at {reached} + {kill.delay:.2f} s"
    try:
        attempt.wait(SECONDS_TO_END * 4)
    except subprocess.TimeoutExpired:
        found.append(f"{when}: the command did not end; it was {shown(psutil.Process(attempt.process.pid))}")
        os.killpg(attempt.process.pid, signal.SIGKILL)
        attempt.wait()
    found += [f"{when}: {one}" for one in attempt.tracebacks]
    if kill.at_once:
        _, alive = psutil.wait_procs(orphans, SECONDS_TO_END)
        found += [f"{when}: an orphan of an earlier run lives on: {shown(one)}" for one in alive]
    else:
        found += [f"{when}: {one}" for one in wait_until_all_ended(pipeline)]
    return when


def _strike(attempt: Attempt, victim: str) -> str:
    """Kill; says who was there to be killed."""
    of_home = processes_of(attempt.pipeline.folder)
    if victim == "all":
        chosen = of_home
    else:
        marks = {"runner": ("-m", "runner"), "program": ("/launcher",), "flow": ()}[victim]
        chosen = [one for one in of_home if marks and _has(one, marks)]
    killed = victim if chosen else "flow"
    for process in chosen or [psutil.Process(attempt.process.pid)]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return killed


def _has(process: psutil.Process, marks: tuple[str, ...]) -> bool:
    """Whether its first words, after those of Python, are these."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()[1 : 1 + len(marks)]
        return len(words) == len(marks) and all(word.endswith(mark) for word, mark in zip(words, marks, strict=True))
    return False
