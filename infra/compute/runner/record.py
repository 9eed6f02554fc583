"""What is written on the MLflow run, at the address in MLFLOW_TRACKING_URI.

The run exists before and is ended by whoever started it. Everything here can be done again, after an answer that was
lost or in a continued training, and appears once all the same.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from .order import DatasetOrder
from .output import say
from .patience import with_patience

DIGEST_CHARACTERS = 36
"""MLflow refuses longer digests of inputs; the whole one is the run's tag `dataset_sha256`."""

PARAMETER_CHARACTERS = 6000
"""MLflow refuses longer values of parameters."""

_METRICS_AT_ONCE = 1000
_PARAMETERS_AT_ONCE = 100


class RunRecord:
    """An MLflow run."""

    def __init__(self, run_id: str, confirm: Callable[[], None], failed: Callable[[BaseException], None]) -> None:
        """`confirm` is called before each writing, and raises what forbids it.

        `failed` is told, in another thread, why no more metrics can be logged. Raises `RunnerError` if there is no
        such run, or no MLflow for two minutes.
        """
        self.client = MlflowClient()
        self.run_id = run_id
        self._confirm, self._failed = confirm, failed
        run = with_patience(lambda: self.client.get_run(run_id), f"find run {run_id} in MLflow")
        self.experiment_id: str = run.info.experiment_id
        self.params: dict[str, str] = dict(run.data.params)
        self.tags: dict[str, str] = dict(run.data.tags)
        # Epochs are trained again after a kill; their metrics are logged already.
        self._logged = {(key, metric.step) for key in run.data.metrics for metric in self.history(key)}
        self._lock = Lock()
        self._left_to_program: set[str] = set()
        self._queue: SimpleQueue[Metric | Event] = SimpleQueue()
        self._given_up = False
        Thread(target=self._log, name="metrics", daemon=True).start()

    def history(self, key: str) -> list[Metric]:
        """Every point of a metric."""
        what = f"read the metric {key} of run {self.run_id}"
        return list(with_patience(lambda: self.client.get_metric_history(self.run_id, key), what))

    @property
    def logged(self) -> list[tuple[str, int]]:
        """The points that the run has or is about to have, by metric and step."""
        with self._lock:
            return sorted(self._logged)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters; one that exists is left, with another value too, for MLflow never changes one."""
        texts = {key: str(value)[:PARAMETER_CHARACTERS] for key, value in params.items()}
        for key in texts.keys() & self.params.keys():
            if texts[key] != self.params[key]:
                say(f"the run's parameter {key} stays {self.params[key]!r}; it is {texts[key]!r} now")
        new = [Param(key, value) for key, value in texts.items() if key not in self.params]
        for start in range(0, len(new), _PARAMETERS_AT_ONCE):
            self.log_batch(params=new[start : start + _PARAMETERS_AT_ONCE])
        self.params |= {param.key: param.value for param in new}

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run, all at once."""
        self.log_batch(tags=[RunTag(key, value) for key, value in tags.items()])
        self.tags |= tags

    def log_inputs(self, datasets: Iterable[DatasetOrder]) -> None:
        """Record the data sets as inputs of the run."""
        inputs = [
            DatasetInput(
                Dataset(
                    one.name, one.sha256[:DIGEST_CHARACTERS], source_type="fsspec", source=json.dumps({"uri": one.uri})
                ),
                [InputTag("mlflow.data.context", "training")],
            )
            for one in datasets
        ]

        def log() -> None:
            try:
                self.client.log_inputs(self.run_id, datasets=inputs)
            except MlflowException as error:
                # Two runs that were the first with a data set, at the same moment: the other's is there now.
                if "unique constraint" not in str(error).lower():
                    raise
                self.client.log_inputs(self.run_id, datasets=inputs)

        if inputs:
            self.do(log, "log the data sets in MLflow")

    def leave_to_program(self, key: str, step: int | None) -> None:
        """The program logs this metric itself: from now on it is not logged here."""
        with self._lock:
            self._left_to_program.add(key)
            if step is not None:
                self._logged.add((key, step))

    def log_of_program(self, key: str, value: float, step: int, time_ms: int) -> None:
        """Let a point of the program's be logged soon; one that the run has at this step is left out."""
        with self._lock:
            self._left_to_program.add(key)
            is_new = (key, step) not in self._logged
            self._logged.add((key, step))
        if is_new:
            self._queue.put(Metric(key, value, time_ms, step))

    def log_point(self, values: Mapping[str, float], step: int, time_ms: int) -> None:
        """Let metrics be logged soon; returns at once. What the run has at this step is left out."""
        with self._lock:
            new = {key: value for key, value in values.items() if key not in self._left_to_program}
            new = {key: value for key, value in new.items() if (key, step) not in self._logged}
            self._logged |= {(key, step) for key in new}
        for key, value in new.items():
            self._queue.put(Metric(key, float(value), time_ms, step))

    def _log(self) -> None:
        try:
            while True:
                ready: list[Metric | Event] = [self._queue.get()]
                while not self._queue.empty() and len(ready) < _METRICS_AT_ONCE:
                    ready.append(self._queue.get())
                metrics = [one for one in ready if isinstance(one, Metric)]
                if metrics:
                    self.log_batch(metrics=metrics)
                for one in ready:
                    if isinstance(one, Event):
                        one.set()
        except BaseException as error:
            self._given_up = True
            self._failed(error)

    def flush(self) -> None:
        """Return when every metric is logged, or none can be any more, of which `failed` is told."""
        reached = Event()
        self._queue.put(reached)
        while not reached.wait(0.1) and not self._given_up:
            pass

    def log_batch(self, **what: Any) -> None:
        """Log `metrics`, `params` or `tags`, as MLflow's client takes them."""
        self.do(
            lambda: self.client.log_batch(self.run_id, synchronous=True, **what), f"log to run {self.run_id} in MLflow"
        )

    def do(self, action: Callable[[], Any], purpose: str) -> Any:
        """Do something with MLflow that writes, with patience, if that is allowed."""

        def confirmed() -> Any:
            self._confirm()
            return action()

        return with_patience(confirmed, purpose)
