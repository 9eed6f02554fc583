"""Step: let a person move the alias `champion`, with the record that the gate keeps."""

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from infra.errors import RunNotRegistrable, SettingsError
from infra.experiment_tracker import ExperimentTracker, Version
from infra.settings import Settings
from tasks.champion import CHAMPION, PREVIOUS_CHAMPION, move_champion, registry_lock, settle
from tasks.progress import Logger
from tasks.register_model import DECISION, OUTCOME, check_intact, record_decision
from tasks.retrying import is_worth_a_retry


@task(
    name="promote version",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=exponential_backoff(2),
    retry_condition_fn=is_worth_a_retry,
)
def promote_version(
    number: int | None, model_name: str, person: str, settings: Settings, tracker: ExperimentTracker
) -> str:
    """See `promote`."""
    return promote(number, model_name, person, settings, tracker, get_run_logger())


def promote(
    number: int | None, model_name: str, person: str, settings: Settings, tracker: ExperimentTracker, logger: Logger
) -> str:
    """Make a version champion at the word of `person`, not of the gate; None: the previous champion once more.

    Returns what was done, as a sentence. Raises `SettingsError` if there is no such version, `RunNotRegistrable` if it
    lacks what a version must have or was made from a sample, `ModelMismatch` if its files are not those of its run.
    """
    with registry_lock(settings.locks_folder, model_name, logger):
        settle(tracker, model_name)
        champion = tracker.version_by_alias(model_name, CHAMPION)
        version = _wanted(tracker, model_name, number)
        if champion and champion.version == version.version:
            return f"Version {version.version} is champion already: nothing was moved"
        run = tracker.get_run(version.run_id)
        if run.tags.get("dataset_sample_of"):
            raise RunNotRegistrable(
                f"Version {version.version} of {model_name} cannot become champion: it was made from "
                f"{run.tags['dataset']}, a sample.\nTrain on the whole data set."
            )
        check_intact(tracker, run, settings.scratch_folder)
        place = f" in place of version {champion.version}" if champion else ""
        how = "promoted" if number else "rolled back"
        sentence = f"Version {version.version} became champion{place}: {how} by hand of {person}"
        record_decision(tracker, version, champion, {"gate": None, "by": person}, sentence)
        move_champion(tracker, version, champion, person, sentence)
        tracker.set_version_tags(version, {OUTCOME: "by hand", DECISION: sentence})
        logger.info("%s", sentence)
    return sentence


def _wanted(tracker: ExperimentTracker, model_name: str, number: int | None) -> Version:
    if number is not None:
        version = tracker.get_version(model_name, number)
        if version is None:
            raise SettingsError(f"The model {model_name} has no version {number}.\nSee --model-name and --version.")
        return version
    version = tracker.version_by_alias(model_name, PREVIOUS_CHAMPION)
    if version is None:
        raise SettingsError(
            f"There is nothing to roll back to: no version of {model_name} has the alias {PREVIOUS_CHAMPION}.\n"
            "Name a version with --version."
        )
    return version
