"""What a program logs with MLflow belongs to the pipeline's run, however the program's blocks are written.

MLflow takes MLFLOW_RUN_ID for the first block and forgets it; a block that ends says that the run is FINISHED; an
experiment that was set makes the block fail. A training that was killed logs its first points again, and a parameter
that it logs with another value is refused for ever. A curve that it logs from History after the fit would stand beside
the one that was logged while it trained. The run's state, experiment and address are the runner's here.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading
from collections.abc import Callable
from typing import Any

RUN_ID = "MLFLOW_RUN_ID"

When = Callable[[str, Callable[[Any], None]], None]
Warn = Callable[[str], None]


def install(run: dict[str, Any], runner: Any, when: When, warn: Warn) -> None:
    """Have `when("mlflow", action)` bind MLflow to `run`: run_id, and logged and params of before.

    `runner.tell("metric", key=, step=)` says what the program has logged itself; `runner.curves` what the runner has.
    """
    bound = BoundRun(run, runner, warn)
    when("mlflow", bound.bind)
    for flavor in ("mlflow.keras", "mlflow.tensorflow"):
        when(flavor, bound.silence_autolog)


class BoundRun:
    """The pipeline's run, in the program's MLflow."""

    def __init__(self, run: dict[str, Any], runner: Any, warn: Warn) -> None:
        self.run_id = run["run_id"]
        self._logged = {(key, step) for key, step in run["logged"]}
        self._params = dict(run["params"])
        self._own: set[str] = set()
        self._runner = runner
        self._warn = warn
        self._said: set[str] = set()
        self._copying = threading.local()
        self._mlflow: Any = None

    def bind(self, mlflow: Any) -> None:
        """Replace what begins, ends and writes a run; `MlflowClient` is what all of MLflow's own functions write by."""
        self._mlflow = mlflow
        fluent = mlflow.tracking.fluent
        # Its own functions call what is in `fluent`; a program calls what is in `mlflow`.
        fluent.start_run = mlflow.start_run = self._start_run(fluent.start_run)
        fluent.set_experiment = mlflow.set_experiment = self._set_experiment(mlflow.set_experiment)
        mlflow.set_tracking_uri = self._set_tracking_uri(mlflow.set_tracking_uri)
        client = mlflow.MlflowClient
        client.set_terminated = self._set_terminated(client.set_terminated)
        client.log_metric = self._log_metric(client.log_metric)
        client.log_param = self._log_param(client.log_param)
        client.log_batch = self._log_batch(client.log_batch)
        model = mlflow.models.Model
        model.log = classmethod(self._log_model(model.log.__func__))
        self.silence_autolog(mlflow)

    def silence_autolog(self, module: Any) -> None:
        """Autologging ends the run after the first fit, or every fit with an error; the pipeline logs what it would."""
        name = f"{module.__name__}.autolog"

        @functools.wraps(module.autolog)
        def autolog(*args: Any, **kwargs: Any) -> None:
            self._say(f"{name}() is left out: the pipeline logs metrics, parameters and the model already")

        module.autolog = autolog

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._warn(line)

    def _experiment_id(self) -> str:
        return str(self._mlflow.MlflowClient().get_run(self.run_id).info.experiment_id)

    def _start_run(self, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def start_run(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            if given.get("run_id"):
                return original(**given)
            if given.get("nested") or given.get("parent_run_id"):
                # A child, of the pipeline's run if no other is active.
                given.setdefault("experiment_id", self._experiment_id())
                if self._mlflow.active_run() is None and not given.get("parent_run_id"):
                    given["tags"] = {"mlflow.parentRunId": self.run_id, **(given.get("tags") or {})}
            else:
                given = {name: given[name] for name in ("tags", "description", "log_system_metrics") if name in given}
                given["run_id"] = self.run_id
            # MLflow would make the child that run; the program's own children, and the program, may still look for it.
            kept = os.environ.pop(RUN_ID, None)
            try:
                return original(**given)
            finally:
                if kept is not None:
                    os.environ[RUN_ID] = kept

        return start_run

    def _set_experiment(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def set_experiment(*args: Any, **kwargs: Any) -> Any:
            experiment = self._mlflow.get_experiment(self._experiment_id())
            named = args[0] if args else kwargs.get("experiment_name") or kwargs.get("experiment_id")
            if named not in (experiment.name, experiment.experiment_id):
                self._say(f"set_experiment({named!r}) is left out: the run is in {experiment.name!r}")
            return experiment

        return set_experiment

    def _set_tracking_uri(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def set_tracking_uri(uri: Any) -> None:
            if str(uri) != self._mlflow.get_tracking_uri():
                self._say("set_tracking_uri() is left out: the pipeline's MLflow is used")

        return set_tracking_uri

    def _set_terminated(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def set_terminated(client: Any, run_id: str, *args: Any, **kwargs: Any) -> Any:
            # How the run ended is for the runner to say, who sees how the process ended.
            return None if run_id == self.run_id else original(client, run_id, *args, **kwargs)

        return set_terminated

    def _log_metric(self, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def log_metric(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            point = (given["key"], given.get("step") or 0)
            if given["run_id"] == self.run_id and self._is_there(*point, given["value"]):
                # An empty batch, for what it returns: a caller may wait for it.
                return given["self"].log_batch(self.run_id, **_synchronous(given))
            result = original(*args, **kwargs)
            if given["run_id"] == self.run_id:
                self._tell(*point)
            return result

        return log_metric

    def _is_there(self, key: str, step: int, value: Any) -> bool:
        """True for a point of before, and, said, for one of a curve that the runner has logged: it counts from 1."""
        if (key, step) in self._logged:
            return True
        curve = self._runner.curves.get(key, ())
        if key in self._own or not {(step, value), (step + 1, value)}.intersection(curve):
            return False
        self._say(f"{key} was logged at each epoch already; the points of History are left out")
        return True

    def _tell(self, key: str, step: int) -> None:
        self._own.add(key)
        self._runner.tell("metric", key=key, step=step)

    def _log_param(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def log_param(client: Any, run_id: str, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
            if run_id == self.run_id and self._is_other(key, value):
                return value
            return original(client, run_id, key, value, *args, **kwargs)

        return log_param

    def _is_other(self, key: str, value: Any) -> bool:
        """True, and said, for a parameter that was logged before this process with another value."""
        if self._params.get(key, str(value)) == str(value):
            return False
        self._say(f"parameter {key} stays {self._params[key]!r}: MLflow never changes one; {str(value)!r} is left out")
        return True

    def _log_batch(self, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def log_batch(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            if given["run_id"] != self.run_id or getattr(self._copying, "now", False):
                return original(*args, **kwargs)
            given["metrics"] = [
                each for each in given.get("metrics") or () if not self._is_there(each.key, each.step, each.value)
            ]
            given["params"] = [each for each in given.get("params") or () if not self._is_other(each.key, each.value)]
            result = original(**given)
            for each in given["metrics"]:
                self._tell(each.key, each.step)
            return result

        return log_batch

    def _log_model(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def log(cls: Any, *args: Any, **kwargs: Any) -> Any:
            # Outside of a block MLflow 3 would log it to no run at all.
            outside = not kwargs.get("run_id") and self._mlflow.active_run() is None
            # It copies to the model what was logged to the run, by whomever: that are no points of the program's.
            self._copying.now = True
            try:
                with self._mlflow.start_run() if outside else contextlib.nullcontext():
                    return original(cls, *args, **kwargs)
            finally:
                self._copying.now = False

        return log


def _synchronous(given: dict[str, Any]) -> dict[str, Any]:
    return {"synchronous": given["synchronous"]} if "synchronous" in given else {}
