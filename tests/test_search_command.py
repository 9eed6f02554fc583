"""The flags of a search: what they mean, and what of them is refused before anything starts."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import validate

from flows.form import completed
from flows.search import search
from flows.search_command import parser, read
from flows.search_subject import search_of, subject_of
from infra.errors import ArgumentError
from infra.experiment_tracker import ExperimentTracker
from infra.services import Services
from infra.settings import load_settings
from tasks.dataset_catalog import describe_dataset
from tasks.mnist_training import mnist_training
from tasks.program_parameters import written
from tasks.programs.mnist.digits.hyperparameters import Hyperparameters
from tests.pipeline import ROOT

# No MLflow is there: a home that nobody has used has no database, and none is made to look.
COUNTER = ROOT / "tests" / "programs" / "counter"
MNIST = ("--dataset=mnist-5k", "--epochs=3", "--param", "seed=4")


@pytest.fixture
def services(tmp_path: Path) -> Services:
    settings = load_settings({"PIPELINE_HOME": str(tmp_path / "home")})
    return Services(settings, ExperimentTracker(settings))


def parameters(*words: str) -> dict[str, Any]:
    commands = parser(search, "")
    return read(commands, search, commands.parse_args(words))


def test_without_a_program_it_is_mnist_with_the_flags_of_a_single_training(services: Services, tmp_path: Path) -> None:
    given = parameters(*MNIST, "--seed=9", "--trials=3")
    assert (given["seed"], given["parameters"]) == (9, {"epochs": "3", "seed": "4"})
    subject = subject_of(given, services, tmp_path)
    assert (subject.model_name, subject.request.experiment, subject.last) == ("keras-dnn-mnist", "keras-mnist", 3)
    values: dict[str, Any] = {
        "batch_size": 25,
        "first_layer_neurons": 10,
        "second_layer_neurons": 50,
        "learning_rate": 0.012345678901,
    }
    training = subject.training(values).training
    # The very key of flows.train_mnist with these values.
    asked = Hyperparameters(**values, epochs=3, seed=4)
    name = next(iter(training.datasets))
    alone = mnist_training(describe_dataset(name, services.settings.dataset_catalog), asked, services.settings)
    assert (training.key, training.arguments) == (alone.key, alone.arguments)
    assert subject.first == {
        "batch_size": 50,
        "first_layer_neurons": 300,
        "second_layer_neurons": 100,
        "learning_rate": 0.001,
    }
    assert written(0.012345678901) == "0.012345678901"


def test_what_a_search_is_has_a_key_and_how_it_is_run_is_no_part_of_it(services: Services, tmp_path: Path) -> None:
    def key(*words: str) -> str:
        given = parameters(*MNIST, *words)
        return search_of(given, subject_of(given, services, tmp_path), services).key

    first = key()
    assert key("--max-seconds=5", "--gate=not-worse", "--output-dir=elsewhere") == first
    others = ("--seed=1", "--trials=5", "--at-once=2", "--sampler=tpe", "--stop=none", "--evaluation-interval=3")
    keys = {key(*word.split()) for word in (*others, "--slack-amount=0.1", "--as-they-come", "--batch-size=25")}
    assert len(keys | {first}) == 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--slack-factor=0.1", "--slack-amount=0.1"], "two ways to say the same"),
        (["--stop=median", "--slack-factor=0.2"], "A slack is the bandit's"),
        (["--sampler=grid"], "A grid has no end of values for learning_rate"),
        (["--from-champion"], "has no champion"),
        (["--warm-start=0"], "--sampler random learns from no trial"),
        (["--param", "epocs=3"], "mnist has no such parameter. Did you mean epochs?"),
        (["--entry=train.py"], "is of a program of your own"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], said: str, services: Services, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask() -> None:
        given = parameters(*words)
        search_of(given, subject_of(given, services, tmp_path), services)

    with pytest.raises((ArgumentError, SystemExit)) as refused:
        ask()
    assert said in str(refused.value) + capsys.readouterr().err


def test_a_program_of_ones_own_is_asked_what_to_try(services: Services, tmp_path: Path) -> None:
    program = tmp_path / "counter"
    shutil.copytree(COUNTER, program)
    given = parameters(f"--program={program}", "--entry=without_data", "--param", "epochs=4")
    with pytest.raises(ArgumentError, match="steps is no parameter of the program"):
        subject_of(given, services, tmp_path / "a")
    space = tmp_path / "space.yaml"
    space.write_text("seconds: {uniform: [0, 1]}\nseed: {choices: [3, 4]}\n")
    subject = subject_of({**given, "space": space}, services, tmp_path / "b")
    assert subject.first == {"seconds": 0.0, "seed": 0}
    assert subject.training({"seconds": 0.5, "seed": 4}).training.arguments["seed"] == 4
    text = (program / "MLproject").read_text()
    (program / "MLproject").write_text(text.replace("objective:", "purpose:"))
    with pytest.raises(ArgumentError, match="names no objective"):
        subject_of({**given, "space": space}, services, tmp_path / "c")
    (program / "MLproject").write_text(text.partition("search:")[0] + "key_packages: [numpy]\n")
    with pytest.raises(ArgumentError, match="does not say what to try"):
        subject_of(given, services, tmp_path / "d")
    with pytest.raises(SystemExit):
        parameters(f"--program={program}", "--epochs=3")


def test_the_form_of_its_deployment_refuses_what_the_flags_do() -> None:
    schema = completed(search.parameters.model_dump(), {"mnist", "mnist-5k"})
    properties = schema["properties"]
    assert properties["dataset"]["enum"] == ["mnist", "mnist-5k"]
    assert properties["trials"]["description"].endswith("At least 1, at most 10,000.")
    assert properties["program"]["type"] == "string"
    good = {"trials": 3, "sampler": "tpe", "parameters": {"epochs": 2}, "slack_amount": 0.1}
    assert not list(validate(good, schema, raise_on_error=False))
    for wrong in ({"trials": 0}, {"sampler": "best"}, {"slack_factor": -1}, {"trails": 3}, {"dataset": "mnits"}):
        assert list(validate({**good, **wrong}, schema, raise_on_error=False)), wrong
