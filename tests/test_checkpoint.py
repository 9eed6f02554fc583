"""Checkpoints in a folder and in an S3 store: whole, or not there."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tasks.training_program.checkpoint import STATE, Checkpoints, EpochMetrics, State
from tasks.training_program.dataset_files import MANIFEST
from tasks.training_program.errors import ForeignCheckpoint, ProgramError
from tasks.training_program.retry import with_patience
from tests.s3_server import s3_server

IDENTITY: dict[str, object] = {"dataset_sha256": "ab" * 32, "learning_rate": 0.001, "seed": 0}


def state_after(epochs: int) -> State:
    rng = np.random.default_rng(epochs)
    history = tuple(
        EpochMetrics(epoch, 1 / epoch, 0.1 + 0.2, 0.3, 0.9, 1.5, 1_700_000_000_000) for epoch in range(1, epochs + 1)
    )
    weights = [rng.normal(size=(4, 3)).astype(np.float32), np.array(3, np.int32)]
    return State(weights, [np.array(epochs)] * 12, weights[:1], history)


def same(one: State | None, other: State) -> bool:
    assert one is not None

    def content(state: State) -> list[object]:
        arrays = (state.weights, state.optimizer, state.best_weights)
        return [[(array.dtype, array.shape, array.tobytes()) for array in part] for part in arrays]

    return one.history == other.history and content(one) == content(other)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Path]]:
    """An address for checkpoints, and the folder in which its files lie."""
    if request.param == "folder":
        yield str(tmp_path / "checkpoints"), tmp_path / "checkpoints"
        return
    with s3_server(tmp_path, "store", fresh=False) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield "s3://store/runs/1/checkpoints", tmp_path / "store" / "runs" / "1" / "checkpoints"


def test_it_comes_back_bit_for_bit_and_the_last_two_are_kept(place: tuple[str, Path]) -> None:
    uri, folder = place
    assert Checkpoints(uri, IDENTITY).newest() is None
    for epochs in range(1, 5):
        Checkpoints(uri, IDENTITY).save(state_after(epochs))
    assert same(Checkpoints(uri, IDENTITY).newest(), state_after(4))
    assert {path.name for path in folder.iterdir()} == {"3", "4"}


@pytest.mark.parametrize("damage", ["truncated", "changed", "no manifest", "half a manifest", "no state"])
def test_a_damaged_one_costs_an_epoch(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(str(tmp_path), IDENTITY)
    checkpoints.save(state_after(1))
    checkpoints.save(state_after(2))
    state, manifest = tmp_path / "2" / STATE, tmp_path / "2" / MANIFEST
    content = state.read_bytes()
    if damage == "truncated":
        state.write_bytes(content[:-1])
    elif damage == "changed":
        state.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "half a manifest":
        manifest.write_bytes(manifest.read_bytes()[:20])
    else:
        state.unlink()
    assert same(checkpoints.newest(), state_after(1))
    (tmp_path / "1" / MANIFEST).unlink()
    assert checkpoints.newest() is None


def test_one_of_another_training_is_refused(tmp_path: Path) -> None:
    Checkpoints(str(tmp_path), IDENTITY).save(state_after(1))
    with pytest.raises(ForeignCheckpoint, match="these differ: dataset_sha256, seed"):
        Checkpoints(str(tmp_path), IDENTITY | {"seed": 1, "dataset_sha256": "cd" * 32}).newest()


def test_the_best_epoch_has_the_highest_accuracy_then_the_lowest_loss_then_came_first() -> None:
    def best(*epochs: tuple[float, float]) -> int:
        history = tuple(EpochMetrics(i, 0, 0, loss, accuracy, 0, 0) for i, (accuracy, loss) in enumerate(epochs, 1))
        return State([], [], [], history).best_epoch

    assert best((0.8, 0.1), (0.9, 0.5), (0.7, 0.0)) == 2
    assert best((0.9, 0.5), (0.9, 0.4), (0.9, 0.4)) == 2


def test_an_outage_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    answers = [OSError("away"), ConnectionError("away"), "here"]

    def action() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert with_patience(action, "save it") == "here"
    assert "cannot save it (OSError: away); again in 0.5 s" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "attempts"), [(OSError("away"), 2), (PermissionError("no"), 1)])
def test_patience_ends_at_once_where_waiting_cannot_help(error: Exception, attempts: int) -> None:
    tried = []

    def action() -> None:
        tried.append(1)
        raise error

    with pytest.raises(ProgramError, match="Cannot save it"):
        with_patience(action, "save it", patience_seconds=0.6)
    assert len(tried) == attempts


def test_what_is_said_of_a_failure_shows_no_login(capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> None:
        raise OSError("API request to http://me:w0rd@host:5000/api failed")

    with pytest.raises(ProgramError, match=r"http://\*\*\*@host:5000/api failed"):
        with_patience(action, "log it", patience_seconds=0.6)
    assert "again in 0.5 s" in (said := capsys.readouterr().err)
    assert "w0rd" not in said
