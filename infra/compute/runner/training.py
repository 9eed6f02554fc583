"""A training, from the order to the run's last tag: data, checkpoints, the program, its record and its model."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from .azureml_run import AzuremlRun
from .checkpoints import QUIET_SECONDS, Checkpoints
from .data import bring
from .devices import require_gpu
from .exits import UsageError
from .fits import Fits
from .keras_process import KerasProcess
from .lease import Lease
from .locked import check_versions, listed_versions
from .manifest import data_sha256
from .mlflow_address import MlflowAddress
from .model import KeptModel, ModelLogging
from .objective import SECONDS_BETWEEN_LOOKS, SECONDS_BETWEEN_LOOKS_AT_A_TRIAL, ObjectiveSteps, log_objective
from .order import DatasetOrder, Order, with_folders
from .output import say
from .outputs import OUTPUTS, log_outputs
from .record import RunRecord
from .stage import Stage
from .variables import all_variables

KEPT_VERSIONS = ("keras", "tensorflow", "numpy")
"""Of these packages, the run has the version as a tag of its own."""

SECONDS_AHEAD = 15.0
"""How long before the end of the training the process that loads its model is started."""


class Training:
    """What becomes of an order."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._program = stage, stage.program
        self._failure: BaseException | None = None
        self._keras = KerasProcess(stage.scratch)
        self._mlflow: MlflowAddress | None = None
        self._azureml: AzuremlRun | None = None
        self._packages: dict[str, str] = {}
        self._grade = ""
        self._last_step = 0, 0.0
        """Of the metrics that the program logs itself, and when."""

    def run(self, order: Order) -> None:
        """Do what is ordered. Raises `RunnerError` and its kinds, having ended what it started."""
        started = time.perf_counter()
        self._program = replace(self._program, **order.instead)
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            # MLflow would look in, and make, a database in the folder that one happens to be in.
            raise UsageError(f"Run {order.run_id} is one of MLflow, and MLFLOW_TRACKING_URI does not say of which.")
        require_gpu(order.accelerator)
        confirm = Lease(order.lease_uri).check if order.lease_uri else lambda: None
        confirm()
        try:
            record = RunRecord(order.run_id, confirm, self._fail)
            self._stage.build_environment(order.home, order.rebuild_environment)
            folders = {one.name: self._bring(one, order) for one in order.datasets}
            scratch = self._stage.scratch / "checkpoints"
            # Who continues exactly keeps the folder whole at every moment, and may change it several times a second.
            quiet = 0.0 if self._program.continues else QUIET_SECONDS
            checkpoints = Checkpoints(order.checkpoint_uri, self._stage.checkpoints, scratch, confirm, quiet)
            state = checkpoints.restore()
            if state is not None:
                say(f"continuing from the checkpoint in {order.checkpoint_uri}")
            fits = Fits(state)
            self._log_start(record, order)
            if self._program.continues or state is not None:
                self._say_grade(record, self._program.continues or "epoch")
            # So that what is known then is told at once.
            checkpoints.start(lambda: fits.state, lambda: self._stage.inbox.put({"event": "snapshot"}), self._fail)
            self._begin(record, order, folders)
            self._follow(record, checkpoints, fits, order.trial)
            if order.trial and self._program.trial:
                say("the trial ends here, before its test; the same training without a search goes on")
                record.log_tags({"trained": self._program.trial})
            else:
                self._post_process(record, order)
        finally:
            for part in (self._keras, self._mlflow):
                if part:
                    part.stop()
        say(f"done in {time.perf_counter() - started:.1f} s")

    @property
    def _epochs(self) -> int | None:
        """How many there will be, if the program has a parameter that says so."""
        epochs = (self._program.parameters or {}).get("epochs")
        return epochs if isinstance(epochs, int) else None

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._stage.inbox.put(error)

    def _bring(self, dataset: DatasetOrder, order: Order) -> Path:
        folder = self._stage.data / dataset.name
        entries = bring(dataset, folder, order.cache)
        size = sum(entry.size for entry in entries)
        say(f"data set {dataset.name}: {len(entries):,} files, {size / 1e6:,.1f} MB, SHA-256 {dataset.sha256}")
        return folder

    def _log_start(self, record: RunRecord, order: Order) -> None:
        _, words = self._program.python_words or (False, self._program.command)
        parameters = self._program.parameters
        record.log_params({"argv": shlex.join(words)} if parameters is None else parameters)
        tags = {
            "python_version": self._python_version(),
            "dataset_sha256": data_sha256({one.name: one.sha256 for one in order.datasets}),
        }
        if objective := self._program.objective:
            tags |= {"objective": objective.goal, "objective_metric": objective.metric}
        record.log_tags(tags)
        record.log_inputs(order.datasets)

    def _python_version(self) -> str:
        if self._stage.python == Path(sys.executable):
            return platform.python_version()
        command = [str(self._stage.python), "-I", "-c", "import platform; print(platform.python_version())"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def _begin(self, record: RunRecord, order: Order, folders: Mapping[str, Path]) -> None:
        outputs = self._stage.folder / OUTPUTS
        outputs.mkdir(exist_ok=True)
        checkpoints = str(self._stage.checkpoints)
        told = {"OUTPUTS_FOLDER": str(outputs), "CHECKPOINT_FOLDER": checkpoints, "MLFLOW_RUN_ID": order.run_id}
        told |= {"TRIAL": "1"} if order.trial and self._program.trial else {}
        address = os.environ["MLFLOW_TRACKING_URI"]
        if self._program.requirements and self._program.uses_mlflow and not address.startswith("http"):
            self._mlflow = MlflowAddress(self._stage.scratch)
            told |= self._mlflow.variables
        module, words = self._program.python_words or (False, self._program.command)
        self._last_step = 0, time.monotonic()
        if self._program.uses_azureml:
            self._azureml = AzuremlRun(record, self._stage.scratch / "azureml", self._fail)
        self._stage.started.begin(
            {
                "argv": [with_folders(word, folders, order.default_dataset) for word in words],
                "module": module,
                "command": self._program.python_words is None,
                "environment": all_variables(self._stage.variables, order, told),
                "hook": self._program.hook,
                "seed": self._program.seed,
                "checkpoint_folder": checkpoints,
                "listed": listed_versions(self._program.requirements.lock) if self._program.requirements else {},
                "run": {"run_id": order.run_id, "logged": record.logged, "params": record.params},
                "old_spellings": self._program.old_spellings,
                "azureml": self._azureml and self._azureml.facts(folders, outputs),
            }
        )

    def _follow(self, record: RunRecord, checkpoints: Checkpoints, fits: Fits, trial: bool) -> None:
        """Do what the program's events ask for until it has ended; raises unless it ended well."""
        epochs = {}
        objective = self._program.objective
        program = self._stage.started
        between = SECONDS_BETWEEN_LOOKS_AT_A_TRIAL if trial else SECONDS_BETWEEN_LOOKS
        steps = (
            ObjectiveSteps(record, objective.metric, self._epochs, lambda: program.lines_passed, between)
            if objective
            else None
        )
        while not isinstance(event := self._stage.inbox.get(), int):
            if isinstance(event, BaseException):
                raise event
            match event.get("event"):
                case "fit":
                    epochs[event["fit"]] = event["epochs"]
                    if steps:
                        steps.leave()
                    fits.begin(event["fit"], event["initial_epoch"])
                case "epoch":
                    self._log_epoch(record, fits, event, epochs.get(event["fit"], event["epoch"]))
                case "checkpoint":
                    checkpoints.take()
                    self._stage.started.answer_taken()
                case "metric":
                    record.leave_to_program(event["key"], event.get("step"))
                    self._saw_step(event.get("step") or 0)
                case "azureml" if self._azureml:
                    self._azureml.take(event)
                case "imported":
                    self._packages = dict(event["packages"])
                    if self._program.requirements:
                        check_versions(self._program.requirements.lock, self._packages)
            if not self._grade and checkpoints.holds_more_than_history:
                self._say_grade(record, "epoch")
        if steps:
            steps.end()
        if self._azureml:
            self._azureml.end(well=event == 0)
        record.flush()
        try:
            self._stage.started.check_end(event, self._program.entry)
        except BaseException:
            with suppress(BaseException):  # The program's own reason is the one to tell.
                checkpoints.finish(lambda: self._failure, final=False)
            raise
        checkpoints.finish(lambda: self._failure, final=True)
        if self._azureml:
            self._azureml.check()
        self._say_grade(record, "epoch" if checkpoints.holds_more_than_history else "none")

    def _log_epoch(self, record: RunRecord, fits: Fits, event: Mapping[str, Any], epochs: int) -> None:
        number, epoch, metrics, seconds = event["fit"], event["epoch"], event["metrics"], event["seconds"]
        # Those of training first, and of each the loss.
        names = sorted(metrics, key=lambda name: (name.startswith("val_"), not name.endswith("loss")))
        shown = "".join(f"  {name} {metrics[name]:.4f}" for name in names)
        step = fits.add(number, epoch)
        objective = self._program.objective
        points = {"points": [(step, metrics[objective.metric])]} if objective and objective.metric in metrics else {}
        say(f"epoch {epoch}/{epochs}{shown}  {seconds:.2f} s", epoch=epoch, epochs=epochs, **points)
        values = {**metrics, "epoch_seconds": seconds}
        if number > 1:
            if fits.steps(number).start == step:
                for earlier in range(1, number):
                    for one in fits.steps(earlier):
                        record.log_point({"fit": earlier}, one, event["time_ms"])
            values["fit"] = number
        record.log_point(values, step, event["time_ms"])
        if objective and step == 1 and objective.metric not in metrics:
            say(f"{objective.metric}, the objective, is not among {', '.join(metrics)}; the program must log it itself")
        self._start_keras((epochs - epoch) * seconds)

    def _saw_step(self, step: int) -> None:
        """The program has logged a metric itself: of an epoch, if its parameter `epochs` says how many there are."""
        last, since = self._last_step
        if self._epochs and step > last:
            self._last_step = step, time.monotonic()
            self._start_keras((self._epochs - step) * (time.monotonic() - since) / (step - last))

    def _start_keras(self, seconds_left: float) -> None:
        """Start the process that loads the model, if the training ends soon and leaves a core idle."""
        if self._program.uses_keras and seconds_left < SECONDS_AHEAD and _usable_cores() > 1:
            self._keras.start()

    def _say_grade(self, record: RunRecord, grade: str) -> None:
        if self._grade:
            return
        self._grade = grade
        say(f"continues: {_GRADES[grade]}")
        record.log_tags({"continues": grade})

    def _post_process(self, record: RunRecord, order: Order) -> None:
        say("post-processing: the outputs and the model", phase="post_processing")
        record.do(
            lambda: record.client.log_text(record.run_id, json.dumps(self._packages, indent=1), "packages.json"),
            "keep the versions of packages in MLflow",
        )
        outputs = self._stage.folder / OUTPUTS
        files = log_outputs(record, outputs)
        say(f"kept {files:,} files of {OUTPUTS}/")
        model = self._log_model(record, outputs)
        log_objective(record, self._program.objective)
        versions = {name: self._packages[name] for name in KEPT_VERSIONS if name in self._packages}
        record.log_tags({f"{name}_version": version for name, version in versions.items()} | model.tags)
        # Last: a run with this tag has everything.
        record.log_tags({"model_sha256": model.model_sha256})
        say(f"model saved as models:/{model.model_id} of run {order.run_id}")

    def _log_model(self, record: RunRecord, outputs: Path) -> KeptModel:
        logging = ModelLogging(
            record=record,
            keras=self._keras,
            scratch=self._stage.scratch,
            program=self._stage.folder,
            source=self._stage.source,
            # Maybe of an attempt before: this one may have had no epoch left to train.
            step=max((step for key, step in record.logged if key == "epoch_seconds"), default=0),
            params=record.params,
        )
        model = logging.log(outputs)
        say(f"weights SHA-256 {model.weights_sha256}")
        return model


_GRADES = {
    "exact": "exactly where it was, with the same result, as the program says of itself",
    "epoch": "after the last checkpoint: weights, optimizer and epoch, but not the order of the data",
    "none": "not: it would begin anew, for it has called no fit of Keras and kept nothing in CHECKPOINT_FOLDER",
}


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
