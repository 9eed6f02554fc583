"""What the steps take from a program's output: its answer, or the reason for which it failed, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.compute import Job
from infra.compute.local_process import LocalProcess
from infra.compute.runner.manifest import MANIFEST, manifest_bytes
from infra.errors import ArgumentError, ComputeUnavailable, DatasetCorrupted, PipelineError, TrainingFailed
from infra.experiment_tracker import ExperimentTracker
from infra.lease import Lease, hold_lease
from infra.object_store import ObjectStore
from infra.settings import load_settings
from tasks.handoffs import Dataset
from tasks.mnist_training import mnist_training
from tasks.program_run import ProgramRun
from tasks.programs.mnist.digits.dataset_files import TEST_LABELS
from tasks.programs.mnist.digits.hyperparameters import Hyperparameters
from tasks.training import Attempt
from tasks.training_runs import closing_run
from tests.small_dataset import describe, entries, write_small_dataset
from tests.test_local_process import program


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[LocalProcess]:
    local = LocalProcess(tmp_path / "scratch", "cpu", {})
    yield local
    local.release()


def test_no_other_line_is_taken_for_the_last_words(machine: LocalProcess, tmp_path: Path) -> None:
    body = r"""
        print('{"accuracy": 0.1}\n{\n@started {}')
        print("without an end", end="")
        print('\x1e\n{"accuracy": 0.9}')
    """
    run = ProgramRun(machine, Job(program(tmp_path, body), ("devices",)))
    lines = [text for text, _ in run.lines()]
    assert lines == ["standing by", '{"accuracy": 0.1}', "{", "@started {}", "without an end", '{"accuracy": 0.9}']
    assert run.last_words == ['{"accuracy": 0.9}']


@pytest.mark.parametrize(
    ("status", "meaning"),
    [(1, TrainingFailed), (2, ArgumentError), (3, ComputeUnavailable), (4, DatasetCorrupted), (5, TrainingFailed)],
)
def test_an_exit_status_means_an_error_with_the_programs_own_reason(
    status: int, meaning: type[PipelineError], machine: LocalProcess, tmp_path: Path
) -> None:
    toy = program(tmp_path, rf'print("\x1e\nnot this\nbut that", file=sys.stderr); sys.exit({status})')
    run = ProgramRun(machine, Job(toy, ("train",)))
    with pytest.raises(PipelineError) as failed:
        list(run.lines())
    assert type(failed.value) is meaning
    assert str(failed.value) == "not this\nbut that"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("print('one', 'two', sep='\\n')\nsys.exit(9)", "said:\n  standing by\n  one\n  two"),
        ("sys.exit(143)", "told to"),
    ],
)
def test_without_last_words_there_is_a_reason_too(body: str, told: str, machine: LocalProcess, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=told):
        list(ProgramRun(machine, Job(program(tmp_path, body), ("train",))).lines())


@pytest.mark.slow
def test_the_cause_of_a_run_whose_data_are_refused_is_the_reason(machine: LocalProcess, tmp_path: Path) -> None:
    data, store = tmp_path / "data", ObjectStore((tmp_path / "store").as_uri())
    write_small_dataset(data)
    (data / MANIFEST).write_bytes(manifest_bytes(entries(data)))
    settings = load_settings({"PIPELINE_HOME": str(tmp_path / "home")})
    training = mnist_training(describe(data), Hyperparameters(validation_images=100), settings)
    (data / TEST_LABELS).write_bytes(b"damaged")
    tracker = ExperimentTracker(settings)
    run_id = tracker.start_run("tests", "refused", {})
    attempt = Attempt(
        run_id=run_id,
        datasets={"mnist": Dataset("mnist", training.dataset_sha256, data.as_uri())},
        checkpoint_uri=f"{store.uri}/checkpoints",
        lease_uri=f"{store.uri}/leases/some",
        accelerator="cpu",
        cache=None,
    )
    (tmp_path / "store" / "leases").mkdir(parents=True)
    (tmp_path / "store" / "leases" / "some").touch()
    here = LocalProcess(settings.scratch_folder, "cpu", {"MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri})
    with (
        pytest.raises(DatasetCorrupted),
        hold_lease(Lease(store, "training", "here"), lambda holder: None) as lease,
        closing_run(tracker, run_id, lease),
    ):
        list(ProgramRun(here, Job(training.shipped, training.command_for(attempt))).lines())
    run = tracker.get_run(run_id)
    assert run.status == "FAILED"
    cause = run.tags["cause"]
    assert cause.startswith(f"The data set mnist is not what it must be: its file {TEST_LABELS}"), cause
    assert "found 7 bytes" in cause
