"""A run: the pipeline's, and children of it. Values go to the runner at once, files when the program has ended."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import link
from ._data import DataFolder, Experiment, Inputs, Workspace
from ._model import Model, register

Number = (int, float)


class Run:
    """What `Run.get_context()` gives; number 0 is the pipeline's run, others are its children."""

    name: str

    def __init__(self, number: int = 0, name: str = "") -> None:
        self._number, self.name, self._status = number, name, "Running"
        self._written: dict[str, int] = {}

    @classmethod
    def get_context(cls, allow_offline: bool = True, **_: Any) -> Run:
        return _RUNS[0]

    @classmethod
    def get_submitted_run(cls, **_: Any) -> Run:
        return _RUNS[0]

    def _tell(self, do: str, **facts: Any) -> None:
        link.tell("azureml", do=do, run=self._number, **facts)

    @property
    def _kept(self) -> dict[str, Any]:
        """What of it must be known in a continued training, for the launcher keeps that with its checkpoints."""
        fresh: dict[str, Any] = {"metrics": {}, "after_fit": [], "rows": {}, "images": {}, "tags": {}, "properties": {}}
        return link.state.setdefault(str(self._number), fresh)  # type: ignore[no-any-return]

    # --- what it is

    @property
    def id(self) -> str:
        return f"{link.run_id}_{self._number}" if self._number else str(link.run_id)

    @property
    def number(self) -> int:
        return self._number

    @property
    def parent(self) -> Run:
        """That of a child; a single run is its own."""
        return _RUNS[0]

    @property
    def experiment(self) -> Experiment:
        return Experiment(Workspace(), str(link.experiment))

    @property
    def input_datasets(self) -> Mapping[str, DataFolder]:
        return Inputs()

    @property
    def tags(self) -> dict[str, str]:
        return dict(self._kept["tags"])

    @property
    def properties(self) -> dict[str, str]:
        return dict(self._kept["properties"])

    def get_status(self) -> str:
        return self._status

    def get_details(self) -> dict[str, Any]:
        facts = {"runId": self.id, "target": "local", "status": self._status, "tags": self.tags}
        inputs = [{"dataset": {"id": name}, "consumptionDetails": {"inputName": name}} for name in link.folders]
        return {**facts, "properties": self.properties, "inputDatasets": inputs, "logFiles": {}}

    def get_secret(self, name: str) -> str:
        """The variable of the environment of this name, or of it in capitals with underscores."""
        for variable in (name, re.sub(r"\W", "_", name).upper()):
            if variable in os.environ:
                return os.environ[variable]
        raise KeyError(f"secret {name!r}: set the variable {variable}, and pass it on with --env {variable}")

    # --- values

    def log(self, name: str, value: Any, description: str = "", step: int | None = None) -> None:
        """A number is a point of a curve, a text a tag, a list what `log_list` makes of it."""
        value = _plain(value)
        if isinstance(value, (list, tuple)):
            self.log_list(name, value)
        elif isinstance(value, str):
            self.tag(name, value)
        elif isinstance(value, Number):
            self._point(name, float(value), step)
        else:
            raise TypeError(f"run.log({name!r}, ...): expected a number, a text or a list, found {value!r}")

    def _point(self, name: str, value: float, step: int | None = None) -> None:
        kept = self._kept
        values = kept["metrics"].setdefault(name, [])
        curve = link.curves.get(name) if self._number == 0 else None
        if curve and not values:
            kept["after_fit"].append(name)
        values.append(value)
        if step is None:
            step = len(values)
            if name in kept["after_fit"]:
                if (step, value) in (curve or ()):
                    return  # What `fit` returned, and the pipeline has logged at each epoch.
                step += link.epochs
        self._tell("log", name=name, value=value, step=step, time_ms=int(time.time() * 1000))

    def log_list(self, name: str, value: Any, description: str = "") -> None:
        """A file, and a curve of its numbers."""
        values = [_plain(one) for one in value]
        self._rows(name, [{name: one} for one in values], lambda _: name)

    def log_row(self, name: str, description: str = "", **kwargs: Any) -> None:
        """A row of a file, and of each number a point of the curve `name/column`."""
        self._rows(name, [{column: _plain(one) for column, one in kwargs.items()}], lambda column: f"{name}/{column}")

    def log_table(self, name: str, value: Mapping[str, Any], description: str = "") -> None:
        """Rows, given as columns; or as single values, which are one row."""
        columns = {column: _plain(one) for column, one in value.items()}
        columns = {column: one if isinstance(one, (list, tuple)) else [one] for column, one in columns.items()}
        rows = [
            {column: one[index] for column, one in columns.items() if index < len(one)}
            for index in range(max(map(len, columns.values()), default=0))
        ]
        self._rows(name, rows, lambda column: f"{name}/{column}")

    def _rows(self, name: str, rows: list[dict[str, Any]], curve: Any) -> None:
        kept = self._kept["rows"].setdefault(name, [])
        path = self._file(f"tables/{_file_name(name)}.jsonl")
        # Of an attempt before there are rows that this file does not have.
        new = rows if self._written.get(name) == len(kept) else [*kept, *rows]
        with path.open("a" if new is rows else "w") as file:
            file.writelines(json.dumps(row, default=str) + "\n" for row in new)
        kept += json.loads(json.dumps(rows, default=str))
        self._written[name] = len(kept)
        for row in rows:
            for column, one in row.items():
                if isinstance(one, Number):
                    self._point(curve(column), float(one))

    def log_confusion_matrix(self, name: str, value: Any, description: str = "") -> None:
        """A file, as the other kinds of figures that are given as JSON."""
        facts = json.loads(value) if isinstance(value, str) else value
        self._file(f"tables/{_file_name(name)}.json").write_text(json.dumps(facts, default=_plain, indent=1))

    log_accuracy_table = log_predictions = log_residuals = log_confusion_matrix

    def log_image(self, name: str, path: Any = None, plot: Any = None, description: str = "") -> None:
        """A file, or a plot of Matplotlib's: the module `pyplot`, whose current figure it is, or a Figure."""
        if (path is None) == (plot is None):
            raise ValueError(f"run.log_image({name!r}): expected path= or plot=, and one of them")
        count = self._kept["images"].get(name, 0) + 1
        self._kept["images"][name] = count
        suffix = ".png" if path is None else Path(path).suffix
        target = self._file(f"images/{_file_name(name)}{'' if count == 1 else f'-{count}'}{suffix}")
        if path is None:
            plot.savefig(target)
        else:
            shutil.copyfile(path, target)

    def tag(self, key: str, value: Any = None) -> None:
        self.set_tags({key: value})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        self._set("tags", tags)

    def add_properties(self, properties: Mapping[str, Any]) -> None:
        self._set("properties", properties)

    def _set(self, kind: str, facts: Mapping[str, Any]) -> None:
        texts = {str(key): "" if value is None else str(value) for key, value in facts.items()}
        self._kept[kind].update(texts)
        self._tell("tags", tags=texts)

    def get_metrics(self, name: str | None = None, **_: Any) -> dict[str, Any]:
        """What was logged: a number, or a list where it was logged again and again."""
        metrics = self._kept["metrics"].items()
        return {key: all[0] if len(all) == 1 else list(all) for key, all in metrics if name in (None, key)}

    # --- files

    def _file(self, name: str) -> Path:
        """Where a file of this name is to be, so that it is kept with the run."""
        parts = Path(os.path.normpath(name)).parts
        if not parts or parts[0] in ("..", os.sep):
            raise ValueError(f"{name!r} is no name for a file of the run: it leads out of it")
        in_outputs = self._number == 0 and parts[0] == "outputs"
        root = Path(link.outputs).parent if in_outputs else Path(link.files) / str(self._number)
        target = root.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def upload_file(self, name: str, path_or_stream: Any, *_: Any, **__: Any) -> None:
        target = self._file(name)
        if hasattr(path_or_stream, "read"):
            data = path_or_stream.read()
            target.write_bytes(data if isinstance(data, bytes) else data.encode())
        elif not (target.exists() and target.samefile(path_or_stream)):
            shutil.copyfile(path_or_stream, target)

    def upload_folder(self, name: str, path: Any, *_: Any, **__: Any) -> None:
        for file in sorted(Path(path).rglob("*")):
            if file.is_file():
                self.upload_file((Path(name) / file.relative_to(path)).as_posix(), file)

    def get_file_names(self) -> list[str]:
        roots = [Path(link.files) / str(self._number), *([Path(link.outputs)] if self._number == 0 else [])]
        found = [(path, root) for root in roots for path in root.rglob("*") if path.is_file()]
        return sorted(
            path.relative_to(root if root.name != "outputs" else root.parent).as_posix() for path, root in found
        )

    def download_file(self, name: str, output_file_path: Any = None, *_: Any, **__: Any) -> None:
        """Copy a file of the run, to the current folder or to a path, which may be a folder."""
        target = Path(output_file_path or ".")
        target = target / Path(name).name if target.is_dir() else target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._file(name), target)

    def register_model(
        self, model_name: str, model_path: Any = None, tags: Any = None, properties: Any = None, *_: Any, **more: Any
    ) -> Model:
        """Say what of the outputs is the model, and its name; the pipeline registers it when the training has ended."""
        path = Path(model_path or model_name)
        kept = path if path.is_absolute() else self._file(str(path))
        return register(model_name, kept if kept.exists() else path, {**(properties or {}), **(tags or {})}, more)

    # --- children, and the end

    def child_run(self, name: str | None = None, *_: Any, **__: Any) -> Run:
        child = Run(len(_RUNS), name or f"child {len(_RUNS)}")
        _RUNS.append(child)
        child._tell("child", name=child.name)
        return child

    def create_children(
        self, count: int | None = None, tag_key: str | None = None, tag_values: Any = None
    ) -> list[Run]:
        children = [self.child_run() for _ in (range(count or 0) if tag_values is None else tag_values)]
        for child, value in zip(children, tag_values or ()):  # noqa: B905  strict= is of Python 3.10
            child.tag(str(tag_key), value)
        return children

    child_runs = create_children

    def get_children(self, *_: Any, **__: Any) -> list[Run]:
        return _RUNS[1:]

    def complete(self, *_: Any, **__: Any) -> None:
        """Of a child, its end; the pipeline's run ends with the program."""
        self._end("Completed")

    def fail(self, error_details: Any = None, *_: Any, **__: Any) -> None:
        """The pipeline's run fails when the program has ended, whatever its status."""
        self._end("Failed", reason=str(error_details or "for no stated reason"))

    def _end(self, status: str, **facts: Any) -> None:
        self._status = status
        self._tell("end", status=status, **facts)

    def flush(self, timeout_seconds: float = 300) -> None:
        """All that was logged is with the runner already."""

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.complete() if error is None else self.fail(error)


class _OfflineRun(Run):
    """What a script is told to look for when nobody watches it; here somebody always does."""


_RUNS = [Run()]


def _plain(value: Any) -> Any:
    """A value of NumPy, TensorFlow, PyTorch or the standard library as Python's own."""
    if hasattr(value, "numpy") and not hasattr(value, "detach"):
        value = value.numpy()
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (str, list, tuple, dict, *Number)) or value is None:
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w. -]", "_", name)
