"""What a search says at its end: an object for programs, a markdown artifact for Prefect, lines for a terminal."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.learning_curve import learning_curve
from flows.reporting import StepSeconds, TrainingReport, publish_markdown, publish_report
from infra.services import Services
from tasks.handoffs import ModelVersion, TrainingRun
from tasks.search.outcome import Outcome
from tasks.search.record import line_of
from tasks.search.trial import Trial


@dataclass(frozen=True)
class SearchReport:
    """The outcome of a search, as `--json` prints it."""

    outcome: Outcome
    training: TrainingReport
    """Of the winner."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which knows no NaN: such a value is null."""
        outcome, training = self.outcome, self.training.as_dict()
        kept = ("model_uri", "model_folder", "weights_sha256", "champion", "champion_decision", "seconds")
        return {
            "parent_run_id": outcome.parent_run_id,
            "best_run_id": self.training.run_id,
            "best_trial": outcome.best.number,
            "model_name": self.training.model_name,
            "model_version": self.training.model_version,
            "objective": outcome.best.best(outcome.search.stopping.goal),
            "objective_metric": outcome.search.metric,
            "lead": outcome.lead,
            **{name: training[name] for name in kept},
            "trials": [_as_dict(trial) for trial in outcome.trials],
        }


def _as_dict(trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "run_id": trial.run_id,
        "parameters": dict(trial.parameters),
        "values": [value if math.isfinite(value) else None for value in trial.values],
        "status": trial.status,
        "stopped_at": len(trial.values) if trial.status == "stopped" else None,
        "reason": trial.reason or None,
        "reused": trial.reused,
        "weights_sha256": trial.facts.get("weights_sha256"),
    }


def publish_search(
    outcome: Outcome,
    kind: type[TrainingReport],
    winner: tuple[TrainingRun, ModelVersion, Path],
    seconds: StepSeconds,
    services: Services,
) -> SearchReport:
    """Put the outcome on the flow run's page, beside the report of the winner's training, and return it."""
    report = SearchReport(outcome, publish_report(kind, winner, seconds, services))
    publish_markdown(_markdown(report), f"Search: {headline(report)}")
    return report


def headline(report: SearchReport) -> str:
    """The winner in a line."""
    best, search = report.outcome.best, report.outcome.search
    return f"trial {best.number} of {len(report.outcome.trials)}, {search.metric} {best.best(search.stopping.goal):.6g}"


def summary(report: SearchReport) -> str:
    """The outcome in the lines that end a search at the terminal."""
    outcome, training = report.outcome, report.training
    goal = outcome.search.stopping.goal
    lines = [line_of(trial, trial.best(goal)) for trial in outcome.trials]
    values = ", ".join(f"{name} {value}" for name, value in outcome.best.parameters.items())
    spent = ", ".join(f"{name} {value:.1f}" for name, value in training.seconds.items())
    return "\n".join(
        [
            "",
            *lines,
            "",
            f"Best is {headline(report)}: {values}",
            f"  {outcome.lead}",
            f"  {training.model_name} version {training.model_version}: {training.figures}",
            f"  {training.champion_decision}",
            f"  search in run {outcome.parent_run_id}, trained in run {training.run_id}",
            f"  files in {training.model_folder}",
            f"  seconds: {spent}",
            "",
        ]
    )


def _markdown(report: SearchReport) -> str:
    outcome = report.outcome
    goal, names = outcome.search.stopping.goal, [one.name for one in outcome.search.sampling.space]
    rows = [
        f"| {' | '.join(['Trial', *names, outcome.search.metric, 'Status', 'Reason'])} |",
        "|" + "---|" * (len(names) + 4),
    ]
    for trial in outcome.trials:
        best = trial.best(goal)
        values = [str(trial.parameters.get(name, "")) for name in names]
        status = f"{trial.status} at {len(trial.values)}" if trial.status == "stopped" else trial.status
        shown = "" if best is None else f"{best:.6g}"
        rows.append(f"| {' | '.join([str(trial.number), *values, shown, status, trial.reason.replace('|', '/')])} |")
    curves = {f"trial {trial.number}": list(enumerate(trial.values, 1)) for trial in outcome.trials[:5]}
    return "\n\n".join(
        [
            f"# {headline(report)}",
            f"{outcome.lead}. Run `{outcome.parent_run_id}`.",
            "\n".join(rows),
            learning_curve(curves),
        ]
    )
