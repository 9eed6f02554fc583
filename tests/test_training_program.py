"""The training program as a process of its own, on a small data set, with a real MLflow on SQLite."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow import MlflowClient

from infra.compute.runner.manifest import MANIFEST, files_sha256, manifest_bytes, parse_manifest
from tasks.training_program.__main__ import main
from tasks.training_program.dataset_files import TEST_IMAGES, TEST_LABELS
from tasks.training_program.environment import can_change_weights
from tasks.training_program.errors import EXIT_NO_GPU, EXIT_TAKEN_OVER, EXIT_TERMINATED, EXIT_USAGE, LAST_WORDS
from tasks.training_program.hyperparameters import Hyperparameters
from tests.small_dataset import entries, write_small_dataset

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parent.parent / "tasks" / "training_program"

MODEL_FILES = "model_files.json"
EPOCHS = 12
PER_EPOCH = ("loss", "accuracy", "val_loss", "val_accuracy", "epoch_seconds")
HYPERPARAMETERS = Hyperparameters(epochs=EPOCHS, validation_images=100, batch_size=40, seed=3)
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in HYPERPARAMETERS.model_dump().items()]


@dataclass(frozen=True)
class Stage:
    """A folder with nothing but the program, a data set, and an MLflow."""

    folder: Path
    data: Path

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.tracking_uri)

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def start_run(self) -> str:
        found = self.client.get_experiment_by_name("test")
        location = (self.folder / "artifacts").as_uri()
        experiment = found.experiment_id if found else self.client.create_experiment("test", location)
        run_id: str = self.client.create_run(experiment).info.run_id
        return run_id

    def start(self, *arguments: str, stdin: int | None = None, **given: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"MLFLOW_TRACKING_URI": self.tracking_uri, "CUDA_VISIBLE_DEVICES": "-1", **given}
        return subprocess.Popen(
            [sys.executable, "-m", "training_program", *arguments],
            cwd=self.folder / "alone",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            stdin=stdin,
        )

    def run(self, *arguments: str, **given: str) -> str:
        process = self.start(*arguments, stdin=None, **given)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        return output

    def training(self, name: str, run_id: str) -> list[str]:
        checkpoints = self.folder / "checkpoints" / name
        outputs = self.folder / "outputs" / name
        return [
            "train",
            f"--data-folder={self.data}",
            f"--run-id={run_id}",
            f"--outputs={outputs}",
            f"--checkpoint-uri={checkpoints.as_uri()}",
            *FLAGS,
        ]

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        return sorted((point.step, point.value) for point in self.client.get_metric_history(run_id, metric))


@dataclass(frozen=True)
class Finished:
    """A training that was not interrupted."""

    run_id: str
    output: str
    outputs: Path
    metrics: dict[str, float]
    tags: dict[str, str]
    params: dict[str, str]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("stage")
    alone = folder / "alone"
    shutil.copytree(PROGRAM, alone / "training_program", ignore=shutil.ignore_patterns("__pycache__"))
    for forbidden in ("prefect", "ray"):
        (alone / f"{forbidden}.py").write_text(f"raise ImportError('the program must do without {forbidden}')\n")
    data = folder / "data"
    write_small_dataset(data)
    (data / MANIFEST).write_bytes(manifest_bytes(entries(data)))
    return Stage(folder, data)


@pytest.fixture(scope="module")
def finished(stage: Stage) -> Finished:
    run_id = stage.start_run()
    note = stage.folder / "outputs" / "whole" / "model" / "note.txt"
    note.parent.mkdir(parents=True)
    note.write_text("a person's")
    temporary = stage.folder / "tmp"
    temporary.mkdir()
    output = stage.run(*stage.training("whole", run_id), TMPDIR=str(temporary))
    assert list(temporary.iterdir()) == []
    assert note.read_text() == "a person's"
    data = stage.client.get_run(run_id).data
    return Finished(run_id, output, stage.folder / "outputs" / "whole", data.metrics, data.tags, data.params)


def test_the_output_tells_the_story_line_by_line(finished: Finished, stage: Stage) -> None:
    for said in (
        r"^python 3\.\d+\.\d+  keras 3\.\S+  tensorflow 2\.\S+  numpy 2\.\S+$",
        r"^device cpu \(1 of \d+ cores\)$",
        rf"^data set mnist in {stage.data}  SHA-256 {finished.tags['dataset_sha256']}$",
        r"^train +images \(500, 28, 28\)  labels \(500,\)$",
        r"^validation images \(100, 28, 28\)  labels \(100,\)$",
        r"^test +images \(200, 28, 28\)  labels \(200,\)$",
        r"Total params: 266,610",
        r"^post-processing",
        r"^test_loss \d\.\d{4}  test_accuracy [01]\.\d{4}$",
        r"^model saved as models:/m-\w+ of run",
        rf"^weights SHA-256 {finished.tags['weights_sha256']}$",
    ):
        assert re.search(said, finished.output, re.MULTILINE), (said, finished.output)
    epoch_line = r"^epoch (\d+)/12  loss \S+  accuracy \S+  val_loss \S+  val_accuracy \S+  \S+ s$"
    epochs = re.findall(epoch_line, finished.output, re.MULTILINE)
    assert epochs == [str(epoch) for epoch in range(1, EPOCHS + 1)]
    assert "WARNING" not in finished.output
    assert "cuda" not in finished.output.lower()


def test_it_learns(finished: Finished) -> None:
    assert finished.metrics["test_accuracy"] > 0.95
    assert finished.metrics["best_val_accuracy"] > 0.95


def test_the_run_has_its_parameters_tags_and_input(finished: Finished, stage: Stage) -> None:
    assert finished.params == {name: str(value) for name, value in HYPERPARAMETERS.model_dump().items()}
    files = entries(stage.data)
    assert finished.tags["dataset_sha256"] == files_sha256(files)
    assert finished.tags["test_set_sha256"] == files_sha256(f for f in files if f.name in (TEST_IMAGES, TEST_LABELS))
    assert {"python_version", "keras_version", "tensorflow_version", "numpy_version", "device"} <= finished.tags.keys()
    run = stage.client.get_run(finished.run_id)
    assert [(i.dataset.name, json.loads(i.dataset.source)) for i in run.inputs.dataset_inputs] == [
        ("mnist", {"uri": str(stage.data)})
    ]
    assert run.info.status == "RUNNING", "ending the run is its caller's part"


def test_each_metric_has_one_value_an_epoch(finished: Finished, stage: Stage) -> None:
    for metric in PER_EPOCH:
        assert [step for step, _ in stage.history(finished.run_id, metric)] == list(range(1, EPOCHS + 1)), metric
    best = int(finished.metrics["best_epoch"])
    accuracy, loss = (dict(stage.history(finished.run_id, f"val_{name}")) for name in ("accuracy", "loss"))
    assert best == min(accuracy, key=lambda epoch: (-accuracy[epoch], loss[epoch]))
    assert {f"recall_digit_{digit}" for digit in range(10)} <= finished.metrics.keys()


def test_the_outputs_are_kept_with_the_run(finished: Finished, stage: Stage) -> None:
    expected = {"samples.png", "learning_curves.png", "confusion_matrix.png", "mistakes.png", "epochs.csv", "test.json"}
    kept = {Path(file.path).name for file in stage.client.list_artifacts(finished.run_id, "outputs")}
    assert kept == expected | {"model"}
    confusion = json.loads((finished.outputs / "test.json").read_text())["confusion_matrix"]
    right = sum(confusion[digit][digit] for digit in range(10))
    assert right / 200 == pytest.approx(finished.metrics["test_accuracy"])


def test_the_logged_model_is_what_its_manifest_says_and_predicts_as_the_run_did(
    finished: Finished, stage: Stage, tmp_path: Path
) -> None:
    run = stage.client.get_run(finished.run_id)
    (output,) = run.outputs.model_outputs
    assert finished.tags["model_id"] == output.model_id
    described = stage.client.get_logged_model(output.model_id)
    # Not by its address models:/m-…, which is looked up wherever this process spoke to last.
    model = Path(mlflow.artifacts.download_artifacts(described.artifact_location, dst_path=str(tmp_path / "model")))
    manifest = stage.client.download_artifacts(finished.run_id, MODEL_FILES, str(tmp_path))
    listed = parse_manifest(Path(manifest).read_bytes())
    found = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert found == {entry.name for entry in listed}
    for entry in listed:
        assert (model / entry.name).stat().st_size == entry.size
    assert files_sha256(listed) == finished.tags["model_sha256"]
    assert described.source_run_id == finished.run_id
    assert str(described.status) == "READY"
    assert described.params["learning_rate"] == "0.001"
    # It takes the files' raw bytes: uint8 of (n, 28, 28).
    lines = stage.run("predict", f"--model={model}", f"--data-folder={stage.data}").splitlines()
    said = json.loads(lines[-1])
    assert said == {
        "test_accuracy": finished.metrics["test_accuracy"],
        "images": 200,
        "weights_sha256": finished.tags["weights_sha256"],
    }
    assert re.fullmatch(r"label {5}(\d ){29}\d", lines[1])
    assert re.fullmatch(r"predicted (\d ){29}\d", lines[2])


def test_alone_without_mlflow_it_trains_the_same_weights(finished: Finished, stage: Stage, tmp_path: Path) -> None:
    (stage.folder / "alone" / "mlflow.py").write_text("raise ImportError('not without --run-id')\n")
    try:
        output = stage.run("train", f"--data-folder={stage.data}", f"--outputs={tmp_path / 'outputs'}", *FLAGS)
    finally:
        (stage.folder / "alone" / "mlflow.py").unlink()
    assert f"weights SHA-256 {finished.tags['weights_sha256']}" in output
    assert (tmp_path / "outputs" / "model" / "data" / "model.keras").is_file()


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


@pytest.mark.parametrize("where", ["KERAS_HOME", "HOME"])
def test_nothing_in_the_environment_changes_the_weights(
    where: str, finished: Finished, stage: Stage, tmp_path: Path
) -> None:
    folder = tmp_path / "keras" if where == "KERAS_HOME" else tmp_path / ".keras"
    folder.mkdir()
    (folder / "keras.json").write_text('{"floatx": "float64", "image_data_format": "channels_first", "epsilon": 0.1}')
    given = {"KERAS_HOME": str(folder), **WEIGHTS_CHANGING} if where == "KERAS_HOME" else {"HOME": str(tmp_path)}
    output = stage.run("train", f"--data-folder={stage.data}", f"--outputs={tmp_path / 'outputs'}", *FLAGS, **given)
    assert f"weights SHA-256 {finished.tags['weights_sha256']}" in output
    ignored = re.search("^ignored in the environment, for such can change the weights: (.*)$", output, re.MULTILINE)
    assert set(given) - {"HOME"} <= set(ignored[1].split(", ") if ignored else [])


def test_each_variable_that_the_libraries_read_is_kept_from_them() -> None:
    """By the sources of Keras, and of TensorFlow and NumPy as far as they are Python."""
    read = set()
    for library in ("keras", "tensorflow", "numpy"):
        folder = Path(find_spec(library).submodule_search_locations[0])  # type: ignore[union-attr,index]
        for path in [*folder.glob("src/**/*.py"), *folder.glob("python/**/*.py"), *folder.glob("_core/*.py")]:
            found = re.findall(r"""(?:environ(?:\.get)?|getenv)[\[(]\s*["']([A-Z][A-Z0-9_]+)["']""", path.read_text())
            read |= set(found)
    assert {"KERAS_HOME", "XLA_FLAGS"} <= read
    others = {name for name in read if not can_change_weights(name)}
    assert not {name for name in others if not name.startswith(("CUDA_VISIBLE", "GRPC_", "HDF5_", *OF_BUILDS))}


OF_BUILDS = ("PROCESSOR_", "SKIP_", "TEST_", "TPU_", "TRT_TEST_")
"""How the names of variables begin that mean something where these libraries are built and tested, and on TPUs."""


def test_killed_terminated_and_damaged_it_continues_to_the_same_weights(finished: Finished, stage: Stage) -> None:
    run_id = stage.start_run()
    checkpoints = stage.folder / "checkpoints" / "broken"
    arguments = stage.training("broken", run_id)

    killed = stage.start(*arguments)
    _wait_for_line(killed, "epoch 3/")
    killed.kill()
    killed.communicate()

    terminated = stage.start(*arguments)
    _wait_for_line(terminated, "epoch 7/")
    terminated.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    rest, _ = terminated.communicate()
    assert time.monotonic() - asked < 2
    assert terminated.returncode == EXIT_TERMINATED
    assert "Traceback" not in rest

    newest = max(checkpoints.iterdir(), key=lambda path: int(path.name)) / "state.npz"
    newest.write_bytes(newest.read_bytes()[:-100])
    output = stage.run(*arguments)
    assert "epoch 1/" not in output, "the last process began at the start again"

    run = stage.client.get_run(run_id)
    assert run.data.tags["weights_sha256"] == finished.tags["weights_sha256"]
    for metric in PER_EPOCH:
        assert [step for step, _ in stage.history(run_id, metric)] == list(range(1, EPOCHS + 1)), metric
        if metric != "epoch_seconds":
            assert stage.history(run_id, metric) == stage.history(finished.run_id, metric)
    assert {path.name for path in checkpoints.iterdir()} == {str(EPOCHS - 1), str(EPOCHS)}


def test_it_writes_nothing_more_once_its_lease_is_gone(stage: Stage, tmp_path: Path) -> None:
    run_id, lease = stage.start_run(), tmp_path / "claim"
    lease.touch()
    process = stage.start(*stage.training("taken over", run_id), "--epochs=1000", f"--lease-uri={lease.as_uri()}")
    _wait_for_line(process, "epoch 3/")
    lease.unlink()
    before = len(stage.history(run_id, "loss"))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_TAKEN_OVER, output
    assert "another process has taken this training over" in output
    assert len(stage.history(run_id, "loss")) <= before + 1, "what was on its way may arrive"


def test_standing_by_it_takes_its_arguments_and_refuses_a_gpu_that_is_not_there(stage: Stage) -> None:
    process = stage.start("--standby", "train", stdin=subprocess.PIPE)
    assert process.stdin
    _wait_for_line(process, "standing by")
    request = {"arguments": ["train", f"--data-folder={stage.data}", "--accelerator=gpu"]}
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    assert process.wait(20) == EXIT_NO_GPU
    assert process.stdout
    output = process.stdout.read()
    assert output.startswith(f"{LAST_WORDS}\nA GPU was asked for (--accelerator gpu), and TensorFlow")
    assert "Traceback" not in output


def test_standing_by_it_ends_silently_if_nothing_comes(stage: Stage) -> None:
    process = stage.start("--standby", "train", stdin=subprocess.PIPE)
    output, _ = process.communicate("", timeout=60)
    assert (process.returncode, output) == (0, "standing by\n")


def test_it_does_not_outlive_a_caller_that_is_killed(stage: Stage, tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = ["train", f"--data-folder={stage.data}", f"--outputs={tmp_path}", *FLAGS, "--epochs=1000"]
    caller = subprocess.Popen(
        [sys.executable, "-c", _CALLER, str(log), json.dumps({"arguments": arguments})],
        cwd=stage.folder / "alone",
        stdout=subprocess.PIPE,
        text=True,
    )
    assert caller.stdout
    program = psutil.Process(int(caller.stdout.readline()))
    try:
        _wait_until(lambda: "epoch 1/" in log.read_text(), 60)
        caller.kill()
        caller.wait()
        _wait_until(lambda: not program.is_running() or program.status() == psutil.STATUS_ZOMBIE, 5)
    finally:
        if program.is_running():
            program.kill()
        caller.stdout.close()


_CALLER = """
import subprocess, sys, time
program = subprocess.Popen([sys.executable, "-m", "training_program", "--standby", "train"], text=True,
                           stdin=subprocess.PIPE, stdout=open(sys.argv[1], "w"), stderr=subprocess.STDOUT)
program.stdin.write(sys.argv[2] + "\\n")
program.stdin.flush()
print(program.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--data-folder=x", "--batch-size=0"], "--batch-size 0: Input should be greater than or equal to 1"),
        (["train", "--data-folder=x", "--learning-rate=2"], "--learning-rate 2.0: Input should be less than"),
        ([], "Say what to do"),
        (["train"], "the following arguments are required: --data-folder"),
    ],
)
def test_a_wrong_call_is_refused_in_a_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_run_of_an_unnamed_mlflow_is_refused_and_makes_no_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["train", f"--run-id={'0' * 32}", "--data-folder=data"]) == EXIT_USAGE
    assert "MLFLOW_TRACKING_URI does not say of which" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_hyperparameter_has_a_flag_with_its_default_and_description(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in Hyperparameters.model_fields.items():
        flag = f"--{name.replace('_', '-')} {name.upper()}"
        assert f"{flag} {field.description} Default: {field.default}" in text


def _wait_for_line(process: subprocess.Popen[str], start: str) -> None:
    assert process.stdout
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(start):
            return
    raise AssertionError(f"it ended without a line {start!r}:\n{''.join(seen)}")


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.05)
