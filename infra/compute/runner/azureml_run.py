"""What a script says to the stand-in for Azure ML's SDK, written on its run and on the children that it makes."""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from posixpath import normpath
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from .exits import RunnerError
from .model import MODEL_PATH
from .output import say
from .outputs import files_under, log_files
from .record import RunRecord

REGISTER_AS = "register_as"
"""Tag of the run: the name of the model that it is to become a version of."""

REGISTER_TAGS = "register_tags"
"""Tag of the run: the tags, in JSON, that the version is to have beside the pipeline's."""

OLD_SPELLINGS = "old_spellings"
"""Tag of the run: what of its script is spelled as libraries had it once."""

_CHILD = "azureml_child"
_STAND_IN = Path(__file__).parent / "stand_in"
_TAG_CHARACTERS, _NAME_CHARACTERS = 5_000, 250  # As much as MLflow keeps everywhere.
_OURS = re.compile(
    r"(mlflow|prefect)\..*|register_(as|tags)|dataset(_uri|_sha256|_sample_of)?|(model|weights|program|test_set)_sha256"
    r"|model_(id|kind|path)|owner|training(_key)?|lease|git_dirty|needs_code|continues|objective(_metric)?|program|cause"
    r"|old_spellings|(python|keras|tensorflow|numpy)_version|gate.*|champion.*|test_(accuracy|loss)|best_val_accuracy"
)
"""Tags that say what made a model, and decide what becomes of it."""


class AzuremlRun:
    """The run of the order, number 0, and its children by their numbers."""

    def __init__(self, record: RunRecord, files: Path, failed: Callable[[BaseException], None]) -> None:
        """In `files` the script leaves what is to be kept, in a folder for each number."""
        self._records = {0: record}
        self._files, self._fail = files, failed
        self._statuses: dict[int, str] = {}
        self._why_failed = ""
        self._said: set[str] = set()
        files.mkdir()

    def facts(self, folders: Mapping[str, Path], outputs: Path) -> dict[str, Any]:
        """What the stand-in is told."""
        record = self._records[0]
        experiment = record.client.get_experiment(record.experiment_id).name
        places = {"files": str(self._files), "outputs": str(outputs), "stand_in": str(_STAND_IN)}
        data = {name: str(folder) for name, folder in folders.items()}
        return {"run_id": record.run_id, "experiment": experiment, "folders": data, **places}

    def take(self, event: Mapping[str, Any]) -> None:
        """Do what an event of the stand-in's asks for."""
        record = self._records[event["run"]] if event["do"] != "child" else self._records[0]
        match event["do"]:
            case "log":
                name = self._name(event["name"])
                record.log_of_program(name, float(event["value"]), int(event["step"]), event["time_ms"])
            case "tags":
                self._tag(record, event["tags"])
            case "child":
                self._records[event["run"]] = self._child(event["run"], event["name"])
            case "model":
                self._model(record, event)
            case "spelling":
                before = set(filter(None, record.tags.get(OLD_SPELLINGS, "").split(", ")))
                record.log_tags({OLD_SPELLINGS: ", ".join(sorted({*before, event["spelling"]}))})
            case "end":
                self._statuses[event["run"]] = event["status"]
                self._why_failed = event.get("reason", "") if event["run"] == 0 else self._why_failed

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            say(line)

    def _name(self, name: str) -> str:
        """As MLflow takes it."""
        known = normpath(re.sub(r"[^/\w.\- :]", "_", name)).lstrip("./")[:_NAME_CHARACTERS] or "_"
        if known != name:
            self._say(f"{name!r} is called {known!r} in MLflow")
        return known

    def _tag(self, record: RunRecord, tags: Mapping[str, str]) -> None:
        names = {key: self._name(key) for key in tags}
        for name in sorted(filter(_OURS.fullmatch, names.values())):
            self._say(f"the tag {name} is the pipeline's own: the script's is left out")
        record.log_tags({name: tags[key][:_TAG_CHARACTERS] for key, name in names.items() if not _OURS.fullmatch(name)})

    def _child(self, number: int, name: str) -> RunRecord:
        """The child of this number, which an attempt that was killed may have made already."""
        parent = self._records[0]
        tags = {MLFLOW_PARENT_RUN_ID: parent.run_id, _CHILD: str(number)}
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())

        def find_or_make() -> str:
            found = parent.client.search_runs([parent.experiment_id], wanted)
            made = found[0] if found else parent.client.create_run(parent.experiment_id, tags=tags, run_name=name)
            return str(made.info.run_id)

        return RunRecord(parent.do(find_or_make, "make a child run in MLflow"), lambda: None, self._fail)

    def _model(self, record: RunRecord, event: Mapping[str, Any]) -> None:
        # As the registry of the pipeline takes it.
        name = re.sub(r"[^\w.-]+", "-", event["name"]).strip("-.")[:200] or "model"
        before = record.tags.get(REGISTER_AS, name)
        if before != name:
            self._say(f"one run makes one model: {name} is registered, not {before}, which is kept with the outputs")
        tags = {key: text for key, text in event["tags"].items() if not _OURS.fullmatch(key)}
        tags |= {"description": event["description"]} if event["description"] else {}
        say(f"outputs/{event['path']} is the model, to be registered as {name} when the training has ended")
        record.log_tags({REGISTER_AS: name, MODEL_PATH: event["path"], REGISTER_TAGS: json.dumps(tags)})

    def end(self, well: bool) -> None:
        """The program has ended: keep its files, end its children."""
        for number, record in self._records.items():
            folder = self._files / str(number)
            log_files(record, folder, files_under(folder))
            if number:
                record.flush()
                status = self._statuses.get(number, "Completed" if well else "Failed")
                status = "FAILED" if status == "Failed" else "FINISHED"
                record.do(partial(record.client.set_terminated, record.run_id, status), "end a child run in MLflow")

    def check(self) -> None:
        """Raise `RunnerError` if the script called `run.fail`."""
        if self._statuses.get(0) == "Failed":
            raise RunnerError(f"The script said by run.fail() that it failed: {self._why_failed}")
