"""What a run says at its end: an object for programs, a markdown artifact for the Prefect UI, lines for a terminal."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from infra.experiment_tracker import ExperimentTracker, Run
from tasks.cancellation import UNREACHABLE, told_by_prefect
from tasks.champion import standing
from tasks.handoffs import Dataset, ModelVersion, TrainingRun
from tasks.job_output import PHASES
from tasks.registration import GATE_DECISION, GATE_FLOW_RUN

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingReport:
    """The outcome of a flow run, as `--json` prints it."""

    run_id: str
    model_name: str
    model_version: int
    model_uri: str
    model_folder: str
    dataset: str
    dataset_sha256: str
    training_key: str
    weights_sha256: str
    validation_accuracy: float
    test_accuracy: float
    test_loss: float
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

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


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
    run: TrainingRun,
    version: ModelVersion,
    dataset: Dataset,
    model_folder: str,
    seconds: StepSeconds,
    tracker: ExperimentTracker,
) -> TrainingReport:
    """Read the outcome from MLflow, put it on the flow run's page, and return it."""
    facts = tracker.get_run(run.run_id)
    registered = tracker.find_version(version.name, run.run_id)
    assert registered is not None, "the version was registered two steps ago"
    now = standing(tracker, version.name)
    decided = registered.tags.get(GATE_FLOW_RUN) == flow_run.id
    report = TrainingReport(
        run_id=run.run_id,
        model_name=version.name,
        model_version=version.version,
        model_uri=registered.uri,
        model_folder=model_folder,
        dataset=dataset.name,
        dataset_sha256=dataset.sha256,
        training_key=facts.tags["training_key"],
        weights_sha256=facts.tags["weights_sha256"],
        validation_accuracy=facts.metrics["best_val_accuracy"],
        test_accuracy=facts.metrics["test_accuracy"],
        test_loss=facts.metrics["test_loss"],
        champion=now.champion,
        decided=decided,
        champion_decision=registered.tags[GATE_DECISION] if decided else f"Nothing was decided. {now.sentence}",
        reused=run.reused,
        epoch_seconds=0.0 if run.reused else round(tracker.metric_sum(run.run_id, "epoch_seconds"), 3),
        seconds=seconds.seconds,
        phases={} if run.reused else {name: facts.metrics[f"phase_{name}_seconds"] for name in PHASES},
    )
    links = (
        ("MLflow run", run.run_id, tracker.run_url(facts)),
        ("model version", registered.uri, tracker.version_url(registered)),
    )
    # Without a key: the link on the flow run's page then opens it, and not a list of the reports of all runs.
    try:
        create_markdown_artifact(_markdown(report, facts, links), description=f"Report: {_headline(report)}")
    except UNREACHABLE as error:
        LOGGER.warning("The report is not on the page of this flow run: %s", told_by_prefect(error))
    return report


def summary(report: TrainingReport) -> str:
    """The outcome in the few lines that end a run at the terminal."""
    seconds, phases = (
        ", ".join(f"{name.replace('_', '-')} {value:.1f}" for name, value in each.items())
        for each in (report.seconds, report.phases)
    )
    trained = f"  of the training: {phases}\n" if report.phases else ""
    return (
        f"\n{report.model_name} version {report.model_version}: test accuracy {report.test_accuracy:.4f} "
        f"(validation {report.validation_accuracy:.4f}), {report.dataset}\n"
        f"  {report.champion_decision}\n"
        f"  {'nothing had changed: run' if report.reused else 'trained in run'} {report.run_id}\n"
        f"  files in {report.model_folder}\n"
        f"  seconds: {seconds}\n"
        f"{trained}"
    )


def _headline(report: TrainingReport) -> str:
    return f"{report.model_name} version {report.model_version}, {report.test_accuracy:.2%} on the test set"


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
                        ("test accuracy", f"{report.test_accuracy:.4f}"),
                        ("test loss", f"{report.test_loss:.4f}"),
                        ("validation accuracy, best epoch", f"{report.validation_accuracy:.4f}"),
                        *((name, f"[{text}]({url})" if url else f"`{text}`") for name, text, url in links),
                        ("data set", f"{report.dataset} `{report.dataset_sha256}`"),
                        ("training key", f"`{report.training_key}`"),
                        ("weights", f"`{report.weights_sha256}`"),
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
