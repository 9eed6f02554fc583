"""The alias `champion` moved by hand, and the history that answers who was champion when."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from flows.promote import ChampionReport, main, period, summary
from infra.errors import ArgumentError, ModelMismatch, PromotionRefused, RunNotRegistrable
from tasks.champion import DECISION, Move, champions
from tasks.registry.decision import GATE_DECISION, OUTCOME
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


@pytest.fixture
def command(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Gives the exit status of `flows.promote` with these flags, and what it wrote to stdout and to stderr."""
    for name, value in registry.environment.items():
        monkeypatch.setenv(name, value)

    def run(*flags: str) -> tuple[int, str, str]:
        try:
            status = main([f"--model-name={MODEL}", *flags])
        except SystemExit as exit:
            status = int(str(exit.code))
        written = capsys.readouterr()
        return status, written.out, written.err

    return run


def test_by_hand_forth_and_back_with_a_record_of_each_move(
    registry: Registry, command: Callable[..., tuple[int, str, str]]
) -> None:
    first = add_version(registry, "first")
    second = add_version(registry, "second")
    registry.promote(1)
    status, said, _ = command("--version=2")
    assert status == 0
    done = said.splitlines()[0]
    assert done.startswith("Version 2 became champion in place of version 1: promoted by hand of ")
    assert registry.version_of(second).tags[DECISION] == done
    assert registry.report(second)["decision"] == done

    promoted = registry.decisions(first)
    status, said, _ = command("--rollback", "--json")
    report = json.loads(said)
    assert (report["champion"], report["previous_champion"]) == (1, 2)
    assert "rolled back" in report["done"]
    assert promoted.items() < registry.decisions(first).items(), "beside what was on record, and not over it"
    assert len(registry.decisions(first)) == len(registry.decisions(first, ".md")) == 2
    assert [move.decision for move in registry.history][::2] == list(registry.decisions(first))

    today = datetime.now(UTC).date()
    before = registry.history
    status, said, _ = command(f"--as-of={today}", "--json")
    assert [move["version"] for move in json.loads(said)["champions"]] == [1, 2, 1]
    assert command(f"--as-of={today}")[1].count("since 20") == 4
    assert registry.history == before


def test_without_arguments_the_versions_are_listed(
    registry: Registry, command: Callable[..., tuple[int, str, str]]
) -> None:
    assert command()[0] == 2
    assert not (registry.folder / "home").exists(), "who only asks creates nothing"
    first, second = add_version(registry, "first"), add_version(registry, "second", dataset="mnist-5k")
    registry.promote(1)
    status, said, _ = command()
    assert status == 0
    header, *rows, last = said.splitlines()
    assert header.split() == ["version", "measured", "data", "set", "decision"]
    assert rows[0].startswith(
        "*       1  test accuracy 0.5000  mnist     Version 1 became champion: promoted by hand of "
    )
    assert rows[1] == "        2  test accuracy 0.5000  mnist-5k  none yet: its registration broke off, or goes on"
    assert re.fullmatch(rf"Version 1 of {MODEL} is champion, since 20.* UTC. Previous champion: none", last)
    listed = json.loads(command("--json")[1])
    assert [facts["run_id"] for facts in listed["versions"]] == [first, second]
    assert listed["champion"] == 1
    other = {"dataset_sha256": "some", "weights_sha256": "none", "objective_metric": "val_loss"}
    for metrics in ({"objective": 0.25}, {"objective": float("nan")}, {}):
        registry.add_version(registry.add_finished_run(registry.folder / "models" / "first", other, metrics))
    rows = command()[1].splitlines()[3:6]
    assert [row.split("unknown   none yet")[0].split() for row in rows] == [
        ["3", "val_loss", "0.25"],
        ["4", "unknown"],
        ["5", "unknown"],
    ]


@pytest.mark.slow
def test_it_is_no_flow_and_answers_on_stdout(registry: Registry) -> None:
    add_version(registry, "first")
    code = "import sys, flows.promote; print({'prefect', 'tensorflow', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    for flags, status, told in (
        (["--version=1", "--json"], 0, ""),
        (["--version=99"], 2, f"ArgumentError: The model {MODEL} has no version 99.\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "flows.promote", f"--model-name={MODEL}", *flags],
            cwd=ROOT,
            env={**os.environ, **registry.environment, "PREFECT_API_URL": "http://127.0.0.1:9/api"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == status, done.stderr
        assert done.stderr.startswith(told)
        assert done.stderr.count("\n") == 2 * bool(status), "nothing else is said"
        assert done.stdout.count("\n") == (status == 0)
        assert status or json.loads(done.stdout)["champion"] == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--version=2", "--rollback"], "not allowed with argument"),
        (["--although-refused"], "goes with --version or --rollback"),
        (["--as-of=yesterday"], "yesterday: Invalid isoformat string"),
        (["--version=0"], "0 is no version: expected 1 or more"),
        (["--model-name=a'b"], "no model's name"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_starts(
    flags: list[str], told: str, registry: Registry, command: Callable[..., tuple[int, str, str]]
) -> None:
    status, answer, said = command(*flags)
    assert (status, answer) == (2, "")
    assert told in said
    assert not (registry.folder / "home").exists()


def refuse(registry: Registry, run_id: str) -> None:
    """What the gate leaves when it decides against the version of the run."""
    tags = dict.fromkeys((DECISION, GATE_DECISION), "Version 2 is not champion: recall falls for digit 3.")
    registry.tracker.set_version_tags(registry.version_of(run_id), {OUTCOME: "kept", **tags})


def test_what_the_gate_refused_is_promoted_only_at_an_express_word_which_is_recorded(
    registry: Registry, command: Callable[..., tuple[int, str, str]]
) -> None:
    add_version(registry, "first")
    registry.promote(1)
    second = add_version(registry, "second")
    refuse(registry, second)
    status, answer, said = command("--version=2")
    assert (status, answer) == (1, "")
    assert "PromotionRefused: Version 2" in said
    assert "recall falls for digit 3" in said
    assert "--although-refused" in said
    assert registry.champions() == (1, None)

    status, answer, _ = command("--version=2", "--although-refused")
    assert status == 0
    assert "although the gate had decided against it" in answer
    assert registry.champions() == (2, 1)
    assert registry.report(second)["although_refused"] == "Version 2 is not champion: recall falls for digit 3."
    assert registry.version_of(second).tags[OUTCOME] == "kept", "what the gate said stays"
    registry.promote(None)
    with pytest.raises(PromotionRefused, match="recall falls for digit 3"):
        registry.promote(None)
    assert registry.champions() == (1, 2)


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
    with pytest.raises(ArgumentError, match="nothing to roll back to"):
        registry.promote(None)
    with pytest.raises(ArgumentError, match="has no version 7"):
        registry.promote(7)
    add_version(registry, "sample", dataset="mnist-5k", dataset_sample_of="mnist")
    with pytest.raises(PromotionRefused, match="mnist-5k, a sample"):
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
    with pytest.raises(ArgumentError, match="has no version 1"):
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
    report = ChampionReport(MODEL, None, None, "nobody", as_of="2026-11-22", champions=[])
    assert "none is on record" in summary(report)
