"""A selection of what `python -m tests.torture` does: whatever dies, the same command again gives the same, once."""

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.torture.__main__ import Job, Tally, run_all
from tests.torture.attempts import ends_of_tracebacks
from tests.torture.bench import Bench, benches
from tests.torture.faults import FAULTS
from tests.torture.kills import Case, plan, run_chain
from tests.torture.subjects import COUNTER

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("TORTURE_SEED", "0"))
"""Draws where the kills fall: `TORTURE_SEED=7 make test` makes another selection."""

KILLS = 4
"""A few of the points of a run: `make torture` falls upon all of them."""

SELECTED = ("stopped", "two_at_once")
"""SIGTERM is in test_train_mnist.py, a store that is full or away in test_upload_dataset.py."""


Disturbances = tuple[Future[list[Case]], dict[str, Future[Case]]]


@pytest.fixture(scope="module")
def disturbances(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Iterator[Disturbances]:
    """The kills, and beside them, for they leave a core idle, an undisturbed run and the faults."""
    chain = plan(random.Random(SEED), KILLS, [], COUNTER.epochs)
    folder = tmp_path_factory.mktemp("torture")
    with benches(folder, prefect_api, [COUNTER], seed=SEED, moments=2) as made, ThreadPoolExecutor(2) as pool:
        counter = made["counter"]
        kills = pool.submit(run_chain, counter, chain)
        yield kills, {name: pool.submit(FAULTS[name], counter, 3) for name in SELECTED}


@pytest.mark.parametrize("name", SELECTED)
def test_a_fault_changes_nothing(disturbances: Disturbances, name: str) -> None:
    case = disturbances[1][name].result()
    assert not case.differences, case.row()


def test_killed_again_and_again_it_ends_as_if_undisturbed(disturbances: Disturbances) -> None:
    cases = disturbances[0].result()
    table = "\n".join(case.row() for case in cases)
    assert not any(case.differences for case in cases), f"seed {SEED}\n{table}"
    assert sum(case.struck for case in cases) >= KILLS / 2, f"seed {SEED} strikes too late\n{table}"


def test_a_case_that_falls_is_a_row_that_differs_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fall(bench: Bench, tell: Callable[[Case], None]) -> None:
        tell(Case("a first kill", "epoch 1"))
        raise AssertionError("the run ended without 'epoch 5'\nline of its log\nand | the last")

    tally = Tally()
    good = Bench(tmp_path)
    runs = {"a": lambda _, tell: tell(Case("good", "")), "falls": fall, "b": lambda _, tell: tell(Case("good", ""))}
    jobs = [Job(name, good, run) for name, run in runs.items()]
    run_all([*jobs, Job("c", good, lambda _, tell: tell(Case("waits", "")), mostly_waits=True)], 1, tally.tell)
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 5
    (fallen,) = [row for row in rows if "AssertionError" in row]
    assert "the run ended without 'epoch 5' ... and / the last" in fallen
    assert str(tally) == "5 cases, 5 disturbances, 1 with a difference"


def test_each_traceback_that_a_person_would_see_is_found_with_its_end() -> None:
    shown = """12:00 | flow - it begins
Traceback (most recent call last):
  File "/a/first.py", line 3, in f
    x()
  File "/a/last.py", line 9, in g
    y()
ValueError: no such thing
12:01 | flow - it goes on
Traceback (most recent call last):"""
    one, cut = ends_of_tracebacks(shown)
    assert "/a/last.py" in one
    assert one.endswith("ValueError: no such thing")
    assert cut
    assert not ends_of_tracebacks("12:00 | flow - no Traceback here")
