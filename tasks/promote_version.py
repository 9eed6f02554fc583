"""The alias `champion` moved by a person, with the record that the gate keeps. No step: nothing is trained."""

from infra.errors import ArgumentError, PromotionRefused
from infra.experiment_tracker import ExperimentTracker, Version
from infra.services import Services
from tasks.champion import CHAMPION, DECISION, PREVIOUS_CHAMPION, Grounds, move_champion, registry_lock, settle
from tasks.registry.decision import GATE, GATE_DECISION, OUTCOME, record
from tasks.registry.version import check_intact


def promote(
    number: int | None,
    model_name: str,
    person: str,
    although_refused: bool,
    services: Services,
) -> str:
    """Make a version champion at the word of `person`, not of the gate; None: the previous champion once more.

    Returns what was done, as a sentence. Raises `ArgumentError` if there is no such version, `PromotionRefused` if it
    was made from a sample or, unless `although_refused`, if the gate decided against it, `RunNotRegistrable` if it
    lacks what a version must have, `ModelMismatch` if its files are not those of its run.
    """
    tracker = services.tracker
    with registry_lock(services, model_name):
        settle(tracker, model_name)
        champion = tracker.version_by_alias(model_name, CHAMPION)
        version = _wanted(tracker, model_name, number)
        if champion and champion.version == version.version:
            return f"Version {version.version} is champion already: nothing was moved"
        run = tracker.get_run(version.run_id)
        if run.tags.get("dataset_sample_of"):
            raise PromotionRefused(
                f"Version {version.version} of {model_name} cannot become champion: it was made from "
                f"{run.tags['dataset']}, a sample.\nTrain on the whole data set."
            )
        refusal = _refusal(version)
        if refusal and not although_refused:
            raise PromotionRefused(
                f"Version {version.version} of {model_name} was not made champion, for the gate decided against it:\n"
                f"  {refusal}\n"
                f"Its numbers are kept with run {version.run_id}, in gate/. To make it champion all the same, add\n"
                "--although-refused, which is recorded."
            )
        check_intact(tracker, run, services.settings.scratch_folder)
        place = f" in place of version {champion.version}" if champion else ""
        how = "promoted" if number else "rolled back"
        although = ", although the gate had decided against it" if refusal else ""
        sentence = f"Version {version.version} became champion{place}: {how} by hand of {person}{although}"
        facts = {GATE: None, "by": person, "although_refused": refusal}
        file = record(tracker, version, champion, facts, sentence)
        move_champion(tracker, version, champion, Grounds(person, sentence, file))
    return sentence


def _wanted(tracker: ExperimentTracker, model_name: str, number: int | None) -> Version:
    if number is not None:
        version = tracker.get_version(model_name, number)
        if version is None:
            raise ArgumentError(
                f"The model {model_name} has no version {number}.\n"
                "Without --version, --rollback and --as-of the command lists those that it has."
            )
        return version
    version = tracker.version_by_alias(model_name, PREVIOUS_CHAMPION)
    if version is None:
        raise ArgumentError(
            f"There is nothing to roll back to: no version of {model_name} has the alias {PREVIOUS_CHAMPION}.\n"
            "Name a version with --version."
        )
    return version


def _refusal(version: Version) -> str | None:
    """What the gate said when it decided against the version; None if it did not."""
    if version.tags.get(OUTCOME) != "kept":
        return None
    return version.tags.get(GATE_DECISION) or version.tags.get(DECISION) or "it is on record nowhere why"
