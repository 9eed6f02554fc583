"""What a run says at its end: an object for programs, a markdown artifact for the Prefect UI, lines for a terminal."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from prefect.artifacts import create_markdown_artifact

from infra.experiment_tracker import ExperimentTracker, Run
from tasks.handoffs import Dataset, ModelVersion, TrainingRun
from tasks.register_model import DECISION
from tasks.train_model import PHASES


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
    champion_decision: str
    reused: bool
    epoch_seconds: float
    """Of all epochs together, their validation included."""
    seconds: dict[str, float]
    """Of each step, as the flow waited for it; steps that ran beside another count what they took longer."""
    phases: dict[str, float]
    """Seconds of each phase of the training: preparing, scaling, running, post_processing."""

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
        champion_decision=registered.tags[DECISION],
        reused=run.reused,
        epoch_seconds=round(tracker.metric_sum(run.run_id, "epoch_seconds"), 3),
        seconds=seconds.seconds,
        phases={name: facts.metrics[f"phase_{name}_seconds"] for name in PHASES},
    )
    links = (
        ("MLflow run", run.run_id, tracker.run_url(facts)),
        ("model version", registered.uri, tracker.version_url(registered)),
    )
    # Without a key: the link on the flow run's page then opens it, and not a list of the reports of all runs.
    create_markdown_artifact(_markdown(report, facts, links), description=f"Report: {_headline(report)}")
    return report


def summary(report: TrainingReport) -> str:
    """The outcome in the few lines that end a run at the terminal."""
    seconds, phases = (
        ", ".join(f"{name.replace('_', '-')} {value:.1f}" for name, value in each.items())
        for each in (report.seconds, report.phases)
    )
    return (
        f"\n{report.model_name} version {report.model_version}: test accuracy {report.test_accuracy:.4f} "
        f"(validation {report.validation_accuracy:.4f}), {report.dataset}\n"
        f"  {report.champion_decision}\n"
        f"  {'nothing had changed: run' if report.reused else 'trained in run'} {report.run_id}\n"
        f"  files in {report.model_folder}\n"
        f"  seconds: {seconds}\n"
        f"  of the training: {phases}\n"
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
            seconds("Phase of the training", report.phases),
        ]
    )
