"""Versions of a registered model: made of finished runs, decided about at the gate, each decision kept.

Every decision is a file of its own on the version's run, `gate/decision-<moment>.json`, with its text for people
beside it, and is never written again. The gate's tags of a version (`gate_...`) say what the gate decided, whatever a
person did afterwards; `champion_decision` says what was decided last.
"""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.compute import Compute
from infra.errors import PipelineError, RunNotRegistrable
from infra.experiment_tracker import ExperimentTracker, Run, Version
from infra.scratch import temporary_folder
from infra.services import Services
from tasks.champion import CHAMPION, DECISION, MOMENT, history, move_champion, registry_lock, settle
from tasks.gate import Comparison, Decision, GateRules, decide
from tasks.saved_model import ask_program, fetch_model, model_files

LOGGER = logging.getLogger(__name__)

OUTCOME = "gate_outcome"
"""Tag of a version: `promoted`, `kept` (the champion was), or `not compared`: the next run tries again."""

GATE_DECISION = "gate_decision"
"""Tag of a version: what the gate decided, in a sentence."""

GATE_FLOW_RUN = "gate_flow_run_id"
"""Tag of a version: the Prefect flow run in which the gate decided."""

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


def register(
    run_id: str,
    data_folder: str,
    model_name: str,
    rules: GateRules,
    machine: Compute,
    flow_run_id: str,
    services: Services,
) -> Version:
    """The version of `model_name` that was made from the run, and decided about: a new one, or the one that exists.

    `machine` is where champion and challenger are scored on the test set in `data_folder`. Raises `RunNotRegistrable`
    if the run is not FINISHED or lacks what a version must have. Whatever else keeps the two from being compared leaves
    the champion in its place.
    """
    tracker = services.tracker
    run = tracker.get_run(run_id)
    model_id = check_registrable(run)
    with registry_lock(services, model_name):
        settle(tracker, model_name)
        version = tracker.find_version(model_name, run_id)
        if version is None:
            version = tracker.create_version(model_name, run, model_id, version_tags(run))
            LOGGER.info("Registered run %s as version %d of %s", run_id, version.version, model_name)
        else:
            LOGGER.info("Run %s is version %d of %s already", run_id, version.version, model_name)
        if _is_open(version):
            _decide_and_move(version, run, data_folder, rules, machine, flow_run_id, services)
    return version


def _is_open(version: Version) -> bool:
    """True if nothing was decided, or if the gate had the last word and could not compare."""
    decision = version.tags.get(DECISION)
    last_is_the_gates = decision == version.tags.get(GATE_DECISION, decision)
    return decision is None or (version.tags.get(OUTCOME) == "not compared" and last_is_the_gates)


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
) -> str:
    """Keep a decision with the version's run, in files of its own, of which the one for programs is returned."""
    moment = datetime.now(UTC)
    compared = champion and {"version": champion.version, "run_id": champion.run_id}
    report = {
        "model": version.name,
        "moment": moment.isoformat(),
        "decision": sentence,
        "version": {"version": version.version, "run_id": version.run_id},
        "champion": compared,
        **facts,
    }
    file = f"gate/decision-{moment.strftime(MOMENT)}"
    tracker.log_text(version.run_id, json.dumps(report, indent=1) + "\n", f"{file}.json")
    tracker.log_text(version.run_id, _markdown(report), f"{file}.md")
    return f"{file}.json"


def _decide_and_move(
    version: Version,
    run: Run,
    data_folder: str,
    rules: GateRules,
    machine: Compute,
    flow_run_id: str,
    services: Services,
) -> None:
    tracker = services.tracker
    # The decision's files first, then the gate's tags, then the aliases or, if they stay, the tag that ends it: killed
    # before the move has begun, the next call decides again; after that, `settle` has ended what is decided here.
    for _ in range(ATTEMPTS):
        champion = tracker.version_by_alias(version.name, CHAMPION)
        if champion and champion.version == version.version:
            sentence = history(tracker, version.name)[-1].reason
            break
        decision = _decide(run, champion, data_folder, rules, machine, services)
        sentence = _sentence(version, champion, decision)
        file = record_decision(tracker, version, champion, _facts(rules, decision), sentence)
        tags = {GATE_DECISION: sentence, GATE_FLOW_RUN: flow_run_id}
        tracker.set_version_tags(version, _tags(rules, decision, champion) | tags)
        if decision.outcome != "promoted":
            break
        now = tracker.version_by_alias(version.name, CHAMPION)
        if (now and now.version) == (champion and champion.version):
            move_champion(tracker, version, champion, f"the gate, run {version.run_id}", sentence, file)
            LOGGER.info("%s", sentence)
            return
        LOGGER.info("The champion has changed meanwhile: %s is compared with the new one", version.uri)
    else:
        sentence = (
            f"Version {version.version} is not champion: the champion changed {ATTEMPTS} times while it was compared"
        )
        tracker.set_version_tags(version, {OUTCOME: "not compared", GATE_DECISION: sentence})
    tracker.set_version_tags(version, {DECISION: sentence})
    LOGGER.info("%s", sentence)


def _decide(
    run: Run,
    champion: Version | None,
    data_folder: str,
    rules: GateRules,
    machine: Compute,
    services: Services,
) -> Decision:
    if run.tags["dataset_sample_of"]:
        return Decision("kept", f"it was made from {run.tags['dataset']}, a sample")
    if champion and champion.tags.get("weights_sha256") == run.tags["weights_sha256"]:
        return Decision("kept", "it has the very weights of the champion")
    test_set = run.tags["test_set_sha256"]
    if champion and champion.tags.get("test_set_sha256") != test_set:
        return _other_test_set(test_set, champion.tags.get("test_set_sha256", "unknown"), "of the champion")
    try:
        with temporary_folder(services.settings.scratch_folder) as scratch:
            fetch_registered(services.tracker, run, scratch / "challenger")
            if champion is None:
                return Decision("promoted", "there was none")
            fetch_registered(services.tracker, services.tracker.get_run(champion.run_id), scratch / "champion")
            models = (f"--model={name}={scratch}/{name}" for name in ("champion", "challenger"))
            scores = ask_program(machine, ("score", *models, f"--data-folder={data_folder}"))
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
