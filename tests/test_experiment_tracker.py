"""What MLflow finds: beyond the first page of it, and as the first thing that a process asks for."""

import subprocess
import sys
from pathlib import Path

from infra.experiment_tracker import ExperimentTracker
from infra.settings import load_settings
from tests.history import MLFLOW, copy_run
from tests.pipeline import ROOT


def test_runs_beyond_the_first_page_are_found(tmp_path: Path) -> None:
    tracker = ExperimentTracker(load_settings({"PIPELINE_HOME": str(tmp_path)}))
    first = tracker.start_run("tests", "first", {"training_key": "0" * 64, "owner": "here"})
    tracker.end_run(first, "FINISHED")
    last = tracker.start_run("tests", "last", {"training_key": "1" * 64, "owner": "here"})
    copy_run(tracker.uri, MLFLOW, first, 1_100)

    found = [run.run_id for run in tracker.find_runs("tests", {"owner": "here"})]
    assert len(found) == len(set(found)) == 1_102
    assert found[:2] == [last, first], "the newest first"
    assert [run.run_id for run in tracker.find_runs("tests", {"training_key": "0" * 64})] == [first]
    assert {run.run_id for run in tracker.find_runs("tests", {}, run_ids={last, found[-1]})} == {last, found[-1]}
    assert tracker.find_runs("tests", {}, run_ids=set()) == []


def test_a_model_is_found_by_a_process_that_asks_for_nothing_else(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    settings = load_settings({"PIPELINE_HOME": str(tmp_path)})
    tracker = ExperimentTracker(settings)
    run_id = tracker.start_run("tests", "first", {})
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "MLmodel").write_text("flavors: {}\n")
    client = MlflowClient(settings.mlflow_tracking_uri)
    logged = client.create_logged_model(tracker.get_run(run_id).experiment_id, name="model", source_run_id=run_id)
    client.log_model_artifacts(logged.model_id, str(tmp_path / "made"))
    client.finalize_logged_model(logged.model_id, "READY")
    code = f"""
from pathlib import Path
from infra.experiment_tracker import ExperimentTracker
from infra.settings import load_settings
tracker = ExperimentTracker(load_settings({{"PIPELINE_HOME": {str(tmp_path)!r}}}))
tracker.download_model({logged.model_id!r}, Path({str(tmp_path / "brought")!r}))
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert (tmp_path / "brought" / "MLmodel").read_text() == "flavors: {}\n"
