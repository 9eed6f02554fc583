"""A selection of what `python -m tests.torture` does: whatever dies, the same command again gives the same, once."""

import os
import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.torture.cases import FAULTS, Case, bench, plan, run_chain

SEED = int(os.environ.get("TORTURE_SEED", "0"))
"""Draws where the kills fall: `TORTURE_SEED=7 make test` makes another selection."""

KILLS = 8

SELECTED = ("stopped", "two_at_once")
"""SIGTERM is in test_train_mnist.py, a store that is full or away in test_upload_dataset.py."""


Disturbances = tuple[Future[list[Case]], dict[str, Future[Case]]]


@pytest.fixture(scope="module")
def disturbances(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Iterator[Disturbances]:
    """The kills, and beside them, for they leave a core idle, an undisturbed run and the faults."""
    chain = plan(random.Random(SEED), KILLS, [])
    with bench(tmp_path_factory.mktemp("torture"), prefect_api) as made, ThreadPoolExecutor(2) as pool:
        kills = pool.submit(run_chain, made, chain)
        pool.submit(lambda: made.reference)
        yield kills, {name: pool.submit(FAULTS[name], made, 5) for name in SELECTED}


@pytest.mark.parametrize("name", SELECTED)
def test_a_fault_changes_nothing(disturbances: Disturbances, name: str) -> None:
    case = disturbances[1][name].result()
    assert not case.differences, case.row()


def test_killed_again_and_again_it_ends_as_if_undisturbed(disturbances: Disturbances) -> None:
    cases = disturbances[0].result()
    table = "\n".join(case.row() for case in cases)
    assert not any(case.differences for case in cases), f"seed {SEED}\n{table}"
    assert sum(case.struck for case in cases) >= KILLS / 2, f"seed {SEED} strikes too late\n{table}"
