"""Which version is champion: the alias, and the history of its moves.

A move is five writes to MLflow, in this order: its record in the history, as `moving`; the alias `previous-champion`;
the alias `champion`; the tag `champion_decision` of the new champion; the record again, as `moved`. A process that is
killed in between leaves a record that is `moving`, and whoever works on the registry next finishes the move (`settle`).
So no alias ever moves without its record, and no record stands for a move that did not happen.

Calls that write need the lock of `registry_lock`, which keeps apart the processes of one machine, and the machines
that share a store. Those that share an MLflow server alone have no such lock, and MLflow cannot change an alias on
condition. Between them the last record counts: whoever has moved an alias sees to it afterwards that the aliases say
what the last record says. What remains: two of them that decide within the same milliseconds can both have compared
with the same old champion; both moves are then in the history, the later one is champion, and the two were never
compared with each other.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from infra.experiment_tracker import ExperimentTracker, Version
from infra.lease import Lease, claimant, hold_lease
from infra.lock import hold
from infra.services import Services

LOGGER = logging.getLogger(__name__)

MODEL_NAME = r"^\w[\w.-]{0,199}$"
"""What a registered model may be called. It becomes a folder's name: it does not begin with a dot."""

CHAMPION = "champion"
PREVIOUS_CHAMPION = "previous-champion"

HISTORY = "champion_history."
"""Begins the keys of the registered model's tags that make the history; the moment in UTC follows."""

DECISION = "champion_decision"
"""Tag of a version: what was decided about it last, in a sentence. Written when all of the decision is carried out: a
version without it was left by a process that died, and the decision is made again."""

MOMENT = "%Y-%m-%dT%H.%M.%S.%fZ"
"""A moment of UTC in keys and names of files. Sorts as it reads. Without colons, which MLflow refuses on Windows."""

_OUTSIDE = "somebody outside the pipeline"


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
    decision: str | None = None
    """The file on the run of `version` that tells the decision behind the move; None: it is on record nowhere."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "moment": self.moment.isoformat()}


class Grounds(NamedTuple):
    """Why the champion changes."""

    by: str
    reason: str
    decision: str
    """The file on the version's run that tells more."""


@dataclass(frozen=True)
class Standing:
    """Who is champion now."""

    model_name: str
    champion: int | None
    previous_champion: int | None
    """The version that a rollback returns to."""
    move: Move | None
    """What made it so; None: that is on record nowhere."""

    @property
    def sentence(self) -> str:
        """Who is champion since when or, without one, what to do."""
        if self.champion is not None:
            return f"Version {self.champion} of {self.model_name} is champion, {self._since}"
        since = f"{self._since}: its alias was removed" if self.move else "and none was before"
        return (
            f"No version of {self.model_name} is champion, {since}. Make one champion: python -m flows.promote "
            f"--model-name {self.model_name} --version N; without --version it lists them"
        )

    @property
    def _since(self) -> str:
        if self.move is None:
            return "since when is not on record"
        moment = f"{self.move.moment:%Y-%m-%d %H:%M:%S} UTC"
        # Outside the pipeline nobody writes down when; what is known is when it was found.
        return f"since {moment} or earlier" if self.move.by == _OUTSIDE else f"since {moment}"


def standing(tracker: ExperimentTracker, model_name: str) -> Standing:
    """Who is champion now, by the alias, and since when, by the history; nothing is written."""
    champion, previous = (_number(tracker.version_by_alias(model_name, name)) for name in (CHAMPION, PREVIOUS_CHAMPION))
    moves = [move for move in history(tracker, model_name) if move.state != "abandoned"]
    if moves and moves[-1].state == "moving" and moves[-1].version != champion:
        moves.pop()
    move = moves[-1] if moves and moves[-1].version == champion else None
    return Standing(model_name, champion, previous, move)


@contextmanager
def registry_lock(services: Services, model_name: str) -> Iterator[None]:
    """Keep others, here and on machines that share the store, from registering and promoting versions of this model.

    Raises `ObjectStoreError` if the store refuses or cannot be reached.
    """

    def on_wait(holder: str) -> None:
        LOGGER.info("The champion of %s is being decided on already, by %s; waiting for it", model_name, holder)

    lease = f"registry-{hashlib.sha256(model_name.encode()).hexdigest()[:16]}"
    locks = services.settings.locks_folder
    with (
        hold(locks / f"registry-{model_name}.lock", on_wait),
        hold_lease(Lease(services.store, lease, claimant(locks)), on_wait),
    ):
        yield


def history(tracker: ExperimentTracker, model_name: str) -> list[Move]:
    """Every move that was begun, oldest first."""
    tags = sorted((key, value) for key, value in tracker.model_tags(model_name).items() if key.startswith(HISTORY))
    return [
        Move(datetime.strptime(key.removeprefix(HISTORY), MOMENT).replace(tzinfo=UTC), **json.loads(value))
        for key, value in tags
    ]


def champions(moves: list[Move], start: datetime, end: datetime) -> list[Move]:
    """The moves by which versions were champion at some time from `start` to `end`, oldest first."""
    moved = [move for move in moves if move.state == "moved"]
    before = [move for move in moved if move.moment <= start]
    return before[-1:] + [move for move in moved if start < move.moment <= end]


def move_champion(tracker: ExperimentTracker, version: Version, previous: Version | None, grounds: Grounds) -> None:
    """Make `version` champion and `previous` the previous champion, with a record that says who and why."""
    now = datetime.now(UTC)
    by, reason, decision = grounds
    move = Move(now, version.version, _number(previous), by, reason, "moving", decision)
    _carry_out(tracker, version.name, _begun(tracker, version.name, move))


def settle(tracker: ExperimentTracker, model_name: str) -> None:
    """Bring aliases and history together: finish a move that was broken off, record one that has no record."""
    moves = history(tracker, model_name)
    champion = _number(tracker.version_by_alias(model_name, CHAMPION))
    if moves and moves[-1].state == "moving":
        unfinished = moves.pop()
        if champion in (unfinished.previous, unfinished.version):
            _carry_out(tracker, model_name, unfinished)
            return
        _write(tracker, model_name, replace(unfinished, state="abandoned"))
    recorded = next((move.version for move in reversed(moves) if move.state == "moved"), None)
    if champion != recorded:
        reason = "found so: the alias was moved without a record"
        _begun(tracker, model_name, Move(datetime.now(UTC), champion, recorded, _OUTSIDE, reason, "moved"))


def _carry_out(tracker: ExperimentTracker, model_name: str, move: Move) -> None:
    _set_aliases(tracker, model_name, move)
    last = [other for other in history(tracker, model_name) if other.state != "abandoned"][-1]
    if last.moment != move.moment:
        _set_aliases(tracker, model_name, last)
    if move.version and (version := tracker.get_version(model_name, move.version)):
        tracker.set_version_tags(version, {DECISION: move.reason})
    _write(tracker, model_name, replace(move, state="moved"))


def _number(version: Version | None) -> int | None:
    return version.version if version else None


def _begun(tracker: ExperimentTracker, model_name: str, move: Move) -> Move:
    """The move as it was written into the history, at its end."""
    # Later than the last one, even if the clock of the machine that wrote it is ahead: the order is what counts.
    if moves := history(tracker, model_name):
        move = replace(move, moment=max(move.moment, moves[-1].moment + timedelta(microseconds=1)))
    _write(tracker, model_name, move)
    return move


def _write(tracker: ExperimentTracker, model_name: str, move: Move) -> None:
    facts = asdict(move)
    del facts["moment"]
    # MLflow's databases keep 5,000 characters.
    facts["reason"] = move.reason[:2_000]
    tracker.set_model_tag(model_name, f"{HISTORY}{move.moment.strftime(MOMENT)}", json.dumps(facts, ensure_ascii=False))


def _set_aliases(tracker: ExperimentTracker, model_name: str, move: Move) -> None:
    for number, alias in ((move.previous, PREVIOUS_CHAMPION), (move.version, CHAMPION)):
        version = tracker.get_version(model_name, number) if number else None
        if version:
            tracker.set_alias(version, alias)
