"""What a run says at its end: an object for programs, a markdown artifact for the Prefect UI, lines for a terminal."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.learning_curve import learning_curve
from infra.experiment_tracker import Run
from infra.services import Services
from tasks.cancellation import UNREACHABLE, ask, told_by_prefect
from tasks.champion import standing
from tasks.handoffs import ModelVersion, TrainingRun
from tasks.job_output import PHASES
from tasks.registry.decision import GATE_DECISION, GATE_FLOW_RUN
from tasks.registry.objective import OBJECTIVE_METRIC

LOGGER = logging.getLogger(__name__)

Report = TypeVar("Report", bound="TrainingReport")

_MEASURED = ("phase_", "gpu_seconds", "cost", "epoch_seconds")
"""How the names of metrics begin that tell of the work, not of the model."""


@dataclass(frozen=True)
class TrainingReport:
    """The outcome of a flow run, as `--json` prints it and a notebook shows it."""

    run_id: str
    model_name: str
    model_version: int
    model_uri: str
    model_folder: str
    dataset: str
    dataset_sha256: str
    training_key: str
    weights_sha256: str | None
    """None: the model is files that nothing here loads."""
    metrics: dict[str, float]
    """The last value of each."""
    champion: int | None
    """The version that is champion now, whoever made it so; None: there is none."""
    decided: bool
    """True if this very flow run decided whether the version becomes champion."""
    champion_decision: str
    """What was decided or, if nothing was, who is champion since when."""
    reused: bool
    """True if nothing was trained: an earlier run had the same training key."""
    epoch_seconds: float
    """Of all epochs of the run together, their validation included; 0 if nothing was trained."""
    seconds: dict[str, float]
    """Of each step, as the flow waited for it; steps that ran beside another count what they took longer."""
    phases: dict[str, float]
    """Seconds of each phase of the training: preparing, scaling, running, post_processing; none if nothing was trained.
    Those of the earlier run are metrics of that run."""
    objective_metric: str | None = None
    """What `objective` among the metrics is the best value of; None: the program names no objective."""
    page: str = field(default="", repr=False)
    """The report in Markdown, with the learning curve."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts = asdict(self)
        del facts["page"]
        return facts

    @property
    def figures(self) -> str:
        """What the model achieves, in a few words."""
        if "objective" in self.metrics:
            return f"best {self.objective_metric} {self.metrics['objective']:.6g}"
        told = [f"{name} {value:.4g}" for name, value in sorted(self.metrics.items()) if name != "fit"]
        return ", ".join(told[:3]) or "no metrics"

    def rows(self) -> list[tuple[str, str]]:
        """The same as a table's rows."""
        return [(name, f"{value:.6g}") for name, value in sorted(self.metrics.items())]

    def _repr_markdown_(self) -> str:
        return self.page


@dataclass(frozen=True)
class MnistReport(TrainingReport):
    """The outcome for the digit classifier, whose metrics are known by name."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the figures that count, each by its name."""
        facts = super().as_dict()
        del facts["metrics"], facts["objective_metric"]
        names = {"validation_accuracy": "best_val_accuracy", "test_accuracy": "test_accuracy", "test_loss": "test_loss"}
        return facts | {name: self.metrics[metric] for name, metric in names.items()}

    @property
    def figures(self) -> str:
        """What the model achieves, in a few words."""
        accuracy, validation = self.metrics["test_accuracy"], self.metrics["best_val_accuracy"]
        return f"test accuracy {accuracy:.4f} (validation {validation:.4f})"

    def rows(self) -> list[tuple[str, str]]:
        """The same as a table's rows."""
        names = {"test_accuracy": "test accuracy", "test_loss": "test loss"}
        names["best_val_accuracy"] = "validation accuracy, best epoch"
        return [(told, f"{self.metrics[metric]:.4f}") for metric, told in names.items()]


class StepSeconds:
    """Counts how long the flow waited for each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count the seconds of the block as those of the step `name`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - started, 3)


def publish_report(
    kind: type[Report], outcome: tuple[TrainingRun, ModelVersion, Path], seconds: StepSeconds, services: Services
) -> Report:
    """Read the outcome from MLflow, put it on the flow run's page, and return it.

    `outcome` is what the steps made: the run, the version, and the folder of the model's files.
    """
    run, version, model_folder = outcome
    tracker = services.tracker
    facts = tracker.get_run(run.run_id)
    registered = tracker.find_version(version.name, run.run_id)
    assert registered is not None, "the version was registered two steps ago"
    now = standing(tracker, version.name)
    decided = registered.tags.get(GATE_FLOW_RUN) == flow_run.id
    report = kind(
        run_id=run.run_id,
        model_name=version.name,
        model_version=version.version,
        model_uri=registered.uri,
        model_folder=str(model_folder),
        dataset=facts.tags["dataset"],
        dataset_sha256=facts.tags["dataset_sha256"],
        training_key=facts.tags["training_key"],
        weights_sha256=None if facts.tags["weights_sha256"] == "none" else facts.tags["weights_sha256"],
        metrics={name: value for name, value in facts.metrics.items() if not name.startswith(_MEASURED)},
        champion=now.champion,
        decided=decided,
        champion_decision=registered.tags[GATE_DECISION] if decided else f"Nothing was decided. {now.sentence}",
        reused=run.reused,
        epoch_seconds=0.0 if run.reused else round(tracker.metric_sum(run.run_id, "epoch_seconds"), 3),
        seconds=seconds.seconds,
        phases={} if run.reused else {name: facts.metrics[f"phase_{name}_seconds"] for name in PHASES},
        objective_metric=facts.tags.get(OBJECTIVE_METRIC),
    )
    links = (
        ("MLflow run", run.run_id, tracker.run_url(facts)),
        ("model version", registered.uri, tracker.version_url(registered)),
    )
    page = _markdown(report, facts, links)
    publish_markdown(page, f"Report: {_headline(report)}")
    curve = learning_curve(tracker.metric_histories(run.run_id, sorted(report.metrics)))
    return replace(report, page=f"{page}\n\n{curve}" if curve else page)


def publish_markdown(page: str, title: str) -> None:
    """Put a page of Markdown among the artifacts of the flow run; a server that is away only gets a warning."""
    # Without a key: the link on the flow run's page then opens it, and not a list of the reports of all runs.
    publish = partial(create_markdown_artifact, page, description=title)
    try:
        ask("take the report", publish)
    except UNREACHABLE as error:
        LOGGER.warning("The report is not on the page of this flow run: %s", told_by_prefect(error))


def summary(report: TrainingReport) -> str:
    """The outcome in the few lines that end a run at the terminal."""
    seconds, phases = (
        ", ".join(f"{name.replace('_', '-')} {value:.1f}" for name, value in each.items())
        for each in (report.seconds, report.phases)
    )
    trained = f"  of the training: {phases}\n" if report.phases else ""
    return (
        f"\n{report.model_name} version {report.model_version}: {report.figures}, {report.dataset}\n"
        f"  {report.champion_decision}\n"
        f"  {'nothing had changed: run' if report.reused else 'trained in run'} {report.run_id}\n"
        f"  files in {report.model_folder}\n"
        f"  seconds: {seconds}\n"
        f"{trained}"
    )


def _headline(report: TrainingReport) -> str:
    return f"{report.model_name} version {report.model_version}, {report.figures}"


def _markdown(report: TrainingReport, run: Run, links: tuple[tuple[str, str, str | None], ...]) -> str:
    def table(*head: str, rows: Iterator[tuple[str, str]]) -> str:
        return "\n".join([f"| {' | '.join(head)} |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])

    def seconds(what: str, values: Mapping[str, float]) -> str:
        return table(what, "Seconds", rows=((name, f"{value:.1f}") for name, value in values.items()))

    outcome = "nothing had changed, so an earlier run was used again" if report.reused else "trained"
    return "\n\n".join(
        [
            f"# {_headline(report)}",
            f"{report.champion_decision.rstrip('.')}. Data set {report.dataset}; {outcome}.",
            table(
                "What",
                "Value",
                rows=iter(
                    [
                        *report.rows(),
                        *((name, f"[{text}]({url})" if url else f"`{text}`") for name, text, url in links),
                        ("data set", f"{report.dataset} `{report.dataset_sha256}`"),
                        ("training key", f"`{report.training_key}`"),
                        ("weights", f"`{report.weights_sha256 or 'none: its files alone'}`"),
                        ("commit", f"`{run.tags.get('mlflow.source.git.commit', 'unknown')}`"),
                        ("model folder", f"`{report.model_folder}`"),
                    ]
                ),
            ),
            "## Parameters",
            table("Parameter", "Value", rows=iter(sorted(run.params.items()))),
            "## Seconds",
            seconds("Step", report.seconds),
            *([seconds("Phase of the training", report.phases)] if report.phases else []),
        ]
    )
