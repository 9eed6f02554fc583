"""Registering at the gate: real models in a real MLflow, scored by the real program."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.compute.runner.manifest import files_sha256
from infra.errors import RunNotRegistrable, TrackerError
from infra.experiment_tracker import Version
from tasks.champion import CHAMPION, DECISION, champions, settle, standing
from tasks.gate import RECALL_FLOOR, GateRules
from tasks.programs.mnist.digits.dataset_files import TEST_IMAGES, TEST_LABELS
from tasks.programs.mnist.digits.hyperparameters import Hyperparameters
from tasks.registry.decision import GATE_DECISION, GATE_FLOW_RUN, OUTCOME
from tests.registry import MODEL, Interrupting, Registry
from tests.small_dataset import entries, write_small_dataset

pytestmark = pytest.mark.slow

BETTER, NOT_WORSE = GateRules("better", RECALL_FLOOR), GateRules("not-worse", RECALL_FLOOR)


@dataclass(frozen=True)
class Models:
    """Model folders, and the data set that they were trained on."""

    data_folder: Path
    test_set_sha256: str
    weak: Path
    good: Path
    as_good: Path
    """As good as `good`, from another seed."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    # For this import alone: a program that finds it set shows all that TensorFlow says.
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
        from tasks.programs.mnist.digits.dataset import load_dataset
        from tasks.programs.mnist.digits.training import train

    folder = tmp_path_factory.mktemp("models")
    write_small_dataset(folder / "data", test_images=1_000)
    dataset = load_dataset(folder / "data", 100)
    for name, epochs, seed in (("weak", 1, 0), ("good", 6, 0), ("as_good", 6, 1)):
        asked = Hyperparameters(
            epochs=epochs,
            seed=seed,
            batch_size=50,
            first_layer_neurons=32,
            second_layer_neurons=16,
            learning_rate=0.003,
        )
        trained = train(asked, dataset, None, lambda metrics: None, lambda metrics: None)
        (folder / name / "data").mkdir(parents=True)
        trained.model.save(folder / name / "data" / "model.keras")
        (folder / name / "MLmodel").write_text("flavors: {}\n")
    return Models(folder / "data", dataset.test_set_sha256, *(folder / name for name in ("weak", "good", "as_good")))


@pytest.fixture
def registry(tmp_path: Path, models: Models) -> Registry:
    return Registry(tmp_path, models.data_folder)


def test_the_first_version_becomes_champion_and_a_better_one_replaces_it(registry: Registry, models: Models) -> None:
    first = registry.add_run(models.weak, models.test_set_sha256)
    assert registry.register(first, BETTER).tags[DECISION] == "Version 1 became champion: there was none"
    assert registry.champions() == (1, None)
    between = datetime.now(UTC)

    second = registry.add_run(models.good, models.test_set_sha256)
    version = registry.register(second, BETTER)
    assert version.tags[DECISION].startswith("Version 2 became champion in place of version 1: it alone is right on ")
    assert registry.champions() == (2, 1)
    assert version.tags[OUTCOME] == "promoted"
    assert version.tags["gate"] == "better"
    assert version.tags["gate_compared_with"] == "1"
    assert version.tags["gate_test_set_sha256"] == models.test_set_sha256
    assert float(version.tags["gate_p_better"]) < 0.001

    report = registry.report(second)
    assert report["decision"] == version.tags[DECISION]
    assert (report["version"]["version"], report["champion"]["version"]) == (2, 1)
    numbers = report["numbers"]
    assert numbers["items"] == 1_000
    gained = numbers["only_challenger_right"] - numbers["only_champion_right"]
    assert numbers["challenger_accuracy"] - numbers["champion_accuracy"] == pytest.approx(gained / 1_000)
    (text,) = registry.decisions(second, ".md").values()
    assert version.tags[DECISION] in text
    assert "| recall of digit 9 |" in text

    moves = registry.history
    assert [(move.version, move.previous, move.state) for move in moves] == [(1, None, "moved"), (2, 1, "moved")]
    assert [move.version for move in champions(moves, between, between)] == [1]
    assert [move.version for move in champions(moves, datetime.now(UTC), datetime.now(UTC))] == [2]
    assert [move.version for move in champions(moves, between, datetime.now(UTC))] == [1, 2]
    assert champions(moves, moves[0].moment - timedelta(1), moves[0].moment - timedelta(1)) == []

    kept = registry.decisions(second)
    assert registry.register(second, BETTER, flow_run_id="another").version == 2, "a second call finds the version"
    assert registry.history == moves
    assert registry.decisions(second) == kept
    assert registry.version_of(second).tags[GATE_FLOW_RUN] == "some", "and decides nothing"
    assert [move.decision for move in moves] == [*registry.decisions(first), *kept]


def test_a_champion_that_cannot_be_read_stays_until_it_can_and_a_worse_challenger_then_fails(
    registry: Registry, models: Models
) -> None:
    good = registry.add_run(models.good, models.test_set_sha256)
    registry.register(good, BETTER)
    weak = registry.add_run(models.weak, models.test_set_sha256)
    file = registry.model_file(good, "data/model.keras")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    version = registry.register(weak, NOT_WORSE)
    assert version.tags[OUTCOME] == "not compared"
    assert "are not those that run" in version.tags[DECISION]

    file.write_bytes(content)
    version = registry.register(weak, NOT_WORSE)
    assert version.tags[OUTCOME] == "kept"
    assert version.tags[DECISION].startswith("Version 2 is not champion: recall falls by more than 0.01 for digit")
    assert version.tags[DECISION].endswith("Version 1 stays.")
    assert float(version.tags["gate_p_worse"]) < 0.001
    assert registry.champions() == (1, None)
    assert len(registry.history) == 1


@pytest.mark.parametrize("file", ["data/model.keras", "MLmodel"])
def test_a_challenger_that_lacks_a_file_is_not_promoted(file: str, registry: Registry, models: Models) -> None:
    run_id = registry.add_run(models.good, models.test_set_sha256)
    registry.model_file(run_id, file).unlink()
    assert registry.register(run_id, BETTER).tags[OUTCOME] == "not compared"
    assert registry.champions() == (None, None)


def test_a_run_without_the_list_of_its_files_is_not_promoted(registry: Registry, models: Models) -> None:
    run_id = registry.add_run(models.good, models.test_set_sha256)
    (listed,) = registry.folder.rglob("model_files.json")
    listed.unlink()
    assert registry.register(run_id, BETTER).tags[OUTCOME] == "not compared"
    assert registry.champions() == (None, None)


def test_a_file_that_is_no_model_is_not_promoted(registry: Registry, models: Models, tmp_path: Path) -> None:
    registry.register(registry.add_run(models.weak, models.test_set_sha256), BETTER)
    (tmp_path / "junk" / "data").mkdir(parents=True)
    (tmp_path / "junk" / "data" / "model.keras").write_bytes(b"no network")
    version = registry.register(registry.add_run(tmp_path / "junk", models.test_set_sha256), BETTER)
    assert version.tags[OUTCOME] == "not compared"
    assert "TrainingFailed" in version.tags[DECISION]
    assert registry.champions() == (1, None)


def test_another_test_set_is_no_ground_for_a_decision(registry: Registry, models: Models, tmp_path: Path) -> None:
    registry.register(registry.add_run(models.weak, models.test_set_sha256), BETTER)
    write_small_dataset(tmp_path / "other", test_images=1_000, seed=1)
    digest = files_sha256(file for file in entries(tmp_path / "other") if file.name in (TEST_IMAGES, TEST_LABELS))
    version = registry.register(registry.add_run(models.as_good, digest), BETTER)
    assert "is not the one of the champion" in version.tags[DECISION]
    assert registry.champions() == (1, None)


def test_a_sample_is_never_champion(registry: Registry, models: Models) -> None:
    run_id = registry.add_run(models.good, models.test_set_sha256, dataset="mnist-5k", dataset_sample_of="mnist")
    version = registry.register(run_id, NOT_WORSE)
    assert version.tags[DECISION] == "Version 1 is not champion: it was made from mnist-5k, a sample. There is none."
    assert registry.champions() == (None, None)
    assert registry.history == []
    assert standing(registry.tracker, MODEL).sentence.startswith(
        "No version of digits is champion, and none was before. Make one champion: python -m flows.promote "
    )


def test_a_decision_by_hand_leaves_the_gates_own_and_ends_its_attempts(registry: Registry, models: Models) -> None:
    registry.register(registry.add_run(models.good, models.test_set_sha256), BETTER)
    as_good = registry.add_run(models.as_good, models.test_set_sha256)
    kept = registry.register(as_good, BETTER).tags
    gates = registry.decisions(as_good)
    registry.promote(2, although_refused=True)
    promoted = registry.version_of(as_good).tags
    assert {key: value for key, value in promoted.items() if key != DECISION} == {
        key: value for key, value in kept.items() if key != DECISION
    }
    assert promoted[DECISION].startswith("Version 2 became champion in place of version 1: promoted by hand")
    assert promoted[GATE_DECISION].startswith("Version 2 is not champion")
    assert gates.items() < registry.decisions(as_good).items()

    alien = registry.add_run(models.weak, "another test set")
    assert registry.register(alien, BETTER).tags[OUTCOME] == "not compared"
    registry.promote(3)
    registry.promote(1)
    before = registry.decisions(alien)
    registry.register(alien, NOT_WORSE)
    assert registry.decisions(alien) == before, "a person has decided"
    assert registry.champions() == (1, 3)


def test_the_standing_says_who_is_champion_since_when_whoever_made_it_so(registry: Registry, models: Models) -> None:
    for model in (models.good, models.as_good):
        version = registry.add_version(registry.add_run(model, models.test_set_sha256))
    registry.promote(1)
    (move,) = registry.history
    now = standing(registry.tracker, MODEL)
    since = f"since {move.moment:%Y-%m-%d %H:%M:%S} UTC"
    assert (now.champion, now.previous_champion, now.sentence) == (1, None, f"Version 1 of digits is champion, {since}")

    registry.tracker.set_alias(version, CHAMPION)
    assert standing(registry.tracker, MODEL).sentence == "Version 2 of digits is champion, since when is not on record"
    assert registry.history == [move], "who asks records nothing"
    settle(registry.tracker, MODEL)
    assert standing(registry.tracker, MODEL).sentence.endswith(" UTC or earlier")

    registry.tracker._client.delete_registered_model_alias(MODEL, CHAMPION)
    assert standing(registry.tracker, MODEL).champion is None
    settle(registry.tracker, MODEL)
    told = standing(registry.tracker, MODEL).sentence
    assert told.startswith("No version of digits is champion, since 20")
    assert "or earlier: its alias was removed. Make one champion: python -m flows.promote" in told


def test_the_champions_own_weights_change_nothing(registry: Registry, models: Models) -> None:
    registry.register(registry.add_run(models.good, models.test_set_sha256), BETTER)
    version = registry.register(registry.add_run(models.good, models.test_set_sha256), NOT_WORSE)
    assert (
        version.tags[DECISION] == "Version 2 is not champion: it has the very weights of the champion. Version 1 stays."
    )
    assert registry.champions() == (1, None)


def test_a_run_that_lacks_something_gets_no_version(registry: Registry, models: Models) -> None:
    run_id = registry.add_run(models.good, models.test_set_sha256)
    registry.tracker.continue_run(run_id, {})
    with pytest.raises(RunNotRegistrable, match="it is RUNNING"):
        registry.register(run_id, BETTER)
    assert registry.tracker.find_version(MODEL, run_id) is None


def test_an_unreachable_registry_fails_the_step(
    tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nowhere = Registry(tmp_path, models.data_folder, {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    with pytest.raises(TrackerError):
        nowhere.register("some", BETTER)


def test_a_champion_that_changes_during_the_comparison_is_compared_with(registry: Registry, models: Models) -> None:
    weak, good, as_good = (
        registry.add_run(model, models.test_set_sha256) for model in (models.weak, models.good, models.as_good)
    )
    registry.register(weak, BETTER)
    elsewhere = registry.other_machine()
    registry.add_version(good)
    machine = Interrupting(registry.machine, lambda: elsewhere.promote(2))
    version = registry.register(as_good, BETTER, machine)
    assert len(machine.jobs) == 2
    assert version.tags[OUTCOME] == "kept"
    assert version.tags["gate_compared_with"] == "2"
    assert registry.champions() == (2, 1)


def register_at_once(place: Registry, other: Registry, models: Models) -> list[Version]:
    """Register two good versions over a weak champion, from two processes; the two."""
    place.register(place.add_run(models.weak, models.test_set_sha256), BETTER)
    runs = [place.add_run(model, models.test_set_sha256) for model in (models.good, models.as_good)]
    processes = [at.start_registering(run_id, BETTER) for at, run_id in zip((place, other), runs, strict=True)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    versions = [place.version_of(run_id) for run_id in runs]
    assert sorted(version.version for version in versions) == [2, 3]
    return versions


def test_of_two_that_register_at_once_one_is_champion_and_both_are_decided(registry: Registry, models: Models) -> None:
    versions = register_at_once(registry, registry, models)
    promoted = [version for version in versions if version.tags[OUTCOME] == "promoted"]
    (kept,) = (version for version in versions if version.tags[OUTCOME] == "kept")
    assert [version.version for version in promoted] == [registry.champions()[0]]
    assert kept.tags["gate_compared_with"] == str(promoted[0].version)
    assert [(move.version, move.state) for move in registry.history] == [(1, "moved"), (promoted[0].version, "moved")]


def test_two_machines_that_register_at_once_lose_no_decision(registry: Registry, models: Models) -> None:
    # Without a lock between machines both may be compared with the same old champion (see tasks/champion.py): then
    # both moves are in the history, and the last one holds.
    versions = register_at_once(registry, registry.other_machine(), models)
    promoted = {version.version for version in versions if version.tags[OUTCOME] == "promoted"}
    assert promoted
    assert {version.tags[OUTCOME] for version in versions} <= {"promoted", "kept"}
    moves = [(move.version, move.state) for move in registry.history]
    assert moves[0] == (1, "moved")
    assert sorted(moves[1:]) == [(version, "moved") for version in sorted(promoted)]
    assert registry.champions()[0] == moves[-1][0]


def test_killed_before_any_write_the_next_call_completes_the_registration(registry: Registry, models: Models) -> None:
    for writes in range(100):
        run_id = registry.add_run(models.good, models.test_set_sha256)
        process = registry.start_registering(run_id, BETTER, writes)
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -9
        version = registry.register(run_id, BETTER)
        assert version.tags[OUTCOME] == "promoted"
        assert version.tags[DECISION] == f"Version {version.version} became champion: there was none"
        assert registry.champions() == (version.version, None)
        assert [(move.version, move.state) for move in registry.history] == [(version.version, "moved")]
        registry.tracker._client.delete_registered_model(MODEL)
    assert writes > 8


def test_killed_before_any_write_the_next_call_completes_a_promotion_by_hand(
    registry: Registry, models: Models
) -> None:
    for model in (models.good, models.as_good):
        registry.add_version(registry.add_run(model, models.test_set_sha256))
    registry.promote(1)
    champion, other, begun = 1, 2, 1
    for writes in range(100):
        process = registry.start_promoting(other, writes)
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -9
        registry.promote(other)
        assert registry.champions() == (other, champion)
        version = registry.tracker.get_version(MODEL, other)
        assert version is not None
        assert version.tags[DECISION] == registry.history[-1].reason
        begun += 1
        assert [move.version for move in registry.history if move.state == "moved"][-2:] == [champion, other]
        assert len(registry.history) == begun, "a move is on record once"
        champion, other = other, champion
    assert writes == 7


def test_an_alias_that_somebody_else_moved_is_found_and_recorded(registry: Registry, models: Models) -> None:
    for model in (models.good, models.as_good):
        version = registry.add_version(registry.add_run(model, models.test_set_sha256))
    registry.promote(1)
    registry.tracker.set_alias(version, CHAMPION)
    registry.promote(1)
    assert [(move.version, move.previous, move.by) for move in registry.history] == [
        (1, None, "somebody"),
        (2, 1, "somebody outside the pipeline"),
        (1, 2, "somebody"),
    ]
