"""A training as a value: what decides its weights, and how a compute is asked for it."""

import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from infra.compute import Accelerator, Workload, program_files, program_sha256
from infra.compute.runner.manifest import data_sha256
from infra.settings import Settings
from tasks.handoffs import Dataset


@dataclass(frozen=True)
class Attempt:
    """What a program is told when it starts, beside what decides its weights."""

    run_id: str
    datasets: Mapping[str, Dataset]
    """By name, as the object store holds them."""
    checkpoint_uri: str
    lease_uri: str
    accelerator: Accelerator
    cache: str | None
    """Folder of the compute for what is worth keeping between jobs."""
    trial: bool = False
    """It is one of a search."""


@dataclass(frozen=True)
class Training:
    """What identifies a training, and all that its steps must know of the program behind it."""

    name: str
    """Of the program."""
    datasets: Mapping[str, str]
    """The SHA-256 of each data set, by name; the one that the program reads by default comes first."""
    arguments: Mapping[str, Any]
    """What the program is asked for, as it gets it; values that JSON holds."""
    source: Path
    """The folder of the program's files, in which nothing changes while it is trained."""
    environment: Mapping[str, str]
    """Versions of what computes, by name, and variables that can change what it computes."""
    shipped: Path
    """The folder that a compute runs, see `Job.program`: the program's own, or one that has it inside."""
    requirements: tuple[str, ...]
    """`name==version` of what a node must have for `shipped`."""
    command_for: Callable[[Attempt], tuple[str, ...]] = field(repr=False)
    """The arguments of the job that trains."""
    tags: Mapping[str, str]
    """What the run says of itself from its beginning."""
    checkout: Path
    """Where git is asked for the commit."""
    secret_variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables that are passed on by name: their values are in the key, and in no record."""
    tried_by: str | None = None
    """The command of `shipped` by which the downloaded model is tried afterwards; None: its files are compared."""
    warnings: tuple[str, ...] = ()
    """What will not do what is expected, of a program that can be started all the same."""
    epochs: int | None = None
    """How many there will be, if that is known."""

    def __post_init__(self) -> None:
        # As the files are now: later somebody may edit them.
        self.key, self.record  # noqa: B018

    @property
    def dataset_sha256(self) -> str:
        """What stands for all data sets together."""
        return data_sha256(self.datasets)

    @cached_property
    def program_sha256(self) -> str:
        """Of the names and bytes of the program's files."""
        return program_sha256(self.source)

    @cached_property
    def key(self) -> str:
        """The identity of the training: SHA-256 over all that decides its weights, 64 hexadecimal digits.

        The same key gives the same weights on the same kind of machine, so a finished run with it is the answer.
        Nothing else is part of it: neither flows, nor documents, nor where services are.
        """
        made_from: dict[str, Any] = {
            "dataset_sha256": self.dataset_sha256,
            "hyperparameters": dict(self.arguments),
            "program_sha256": self.program_sha256,
            "libraries": dict(self.environment),
        }
        if self.secret_variables:
            made_from["variables"] = dict(self.secret_variables)
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    @cached_property
    def record(self) -> dict[str, Any]:
        """What `differences` compares, as JSON holds it."""
        return {
            "program": self.name,
            "program_sha256": self.program_sha256,
            "datasets": dict(self.datasets),
            "arguments": dict(self.arguments),
            "environment": dict(self.environment),
            "variables": sorted(self.secret_variables),
            "files": {
                path.relative_to(self.source).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in program_files(self.source)
            },
        }

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """What has changed since a training with the record `before`, a clause each, the program's files first.

        A record without `files` tells that the program changed, and not where.
        """
        found = list(self._changed_files(before))
        for kind in ("arguments", "environment"):
            found += _changed(before.get(kind, {}), self.record[kind])
        found += (f"data set {line}" for line in _changed(before.get("datasets", {}), self.record["datasets"], 12))
        passed, now = set(before.get("variables", ())), set(self.record["variables"])
        found += [f"variable {name} passed on" for name in sorted(now - passed)]
        found += [f"variable {name} no longer passed on" for name in sorted(passed - now)]
        return found

    def _changed_files(self, before: Mapping[str, Any]) -> Iterator[str]:
        if before.get("program_sha256") == self.program_sha256:
            return
        files, now = before.get("files"), self.record["files"]
        if files is None:
            yield "the program changed"
            return
        for name in sorted(files.keys() | now.keys()):
            if files.get(name) != now.get(name):
                yield f"{name} {'changed' if name in files and name in now else 'is new' if name in now else 'is gone'}"


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], shown: int = 200) -> list[str]:
    return [
        f"{name} {_text(before.get(name), shown)} -> {_text(now.get(name), shown)}"
        for name in dict.fromkeys((*now, *before))
        if before.get(name) != now.get(name)
    ]


def _text(value: Any, shown: int) -> str:
    text = "none" if value is None else shlex.join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text[:shown]


class TrialEnded(Exception):
    """A training of a search ends before it is done; the text says why. Its run can be continued."""


TRAINED = "trained"
"""Tag of a run whose program ended as a trial does: all of it is done but its test and its model."""


@dataclass(frozen=True)
class Judge:
    """Decides whether a training of a search goes on."""

    metric: str
    """The objective; each of its steps is a report."""
    why_stopped: Callable[[Sequence[float]], str | None]
    """Why a trial whose objective had these values, by report, is stopped; None: it is not."""


@dataclass(frozen=True)
class TrainingRequest:
    """A training that is wanted, and where it is to be recorded."""

    training: Training
    experiment: str
    """Of MLflow."""
    retrain: bool = False
    """Train even if a finished run has the same key."""
    accelerator: Accelerator = "auto"
    judge: Judge | None = None
    """Of a trial of a search: whether it goes on. One ends before the program's test, where that can be."""

    def workload(self, settings: Settings) -> Workload:
        """What a compute is asked to be ready for."""
        training = self.training
        services = (training.key, self.experiment, settings.object_store_uri, settings.mlflow_tracking_uri)
        identity = hashlib.sha256("\0".join(services).encode()).hexdigest()[:16]
        name = f"training-{identity}"
        return Workload(training.shipped, "train", training.requirements, name, training.secret_variables)
