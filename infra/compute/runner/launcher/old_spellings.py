"""Takes what a program spells as Keras and NumPy had it once for what it is today, where that is the same.

Each is said once, and told to the runner. What has changed its meaning is not here: it is refused before anything runs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import re
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any

_H5 = (".h5", ".hdf5")
_LOADING = ("workers", "use_multiprocessing", "max_queue_size", "pickle_safe")
_GENERATORS = {
    "fit": ("steps_per_epoch", "epochs", "verbose", "callbacks", "validation_data", "validation_steps"),
    "evaluate": ("steps", "callbacks"),
    "predict": ("steps", "callbacks"),
}
"""What the methods that took a generator take by position behind it, before numbers for the loading of data."""


def install(accepted: dict[str, str], runner: Any, when: Callable[..., None], warn: Callable[[str], None]) -> None:
    """Take `accepted`: old spellings, each with what it is today."""
    taken = _Taken(accepted, runner.tell, warn)
    # Last: TensorFlow has modules of such names within itself.
    sys.meta_path.append(taken)
    when("numpy", taken.numpy)
    when("keras", taken.keras)


class _Taken:
    """Finds modules under their old names, and has the libraries take the rest."""

    def __init__(self, accepted: dict[str, str], tell: Any, warn: Callable[[str], None]) -> None:
        self._accepted, self._tell, self._warn = accepted, tell, warn
        self._said: set[str] = set()

    def say(self, old: str) -> None:
        """Once of each."""
        if old not in self._said:
            self._said.add(old)
            self._warn(f"old spelling {old}: taken for {self._accepted[old]}")
            self._tell("azureml", do="spelling", run=0, spelling=old)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """A module that passes on what is asked of it."""
        old = re.sub(r"^(tensorflow\.|keras\._tf_keras\.)", "", name)
        if not old.startswith("keras.") or old not in self._accepted:
            return None
        self.say(old)
        return importlib.util.spec_from_loader(name, self)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> None:
        """Python's own will do."""

    def exec_module(self, module: types.ModuleType) -> None:
        old = re.sub(r"^(tensorflow\.|keras\._tf_keras\.)", "", module.__name__)
        module.__dict__["__getattr__"] = functools.partial(getattr, importlib.import_module(self._accepted[old]))

    def numpy(self, numpy: Any) -> None:
        """Names that are gone are asked of the module's `__getattr__`."""
        original = numpy.__getattr__

        def __getattr__(name: str) -> Any:
            if f"numpy.{name}" not in self._accepted:
                return original(name)
            self.say(f"numpy.{name}")
            module, _, attribute = self._accepted[f"numpy.{name}"].rpartition(".")
            return getattr(importlib.import_module(module), attribute)

        numpy.__getattr__ = __getattr__

    def keras(self, keras: Any) -> None:
        """Optimizers, models and the callback that saves."""
        classes = {one for one in vars(keras.optimizers).values() if isinstance(one, type)}
        for optimizer in classes:
            if issubclass(optimizer, keras.optimizers.Optimizer):
                optimizer.__init__ = self._with_lr(optimizer.__init__)  # type: ignore[misc]
        model = keras.Model
        model.save_weights = self._save_weights(model.save_weights)
        model.load_weights = self._load_weights(model.load_weights)
        model.fit = self._with_acc(model.fit)
        for name, positions in _GENERATORS.items():
            setattr(model, name, self._without_loading(getattr(model, name)))
            setattr(model, f"{name}_generator", self._of_generator(name, positions))
        checkpoint = keras.callbacks.ModelCheckpoint
        checkpoint.__init__ = self._any_file(checkpoint.__init__)

    def _with_lr(self, original: Any) -> Any:
        @functools.wraps(original)
        def __init__(optimizer: Any, *args: Any, **kwargs: Any) -> None:
            if "lr" in kwargs and "learning_rate" not in kwargs and not args:
                self.say("lr=")
                kwargs["learning_rate"] = kwargs.pop("lr")
            original(optimizer, *args, **kwargs)

        return __init__

    def _save_weights(self, original: Any) -> Any:
        @functools.wraps(original)
        def save_weights(model: Any, filepath: Any, *args: Any, **kwargs: Any) -> None:
            path = os.fspath(filepath)
            if not path.endswith(_H5) or path.endswith(".weights.h5"):
                return original(model, filepath, *args, **kwargs)  # type: ignore[no-any-return]
            self.say("save_weights('x.h5')")
            original(model, f"{path}.weights.h5", *args, **kwargs)
            os.replace(f"{path}.weights.h5", path)  # noqa: PTH105
            return None

        return save_weights

    def _load_weights(self, original: Any) -> Any:
        @functools.wraps(original)
        def load_weights(model: Any, filepath: Any, *args: Any, **kwargs: Any) -> Any:
            path = os.fspath(filepath)
            if not path.endswith(_H5) or not os.path.isfile(path):  # noqa: PTH113
                return original(model, filepath, *args, **kwargs)
            h5py = importlib.import_module("h5py")
            with h5py.File(path) as file:
                is_legacy = "layer_names" in file.attrs or "model_weights" in file
            name = "model.h5" if is_legacy else "model.weights.h5"
            if path.endswith(".weights.h5") == name.endswith(".weights.h5"):
                return original(model, filepath, *args, **kwargs)
            self.say("load_weights('x.h5')")
            with tempfile.TemporaryDirectory() as folder:
                link = os.path.join(folder, name)  # noqa: PTH118
                os.symlink(os.path.abspath(path), link)  # noqa: PTH100, PTH211
                return original(model, link, *args, **kwargs)

        return load_weights

    def _any_file(self, original: Any) -> Any:
        @functools.wraps(original)
        def __init__(callback: Any, filepath: Any, *args: Any, **kwargs: Any) -> None:
            path = os.fspath(filepath)
            weights_only = kwargs.get("save_weights_only", len(args) > 3 and args[3])
            wanted = ".weights.h5" if weights_only else ".h5"
            if path.endswith(wanted) or not path.endswith(_H5):
                original(callback, filepath, *args, **kwargs)
                return
            self.say("save_weights('x.h5')" if weights_only else "ModelCheckpoint('x.hdf5')")
            original(callback, os.path.splitext(path)[0] + wanted, *args, **kwargs)  # noqa: PTH122
            callback.filepath = path

        return __init__

    def _without_loading(self, original: Any) -> Any:
        @functools.wraps(original)
        def method(model: Any, *args: Any, **kwargs: Any) -> Any:
            if not kwargs.keys().isdisjoint(_LOADING):
                self.say("workers=")
            return original(model, *args, **{name: one for name, one in kwargs.items() if name not in _LOADING})

        return method

    def _of_generator(self, name: str, positions: tuple[str, ...]) -> Any:
        def method(model: Any, generator: Any, *args: Any, **kwargs: Any) -> Any:
            self.say(f"{name}_generator")
            named = {**dict(zip(positions, args)), **kwargs}  # noqa: B905  strict= is of Python 3.10
            named = {key: one for key, one in named.items() if key not in _LOADING}
            return getattr(model, name)(generator, **named)

        return method

    def _with_acc(self, original: Any) -> Any:
        """Where a model measures `accuracy`, `acc` asks for that: in logs, in History, of callbacks that watch it."""

        @functools.wraps(original)
        def fit(model: Any, *args: Any, **kwargs: Any) -> Any:
            measured = ""
            with contextlib.suppress(Exception):  # What the script has compiled it with may have no config.
                measured = str((model.get_compile_config() or {}).get("metrics"))
            renames = "'accuracy'" in measured and "'acc'" not in measured
            given = kwargs.get("callbacks")
            for callback in given if isinstance(given, (list, tuple)) and renames else ():
                self._rename(callback)
            history = original(model, *args, **kwargs)
            if renames and hasattr(history, "history"):
                history.history = _Named(history.history, self.say)
            return history

        return fit

    def _rename(self, callback: Any) -> None:
        if getattr(callback, "monitor", None) in ("acc", "val_acc"):
            self.say("acc")
            callback.monitor += "uracy"
        if "acc:" in str(getattr(callback, "filepath", "")) or "acc}" in str(getattr(callback, "filepath", "")):
            self.say("acc")
            callback.filepath = re.sub(r"\{(val_)?acc([:}])", r"{\1accuracy\2", str(callback.filepath))
        on_epoch_end = getattr(callback, "on_epoch_end", None)
        if callable(on_epoch_end) and not isinstance(on_epoch_end, functools.partial):
            callback.on_epoch_end = functools.partial(_with_named_logs, on_epoch_end, self.say)


def _with_named_logs(on_epoch_end: Any, say: Any, epoch: int, logs: Any = None) -> None:
    on_epoch_end(epoch, _Named(logs or {}, say))


class _Named(dict):
    """Metrics by their names, in which `acc` is `accuracy`."""

    def __init__(self, metrics: Any, say: Any) -> None:
        super().__init__(metrics)
        self._say = say

    def __reduce__(self) -> Any:
        return dict, (dict(self),)  # Whoever reads a pickle of it has no such class.

    def __missing__(self, name: str) -> Any:
        if name in ("acc", "val_acc") and name + "uracy" in self:
            self._say("acc")
            return self[name + "uracy"]
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default
