"""A decision about a version, as it is kept: in a sentence, as files of the version's run, and as its tags.

Every decision is a file of its own, `gate/decision-<moment>.json`, with its text for people beside it, and is never
written again. The gate's tags of a version (`gate...`) say what the gate decided, whatever a person did afterwards;
`champion_decision` says what was decided last.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from infra.experiment_tracker import ExperimentTracker, Run, Version
from tasks.champion import MOMENT
from tasks.gate import Decision, GateRules

GATE = "gate"
"""Tag of a version: the gate that it stood before."""

OUTCOME = "gate_outcome"
"""Tag of a version: `promoted`, `kept` (the champion was), or `not compared`."""

GATE_DECISION = "gate_decision"
"""Tag of a version: what the gate decided, in a sentence."""

GATE_FLOW_RUN = "gate_flow_run_id"
"""Tag of a version: the Prefect flow run in which the gate decided."""


def sentence(version: Version, champion: Version | None, decision: Decision) -> str:
    """What was decided."""
    name = f"Version {version.version}"
    if decision.outcome == "promoted":
        place = f" in place of version {champion.version}" if champion else ""
        return f"{name} became champion{place}: {decision.reason}"
    why = "it was not compared: " if decision.outcome == "not compared" else ""
    stays = f"Version {champion.version} stays." if champion else "There is none."
    return f"{name} is not champion: {why}{decision.reason.rstrip('.')}. {stays}"


def record(
    tracker: ExperimentTracker, version: Version, champion: Version | None, facts: Mapping[str, Any], sentence: str
) -> str:
    """Keep a decision with the version's run, in files of its own, of which the one for programs is returned.

    `facts` are those of `facts`, or a person's.
    """
    moment = datetime.now(UTC)
    report = {
        "model": version.name,
        "moment": moment.isoformat(),
        "decision": sentence,
        "version": {"version": version.version, "run_id": version.run_id},
        "champion": champion and {"version": champion.version, "run_id": champion.run_id},
        **facts,
    }
    table = report.pop("table", "")
    file = f"gate/decision-{moment.strftime(MOMENT)}"
    tracker.log_text(version.run_id, json.dumps(report, indent=1) + "\n", f"{file}.json")
    text = f"# {version.name}, version {version.version}\n\n{sentence}\n{table}"
    tracker.log_text(version.run_id, text, f"{file}.md")
    return f"{file}.json"


def facts(rules: GateRules, decision: Decision, run: Run, version: Version, champion: Version | None) -> dict[str, Any]:
    """What the gate's decision about `version`, which was made of `run`, rests on; for `record`."""
    evidence = decision.evidence
    numbers = (
        {name: _plain(value) for name, value in evidence.as_dict().items()} | _scored_on(run) if evidence else None
    )
    asked = {"gate": rules.gate, "recall_floor": rules.recall_floor, "gate_margin": rules.margin}
    known = {key: value for key, value in asked.items() if value is not None}
    facts = {**known, "outcome": decision.outcome, "numbers": numbers}
    if evidence is None:
        return facts
    lines = ["", "| | champion | challenger |", "|---|---|---|"]
    lines.append(f"| version | {champion.version if champion else 'none'} | {version.version} |")
    lines += [f"| {what} | {before} | {after} |" for what, before, after in evidence.rows()]
    lines += ["", evidence.footnote, ", ".join(f"{name} `{value}`" for name, value in _scored_on(run).items()) + "."]
    lines.append(", ".join(f"{key.replace('_', ' ')} `{value}`" for key, value in known.items()) + ".")
    return facts | {"table": "\n".join(lines) + "\n"}


def tags(rules: GateRules, decision: Decision, run: Run, champion: Version | None) -> dict[str, str]:
    """The gate's tags of the version."""
    tags = {GATE: rules.gate, "gate_compared_with": str(champion.version) if champion else "none"}
    tags[OUTCOME] = decision.outcome
    if rules.recall_floor is not None:
        tags["gate_recall_floor"] = repr(rules.recall_floor)
    if rules.gate == "metric":
        tags["gate_margin"] = repr(rules.margin)
    if decision.evidence:
        tags |= {f"gate_{name}": value for name, value in {**decision.evidence.tags(), **_scored_on(run)}.items()}
    return tags


def _scored_on(run: Run) -> dict[str, str]:
    """What the numbers were found on: the test set, where the run names it, else its data set."""
    name = "test_set_sha256" if "test_set_sha256" in run.tags else "dataset_sha256"
    return {name: run.tags[name]}


def _plain(value: Any) -> Any:
    """What JSON can hold: a number that is not finite as text."""
    return str(value) if isinstance(value, float) and not isfinite(value) else value
