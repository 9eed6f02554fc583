"""Make a version champion by hand, go back to the previous champion, or look up who was champion when.

python -m flows.promote                                      every version, and who is champion
python -m flows.promote --version 3
python -m flows.promote --rollback
python -m flows.promote --as-of 2026-11-23                   every champion of that day, UTC
python -m flows.promote --as-of 2026-11-23T14:30:00+01:00    the champion at that moment; without an offset, UTC

The answer goes to stdout. Exit status: 0 done, 1 refused or failed, 2 wrong usage.
"""

import infra.process_environment
import infra.terminal

if __name__ == "__main__":
    infra.terminal.attach()


import argparse
import getpass
import json
import logging
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from math import isfinite
from typing import Any

from flows.plain_command import add_model_name, failed
from infra.errors import ArgumentError, PipelineError
from infra.experiment_tracker import ExperimentTracker, Version
from infra.services import Services
from infra.settings import load_settings
from tasks.champion import DECISION, champions, history, standing
from tasks.promote_version import promote
from tasks.registry.decision import OUTCOME


@dataclass(frozen=True)
class ChampionReport:
    """Who is champion and, if that was asked, who was, and which versions there are."""

    model_name: str
    champion: int | None
    previous_champion: int | None
    standing: str
    """Who is champion since when, in a sentence."""
    done: str | None = None
    """What was done, in a sentence; None if nothing was to be."""
    as_of: str | None = None
    champions: list[dict[str, Any]] | None = None
    """The moves by which versions were champion at the time asked for, oldest first."""
    versions: list[dict[str, Any]] | None = None
    """Every version, oldest first."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def answer(asked: argparse.Namespace) -> ChampionReport:
    """Do what the arguments ask for; raises a `PipelineError`, see `promote`."""
    settings = load_settings()
    tracker = ExperimentTracker(settings)
    tracker.check_reachable()
    # Asked before MLflow is: a database that is not there would be made.
    versions = [] if tracker.is_new else tracker.versions(asked.model_name)
    if not versions:
        raise ArgumentError(
            f"There is no version of a model {asked.model_name} yet.\n"
            "Train one, correct --model-name, or set MLFLOW_TRACKING_URI or PIPELINE_HOME to where it is."
        )
    found: dict[str, Any] = {}
    if asked.version or asked.rollback:
        services = Services(settings, tracker)
        found["done"] = promote(asked.version, asked.model_name, person(), asked.although_refused, services)
    elif asked.as_of:
        moves = champions(history(tracker, asked.model_name), *period(asked.as_of))
        found |= {"as_of": asked.as_of, "champions": [move.as_dict() for move in moves]}
    else:
        found["versions"] = [_facts(version) for version in versions]
    now = standing(tracker, asked.model_name)
    return ChampionReport(asked.model_name, now.champion, now.previous_champion, now.sentence, **found)


def _facts(version: Version) -> dict[str, Any]:
    return {
        "version": version.version,
        "run_id": version.run_id,
        "dataset": version.tags.get("dataset"),
        "test_accuracy": _finite(version.tags.get("test_accuracy")),
        "objective_metric": version.tags.get("objective_metric"),
        "objective": _finite(version.tags.get("objective")),
        "gate_outcome": version.tags.get(OUTCOME),
        "decision": version.tags.get(DECISION),
    }


def _finite(text: str | None) -> float | None:
    return float(text) if text and isfinite(float(text)) else None


def period(as_of: str) -> tuple[datetime, datetime]:
    """First and last moment of a day in UTC, or a moment twice; raises `ValueError` if it is neither."""
    if len(as_of) <= len("2026-11-23"):
        start = datetime.combine(date.fromisoformat(as_of), datetime.min.time(), UTC)
        return start, start + timedelta(days=1) - timedelta(microseconds=1)
    moment = datetime.fromisoformat(as_of)
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
    """The answer in lines for a terminal."""
    lines = [report.done] if report.done else []
    if report.champions is not None:
        lines.append(f"Champion of {report.model_name} as of {report.as_of}:")
        lines += [
            f"  {_named(move['version'])}, since {move['moment']}, by {move['by']}\n    {move['reason']}"
            for move in report.champions
        ] or ["  none is on record"]
    if report.versions is not None:
        lines += _table(report.versions, report.champion)
    lines.append(f"{report.standing}. Previous champion: {_named(report.previous_champion)}")
    return "\n".join(lines) + "\n"


def _table(versions: list[dict[str, Any]], champion: int | None) -> Iterator[str]:
    width = max(len("data set"), *(len(str(facts["dataset"])) for facts in versions))
    measured = [_measured(facts) for facts in versions]
    room = max(len("measured"), *map(len, measured))
    yield f"  version  {'measured':<{room}}  {'data set':<{width}}  decision"
    for facts, measure in zip(versions, measured, strict=True):
        mark = "*" if facts["version"] == champion else " "
        decision = facts["decision"] or "none yet: its registration broke off, or goes on"
        yield f"{mark} {facts['version']:>7}  {measure:<{room}}  {facts['dataset'] or 'unknown':<{width}}  {decision}"


def _measured(facts: dict[str, Any]) -> str:
    """How good a version is, by the number that its program is judged by."""
    if facts["test_accuracy"] is not None:
        return f"test accuracy {facts['test_accuracy']:.4f}"
    return "unknown" if facts["objective"] is None else f"{facts['objective_metric']} {facts['objective']:.4g}"


def _named(number: int | None) -> str:
    return f"version {number}" if number else "none"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.promote",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--version", type=_number, metavar="N", help="make this version champion")
    one.add_argument("--rollback", action="store_true", help="make the previous champion champion again")
    one.add_argument("--as-of", type=_moment, metavar="DAY", help="say who was champion on this day, or at this moment")
    parser.add_argument(
        "--although-refused",
        action="store_true",
        help="with --version or --rollback: make it champion although the gate decided against it",
    )
    add_model_name(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _number(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no version: expected 1 or more")
    return int(text)


def _moment(text: str) -> str:
    try:
        period(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text}: {error}; expected 2026-11-23 or 2026-11-23T14:30:00+01:00"
        ) from error
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer the arguments, by default those of the process; returns the exit status."""
    commands = parser()
    asked = commands.parse_args(arguments)
    if asked.although_refused and not (asked.version or asked.rollback):
        commands.error("--although-refused goes with --version or --rollback")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tasks").setLevel(logging.INFO)
    try:
        report = answer(asked)
    except PipelineError as error:
        return failed(error, asked.debug)
    sys.stdout.write(json.dumps(report.as_dict()) + "\n" if asked.json else summary(report))
    return 0


if __name__ == "__main__":
    infra.terminal.run(main, "Stopped. Run the same command again: it ends what this one began.")
