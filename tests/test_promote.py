"""The alias `champion` moved by hand, and the history that answers who was champion when."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from flows.promote import ChampionReport, period, summary
from infra.errors import ModelMismatch, RunNotRegistrable, SettingsError
from tasks.champion import Move, champions
from tasks.register_model import DECISION
from tests.pipeline import ROOT
from tests.registry import MODEL, Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path, tmp_path)


def add_version(registry: Registry, name: str, **tags: str) -> str:
    """A version whose model nobody will load; the id of its run."""
    model = registry.folder / "models" / name
    (model / "data").mkdir(parents=True)
    (model / "data" / "model.keras").write_text(f"the network {name}")
    run_id = registry.add_run(model, "some", **tags)
    registry.add_version(run_id)
    return run_id


def run_flow(registry: Registry, prefect_api: str, *flags: str, status: int = 0) -> tuple[dict[str, Any], str]:
    """What `flows.promote` prints on stdout, as JSON, and on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.promote", "--json", f"--model-name={MODEL}", *flags],
        cwd=ROOT,
        env={**os.environ, **registry.environment, "PREFECT_API_URL": prefect_api},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_by_hand_forth_and_back_with_a_record_of_each_move(registry: Registry, prefect_api: str) -> None:
    add_version(registry, "first")
    second = add_version(registry, "second")
    registry.promote(1)
    report, said = run_flow(registry, prefect_api, "--version=2")
    assert (report["champion"], report["previous_champion"]) == (2, 1)
    assert "Version 2 became champion in place of version 1: promoted by hand of " in said
    assert registry.version_of(second).tags[DECISION] == report["done"]
    assert registry.report(second)["decision"] == report["done"]

    report, said = run_flow(registry, prefect_api, "--rollback")
    assert (report["champion"], report["previous_champion"]) == (1, 2)
    assert "rolled back" in said

    today = datetime.now(UTC).date()
    report, said = run_flow(registry, prefect_api, f"--as-of={today}")
    assert [move["version"] for move in report["champions"]] == [1, 2, 1]
    assert said.count("since 20") == 3


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "Ask for one thing"),
        (["--version=2", "--rollback"], "Ask for one thing"),
        (["--as-of=yesterday"], "--as-of yesterday"),
        (["--version=0"], "--version 0: Input should be greater than or equal to 1"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_starts(
    flags: list[str], told: str, registry: Registry, prefect_api: str
) -> None:
    _, said = run_flow(registry, prefect_api, *flags, status=2)
    assert told in said
    assert "Beginning flow run" not in said
    assert not (registry.folder / "home").exists()


def test_a_second_rollback_returns_to_where_the_first_began(registry: Registry) -> None:
    add_version(registry, "first")
    add_version(registry, "second")
    registry.promote(1)
    registry.promote(2)
    registry.promote(None)
    assert registry.champions() == (1, 2)
    registry.promote(None)
    assert registry.champions() == (2, 1)


def test_the_champion_is_not_promoted_again(registry: Registry) -> None:
    add_version(registry, "first")
    registry.promote(1)
    before = registry.history
    assert "already" in registry.promote(1)
    assert registry.history == before


def test_what_must_not_be_champion_is_refused_by_hand_too(registry: Registry) -> None:
    add_version(registry, "first")
    registry.promote(1)
    with pytest.raises(SettingsError, match="nothing to roll back to"):
        registry.promote(None)
    with pytest.raises(SettingsError, match="has no version 7"):
        registry.promote(7)
    add_version(registry, "sample", dataset="mnist-5k", dataset_sample_of="mnist")
    with pytest.raises(RunNotRegistrable, match="mnist-5k, a sample"):
        registry.promote(2)
    changed = add_version(registry, "changed")
    registry.model_file(changed, "data/model.keras").write_text("another network")
    with pytest.raises(ModelMismatch, match=r"data/model\.keras"):
        registry.promote(3)
    unfinished = add_version(registry, "unfinished")
    registry.tracker.continue_run(unfinished, {})
    with pytest.raises(RunNotRegistrable, match="it is RUNNING"):
        registry.promote(4)
    assert registry.champions() == (1, None)
    assert len(registry.history) == 1


def test_an_unknown_model_is_told(registry: Registry) -> None:
    with pytest.raises(SettingsError, match="has no version 1"):
        registry.promote(1)
    assert registry.history == []


NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("as_of", "expected"),
    [
        ("2026-11-22", []),
        ("2026-11-23", [1, 2]),
        ("2026-11-24", [2]),
        ("2026-11-23T11:59:59", []),
        ("2026-11-23T12:00:00", [1]),
        ("2026-11-23T14:30:00+02:00", [1]),
        ("2026-11-23T13:00:01Z", [2]),
    ],
)
def test_the_history_answers_for_a_day_and_for_a_moment(as_of: str, expected: list[int]) -> None:
    moves = [
        Move(NOON, 1, None, "gate", "better", "moved"),
        Move(NOON + timedelta(hours=1), 2, 1, "gate", "better", "moved"),
        Move(NOON + timedelta(hours=2), 3, 2, "gate", "better", "abandoned"),
    ]
    assert [move.version for move in champions(moves, *period(as_of))] == expected


def test_a_day_is_one_of_utc() -> None:
    start, end = period("2026-11-23")
    assert start == datetime(2026, 11, 23, tzinfo=UTC)
    assert end - start == timedelta(days=1) - timedelta(microseconds=1)
    assert period("2026-11-23T01:00:00+02:00")[0] == datetime(2026, 11, 23, 1, tzinfo=timezone(timedelta(hours=2)))


def test_a_day_without_a_champion_is_told() -> None:
    assert "none is on record" in summary(ChampionReport(MODEL, None, None, None, "2026-11-22", []))


def test_the_summary_names_champion_and_previous_champion() -> None:
    text = summary(ChampionReport(MODEL, 2, None, "Version 2 became champion", None, None))
    assert text == f"\nVersion 2 became champion\n{MODEL} today: champion version 2, previous champion none\n"
