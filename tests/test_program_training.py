"""The training of a person's program: its key, what differs, and the bundle and the order that the runner gets."""

import json
import os
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from infra.compute import program_sha256
from infra.compute.runner.variables import THREADS
from infra.errors import ArgumentError, ProgramInvalid
from infra.requirements import OWN_PYTHON
from infra.settings import load_settings
from tasks.handoffs import Dataset
from tasks.program import read_program
from tasks.program_training import RUNNER, Asked, program_training
from tasks.training import Attempt, Training

COUNTER = Path(__file__).parent / "programs" / "counter"
DATASETS = {"points": "1" * 64}


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREADS:
        monkeypatch.delenv(name, raising=False)


def training(
    folder: Path, asked: Asked | None = None, program: Path = COUNTER, entry: str | None = None, **datasets: str
) -> Training:
    settings = load_settings({"PIPELINE_HOME": str(folder / "home")})
    bundle = folder / str(len(list(folder.iterdir())))
    return program_training(read_program(program, entry), asked or Asked(), datasets or DATASETS, bundle, settings)


def facts_of(training: Training) -> dict[str, Any]:
    return dict(json.loads((training.shipped / "program.json").read_text()))


def test_a_bundle_is_the_runner_the_program_and_its_facts(tmp_path: Path) -> None:
    found = training(tmp_path, Asked({"epochs": "7"}, seed=3))
    assert found.shipped.name == "runner"
    assert (found.shipped / "manifest.py").read_bytes() == (RUNNER / "manifest.py").read_bytes()
    assert program_sha256(found.shipped / "program") == program_sha256(COUNTER) == found.program_sha256
    facts = facts_of(found)
    command = facts["command"]
    assert command[:2] == ["python", "counter.py"]
    assert "{data_folder}" in command
    assert command[command.index("--epochs") + 1] == "7"
    assert (facts["name"], facts["seed"], facts["continues"], facts["hook"]) == ("counter", 3, "exact", True)
    assert facts["objective"] == {"metric": "val_accuracy", "goal": "maximize"}
    assert facts["parameters"]["epochs"] == 7
    assert facts["requirements"] is None
    assert f"numpy=={version('numpy')}" in found.requirements
    assert f"mlflow=={version('mlflow')}" in found.requirements
    assert (facts["import_ahead"], facts["import_ahead_of_score"]) == (["numpy"], ["numpy"])
    again = training(tmp_path, Asked({"epochs": "7"}, seed=3))
    assert program_sha256(again.shipped) == program_sha256(found.shipped), "what stands by is told by it"


def test_a_node_has_what_the_sources_import_and_the_key_what_the_mlproject_names(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(COUNTER, copy)
    (copy / "points.py").write_text("import matplotlib\n" + (copy / "points.py").read_text())
    (copy / "MLproject").write_text((copy / "MLproject").read_text() + "import_ahead: [points]\n")
    found = training(tmp_path, program=copy)
    assert set(found.environment) == {"python", "numpy"}
    assert f"matplotlib=={version('matplotlib')}" in found.requirements
    facts = facts_of(found)
    assert (facts["import_ahead"], facts["import_ahead_of_score"]) == (["points"], ["numpy"])


def test_the_order_names_the_run_the_data_and_the_lease(tmp_path: Path) -> None:
    found = training(tmp_path, Asked(rebuild_environment=True))
    attempt = Attempt(
        run_id="r",
        datasets={"points": Dataset("points", "1" * 64, "file:///data")},
        checkpoint_uri="file:///checkpoints",
        lease_uri="file:///lease",
        accelerator="cpu",
        cache=None,
    )
    command, told = found.command_for(attempt)
    order = json.loads(told)
    assert (command, order["run_id"], order["default_dataset"]) == ("train", "r", "points")
    assert order["dataset_uris"] == {"points": {"uri": "file:///data", "sha256": "1" * 64}}
    assert (order["checkpoint_uri"], order["lease_uri"]) == ("file:///checkpoints", "file:///lease")
    assert (order["accelerator"], order["home"]) == ("cpu", str(tmp_path / "home"))
    assert order["rebuild_environment"]
    on_a_node = json.loads(found.command_for(replace(attempt, cache="~/.cache/data"))[1])
    assert (on_a_node["cache"], on_a_node["home"]) == ("~/.cache/data", None)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Asked({"epochs": "7"}), "epochs 5 -> 7"),
        (Asked(seed=3), "--seed none -> 3"),
        (Asked(hook=False), "--no-hook none -> True"),
        (Asked(variables=["SOME_KEY"]), "variable SOME_KEY passed on"),
    ],
)
def test_what_is_asked_for_is_in_the_key(
    asked: Asked, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "of-this-person")
    first, second = training(tmp_path), training(tmp_path, asked)
    assert first.key != second.key
    assert second.differences(first.record) == [told]
    assert training(tmp_path, replace(asked, rebuild_environment=True)).key == second.key
    shipped = "".join(path.read_text() for path in second.shipped.rglob("*.json"))
    assert "of-this-person" not in shipped + json.dumps(second.record) + repr(second)


def test_the_number_of_threads_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = training(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert training(tmp_path).differences(first.record) == ["OMP_NUM_THREADS none -> 1"]


def test_a_scripts_arguments_go_to_it_as_they_stand(tmp_path: Path) -> None:
    arguments = ["--data-folder", "{data_folder}", "--epochs", "2"]
    found = training(tmp_path, Asked(arguments=arguments), entry="counter.py")
    assert facts_of(found)["command"] == ["python", "counter.py", *arguments]
    other = training(tmp_path, Asked(arguments=[*arguments[:-1], "3"]), entry="counter.py")
    assert other.differences(found.record) == [
        "arguments --data-folder '{data_folder}' --epochs 2 -> --data-folder '{data_folder}' --epochs 3"
    ]
    assert found.key != training(tmp_path).key, "the entry point main, without --entry"


def test_an_edit_changes_it_and_other_requirements_get_an_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(COUNTER, copy)
    first = training(tmp_path, program=copy)
    (copy / "points.py").write_text((copy / "points.py").read_text() + "\n")
    assert training(tmp_path, program=copy).differences(first.record) == ["points.py changed"]

    asked: list[Any] = []
    lock = (
        "colorama==0.4.6 \\\n    --hash=sha256:aa\nnumpy==1.26.4 ; sys_platform == 'linux' \\\n    --hash=sha256:bb\n"
    )

    def resolved(requirements: Any, python: str | None, folder: Path) -> str:
        asked.append((requirements, python, folder))
        return lock

    # No index may be there; tests of requirements resolve.
    monkeypatch.setattr("tasks.program_training.resolve", resolved)
    (copy / "requirements.txt").write_text("numpy<2\n")
    found = training(tmp_path, program=copy)
    assert asked == [(("numpy<2",), None, tmp_path / "home" / "requirements")]
    assert facts_of(found)["requirements"] == {"python": OWN_PYTHON, "lock": lock}
    assert found.environment["numpy"] == "1.26.4"
    assert found.environment["colorama"] == "0.4.6"
    lock = lock.replace("bb", "cc")
    assert training(tmp_path, program=copy).key != found.key, "a hash decides what is installed"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Asked({"epochs": "0"}), "epochs"),
        (Asked({"epoch": "1"}), "Did you mean epochs"),
        (Asked(variables=["NOT_SET_ANYWHERE"]), "--env NOT_SET_ANYWHERE"),
    ],
)
def test_what_cannot_be_is_refused(asked: Asked, told: str, tmp_path: Path) -> None:
    assert "NOT_SET_ANYWHERE" not in os.environ
    with pytest.raises(ArgumentError, match=told):
        training(tmp_path, asked)


def test_a_program_that_cannot_start_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "train.py").write_text("import os\nimport no_such_package\nx = (\n")
    with pytest.raises(ProgramInvalid, match=r"train\.py:3"):
        training(tmp_path, program=tmp_path / "program", entry="train.py")
    (tmp_path / "program" / "train.py").write_text("import os\nimport no_such_package\n")
    with pytest.raises(ProgramInvalid, match="no_such_package"):
        training(tmp_path, program=tmp_path / "program", entry="train.py")
