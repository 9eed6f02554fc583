"""A service, and the registry whose champion it follows: good versions, and some that are bad in a way of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from infra.experiment_tracker import Version
from tasks.served_version import REFUSED
from tests.mlflow_server import MlflowServer
from tests.registry import MODEL, Registry
from tests.running_service import RunningService
from tests.served_models import ServedModel, add_version, make_models

SIGNATURE, ANSWERS, TRUNCATED = 3, 4, 5
"""Versions that are bad: another signature, answers that differ from those that were logged, half a file."""


@dataclass
class ServiceCase:
    """A running service of version 1; 2 is good too."""

    models: list[ServedModel]
    mlflow: MlflowServer
    registry: Registry
    service: RunningService

    def promote(self, number: int) -> None:
        """Make it champion, and have the service look."""
        self.registry.tracker.set_alias(self.version(number), "champion")
        self.service.look()

    def version(self, number: int) -> Version:
        version = self.registry.tracker.get_version(MODEL, number)
        assert version
        return version

    @property
    def digits(self) -> dict[int, list[int]]:
        """By version, what it answers."""
        return {number: self.models[number - 1].digits for number in (1, 2)}

    def refusal(self, number: int) -> str:
        """Why the service says that a version stays out; empty if it does not."""
        refused = self.service.ready()["refused"]
        return next((str(one["reason"]) for one in refused if one["version"] == number), "")

    def keeps_out(self, number: int) -> bool:
        """The service says so, and the version's tag."""
        return bool(self.refusal(number)) and REFUSED in self.version(number).tags

    @property
    def page(self) -> str:
        auth = ("anybody", self.service.key)
        return httpx.get(f"{self.service.address}/", auth=auth, timeout=30, trust_env=False).text


@contextmanager
def running_case(folder: Path) -> Iterator[ServiceCase]:
    """In `folder`, with an MLflow server of its own."""
    mlflow = MlflowServer(folder / "mlflow")
    mlflow.start()
    models = make_models(folder, "1", "2")
    registry = Registry(folder, folder, {"MLFLOW_TRACKING_URI": mlflow.uri})
    for model in (*models, models[0].spoiled("signature"), models[1].spoiled("answers"), models[1]):
        last = add_version(registry, model)
    model_id = registry.tracker.get_run(last.run_id).model_id
    (file,) = (folder / "mlflow").rglob(f"{model_id}/artifacts/data/model.keras")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    service = RunningService(folder, registry.environment)
    case = ServiceCase(models, mlflow, registry, service)
    registry.tracker.set_alias(case.version(1), "champion")
    try:
        service.start()
        yield case
    finally:
        service.kill()
        mlflow.kill()
