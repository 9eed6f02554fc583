"""What counts as a change: each thing that decides the weights, and nothing else."""

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from infra.compute import program_files, program_sha256
from tasks import train_model
from tasks.program_run import PROGRAM
from tasks.train_model import COMPUTING_LIBRARIES, training_key
from tasks.training_program.hyperparameters import DEFAULTS, Hyperparameters

DATASET = "0" * 64


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the training program that the key is made from."""
    copy = tmp_path / "training_program"
    shutil.copytree(PROGRAM, copy, ignore=shutil.ignore_patterns("__pycache__"))
    # Not the real folder: an edit of it would be seen by other tests.
    monkeypatch.setattr(train_model, "PROGRAM", copy)
    return copy


def test_the_same_training_has_the_same_key(program: Path) -> None:
    assert training_key(DATASET, DEFAULTS) == training_key(DATASET, Hyperparameters())


@pytest.mark.parametrize("file", sorted(path.name for path in PROGRAM.glob("*.py")))
def test_an_edit_anywhere_in_the_program_changes_it(program: Path, file: str) -> None:
    before = training_key(DATASET, DEFAULTS)
    (program / file).write_text((program / file).read_text() + "\n# edited\n")
    assert training_key(DATASET, DEFAULTS) != before


def test_a_new_file_and_a_new_name_change_it(program: Path) -> None:
    keys = {training_key(DATASET, DEFAULTS)}
    (program / "widths.txt").write_text("300")
    keys.add(training_key(DATASET, DEFAULTS))
    (program / "widths.txt").rename(program / "sizes.txt")
    keys.add(training_key(DATASET, DEFAULTS))
    assert len(keys) == 3


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
    files, before = program_files(program), training_key(DATASET, DEFAULTS)
    (program / name).parent.mkdir(exist_ok=True)
    (program / name).write_text("a secret, or rubbish")
    assert program_files(program) == files
    assert training_key(DATASET, DEFAULTS) == before


def test_where_the_program_lies_does_not_change_it(program: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / ".hidden" / "__pycache__" / "other_name"
    shutil.copytree(program, elsewhere)
    assert program_sha256(elsewhere) == program_sha256(program)
    assert len(program_files(elsewhere)) > 10


@pytest.mark.parametrize("name", list(Hyperparameters.model_fields))
def test_every_hyperparameter_changes_it(name: str) -> None:
    value = getattr(DEFAULTS, name)
    other = DEFAULTS.model_copy(update={name: value / 2 if isinstance(value, float) else value + 1})
    assert training_key(DATASET, other) != training_key(DATASET, DEFAULTS)


def test_another_data_set_changes_it() -> None:
    assert training_key("1" * 64, DEFAULTS) != training_key(DATASET, DEFAULTS)


@pytest.mark.parametrize("library", COMPUTING_LIBRARIES)
def test_another_version_of_a_library_that_computes_changes_it(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = training_key(DATASET, DEFAULTS)
    # Not really another version: installing one takes minutes.
    monkeypatch.setattr(train_model, "version", lambda name: "0.0" if name == library else version(name))
    assert training_key(DATASET, DEFAULTS) != before
