"""The weights of a Keras model and of its optimizers in a file, and a model that is made ready for them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def save(model: Any, path: Path) -> dict[str, Any]:
    """Write `path`, which ends in .weights.h5; returns what `check` and `load` need to know of it, fit for JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _as_built(model):
        model.save_weights(str(path), overwrite=True)
    optimizer = model.optimizer
    return {
        "bytes": path.stat().st_size,
        "shapes": _shapes(model),
        "build": _json_or_none(model.get_build_config()),
        "optimizer": [type(optimizer).__name__, bool(getattr(optimizer, "built", False))],
        "others": [_trained_by(other, model) for other in _others(model)],
    }


def check(model: Any, facts: dict[str, Any], same_optimizer: bool) -> None:
    """Raise ValueError if `model` is another one than that which was saved with `facts`; nothing of it is changed.

    With TensorFlow a model without an input shape has no weights before its first batch: it is given them here.
    """
    if not model.weights and facts["build"]:
        model.build_from_config(_open_batches(facts["build"]))
    shapes = _shapes(model)
    if shapes != facts["shapes"]:
        raise ValueError(f"its weights had the shapes {facts['shapes']}, and have {shapes} now")
    name = type(model.optimizer).__name__
    if same_optimizer and name != facts["optimizer"][0]:
        raise ValueError(f"its optimizer was {facts['optimizer'][0]}, and is {name} now")
    trained = facts.get("others", [])
    if same_optimizer and [name for name, _ in trained] != [type(other).__name__ for other in _others(model)]:
        raise ValueError(f"its other optimizers were {[name for name, _ in trained]}")


def load(model: Any, path: Path, facts: dict[str, Any]) -> None:
    """Give a model that `check` accepted what `path` holds; the model stays as it was if that cannot be read."""
    before = model.get_weights()
    optimizer = model.optimizer
    if facts["optimizer"][1] and optimizer is not None and not optimizer.built:
        # Keras skips the state of an optimizer that has no variables yet.
        optimizer.build(model.trainable_variables)
    for other, (_, places) in zip(_others(model), facts.get("others", [])):  # noqa: B905  strict= is of Python 3.10
        if places and not other.built:
            other.build([model.weights[place] for place in places])
    try:
        with _as_built(model):
            model.load_weights(str(path))
    except Exception:
        model.set_weights(before)
        raise


@contextlib.contextmanager
def _as_built(model: Any) -> Iterator[None]:
    """Keras saves and loads only what is built; a model of models without a `call` of its own never says that it is."""
    built = model.built
    model.built = built or bool(model.weights)
    try:
        yield
    finally:
        model.built = built


def _others(model: Any) -> list[Any]:
    """The optimizers that a model of models keeps beside its own: a GAN has two."""
    from keras.optimizers import Optimizer

    values = (value for part in model._flatten_layers() for _, value in sorted(vars(part).items()))
    return [value for value in values if isinstance(value, Optimizer) and value is not model.optimizer]


def _trained_by(optimizer: Any, model: Any) -> tuple[str, list[int]]:
    """Its class, and where in `model.weights` its variables are; none if it has others, or is not built."""
    places = {id(weight): place for place, weight in enumerate(model.weights)}
    found = [places.get(id(variable), -1) for variable in getattr(optimizer, "_trainable_variables", ())]
    return type(optimizer).__name__, [] if -1 in found else found


def _shapes(model: Any) -> list[list[int]]:
    """Sorted, for the order of `model.weights` changes with `trainable`; which is whose is compared by Keras."""
    return sorted(list(map(int, variable.shape)) for variable in model.weights)


def _open_batches(build: Any) -> Any:
    """The build config with any number of examples, where it was taken from a batch of a fixed size."""
    if isinstance(build, dict):
        return {name: _open_batches(value) for name, value in build.items()}
    if isinstance(build, list) and build and all(size is None or isinstance(size, int) for size in build):
        return (None, *build[1:])
    return [_open_batches(value) for value in build] if isinstance(build, list) else build


def _json_or_none(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return None
