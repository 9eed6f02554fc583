"""The Keras network of a registered model, in the process that serves.

It is traced once, with a batch of any length. XLA, which compiles batch sizes of their own, took 0.27 ms of CPU for an
image of MNIST where this takes 0.35, and a second or two to compile each size.
"""

import gc
import importlib
import json
import sys
import time
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from infra.compute.runner import keras_model
from infra.errors import ModelMismatch
from infra.service.contract import Arrays, Contract, Tensor, read_json
from infra.settings import set_variables

GATHERED_ROWS = 32
"""Rows that are answered together, where that pays."""

QUICK_SECONDS = 0.002
"""A network that answers a row sooner is not worth a thread, nor waiting for another row."""


def import_keras() -> None:
    """Import what loads a model, as the runner that trained it does: on the CPU, nobody's `keras.json` heeded."""
    set_variables(
        CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="tensorflow", KERAS_HOME="/dev/null"
    )
    # Keras imports scikit-learn where it is installed, for wrappers that nothing here uses.
    sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]
    import keras  # noqa: F401


class Network:
    """The network in the folder of an MLflow model."""

    def __init__(self, folder: Path, score_scale: float | None = None, code: Path | None = None) -> None:
        """`code` is the folder of the program's own classes, imported where the model is of those.

        Raises `ModelMismatch` if it cannot be loaded, or is not what its own signature says.
        """
        import_keras()
        import tensorflow as tf

        file = next(
            iter((*sorted(folder.glob("data/*.keras")), *sorted(folder.rglob("*.keras")))), folder / "data/model.keras"
        )
        try:
            model = keras_model.load(str(file), own_classes=_own_classes(file, code) if code else None)
        except Exception as error:
            raise ModelMismatch(f"Keras does not load {file.name}: {keras_model.reason(error)}") from error
        if not getattr(model, "inputs", None):
            raise ModelMismatch(f"The model {file.name} has no inputs of a known shape, so it cannot be served.")
        self.weights_sha256 = keras_model.weights_sha256(model)
        names, single = [tensor.name for tensor in model.inputs], len(model.inputs) == 1
        specs = [tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype) for tensor in model.inputs]

        def call(*tensors: Any) -> Any:
            return model(tensors[0] if single else dict(zip(names, tensors, strict=True)), training=False)

        self._call = tf.function(call, input_signature=specs).get_concrete_function()
        given = self._call.structured_outputs
        outputs = tf.nest.flatten(given)
        labels = sorted(given) if isinstance(given, dict) else [f"output_{number}" for number in range(len(outputs))]
        self.contract = Contract(
            tuple(map(_tensor, names, model.inputs)),
            tuple(map(_tensor, labels, outputs)),
            isinstance(given, dict),
            score_scale,
        )
        self._constant, self._flatten, self._folder = tf.constant, tf.nest.flatten, folder
        self._check_signature()

    def __call__(self, inputs: Arrays) -> Arrays:
        """An array for each output, its rows those of the inputs."""
        tensors = [self._constant(array) for array in inputs]
        return [np.asarray(tensor) for tensor in self._flatten(self._call(*tensors))]

    def _check_signature(self) -> None:
        described = yaml.safe_load((self._folder / "MLmodel").read_text()).get("signature") or {}
        columns = json.loads(described.get("inputs") or "[]")
        said = [one["tensor-spec"] | {"name": one.get("name")} for one in columns if one.get("type") == "tensor"]
        takes = {tensor.name: tensor for tensor in self.contract.inputs}
        for one in said:
            tensor = takes.get(one["name"]) if len(said) > 1 else self.contract.inputs[0]
            sizes = [size if size >= 0 else None for size in one["shape"][1:]]
            if tensor is None or one["dtype"] != tensor.dtype or not _alike(sizes, tensor.shape):
                raise ModelMismatch(
                    f"The signature says {one['dtype']} rows of shape {tuple(sizes)}, and the network takes {tensor}."
                )

    def check_example(self) -> bool:
        """Answer the input example that was logged with the model; False if none was.

        Raises `ModelMismatch` unless the outputs are those of its run: classes equal, numbers within 1e-6 plus 1e-5 of
        their size. `BadRequest` if the contract does not take the example.
        """
        example, logged = self._folder / "serving_input_example.json", self._folder / keras_model.OUTPUT_EXAMPLE
        if not example.is_file() or not logged.is_file():
            return False
        outputs = self(self.contract.invocations(read_json(example.read_bytes())))
        expected = [np.reshape(one["values"], one["shape"]) for one in _leaves(json.loads(logged.read_text()))]
        for found, wanted in zip(outputs, expected, strict=True):
            numbers = found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-5, atol=1e-6)
            if not numbers or not (found.argmax(axis=-1) == wanted.argmax(axis=-1)).all():
                far = np.abs(found - wanted).max() if found.shape == wanted.shape else np.inf
                raise ModelMismatch(f"It answers its input example otherwise than its run did, by up to {far:.3g}.")
        return True

    @cached_property
    def seconds(self) -> tuple[float, float]:
        """What one row takes, and `GATHERED_ROWS` of them together: the best of five, measured once."""
        return self._measured(1), self._measured(GATHERED_ROWS)

    def _measured(self, rows: int) -> float:
        inputs = [np.zeros((rows, *(size or 1 for size in one.shape)), one.dtype) for one in self.contract.inputs]
        took = []
        for _ in range(6):
            start = time.perf_counter()
            self(inputs)
            took.append(time.perf_counter() - start)
        return min(took[1:])

    @property
    def is_quick(self) -> bool:
        """It answers a row at once, without a thread."""
        return self.seconds[0] < QUICK_SECONDS

    @property
    def gathers(self) -> bool:
        """Rows that wait are answered together, for that takes less than half of what they take one after another."""
        return not self.is_quick and self.seconds[1] < GATHERED_ROWS * self.seconds[0] / 2

    @staticmethod
    def forget() -> None:
        """Give back the memory of networks that nobody has any more: they hold each other in circles."""
        gc.collect()


_programs_modules: set[str] = set()


def _own_classes(file: Path, code: Path) -> dict[str, Any]:
    """The classes and functions of a program's own that its model is made of, by name, imported from its source."""
    parts: list[Any] = [json.loads(zipfile.ZipFile(file).read("config.json"))]
    for part in parts:  # Which grows meanwhile.
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    own = [part for part in parts if isinstance(part, dict) and part.get("module") and part.get("registered_name")]
    classes = [part for part in own if part["module"].partition(".")[0] not in ("keras", "builtins")]
    while _programs_modules:
        sys.modules.pop(_programs_modules.pop(), None)  # Of an earlier version, whose classes have the same names.
    found = {}
    sys.path.insert(0, str(code))
    try:
        modules = {part["module"]: importlib.import_module(part["module"]) for part in classes}
    finally:
        sys.path.remove(str(code))
        _programs_modules.update(
            name
            for name, module in sys.modules.items()
            if (getattr(module, "__file__", "") or "").startswith(str(code))
        )
    for part in classes:
        name = part["class_name"]
        found[part["registered_name"]] = found[name] = getattr(modules[part["module"]], name)
    # Of a function Keras keeps the name alone: it is taken from where the classes are.
    for name in (part["config"] for part in own if part["class_name"] == "function"):
        for module in modules.values():
            found |= {name: vars(module)[name]} if name in vars(module) else {}
    return found


def _alike(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
    return len(one) == len(other) and all(None in pair or len({*pair}) == 1 for pair in zip(one, other, strict=True))


def _tensor(name: str, tensor: Any) -> Tensor:
    dtype = getattr(tensor.dtype, "name", tensor.dtype)
    return Tensor(name, "str" if dtype == "string" else dtype, tuple(tensor.shape[1:]))


def _leaves(outputs: Any) -> list[dict[str, Any]]:
    """The arrays in what `keras_model` wrote of the outputs, in TensorFlow's order: by key."""
    if isinstance(outputs, dict) and "shape" not in outputs:
        return [leaf for key in sorted(outputs) for leaf in _leaves(outputs[key])]
    return [leaf for one in outputs for leaf in _leaves(one)] if isinstance(outputs, list) else [outputs]
