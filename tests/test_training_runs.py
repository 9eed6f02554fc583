"""Which run is the nearest to a training, and what is told of the difference."""

from dataclasses import replace
from pathlib import Path

from infra.compute import Workload
from infra.lease import Lease, hold_lease
from tasks.training import Training, TrainingRequest
from tasks.training_runs import (
    closing_run,
    find_finished,
    nearest_finished,
    open_run,
    record_source,
    why_nothing_to_train,
)
from tests.pipeline import Pipeline


def training(folder: Path, **arguments: object) -> Training:
    return Training(
        name="some program",
        datasets={},
        arguments=arguments,
        source=folder,
        environment={"numpy": "1.0"},
        shipped=folder,
        requirements=("numpy==1.0",),
        command_for=lambda attempt: ("train", attempt.run_id),
        tags={"note": "some"},
        checkout=folder,
    )


def test_the_nearest_run_is_found_and_the_difference_told_by_file(tmp_path: Path) -> None:
    services = Pipeline(tmp_path).services
    program = tmp_path / "program"
    program.mkdir()
    (program / "train.py").write_text("print(1)\n")

    def request(**arguments: object) -> TrainingRequest:
        return TrainingRequest(training(program, **arguments), "tests")

    def train(wanted: TrainingRequest) -> str:
        with hold_lease(Lease(services.store, "training", "here"), lambda holder: None) as lease:
            run_id = open_run(services, wanted, {}, lease)
            with closing_run(services.tracker, run_id, lease):
                record_source(services.tracker, run_id, wanted.training)
                services.tracker.set_tags(run_id, {"model_sha256": "whole"})
        return run_id

    first = request(epochs=1, rate=0.1)
    assert nearest_finished(services, first) is None
    assert why_nothing_to_train(services.tracker, first) is None
    one, other = train(first), train(request(epochs=2, rate=0.2))
    found = find_finished(services.tracker, "tests", first.training.key)
    assert found is not None
    assert (found.run_id, found.tags["dataset"], found.tags["note"]) == (one, "none", "some")
    assert one in str(why_nothing_to_train(services.tracker, first))
    assert why_nothing_to_train(services.tracker, replace(first, retrain=True)) is None

    nearest = nearest_finished(services, request(epochs=1, rate=0.2))
    assert nearest is not None
    assert (nearest[0].run_id, nearest[1]) == (other, ["epochs 2 -> 1"]), "of two as near, the newer"
    (program / "train.py").write_text("print(2)\n")
    nearest = nearest_finished(services, request(epochs=1, rate=0.1))
    assert nearest is not None
    assert (nearest[0].run_id, nearest[1]) == (one, ["train.py changed"])
    assert request().workload(services.settings) == Workload(
        program, "train", ("numpy==1.0",), request().workload(services.settings).identity
    )
    assert nearest_finished(services, TrainingRequest(replace(training(program), name="another"), "tests")) is None
