"""The program that ships with the pipeline: by itself, and under the runner as MNIST's training, on little data."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import mlflow
import numpy as np
import pytest

from infra.compute.runner.exits import EXIT_TAKEN_OVER
from infra.compute.runner.manifest import files_sha256, parse_manifest
from infra.settings import load_settings
from tasks.mnist_training import PROGRAM, mnist_training
from tasks.program import read_program
from tasks.programs.mnist.digits.checkpoint import STATE, Checkpoints, EpochMetrics, State
from tasks.programs.mnist.digits.dataset import load_dataset
from tasks.programs.mnist.digits.dataset_files import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, write_idx
from tasks.programs.mnist.digits.errors import BadDataset, UsageError
from tasks.programs.mnist.digits.hyperparameters import Hyperparameters
from tasks.registry.scores import read_scores
from tests import runner_stage
from tests.pipeline import wait_until
from tests.runner_stage import Running, last_words, store_dataset
from tests.small_dataset import describe, entries, write_small_dataset

EPOCHS = 40
PER_EPOCH = ("loss", "accuracy", "val_loss", "val_accuracy", "epoch_seconds")
HYPERPARAMETERS = Hyperparameters(epochs=EPOCHS, validation_images=100, batch_size=40, seed=3)
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in HYPERPARAMETERS.model_dump().items()]


# By itself


def run_alone(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it as a person does who has the folder and nothing else."""
    hidden = ("PYTHON", "MLFLOW_", "OUTPUTS_", "CHECKPOINT_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    environment |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", "MPLBACKEND": "Agg", **variables}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, cwd=PROGRAM, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--batch-size=0"], 2, "--batch-size 0: Input should be greater than or equal to 1"),
        (["--learning-rate=2"], 2, "--learning-rate 2.0: Input should be less than or equal to 1"),
    ],
)
def test_a_wrong_call_is_refused_in_a_line(arguments: list[str], status: int, said: str) -> None:
    done = run_alone("digits.train", "--data-folder=x", *arguments)
    assert done.returncode == status
    assert done.stderr.startswith(f"UsageError: {said}")
    assert "Traceback" not in done.stderr


def test_what_it_can_be_told_is_declared_once() -> None:
    parameters = {one.name: one for one in read_program(PROGRAM).parameters if one.dataset is None}
    assert list(parameters) == list(Hyperparameters.model_fields)
    text = " ".join(run_alone("digits.train", "--help").stdout.split())
    for name, field in Hyperparameters.model_fields.items():
        declared = parameters[name]
        assert (declared.default, declared.description) == (field.default, field.description)
        assert {"int": int, "float": float}[declared.type] is field.annotation
        schema = Hyperparameters.model_json_schema()["properties"][name]
        assert (schema["minimum"], schema["maximum"]) == (declared.minimum, declared.maximum)
        assert f"--{name.replace('_', '-')} {name.upper()} {field.description} Default: {field.default}" in text


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_small_dataset(tmp_path, training_images=30, test_images=10)
    return tmp_path


def test_the_last_images_are_held_out(data: Path) -> None:
    dataset = load_dataset(data, 10)
    assert (len(dataset.train_images), len(dataset.validation_images), len(dataset.test_images)) == (20, 10, 10)
    everything = load_dataset(data, 1)
    assert np.array_equal(everything.train_images[20:], dataset.validation_images[:-1])
    assert np.array_equal(everything.train_labels[20:], dataset.validation_labels[:-1])
    test_set = (entry for entry in entries(data) if entry.name in (TEST_IMAGES, TEST_LABELS))
    assert dataset.test_set_sha256 == files_sha256(test_set)


def test_as_many_validation_images_as_there_are_leave_nothing_to_train_on(data: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot hold out 30 .* has 30"):
        load_dataset(data, 30)


def test_a_header_that_lies_is_refused(data: Path) -> None:
    content = gzip.decompress((data / TRAIN_IMAGES).read_bytes())
    (data / TRAIN_IMAGES).write_bytes(gzip.compress(content[:4] + (31).to_bytes(4) + content[8:]))
    with pytest.raises(BadDataset, match=f"{TRAIN_IMAGES}: ends after"):
        load_dataset(data, 10)


def test_labels_that_do_not_fit_and_a_missing_file_are_refused(data: Path) -> None:
    write_idx(data / TEST_LABELS, np.zeros(9, np.uint8))
    with pytest.raises(BadDataset, match="10 test images have"):
        load_dataset(data, 10)
    (data / TEST_LABELS).unlink()
    with pytest.raises(BadDataset, match=f"there is no {TEST_LABELS} in {data}"):
        load_dataset(data, 10)


IDENTITY: dict[str, object] = {"learning_rate": 0.001, "seed": 0}


def state_after(epochs: int) -> State:
    rng = np.random.default_rng(epochs)
    history = tuple(
        EpochMetrics(epoch, 1 / epoch, 0.1 + 0.2, 0.3, 0.9, 1.5, 1_700_000_000_000) for epoch in range(1, epochs + 1)
    )
    weights = [rng.normal(size=(4, 3)).astype(np.float32), np.array(3, np.int32)]
    return State(weights, [np.array(epochs)] * 12, weights[:1], history)


def test_a_checkpoint_comes_back_bit_for_bit_and_one_of_another_training_is_refused(tmp_path: Path) -> None:
    def content(state: State) -> list[object]:
        arrays = (state.weights, state.optimizer, state.best_weights)
        return [[(array.dtype, array.shape, array.tobytes()) for array in part] for part in arrays]

    folder = tmp_path / "checkpoints"
    assert Checkpoints(folder, IDENTITY).newest() is None
    for epochs in (1, 2):
        Checkpoints(folder, IDENTITY).save(state_after(epochs))
    found = Checkpoints(folder, IDENTITY).newest()
    assert found is not None
    assert (found.history, content(found)) == (state_after(2).history, content(state_after(2)))
    assert [path.name for path in folder.iterdir()] == [STATE]
    with pytest.raises(UsageError, match="these differ: seed"):
        Checkpoints(folder, IDENTITY | {"seed": 1}).newest()


def test_the_best_epoch_has_the_highest_accuracy_then_the_lowest_loss_then_came_first() -> None:
    def best(*epochs: tuple[float, float]) -> int:
        history = tuple(EpochMetrics(i, 0, 0, loss, accuracy, 0, 0) for i, (accuracy, loss) in enumerate(epochs, 1))
        return State([], [], [], history).best_epoch

    assert best((0.8, 0.1), (0.9, 0.5), (0.7, 0.0)) == 2
    assert best((0.9, 0.5), (0.9, 0.4), (0.9, 0.4)) == 2


# Under the runner


@dataclass
class Stage(runner_stage.Stage):
    """A store with the small data set, an MLflow, and the bundle of MNIST's training on it."""

    def prepare(self) -> None:
        write_small_dataset(self.folder / "data")
        files = {path.name: path.read_bytes() for path in (self.folder / "data").iterdir()}
        self.data = store_dataset(self.store / "datasets" / "mnist", files)
        settings = load_settings({"PIPELINE_HOME": str(self.folder / "home")})
        self.training = mnist_training(describe(self.folder / "data"), HYPERPARAMETERS, settings)
        self._attempts = 0

    def begin(
        self, run_id: str, bundle: Path | None = None, variables: Mapping[str, str] = MappingProxyType({})
    ) -> Running:
        """Let the runner train, in a folder of its own."""
        self._attempts += 1
        alone = self.folder / f"attempt-{self._attempts}"
        shutil.copytree(bundle or self.training.shipped, alone / "runner")
        for forbidden in ("prefect", "ray"):
            (alone / f"{forbidden}.py").write_text(f"raise ImportError('the program must do without {forbidden}')\n")
        return self.start(alone, self.order(run_id, {"mnist": self.data}), **variables)


@dataclass(frozen=True)
class Finished:
    """A training that was not interrupted."""

    run_id: str
    output: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    made = Stage(tmp_path_factory.mktemp("stage"))
    made.prepare()
    return made


WEIGHTS_CHANGING = {
    "XLA_FLAGS": "--xla_cpu_enable_fast_math=true",
    "TF_JIT_COMPILE_REWRITE": "1",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "KERAS_BACKEND": "jax",
    "TF_DETERMINISTIC_OPS": "1",
    "OPENBLAS_CORETYPE": "Prescott",
    "NPY_DISABLE_CPU_FEATURES": "AVX2",
}
"""Of these the first three gave other weights on a processor with AVX-512."""


@pytest.fixture(scope="module")
def finished(stage: Stage) -> Finished:
    run_id = stage.start_run()
    status, output = stage.begin(run_id).end(200)
    assert status == 0, output
    data = stage.client.get_run(run_id).data
    return Finished(run_id, output, data.metrics, data.tags)


@pytest.mark.slow
def test_the_output_tells_the_story_line_by_line(finished: Finished) -> None:
    for said in (
        r"^python 3\.\d+\.\d+  keras 3\.\S+  tensorflow 2\.\S+  numpy 2\.\S+$",
        r"^device cpu \(1 of \d+ cores\)$",
        rf"^data set mnist: 4 files, .* SHA-256 {finished.tags['dataset_sha256']}$",
        r"^train +images \(500, 28, 28\)  labels \(500,\)$",
        r"^validation images \(100, 28, 28\)  labels \(100,\)$",
        r"^test +images \(200, 28, 28\)  labels \(200,\)$",
        r"Total params: 266,610",
        r"^post-processing the model of epoch \d+",
        r"^test_loss \d\.\d{4}  test_accuracy [01]\.\d{4}$",
        r"^model saved as models:/m-\w+ of run",
        rf"^weights SHA-256 {finished.tags['weights_sha256']}$",
    ):
        assert re.search(said, finished.output, re.MULTILINE), (said, finished.output)
    epoch_line = rf"^epoch (\d+)/{EPOCHS}  loss \S+  accuracy \S+  val_loss \S+  val_accuracy \S+  \S+ s$"
    epochs = re.findall(epoch_line, finished.output, re.MULTILINE)
    assert epochs == [str(epoch) for epoch in range(1, EPOCHS + 1)]
    assert "WARNING" not in finished.output
    assert "cuda" not in finished.output.lower()


@pytest.mark.slow
def test_it_learns_and_the_run_says_what_made_it(finished: Finished, stage: Stage) -> None:
    assert finished.metrics["test_accuracy"] > 0.95
    assert finished.metrics["best_val_accuracy"] > 0.95
    run = stage.client.get_run(finished.run_id)
    assert run.data.params == {name: str(value) for name, value in HYPERPARAMETERS.model_dump().items()}
    files = entries(stage.folder / "data")
    assert finished.tags["dataset_sha256"] == files_sha256(files)
    assert finished.tags["test_set_sha256"] == files_sha256(f for f in files if f.name in (TEST_IMAGES, TEST_LABELS))
    assert {"python_version", "keras_version", "tensorflow_version", "numpy_version", "device"} <= finished.tags.keys()
    assert finished.tags["continues"] == "exact"
    assert [(one.dataset.name, json.loads(one.dataset.source)) for one in run.inputs.dataset_inputs] == [
        ("mnist", {"uri": stage.data["uri"]})
    ]
    for metric in PER_EPOCH:
        assert [step for step, _ in stage.history(finished.run_id, metric)] == list(range(1, EPOCHS + 1)), metric
    best = int(finished.metrics["best_epoch"])
    accuracy, loss = (dict(stage.history(finished.run_id, f"val_{name}")) for name in ("accuracy", "loss"))
    assert best == min(accuracy, key=lambda epoch: (-accuracy[epoch], loss[epoch]))
    assert {f"recall_digit_{digit}" for digit in range(10)} <= finished.metrics.keys()
    assert stage.history(finished.run_id, "test_accuracy") == [(best, finished.metrics["test_accuracy"])]


@pytest.mark.slow
def test_the_outputs_are_kept_with_the_run(finished: Finished, stage: Stage, tmp_path: Path) -> None:
    expected = {"samples.png", "learning_curves.png", "confusion_matrix.png", "mistakes.png", "epochs.csv", "test.json"}
    kept = {Path(file.path).name for file in stage.client.list_artifacts(finished.run_id, "outputs")}
    assert kept == expected
    path = stage.client.download_artifacts(finished.run_id, "outputs/test.json", str(tmp_path))
    confusion = json.loads(Path(path).read_text())["confusion_matrix"]
    assert sum(confusion[digit][digit] for digit in range(10)) / 200 == pytest.approx(finished.metrics["test_accuracy"])


@pytest.mark.slow
def test_the_logged_model_is_what_its_manifest_says_and_scores_as_the_run_did(
    finished: Finished, stage: Stage, tmp_path: Path
) -> None:
    run = stage.client.get_run(finished.run_id)
    (output,) = run.outputs.model_outputs
    assert finished.tags["model_id"] == output.model_id
    described = stage.client.get_logged_model(output.model_id)
    # Not by its address models:/m-…, which is looked up wherever this process spoke to last.
    model = Path(mlflow.artifacts.download_artifacts(described.artifact_location, dst_path=str(tmp_path / "model")))
    listed = parse_manifest(
        Path(stage.client.download_artifacts(finished.run_id, "model_files.json", str(tmp_path))).read_bytes()
    )
    assert {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()} == {
        entry.name for entry in listed
    }
    assert files_sha256(listed) == finished.tags["model_sha256"]
    assert described.source_run_id == finished.run_id
    assert described.params["learning_rate"] == "0.001"
    # It takes the files' raw bytes: uint8 of (n, 28, 28).
    assert "uint8" in (model / "MLmodel").read_text()
    scores = tmp_path / "scores.csv"
    data = f"--data-folder={stage.folder / 'data'}"
    done = run_alone("digits.score", f"--model=one={model}", data, f"--output={scores}")
    assert done.returncode == 0, done.stderr
    found = read_scores(scores, {"one"})
    assert sum(found.values["one"]) / 200 == finished.metrics["test_accuracy"]
    assert set(found.groups or ()) == {f"digit {digit}" for digit in range(10)}
    label, predicted = done.stdout.splitlines()[:2]
    assert re.fullmatch(r"label {5}(\d ){29}\d", label)
    assert re.fullmatch(r"predicted (\d ){29}\d", predicted)


@pytest.mark.slow
def test_killed_and_damaged_it_continues_to_the_same_weights_whatever_the_environment_says(
    finished: Finished, stage: Stage, tmp_path: Path
) -> None:
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text('{"floatx": "float64", "image_data_format": "channels_first"}')
    environment = {**WEIGHTS_CHANGING, "HOME": str(tmp_path)}
    run_id = stage.start_run()
    checkpoints = stage.checkpoints(run_id)
    for epoch in (3, 17):
        running = stage.begin(run_id, variables=environment)
        wait_for_line(running, f"epoch {epoch}/")
        wait_until(lambda: len(list(checkpoints.glob("*/manifest.json"))) > 1, 30, "two checkpoints")
        os.killpg(running.process.pid, signal.SIGKILL)
        running.process.communicate()
    newest = max(checkpoints.glob("*/manifest.json"), key=lambda path: int(path.parent.name)).with_name(STATE)
    newest.write_bytes(newest.read_bytes()[:-100])
    status, output = stage.begin(run_id, variables=environment).end(200)
    assert status == 0, output
    assert "epoch 1/" not in output, "the last process began at the start again"
    assert stage.client.get_run(run_id).data.tags["weights_sha256"] == finished.tags["weights_sha256"]
    for metric in PER_EPOCH:
        assert [step for step, _ in stage.history(run_id, metric)] == list(range(1, EPOCHS + 1)), metric
        if metric != "epoch_seconds":
            assert stage.history(run_id, metric) == stage.history(finished.run_id, metric)


@pytest.mark.slow
def test_it_trains_alone_without_mlflow_and_checkpoints(finished: Finished, stage: Stage, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    data = f"--data-folder={stage.folder / 'data'}"
    done = run_alone("digits.train", data, *FLAGS, OUTPUTS_FOLDER=str(outputs), MLFLOW_TRACKING_URI="http://nowhere")
    assert done.returncode == 0, done.stderr
    assert (outputs / "model" / "model.keras").is_file()
    assert f"test_accuracy {finished.metrics['test_accuracy']:.4f}" in done.stdout


@pytest.mark.slow
def test_it_writes_little_more_once_its_lease_is_gone(stage: Stage) -> None:
    run_id = stage.start_run()
    settings = load_settings({"PIPELINE_HOME": str(stage.folder / "home")})
    asked = HYPERPARAMETERS.model_copy(update={"epochs": 1000})
    bundle = mnist_training(describe(stage.folder / "data"), asked, settings).shipped
    running = stage.begin(run_id, bundle)
    wait_for_line(running, "epoch 3/")
    stage.lease(run_id).unlink()
    status, output = running.end(60)
    assert status == EXIT_TAKEN_OVER, output
    assert "another process has taken this training over" in last_words(output)
    assert stage.client.get_run(run_id).data.metrics.keys() <= {*PER_EPOCH}


@pytest.mark.slow
def test_a_gpu_that_tensorflow_does_not_see_is_refused(stage: Stage) -> None:
    done = run_alone("digits.train", f"--data-folder={stage.folder / 'data'}", ACCELERATOR="gpu")
    assert done.returncode == 3
    assert "NoGpu: A GPU was asked for (--accelerator gpu), and TensorFlow" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_variable_that_the_libraries_read_reaches_the_program_unless_it_is_named() -> None:
    """By the sources of Keras, and of TensorFlow and NumPy as far as they are Python."""
    from infra.compute.runner import variables

    read = set()
    for library in ("keras", "numpy"):
        folder = Path(find_spec(library).submodule_search_locations[0])  # type: ignore[union-attr,index]
        for path in [*folder.glob("src/**/*.py"), *folder.glob("_core/*.py")]:
            found = re.findall(r"""(?:environ(?:\.get)?|getenv)[\[(]\s*["']([A-Z][A-Z0-9_]+)["']""", path.read_text())
            read |= set(found)
    assert "KERAS_HOME" in read
    passed = {name for name in read if name in variables._PASSED or name.startswith(variables._PASSED_BEGINNINGS)}
    assert passed <= {"HOME", "TF_CPP_MIN_LOG_LEVEL", "CUDA_VISIBLE_DEVICES"}


def wait_for_line(running: Running, start: str) -> None:
    assert running.process.stdout
    seen = []
    for line in running.process.stdout:
        seen.append(line.decode())
        if seen[-1].startswith(start):
            return
    raise AssertionError(f"it ended without a line {start!r}:\n{''.join(seen)}")
