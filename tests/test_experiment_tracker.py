"""What MLflow finds where there is more than one page of it."""

from pathlib import Path

from infra.experiment_tracker import ExperimentTracker
from infra.settings import load_settings
from tests.history import MLFLOW, copy_run


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
