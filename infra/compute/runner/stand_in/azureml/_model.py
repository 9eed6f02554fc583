"""A model that the pipeline registers when the training has ended."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import link
from ._data import given

_SAID: list[str] = []
_MODELS: dict[str, str] = {}


class Model:
    """A model that the pipeline will register."""

    name: str
    id: str
    tags: dict[str, str]

    def __init__(self, name: str, path: Path, tags: dict[str, str]) -> None:
        self.name, self.id, self.tags, self._path = name, f"{name}:{link.run_id}", tags, path

    @property
    def version(self) -> None:
        if not _SAID:
            _SAID.append("version")
            link.warn("a model's version is None: the pipeline gives it when the training has ended")

    @staticmethod
    def register(workspace: Any, model_path: Any, model_name: str, tags: Any = None, **more: Any) -> Model:
        return register(model_name, Path(model_path), {**(more.get("properties") or {}), **(tags or {})}, more)

    @staticmethod
    def get_model_path(model_name: str, version: Any = None, *_: Any, **__: Any) -> str:
        """That of a model which this script has registered, else of the data set of this name."""
        return _MODELS[model_name] if model_name in _MODELS else str(given(model_name))


def register(name: str, path: Path, tags: Mapping[str, Any], more: Mapping[str, Any]) -> Model:
    if not path.exists():
        raise FileNotFoundError(f"register_model({name!r}): there is no {path}, neither here nor among the run's files")
    outputs = Path(link.outputs).resolve()
    if not path.resolve().is_relative_to(outputs):
        target = outputs / (path.name or "model")
        (shutil.copytree(path, target, dirs_exist_ok=True) if path.is_dir() else shutil.copyfile(path, target))
        path = target
    texts = {str(key): str(value) for key, value in tags.items()}
    place = path.resolve().relative_to(outputs).as_posix()
    _MODELS[name] = str(path)
    described = str(more.get("description") or "")
    link.tell("azureml", do="model", run=0, name=name, path=place, tags=texts, description=described)
    return Model(name, path, texts)
