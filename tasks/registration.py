"""Registering: a version is made of a finished run, and decided about at the gate."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.errors import PipelineError
from infra.experiment_tracker import Run, Version
from infra.scratch import temporary_folder
from infra.services import Services
from tasks.champion import CHAMPION, DECISION, Grounds, history, move_champion, registry_lock, settle
from tasks.gate import Decision, GateRules, decide, decide_by_objective
from tasks.registry.comparison import Comparison
from tasks.registry.decision import GATE, GATE_DECISION, GATE_FLOW_RUN, OUTCOME, facts, record, sentence, tags
from tasks.registry.objective import compare_objectives
from tasks.registry.version import REGISTER_AS, check_registrable, fetch_registered, version_tags

LOGGER = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often a decision is made again because another machine changed the champion meanwhile."""

CompareModels = Callable[[Mapping[str, Path], Run], Comparison]
"""Scores the models in the folders of `champion` and `challenger`, of which the latter was made by the run, on the same
items. A `PipelineError` says why not."""


@dataclass(frozen=True)
class Judge:
    """How it is decided about a version."""

    rules: GateRules
    compare: CompareModels
    """Called if it comes to that by the rules."""
    flow_run_id: str
    """Of Prefect; kept with the decision."""


def name_by_program(run_id: str, services: Services) -> str:
    """The name that the program of a run gave to its model; empty if it gave none."""
    return services.tracker.get_run(run_id).tags.get(REGISTER_AS, "")


def register(run_id: str, model_name: str, judge: Judge, services: Services) -> Version:
    """The version of `model_name` that was made from the run, and decided about: a new one, or the one that exists.

    Raises `RunNotRegistrable` if the run is not FINISHED or lacks what a version must have. Whatever else keeps the two
    from being compared leaves the champion in its place.
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
        if _is_open(version, judge.rules):
            _decide_and_move(version, run, judge, services)
    return version


def _is_open(version: Version, rules: GateRules) -> bool:
    """True if nothing was decided, or if the gate had the last word and could not compare, which it may be able to now.

    A gate that leaves the decision to a person has not decided otherwise the next time.
    """
    decision = version.tags.get(DECISION)
    last_is_the_gates = decision == version.tags.get(GATE_DECISION, decision)
    left_to_a_person = version.tags.get(GATE) == rules.gate == "by-hand"
    return decision is None or (
        version.tags.get(OUTCOME) == "not compared" and last_is_the_gates and not left_to_a_person
    )


def _decide_and_move(version: Version, run: Run, judge: Judge, services: Services) -> None:
    tracker, rules = services.tracker, judge.rules
    # The decision's files first, then the gate's tags, then the aliases or, if they stay, the tag that ends it: killed
    # before the move has begun, the next call decides again; after that, `settle` has ended what is decided here.
    for _ in range(ATTEMPTS):
        champion = tracker.version_by_alias(version.name, CHAMPION)
        if champion and champion.version == version.version:
            told = history(tracker, version.name)[-1].reason
            break
        decision = _decide(version, run, champion, judge, services)
        told = sentence(version, champion, decision)
        file = record(tracker, version, champion, facts(rules, decision, run, version, champion), told)
        by_gate = {GATE_DECISION: told, GATE_FLOW_RUN: judge.flow_run_id}
        tracker.set_version_tags(version, tags(rules, decision, run, champion) | by_gate)
        if decision.outcome != "promoted":
            break
        now = tracker.version_by_alias(version.name, CHAMPION)
        if (now and now.version) == (champion and champion.version):
            move_champion(tracker, version, champion, Grounds(f"the gate, run {version.run_id}", told, file))
            LOGGER.info("%s", told)
            return
        LOGGER.info("The champion has changed meanwhile: %s is compared with the new one", version.uri)
    else:
        told = f"Version {version.version} is not champion: the champion changed {ATTEMPTS} times while it was compared"
        tracker.set_version_tags(version, {OUTCOME: "not compared", GATE_DECISION: told})
    tracker.set_version_tags(version, {DECISION: told})
    LOGGER.info("%s", told)


def _decide(version: Version, run: Run, champion: Version | None, judge: Judge, services: Services) -> Decision:
    if run.tags.get("dataset_sample_of"):
        return Decision("kept", f"it was made from {run.tags['dataset']}, a sample")
    try:
        with temporary_folder(services.settings.scratch_folder) as scratch:
            if champion is None:
                fetch_registered(services.tracker, run, scratch / "challenger")
                return Decision("promoted", "there was none")
            other = services.tracker.get_run(champion.run_id)
            if decided := _decided_without_scores(version, run, other, judge.rules):
                return decided
            fetch_registered(services.tracker, run, scratch / "challenger")
            fetch_registered(services.tracker, other, scratch / "champion")
            models = {name: scratch / name for name in ("champion", "challenger")}
            return decide(judge.compare(models, run), judge.rules)
    except (PipelineError, OSError) as error:
        return Decision("not compared", f"{type(error).__name__}: {error}")


def _decided_without_scores(version: Version, run: Run, champion: Run, rules: GateRules) -> Decision | None:
    """What follows from what the two runs say; None if their models are to be scored."""
    # Models that are files without weights of Keras's have `none` for the digest of their weights.
    for what, digest in (("weights", "weights_sha256"), ("files", "model_sha256")):
        if run.tags[digest] != "none" and run.tags[digest] == champion.tags.get(digest):
            return Decision("kept", f"it has the very {what} of the champion")
    if rules.gate == "by-hand":
        by_hand = f"python -m flows.promote --model-name {version.name} --version {version.version}"
        return Decision("not compared", f"after the first version a person decides: {by_hand}")
    if rules.gate == "metric":
        assert rules.objective, "rules_for sees to it"
        change = compare_objectives(champion, run, rules.objective)
        if isinstance(change, str):
            return Decision("not compared", change)
        return decide_by_objective(change, rules.margin)
    # A run names the test set that it was measured on if its program has one apart from its data set.
    ours, theirs = (one.tags.get("test_set_sha256", "unknown") for one in (run, champion))
    if ours != theirs:
        return Decision("not compared", f"its test set {ours[:12]} is not the one of the champion, {theirs[:12]}")
    if not rules.trust_code:
        for one, whose in ((run, "its model"), (champion, "the champion's model")):
            if one.tags.get("model_kind") == "needs_code":
                reason = f"{whose} needs its program's own code to be loaded, which --trust-code allows"
                return Decision("not compared", reason)
    return None
