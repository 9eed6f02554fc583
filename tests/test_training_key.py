"""What counts as a change: each thing that decides the weights, and nothing else; and how a change is told."""

import json
import shutil
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from infra.compute import program_files, program_sha256
from infra.compute.runner.variables import THREADS
from infra.settings import load_settings
from tasks import mnist_training
from tasks.dataset_catalog import DatasetDescription, describe_dataset
from tasks.mnist_training import PROGRAM
from tasks.programs.mnist.digits.hyperparameters import DEFAULTS, Hyperparameters
from tasks.training import Training

EARLIER_KEY = "848bad73fd7219d6d8ff004f4cf47e51bc9de89d6954295c7770109485ac07dc"
"""As the first version of the pipeline computed it."""

SETTINGS = load_settings({"PIPELINE_HOME": tempfile.mkdtemp()})
DATASET = describe_dataset("mnist", SETTINGS.dataset_catalog)


def training(hyperparameters: Hyperparameters = DEFAULTS, dataset: DatasetDescription = DATASET) -> Training:
    return mnist_training.mnist_training(dataset, hyperparameters, SETTINGS)


def key(hyperparameters: Hyperparameters = DEFAULTS, dataset: DatasetDescription = DATASET) -> str:
    return training(hyperparameters, dataset).key


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the training program that the key is made from."""
    copy = tmp_path / "mnist"
    shutil.copytree(PROGRAM, copy, ignore=shutil.ignore_patterns("__pycache__"))
    # Not the real folder: an edit of it would be seen by other tests.
    monkeypatch.setattr(mnist_training, "PROGRAM", copy)
    return copy


def test_the_same_training_has_the_same_key(program: Path) -> None:
    assert key() == key(Hyperparameters())


def test_the_key_is_that_of_earlier_versions(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("layers = 2\n")
    # As it was made: with the hyperparameters for arguments, and these versions.
    arguments = DEFAULTS.model_copy(update={"validation_images": 5_000}).model_dump()
    versions = dict.fromkeys(("keras", "tensorflow", "numpy"), "1.0")
    assert replace(training(), source=tmp_path, arguments=arguments, environment=versions).key == EARLIER_KEY


@pytest.mark.parametrize("file", sorted(path.relative_to(PROGRAM).as_posix() for path in PROGRAM.rglob("*.py")))
def test_an_edit_anywhere_in_the_program_changes_it(program: Path, file: str) -> None:
    before = training()
    assert before.differences(before.record) == []
    (program / file).write_text((program / file).read_text() + "\n# edited\n")
    assert key() != before.key
    assert training().differences(before.record) == [f"{file} changed"]


def test_a_new_file_and_a_new_name_change_it(program: Path) -> None:
    first = training()
    keys = {first.key}
    (program / "widths.txt").write_text("300")
    second = training()
    keys.add(second.key)
    assert second.differences(first.record) == ["widths.txt is new"]
    (program / "widths.txt").rename(program / "sizes.txt")
    keys.add(key())
    assert len(keys) == 3
    assert training().differences(second.record) == ["sizes.txt is new", "widths.txt is gone"]


@pytest.mark.parametrize(
    "name",
    [
        "__pycache__/model.cpython-311.pyc",
        "model.pyc",
        ".DS_Store",
        "data/.DS_Store",
        "Thumbs.db",
        ".env",
        ".git/config",
        ".ipynb_checkpoints/model-checkpoint.py",
        ".model.py.swp",
        "model.py~",
        "#model.py#",
        "model.py.orig",
    ],
)
def test_what_others_leave_in_the_programs_folder_is_no_part_of_it(program: Path, name: str) -> None:
    files, before = program_files(program), key()
    (program / name).parent.mkdir(exist_ok=True)
    (program / name).write_text("a secret, or rubbish")
    assert program_files(program) == files
    assert key() == before


def test_where_the_program_lies_does_not_change_it(program: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / ".hidden" / "__pycache__" / "other_name"
    shutil.copytree(program, elsewhere)
    assert program_sha256(elsewhere) == program_sha256(program)
    assert len(program_files(elsewhere)) > 10


@pytest.mark.parametrize("name", list(Hyperparameters.model_fields))
def test_every_hyperparameter_changes_it(name: str) -> None:
    before = training()
    value = before.arguments[name]
    changed = value / 2 if isinstance(value, float) else value + 1
    after = training(DEFAULTS.model_copy(update={name: changed}))
    assert after.key != before.key
    assert after.differences(before.record) == [f"{name} {value} -> {changed}"]


def test_another_data_set_changes_it() -> None:
    files = (replace(DATASET.files[0], size=1), *DATASET.files[1:])
    other = training(dataset=replace(DATASET, files=files))
    assert other.key != key()
    (told,) = other.differences(training().record)
    assert told == f"data set mnist {DATASET.sha256[:12]} -> {other.dataset_sha256[:12]}"
    assert key(dataset=replace(DATASET, name="mnist-of-another-name")) == key(), "its files alone count"


@pytest.mark.parametrize("library", ["keras", "tensorflow", "numpy"])
def test_another_version_of_a_library_that_computes_changes_it(library: str) -> None:
    before = training()
    assert set(before.environment) - set(THREADS) == {"python", "keras", "tensorflow", "numpy"}
    after = replace(before, environment={**before.environment, library: "0.0"})
    assert after.key != before.key
    assert after.differences(before.record) == [f"{library} {version(library)} -> 0.0"]


def test_of_several_data_sets_each_counts_with_its_name() -> None:
    one = replace(training(), datasets={"images": "1" * 64, "labels": "2" * 64})
    assert one.key == replace(one, datasets={"labels": "2" * 64, "images": "1" * 64}).key
    swapped = replace(one, datasets={"images": "2" * 64, "labels": "1" * 64})
    fewer = replace(one, datasets={"images": "1" * 64})
    none = replace(one, datasets={})
    assert len({one.key, swapped.key, fewer.key, none.key}) == 4
    assert fewer.differences(one.record) == ["data set labels 222222222222 -> none"]


def test_a_secret_variable_is_in_the_key_and_in_no_record() -> None:
    given = replace(training(), secret_variables={"API_KEY": "of-this-person"})
    assert len({training().key, given.key, replace(given, secret_variables={"API_KEY": "of-another"}).key}) == 3
    assert "of-this-person" not in json.dumps(given.record) + repr(given)
    assert given.differences(training().record) == ["variable API_KEY passed on"]
    assert training().differences(given.record) == ["variable API_KEY no longer passed on"]


def test_a_record_survives_json_and_without_files_says_less() -> None:
    now = replace(training(), arguments={"argv": ["--data", "{data_folder}"]})
    record: dict[str, Any] = json.loads(json.dumps(now.record))
    assert now.differences(record) == []
    del record["files"]
    assert now.differences({**record, "program_sha256": "another"}) == ["the program changed"]
