"""Form, flags, parameters and program agree, and wrong usage is refused with a message."""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.command_line import options_model, parse, parser_of
from flows.train_mnist import train_mnist
from tasks.mnist_training import PROGRAM
from tasks.programs.mnist.digits.hyperparameters import Hyperparameters
from tests.system_programs import held_to_modes

ROOT = Path(__file__).parent.parent
GROUPS = {"hyperparameters": "Hyperparameters", "cluster": "ClusterOptions"}
"""Parameters of the flow that are models: each of their fields is a flag of its own."""


@pytest.fixture
def options() -> Any:
    return options_model(train_mnist)


def chosen(options: Any, *flags: str) -> Any:
    parser = parser_of(options, "")
    return parse(options, parser, parser.parse_args(flags))


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    yield from parser._actions


def test_without_flags_everything_has_its_default(options: Any) -> None:
    assert chosen(options).hyperparameters == Hyperparameters()
    assert chosen(options).dataset == "mnist"
    assert chosen(options).retrain is False


def test_flags_reach_their_parameter(options: Any) -> None:
    given = chosen(options, "--learning-rate=0.01", "--epochs", "3", "--retrain", "--output-dir", "elsewhere")
    assert given.hyperparameters.learning_rate == 0.01
    assert given.hyperparameters.epochs == 3
    assert given.retrain is True
    assert given.output_dir == Path("elsewhere")


def test_form_and_flags_have_the_same_parameters(options: Any) -> None:
    schema = train_mnist.parameters.model_dump()
    in_form = set(schema["properties"]) - set(GROUPS)
    in_form |= {name for group in GROUPS.values() for name in schema["definitions"][group]["properties"]}
    flags = {action.dest for action in actions(parser_of(options, ""))} - {"help", "json", "debug"}
    assert flags == in_form


def test_every_parameter_is_explained_with_its_default_in_form_and_help(options: Any) -> None:
    schema = train_mnist.parameters.model_dump()
    groups = {name: schema["definitions"][group] for name, group in GROUPS.items()}
    inner = {name: field for group in groups.values() for name, field in group["properties"].items()}
    for name, field in (schema["properties"] | groups | inner).items():
        assert field.get("description"), f"the form says nothing about {name}"
    for action in actions(parser_of(options, "")):
        assert action.help, f"--help says nothing about {action.dest}"
    help_text = parser_of(options, "").format_help()
    assert "Default 0.001; at least 1e-06" in " ".join(help_text.split())


def test_flags_and_program_have_the_same_hyperparameters() -> None:
    command = [sys.executable, "-m", "digits.train", "--help"]
    done = subprocess.run(command, cwd=PROGRAM, capture_output=True, text=True, check=True)
    for name in Hyperparameters.model_fields:
        assert f"--{name.replace('_', '-')} " in done.stdout


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--epochs=0", "--epochs 0: Input should be greater than or equal to 1"),
        ("--epochs=many", "--epochs many: Input should be a valid integer"),
        ("--learning-rate=-1", "--learning-rate -1: Input should be greater than or equal to 0.000001"),
        ("--learning-rate=nan", "--learning-rate nan"),
        ("--accelerator=tpu", "argument --accelerator: invalid choice: 'tpu'"),
        ("--epoch=3", "unrecognized arguments: --epoch=3"),
        ("--model-name=a/b", "--model-name a/b: String should match pattern"),
        ("--model-name=..", "--model-name ..: String should match pattern"),
        ("--model-name=.", "--model-name .: String should match pattern"),
        ("--experiment=..", "--experiment ..: String should match pattern"),
    ],
)
def test_a_wrong_flag_is_refused_with_status_2(
    options: Any, flag: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        chosen(options, flag)
    assert exit.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--dataset=cifar"], "There is no data set 'cifar'"),
        (["--batch-size=10000", "--validation-images=4000", "--dataset=mnist-5k"], "Lower --validation-images"),
        (["--validation-images=5000", "--dataset=mnist-5k"], "5,000 held out for validation leave 0"),
    ],
    ids=["unknown data set", "nothing left to train on", "more than there are, as many as are usual"],
)
def test_what_cannot_work_is_refused_before_anything_starts(flags: list[str], told: str, tmp_path: Path) -> None:
    check_refused(flags, told, tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("MLFLOW_TRACKING_URI", "./mlruns", "MLFLOW_TRACKING_URI"),
        ("DATASET_CATALOG", "/nowhere/at-all.toml", "DATASET_CATALOG"),
        ("PIPELINE_HOME", "/etc/hostname", "PIPELINE_HOME"),
    ],
)
def test_wrong_settings_are_refused_with_status_2(variable: str, value: str, told: str, tmp_path: Path) -> None:
    environment = {variable: value}
    check_refused([], told, tmp_path, 2, **environment)


@pytest.mark.slow
def test_an_mlflow_server_that_is_not_there_is_told_at_once(tmp_path: Path, prefect_api: str) -> None:
    url = "http://127.0.0.1:9"
    check_refused([], url, tmp_path, 1, MLFLOW_TRACKING_URI=url, PREFECT_API_URL=prefect_api)


def test_a_prefect_server_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9"
    check_refused([], f"PrefectUnreachable: Prefect's server at {url} cannot be used", tmp_path, 1, PREFECT_API_URL=url)


def check_refused(flags: list[str], told: str, home: Path, status: int, **environment: str) -> None:
    command = [sys.executable, "-m", "flows.train_mnist", f"--output-dir={home}/model", *flags]
    changed = {"PIPELINE_HOME": str(home / "home"), **environment}
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **changed}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == status, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (home / "home" / "datasets").exists()


@pytest.mark.slow
def test_a_current_folder_that_is_gone_is_told_at_once(tmp_path: Path) -> None:
    code = "import os, runpy, sys; os.rmdir(os.getcwd()); runpy.run_path(sys.argv.pop(), None, '__main__')"
    gone = tmp_path / "gone"
    gone.mkdir()
    command = [sys.executable, "-c", code, str(ROOT / "flows" / "train_mnist.py")]
    environment = {**os.environ, "PIPELINE_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=gone, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("The current folder is gone")


@pytest.mark.needs("setpriv")
@pytest.mark.parametrize("command", ["train_mnist.py", "promote.py", "doctor.py"])
def test_a_current_folder_that_may_not_be_entered_is_told_at_once(command: str, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    done = subprocess.run(
        [*held_to_modes(), sys.executable, str(ROOT / "flows" / command)],
        cwd=closed,
        env={**os.environ, "PIPELINE_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    told = "The current folder is gone, or may not be entered (Permission denied).\nChange to another and run again.\n"
    assert (done.returncode, done.stderr) == (2, told)
