"""What `keras.Model.fit` tells the runner, and how a script that knows nothing of it goes on after it was killed.

Each `fit` of the script has a number, in the order of the calls. After each of its epochs the weights, those of the
optimizer and the epoch's metrics are kept under CHECKPOINT_FOLDER/.keras-fit. When the script is run again, a `fit`
that was finished returns its whole History without training, its model restored; one that was in the middle goes on
with its next epoch. Keras's own BackupAndRestore does not do for this: it raises for a model without an input shape,
forgets the History, writes over its file in place, and leaves its epoch in the model for the next `fit`.

Whatever goes wrong here is said in a line, and the `fit` goes on as it would without. Not restored: the order of
examples, and callbacks' counters.

    .keras-fit/history.json                    {"fits": [...]}, see `_fresh`; replacing it commits what it names
    .keras-fit/fit-2/epoch-3.weights.h5        what `Model.save_weights` writes
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STATE = ".keras-fit"

SUPERSEDED_BYTES = 32 * 2**20
"""How much is kept of weights that a later `fit` of the same model has trained further. They serve only what a script
does between the two, such as stopping by hand; each checkpoint carries them, so they must not grow with a loop."""

Record = dict[str, Any]
Warn = Callable[[str], None]


def install(checkpoint_folder: str, runner: Any, when: Callable[..., None], warn: Warn, model_state: Any) -> None:
    """Have `when("keras", action)` wrap `Model.fit`; `runner` has `tell(event, **facts)` and `answer()`.

    `model_state` is the module of that name, given because none of ours can be imported in the program's process.
    """
    fits = Fits(Path(checkpoint_folder), runner, warn, model_state)
    when("keras", lambda keras: _wrap(keras, fits))


def _wrap(keras: Any, fits: Fits) -> None:
    original = keras.Model.fit
    signature = inspect.signature(original)

    @functools.wraps(original)
    def fit(self: Any, *args: Any, **kwargs: Any) -> Any:
        this = None
        # Wrong arguments are for Keras to refuse.
        with contextlib.suppress(TypeError):
            bound = signature.bind(self, *args, **kwargs)
            this = fits.begin(keras, self, bound.arguments)
        if this is None:
            return original(self, *args, **kwargs)
        with this.running():
            history = original(*bound.args, **bound.kwargs)
            this.guarded(this.end)(history)
        return history

    keras.Model.fit = fit


def _fresh(call: list[int], model: int) -> Record:
    """What is known of a fit that begins.

    call    [initial_epoch, epochs] as the script gave them
    model   which of the script's models, from 1
    epochs  [[epoch from 0, {metric: value}], ...]
    and with the first backup `weights`, the file, what `model_state.save` returns, and `kept`, of `azureml_link`.
    """
    return {"call": call, "model": model, "epochs": [], "finished": False}


class Fits:
    """All fits of the script, those of the process that was killed too."""

    def __init__(self, checkpoint_folder: Path, runner: Any, warn: Warn, model_state: Any) -> None:
        self.model_state = model_state
        self.folder = checkpoint_folder / STATE
        self.runner = runner
        self.warn = warn
        self.records: list[Record] = []
        self._count = 0
        self._lock = threading.RLock()
        self._threads: set[int] = set()
        self._models: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._process = os.getpid()
        with contextlib.suppress(FileNotFoundError):
            try:
                self.records = json.loads((self.folder / "history.json").read_text())["fits"]
            except (ValueError, KeyError, TypeError, OSError) as error:
                if isinstance(error, FileNotFoundError):
                    raise
                warn(f"what was kept of earlier fits cannot be read, so they begin anew: {error}")

    def begin(self, keras: Any, model: Any, arguments: dict[str, Any]) -> Fit | None:
        """As `_begin`; None too where that fails."""
        try:
            return self._begin(keras, model, arguments)
        except Exception as error:
            self.warn(f"a fit is not watched: {_first_line(error)}")
            return None

    def _begin(self, keras: Any, model: Any, arguments: dict[str, Any]) -> Fit | None:
        """The next fit, its callbacks among `arguments`; None where it is not to be watched.

        That is a fit inside another one, which is part of that, and any fit in a child process: the numbers of both
        would depend on where the script was killed.
        """
        with self._lock:
            if os.getpid() != self._process or threading.get_ident() in self._threads:
                return None
            self._count += 1
            number = self._count
            concurrent = bool(self._threads)
            earlier = self.records[number - 1] if number <= len(self.records) else None
            place = self._models.get(model) or (earlier or {}).get("model") or self._new_place()
            self._models[model] = place
            call = [int(arguments.get("initial_epoch") or 0), int(arguments.get("epochs", 1))]
            fit = Fit(self, number, model, _fresh(call, place), earlier)
        given = arguments.get("callbacks")
        callbacks = _flat(getattr(given, "callbacks", given))
        fit.restores_itself = any(isinstance(each, keras.callbacks.BackupAndRestore) for each in callbacks)
        if concurrent:
            self.warn(f"no backup of fit {number}: another one runs beside it")
        fit.keeps_weights = not (concurrent or fit.restores_itself or self._kept_by_program())
        fit.add_callbacks(keras, given, arguments)
        return fit

    def _new_place(self) -> int:
        return 1 + max([*self._models.values(), *(record["model"] for record in self.records)], default=0)

    def _kept_by_program(self) -> bool:
        """True if the program keeps checkpoints of its own, and so knows itself what to do when it goes on."""
        with contextlib.suppress(OSError):
            return any(entry.name != STATE for entry in self.folder.parent.iterdir())
        return False

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """While the fit of this thread runs."""
        self._threads.add(threading.get_ident())
        try:
            yield
        finally:
            self._threads.discard(threading.get_ident())

    def latest(self, number: int) -> Record | None:
        """The record whose weights the model of fit `number` is given: its own, or those it was trained on to."""
        own = self.records[number - 1]
        later = (record for record in self.records[number - 1 :] if record["model"] == own["model"])
        return next((record for record in later if record.get("weights")), None)

    def commit(self, number: int, record: Record) -> None:
        """Make `record` what is known of fit `number`, and have the runner take the folder as it is then."""
        with self._lock:
            while len(self.records) < number:
                self.records.append(_fresh([0, 0], 0))
            dropped: set[Any] = {self.records[number - 1].get("weights")}
            self.records[number - 1] = dict(record)
            dropped |= self._superseded()
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / "history.json.new"
            temporary.write_text(json.dumps({"fits": self.records}))
            temporary.replace(self.folder / "history.json")
            for name in dropped - {None, record.get("weights")}:
                (self.folder / name).unlink(missing_ok=True)
            if record["epochs"]:
                self.runner.tell("checkpoint", fit=number, epoch=record["epochs"][-1][0] + 1)
                self.runner.answer()

    def _superseded(self) -> set[str]:
        """The files that go, the oldest first, where a loop of fits has left too much; takes them out of `records`."""
        last = {each["model"]: index for index, each in enumerate(self.records) if each.get("weights")}
        old = [each for index, each in enumerate(self.records) if each.get("weights") and index < last[each["model"]]]
        excess = sum(each["bytes"] for each in old) - SUPERSEDED_BYTES
        files = set()
        for each in old:
            if excess <= 0:
                break
            excess -= each["bytes"]
            files.add(each.pop("weights"))
        return files


class Fit:
    """One call of `Model.fit`."""

    restores_itself, keeps_weights = False, True

    def __init__(self, fits: Fits, number: int, model: Any, record: Record, earlier: Record | None) -> None:
        self._fits = fits
        self._number = number
        self._model = model
        self._record = record
        self._earlier = earlier
        self._replayed = False
        self._silent = False
        self._failed = False
        self._initial_epoch = getattr(model, "_initial_epoch", None)
        self._epochs = record["call"][1]
        self._first_new = 0
        self._began = time.monotonic()

    def add_callbacks(self, keras: Any, given: Any, arguments: dict[str, Any]) -> None:
        """Ours around the script's: restored before they look, backed up after they have acted."""
        make = keras.callbacks.LambdaCallback
        first = make(on_train_begin=self.guarded(self._restore), on_epoch_begin=self.guarded(self._epoch_begin))
        last = make(on_train_begin=self.guarded(self._train_begin), on_epoch_end=self.guarded(self._epoch_end))
        if hasattr(given, "callbacks"):
            for callback in (first, last):
                callback.set_model(self._model)
                callback.set_params(given.params)
            given.callbacks[:] = [first, *given.callbacks, last]
        else:
            arguments["callbacks"] = [first, *_flat(given), last]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While Keras trains; afterwards the next `fit` of the model begins where it is told to."""
        with self._fits.inside():
            try:
                yield
            finally:
                if hasattr(self._model, "_initial_epoch") and not self.restores_itself:
                    self._model._initial_epoch = self._initial_epoch

    def guarded(self, act: Callable[..., None]) -> Callable[..., None]:
        """`act`, which is left out for the rest of this fit when it has failed: the script must not end by it."""

        def call(*arguments: Any) -> None:
            if self._silent:
                return
            try:
                act(*arguments)
            except Exception as error:
                self._silent = True
                self._fits.warn(f"fit {self._number} is not watched any more: {_first_line(error)}")

        return call

    def _restore(self, logs: Any = None) -> None:
        earlier = self._earlier
        if not self.keeps_weights or not (earlier and earlier["epochs"]):
            return
        try:
            self._load(earlier)
        except Exception as error:
            self._fits.warn(f"the backup of fit {self._number} is not used, and it begins anew: {_first_line(error)}")
            self._fits.commit(self._number, self._record)
            return
        self._record.update({**earlier, "model": self._record["model"]})
        self._fits.runner.link.find(earlier)
        self._replayed = bool(earlier["finished"])
        done = earlier["epochs"][-1][0] + 1
        self._model._initial_epoch = max(done, self._epochs) if self._replayed else done

    def _load(self, earlier: Record) -> None:
        if not hasattr(self._model, "_initial_epoch"):
            raise ValueError("this Keras cannot begin at a later epoch")
        if earlier["call"] != self._record["call"]:
            raise ValueError(f"its initial_epoch and epochs were {earlier['call']}, and are {self._record['call']} now")
        source = self._fits.latest(self._number)
        if source is None:
            raise ValueError("its weights were not kept")
        state = self._fits.model_state
        state.check(self._model, source, same_optimizer=source is earlier)
        state.load(self._model, self._fits.folder / source["weights"], source)

    def _train_begin(self, logs: Any = None) -> None:
        start = getattr(self._model, "_initial_epoch", None) or self._record["call"][0]
        if self.restores_itself and self._earlier is not None:
            self._record["epochs"] = [each for each in self._earlier["epochs"] if each[0] < start]
        self._first_new = len(self._record["epochs"])
        self._fits.runner.tell("fit", fit=self._number, epochs=self._epochs, initial_epoch=min(start, self._epochs))

    def _epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._fits.runner.link.resume()
        self._began = time.monotonic()

    def _epoch_end(self, epoch: int, logs: Any = None) -> None:
        seconds = time.monotonic() - self._began
        metrics = _numbers(logs)
        self._record["epochs"].append([epoch, metrics])
        facts = {"metrics": metrics, "seconds": round(seconds, 6), "time_ms": int(time.time() * 1000)}
        self._fits.runner.tell("epoch", fit=self._number, epoch=epoch + 1, **facts)
        # The last one is kept once it is over: callbacks may choose other weights then.
        if not (self._model.stop_training or epoch + 1 >= self._epochs):
            self._keep()

    def end(self, history: Any) -> None:
        """Keras has returned `history`: make it whole, and keep how the fit ended."""
        new = self._record["epochs"][self._first_new :]
        old = self._record["epochs"][: self._first_new]
        history.epoch[:0] = [epoch for epoch, _ in old]
        for name in dict.fromkeys(name for _, metrics in old for name in metrics):
            values = history.history.setdefault(name, [])
            place = len(values) - sum(name in metrics for _, metrics in new)
            values[place:place] = [metrics[name] for _, metrics in old if name in metrics]
        self._fits.runner.link.end(self._record)
        if not self._replayed:
            self._record["finished"] = True
            self._keep()
        elif getattr(self._model.optimizer, "use_ema", False):
            # Keras has just put the averages in place of what was restored.
            self._load(self._record)

    def _keep(self) -> None:
        if self._failed:
            return
        try:
            self._fits.runner.link.keep(self._record)
            if self.keeps_weights:
                done = self._record["epochs"][-1][0] + 1 if self._record["epochs"] else 0
                name = f"fit-{self._number}/epoch-{done}.weights.h5"
                self._record.update(self._fits.model_state.save(self._model, self._fits.folder / name), weights=name)
            self._fits.commit(self._number, self._record)
        except Exception as error:
            # What was committed last stays: a continuation goes on from there.
            self._failed = True
            self._fits.warn(f"no further backup of fit {self._number}: {_first_line(error)}")


def _numbers(logs: Any) -> dict[str, float]:
    """The metrics that are single numbers; a callback may put anything among them."""
    numbers = {}
    for name, value in (logs or {}).items():
        with contextlib.suppress(TypeError, ValueError):
            numbers[str(name)] = float(value)
    return numbers


def _flat(callbacks: Any) -> Iterator[Any]:
    if isinstance(callbacks, (list, tuple)):
        for each in callbacks:
            yield from _flat(each)
    elif callbacks is not None:
        yield callbacks


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].strip()[:300]
