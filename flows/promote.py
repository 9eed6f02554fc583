"""Make a version champion by hand, go back to the previous champion, or look up who was champion when.

python -m flows.promote --version 3
python -m flows.promote --rollback
python -m flows.promote --as-of 2026-11-23                   every champion of that day, UTC
python -m flows.promote --as-of 2026-11-23T14:30:00+01:00    the champion at that moment; without an offset, UTC
"""

import infra.quiet_libraries  # noqa: F401  isort: skip

import getpass
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from prefect import flow
from pydantic import Field

from infra.errors import SettingsError
from infra.experiment_tracker import ExperimentTracker
from infra.settings import load_settings
from tasks.champion import CHAMPION, PREVIOUS_CHAMPION, champions, history
from tasks.promote_version import promote_version


@dataclass(frozen=True)
class ChampionReport:
    """Who is champion and, if that was asked, who was."""

    model_name: str
    champion: int | None
    previous_champion: int | None
    done: str | None
    """What was done, in a sentence; None if the history was only read."""
    as_of: str | None
    champions: list[dict[str, Any]] | None
    """The moves by which versions were champion at the time asked for, oldest first."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@flow(name="promote", description="Move the alias champion by hand, or look up who was champion when.")
def promote(
    version: int | None = Field(None, description="Make this version champion.", ge=1),
    rollback: bool = Field(False, description="Make the previous champion champion again."),
    as_of: str | None = Field(None, description="Say which version was champion on this day, or at this moment."),
    model_name: str = Field("keras-dnn-mnist", description="Registered model.", pattern=r"^[\w.-]{1,200}$"),
) -> ChampionReport:
    check_request(version, rollback, as_of)
    settings = load_settings()
    tracker = ExperimentTracker(settings)
    tracker.check_reachable()
    done = found = None
    if as_of:
        found = [move.as_dict() for move in champions(history(tracker, model_name), *period(as_of))]
    else:
        done = promote_version(version, model_name, person(), settings, tracker)
    now, previous = (tracker.version_by_alias(model_name, alias) for alias in (CHAMPION, PREVIOUS_CHAMPION))
    return ChampionReport(
        model_name=model_name,
        champion=now.version if now else None,
        previous_champion=previous.version if previous else None,
        done=done,
        as_of=as_of,
        champions=found,
    )


def check_request(version: int | None, rollback: bool, as_of: str | None, **_: object) -> None:
    """Raise `SettingsError` unless exactly one thing is asked for."""
    if (version is not None) + rollback + (as_of is not None) != 1:
        raise SettingsError("Ask for one thing: --version N, --rollback or --as-of DAY.")
    if as_of is not None:
        period(as_of)


def period(as_of: str) -> tuple[datetime, datetime]:
    """First and last moment of a day in UTC, or a moment twice; raises `SettingsError` if it is neither."""
    try:
        if len(as_of) <= len("2026-11-23"):
            start = datetime.combine(date.fromisoformat(as_of), datetime.min.time(), UTC)
            return start, start + timedelta(days=1) - timedelta(microseconds=1)
        moment = datetime.fromisoformat(as_of)
    except ValueError as error:
        raise SettingsError(f"--as-of {as_of}: {error}.\nExpected 2026-11-23 or 2026-11-23T14:30:00+01:00.") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment, moment


def person() -> str:
    """Who runs this process, and where: `name@host`."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        name = "unknown"  # A container can run as a user that its system has no name for.
    return f"{name}@{socket.gethostname()}"


def summary(report: ChampionReport) -> str:
    """The outcome in lines for a terminal."""
    lines = [report.done] if report.done else []
    if report.champions is not None:
        lines.append(f"Champion of {report.model_name} as of {report.as_of}:")
        lines += [
            f"  {_named(move['version'])}, since {move['moment']}, by {move['by']}\n    {move['reason']}"
            for move in report.champions
        ] or ["  none is on record"]
    lines.append(
        f"{report.model_name} today: champion {_named(report.champion)}, "
        f"previous champion {_named(report.previous_champion)}"
    )
    return "\n" + "\n".join(lines) + "\n"


def _named(number: int | None) -> str:
    return f"version {number}" if number else "none"


if __name__ == "__main__":
    from flows.command_line import run_from_terminal

    run_from_terminal(promote, check_request, summary)
