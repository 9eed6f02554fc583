"""Which version is champion: the alias, and the history of its moves.

A move is four writes to MLflow, in this order: its record in the history, as `moving`; the alias `previous-champion`;
the alias `champion`; the record again, as `moved`. A process that is killed in between leaves a record that is
`moving`, and whoever works on the registry next finishes the move (`settle`). So no alias ever moves without its
record, and no record stands for a move that did not happen.

Calls that write need the lock of `registry_lock`, which keeps the processes of one machine apart. Machines that
share an MLflow server have no such lock, and MLflow cannot change an alias on condition. Between them the last record
counts: whoever has moved an alias sees to it afterwards that the aliases say what the last record says. What remains:
two machines that decide within the same milliseconds can both have compared with the same old champion; both moves
are then in the history, the later one is champion, and the two were never compared with each other.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from infra.experiment_tracker import ExperimentTracker, Version
from infra.lock import hold
from tasks.progress import Logger

CHAMPION = "champion"
PREVIOUS_CHAMPION = "previous-champion"

HISTORY = "champion_history."
"""Begins the keys of the registered model's tags that make the history; the moment in UTC follows."""

# Sorts as it reads. Without colons, which MLflow refuses in keys on Windows.
_MOMENT = "%Y-%m-%dT%H.%M.%S.%fZ"


@dataclass(frozen=True)
class Move:
    """A move of the alias `champion`."""

    moment: datetime
    version: int | None
    """The champion from then on; None: the alias was removed."""
    previous: int | None
    by: str
    reason: str
    state: Literal["moving", "moved", "abandoned"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "moment": self.moment.isoformat()}


@contextmanager
def registry_lock(locks_folder: Path, model_name: str, logger: Logger) -> Iterator[None]:
    """Keep other processes of this machine from registering and promoting versions of this model."""

    def on_wait(holder: str) -> None:
        logger.info("%s decides on the champion of %s; waiting for it", holder.capitalize(), model_name)

    with hold(locks_folder / f"registry-{model_name}.lock", on_wait):
        yield


def history(tracker: ExperimentTracker, model_name: str) -> list[Move]:
    """Every move that was begun, oldest first."""
    tags = sorted((key, value) for key, value in tracker.model_tags(model_name).items() if key.startswith(HISTORY))
    return [
        Move(datetime.strptime(key.removeprefix(HISTORY), _MOMENT).replace(tzinfo=UTC), **json.loads(value))
        for key, value in tags
    ]


def champions(moves: list[Move], start: datetime, end: datetime) -> list[Move]:
    """The moves by which versions were champion at some time from `start` to `end`, oldest first."""
    moved = [move for move in moves if move.state == "moved"]
    before = [move for move in moved if move.moment <= start]
    return before[-1:] + [move for move in moved if start < move.moment <= end]


def move_champion(tracker: ExperimentTracker, version: Version, previous: Version | None, by: str, reason: str) -> None:
    """Make `version` champion and `previous` the previous champion, with a record that says who and why."""
    move = _new_move(tracker, version.name, version.version, _number(previous), by, reason, "moving")
    _set_aliases(tracker, version.name, move)
    last = [other for other in history(tracker, version.name) if other.state != "abandoned"][-1]
    if last.moment != move.moment:
        _set_aliases(tracker, version.name, last)
    _write(tracker, version.name, replace(move, state="moved"))


def settle(tracker: ExperimentTracker, model_name: str) -> None:
    """Bring aliases and history together: finish a move that was broken off, record one that has no record."""
    moves = history(tracker, model_name)
    champion = _number(tracker.version_by_alias(model_name, CHAMPION))
    if moves and moves[-1].state == "moving":
        unfinished = moves.pop()
        if champion in (unfinished.previous, unfinished.version):
            _set_aliases(tracker, model_name, unfinished)
            _write(tracker, model_name, replace(unfinished, state="moved"))
            return
        _write(tracker, model_name, replace(unfinished, state="abandoned"))
    recorded = next((move.version for move in reversed(moves) if move.state == "moved"), None)
    if champion != recorded:
        reason = "found so: the alias was moved without a record"
        _new_move(tracker, model_name, champion, recorded, "somebody outside the pipeline", reason, "moved")


def _number(version: Version | None) -> int | None:
    return version.version if version else None


def _new_move(
    tracker: ExperimentTracker,
    model_name: str,
    version: int | None,
    previous: int | None,
    by: str,
    reason: str,
    state: Literal["moving", "moved"],
) -> Move:
    moves = history(tracker, model_name)
    now = datetime.now(UTC)
    # Later than the last one, even if the clock of the machine that wrote it is ahead: the order is what counts.
    moment = max(now, moves[-1].moment + timedelta(microseconds=1)) if moves else now
    move = Move(moment, version, previous, by, reason, state)
    _write(tracker, model_name, move)
    return move


def _write(tracker: ExperimentTracker, model_name: str, move: Move) -> None:
    facts = asdict(move)
    del facts["moment"]
    # MLflow's databases keep 5,000 characters.
    facts["reason"] = move.reason[:2_000]
    tracker.set_model_tag(
        model_name, f"{HISTORY}{move.moment.strftime(_MOMENT)}", json.dumps(facts, ensure_ascii=False)
    )


def _set_aliases(tracker: ExperimentTracker, model_name: str, move: Move) -> None:
    for number, alias in ((move.previous, PREVIOUS_CHAMPION), (move.version, CHAMPION)):
        version = tracker.get_version(model_name, number) if number else None
        if version:
            tracker.set_alias(version, alias)
