"""Step: make a model version of a finished run, and decide at the gate whether it becomes the champion."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from infra.compute import Compute
from infra.errors import PipelineError, RunNotRegistrable
from infra.experiment_tracker import ExperimentTracker, Run, Version
from infra.object_store import ObjectStore
from infra.scratch import temporary_folder
from infra.settings import Settings
from tasks.champion import CHAMPION, history, move_champion, registry_lock, settle
from tasks.gate import Comparison, Decision, GateRules, decide
from tasks.handoffs import Dataset, ModelVersion, TrainingRun
from tasks.progress import Logger
from tasks.retrying import is_worth_a_retry
from tasks.saved_model import ask_program, fetch_model, model_files
from tasks.train_model import discard_checkpoints

DECISION = "champion_decision"
"""Tag of a version: what was decided about it, in a sentence. Written last of all: a version without it was left by a
process that died, and the decision is made again."""

OUTCOME = "gate_outcome"
"""Tag of a version: `promoted`, `kept` (the champion was), `by hand`, or `not compared`: the next run tries again."""

VERSION_TAGS = (
    "dataset",
    "dataset_sample_of",
    "dataset_sha256",
    "test_set_sha256",
    "training_key",
    "weights_sha256",
    "model_sha256",
    "program_sha256",
    "mlflow.source.git.commit",
    "git_dirty",
    "prefect.flow_run_id",
    "prefect.flow_run_url",
)
"""What a version says of its making: these tags of its run, all of which must be there."""

ATTEMPTS = 5
"""How often a decision is made again because another machine changed the champion meanwhile."""


@task(
    name="register model",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=exponential_backoff(2),
    retry_condition_fn=is_worth_a_retry,
)
def register_model(
    run: TrainingRun,
    dataset: Dataset,
    model_name: str,
    rules: GateRules,
    machine: Compute,
    settings: Settings,
    tracker: ExperimentTracker,
) -> ModelVersion:
    """The version of `model_name` that was made from this run: a new one, or the one that exists.

    `machine` is where champion and challenger are scored on the test set of `dataset`. Raises
    `RunNotRegistrable` if the run is not FINISHED or lacks what a version must have. Whatever else keeps the two from
    being compared leaves the champion in its place.
    """
    logger = get_run_logger()
    version = register(run.run_id, dataset.uri, model_name, rules, machine, settings, tracker, logger)
    # Not before: until the version exists, a rerun may have to continue this very run.
    discard_checkpoints(ObjectStore(settings.object_store_uri), version.run_id)
    return ModelVersion(version.name, version.version, version.run_id)


def register(
    run_id: str,
    data_folder: str,
    model_name: str,
    rules: GateRules,
    machine: Compute,
    settings: Settings,
    tracker: ExperimentTracker,
    logger: Logger,
) -> Version:
    """See `register_model`; callable without a Prefect server."""
    run = tracker.get_run(run_id)
    model_id = check_registrable(run)
    with registry_lock(settings.locks_folder, model_name, logger):
        settle(tracker, model_name)
        version = tracker.find_version(model_name, run_id)
        if version is None:
            version = tracker.create_version(model_name, run, model_id, version_tags(run))
            logger.info("Registered run %s as version %d of %s", run_id, version.version, model_name)
        else:
            logger.info("Run %s is version %d of %s already", run_id, version.version, model_name)
        if DECISION not in version.tags or version.tags.get(OUTCOME) == "not compared":
            _decide_and_move(version, run, data_folder, rules, machine, settings, tracker, logger)
    return version


def check_registrable(run: Run) -> str:
    """The id of the model that `run` logged; raises `RunNotRegistrable` unless a version can be made of it."""
    lacks = [f"the tag {tag}" for tag in VERSION_TAGS if tag not in run.tags]
    lacks += [] if "test_accuracy" in run.metrics else ["the metric test_accuracy"]
    lacks += [] if run.model_id in run.model_ids else ["its logged model"]
    if run.status != "FINISHED":
        lacks.insert(0, f"the status FINISHED (it is {run.status})")
    if lacks:
        raise RunNotRegistrable(
            f"Run {run.run_id} cannot become a model version: it lacks {', '.join(lacks)}.\n"
            "Run the flow again: it continues or repeats the training."
        )
    return run.model_id


def version_tags(run: Run) -> dict[str, str]:
    """The tags of the version that is made of `run`: what made it, and how good it is."""
    metrics = ("test_accuracy", "test_loss", "best_val_accuracy")
    return {name: run.tags[name] for name in VERSION_TAGS} | {
        name: repr(run.metrics[name]) for name in metrics if name in run.metrics
    }


def fetch_registered(tracker: ExperimentTracker, run: Run, folder: Path) -> None:
    """Bring the model of a version's run to `folder`.

    Raises `RunNotRegistrable` or `ModelMismatch` unless run and model are whole.
    """
    check_registrable(run)
    fetch_model(tracker, run, model_files(tracker, run, folder.parent), folder)


def check_intact(tracker: ExperimentTracker, run: Run, scratch: Path) -> None:
    """Raise `RunNotRegistrable` or `ModelMismatch` unless run and model are whole; `scratch` is where it is tried."""
    with temporary_folder(scratch) as folder:
        fetch_registered(tracker, run, folder / "model")


def record_decision(
    tracker: ExperimentTracker, version: Version, champion: Version | None, facts: Mapping[str, Any], sentence: str
) -> None:
    """Keep a decision with the version's run as `gate/decision.json`, and as `gate/decision.md` for people."""
    compared = champion and {"version": champion.version, "run_id": champion.run_id}
    report = {
        "model": version.name,
        "decision": sentence,
        "version": {"version": version.version, "run_id": version.run_id},
        "champion": compared,
        **facts,
    }
    tracker.log_text(version.run_id, json.dumps(report, indent=1) + "\n", "gate/decision.json")
    tracker.log_text(version.run_id, _markdown(report), "gate/decision.md")


def _decide_and_move(
    version: Version,
    run: Run,
    data_folder: str,
    rules: GateRules,
    machine: Compute,
    settings: Settings,
    tracker: ExperimentTracker,
    logger: Logger,
) -> None:
    # Numbers and report first, then the aliases, the decision's tag last: killed anywhere, the next call decides again
    # or, if the alias has moved already, finds the sentence in the history and only adds what is missing.
    for _ in range(ATTEMPTS):
        champion = tracker.version_by_alias(version.name, CHAMPION)
        if champion and champion.version == version.version:
            sentence = history(tracker, version.name)[-1].reason
            break
        decision = _decide(run, champion, data_folder, rules, machine, settings, tracker, logger)
        sentence = _sentence(version, champion, decision)
        record_decision(tracker, version, champion, _facts(rules, decision), sentence)
        tracker.set_version_tags(version, _tags(rules, decision, champion))
        if decision.outcome != "promoted":
            break
        now = tracker.version_by_alias(version.name, CHAMPION)
        if (now and now.version) == (champion and champion.version):
            move_champion(tracker, version, champion, f"the gate, run {version.run_id}", sentence)
            break
        logger.info("The champion has changed meanwhile: %s is compared with the new one", version.uri)
    else:
        sentence = (
            f"Version {version.version} is not champion: the champion changed {ATTEMPTS} times while it was compared"
        )
        tracker.set_version_tags(version, {OUTCOME: "not compared"})
    tracker.set_version_tags(version, {DECISION: sentence})
    logger.info("%s", sentence)


def _decide(
    run: Run,
    champion: Version | None,
    data_folder: str,
    rules: GateRules,
    machine: Compute,
    settings: Settings,
    tracker: ExperimentTracker,
    logger: Logger,
) -> Decision:
    if run.tags["dataset_sample_of"]:
        return Decision("kept", f"it was made from {run.tags['dataset']}, a sample")
    if champion and champion.tags.get("weights_sha256") == run.tags["weights_sha256"]:
        return Decision("kept", "it has the very weights of the champion")
    test_set = run.tags["test_set_sha256"]
    if champion and champion.tags.get("test_set_sha256") != test_set:
        return _other_test_set(test_set, champion.tags.get("test_set_sha256", "unknown"), "of the champion")
    try:
        with temporary_folder(settings.scratch_folder) as scratch:
            fetch_registered(tracker, run, scratch / "challenger")
            if champion is None:
                return Decision("promoted", "there was none before it")
            fetch_registered(tracker, tracker.get_run(champion.run_id), scratch / "champion")
            models = (f"--model={name}={scratch}/{name}" for name in ("champion", "challenger"))
            scores = ask_program(machine, ("score", *models, f"--data-folder={data_folder}"), logger)
    except (PipelineError, OSError) as error:
        return Decision("not compared", f"{type(error).__name__}: {error}")
    if scores["test_set_sha256"] != test_set:
        return _other_test_set(test_set, scores["test_set_sha256"], "in the store")
    return decide(Comparison.read(scores), rules)


def _other_test_set(ours: str, found: str, where: str) -> Decision:
    return Decision("not compared", f"its test set {ours[:12]} is not the one {where}, {found[:12]}")


def _sentence(version: Version, champion: Version | None, decision: Decision) -> str:
    name = f"Version {version.version}"
    if decision.outcome == "promoted":
        return (
            f"{name} became champion{f' in place of version {champion.version}' if champion else ''}: {decision.reason}"
        )
    why = "it could not be compared: " if decision.outcome == "not compared" else ""
    stays = f"Version {champion.version} stays." if champion else "There is none."
    return f"{name} is not champion: {why}{decision.reason.rstrip('.')}. {stays}"


def _facts(rules: GateRules, decision: Decision) -> dict[str, Any]:
    numbers = decision.numbers.as_dict() if decision.numbers else None
    return {"gate": rules.gate, "recall_floor": rules.recall_floor, "outcome": decision.outcome, "numbers": numbers}


def _tags(rules: GateRules, decision: Decision, champion: Version | None) -> dict[str, str]:
    tags = {
        "gate": rules.gate,
        "gate_recall_floor": repr(rules.recall_floor),
        "gate_compared_with": str(champion.version) if champion else "none",
        OUTCOME: decision.outcome,
    }
    if decision.numbers:
        chosen = ("p_better", "p_worse", "only_champion_right", "only_challenger_right", "test_set_sha256")
        tags |= {f"gate_{name}": str(getattr(decision.numbers, name)) for name in chosen}
    return tags


def _markdown(report: Mapping[str, Any]) -> str:
    lines = [f"# {report['model']}, version {report['version']['version']}", "", report["decision"], ""]
    if numbers := report.get("numbers"):
        lines += ["| | champion | challenger |", "|---|---|---|"]
        lines.append(f"| version | {report['champion']['version']} | {report['version']['version']} |")
        for name, form in (("accuracy", ".4f"), ("loss", ".4f")):
            cells = (format(numbers[f"{who}_{name}"], form) for who in ("champion", "challenger"))
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append(f"| it alone is right | {numbers['only_champion_right']} | {numbers['only_challenger_right']} |")
        lines.append(f"| p that it is better | {numbers['p_worse']:.3g} | {numbers['p_better']:.3g} |")
        recalls = zip(numbers["champion_recall"], numbers["challenger_recall"], strict=True)
        for digit, recall in enumerate(recalls):
            cells = ("none" if value is None else f"{value:.4f}" for value in recall)
            lines.append(f"| recall of {digit} | {' | '.join(cells)} |")
        lines += ["", f"Exact McNemar test, one-sided, on the {numbers['images']:,} images of test set"]
        lines += [f"`{numbers['test_set_sha256']}`. Gate `{report['gate']}`, recall floor {report['recall_floor']:g}."]
    return "\n".join(lines) + "\n"
