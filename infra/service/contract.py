"""What clients send and are answered: the tutorial's `/score`, MLflow's `/invocations`, the Open Inference Protocol.

A request becomes an array for each input of the model, its rows along the first axis, of the input's own dtype. What
cannot become that is a `BadRequest`, whose sentence says what was expected and found, and quotes none of the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import orjson

MAX_ROWS = 1_000
"""In one request."""

Arrays = list[np.ndarray]

DATATYPES = {"bool": "BOOL", "str": "BYTES", "float16": "FP16", "float32": "FP32", "float64": "FP64"} | {
    f"{kind}int{bits}": f"{kind.upper()}INT{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64)
}
"""The Open Inference Protocol's names of NumPy's dtypes."""


class BadRequest(Exception):
    """What a client is told, with an HTTP status."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


@dataclass(frozen=True)
class Tensor:
    """One input or output of a model."""

    name: str
    dtype: str
    """NumPy's name; `str` for text."""
    shape: tuple[int | None, ...]
    """Of one row; None: any length."""

    def __str__(self) -> str:
        return f"{self.dtype} rows of shape ({', '.join('any' if size is None else str(size) for size in self.shape)})"

    @property
    def metadata(self) -> dict[str, Any]:
        """As the Open Inference Protocol describes it."""
        return {
            "name": self.name,
            "datatype": DATATYPES[self.dtype],
            "shape": [-1, *(size or -1 for size in self.shape)],
        }

    def fits(self, shape: Sequence[int]) -> bool:
        """True if a row may have this shape."""
        return len(shape) == len(self.shape) and all(
            known in (None, size) for known, size in zip(self.shape, shape, strict=True)
        )

    def fits_flat(self, shape: Sequence[int]) -> bool:
        """True if a row of this shape is flat, and has as many values as one of the known shape."""
        sizes = [size for size in self.shape if size is not None]
        return len(shape) == 1 and len(sizes) == len(self.shape) and shape[0] == prod(sizes)


@dataclass(frozen=True)
class Contract:
    """What the model of a version takes and gives."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    named_outputs: bool
    """It gives a dictionary; otherwise a list, or what is in it, if that is one."""
    score_scale: float | None = None
    """`/score` takes numbers from 0 to 1, which are multiplied by this; None: it takes them as the model does."""

    def score(self, body: Any) -> Arrays:
        """The tutorial's `{"data": [row, ...]}`, a row of which may be flat."""
        rows = _only(body, "data")
        if len(self.inputs) > 1 or len(self.outputs) > 1:
            raise BadRequest(422, "This model has several inputs or outputs, so it is asked at /invocations.")
        tensor = self.inputs[0]
        if self.score_scale is None:
            return [to_array(rows, tensor)]
        unit = to_array(rows, Tensor(tensor.name, "float64", tensor.shape))
        _refuse_row((unit < 0) | (unit > 1), "Expected numbers from 0 to 1; row {row} has another")
        scaled = unit * self.score_scale
        return [to_array(np.rint(scaled) if np.dtype(tensor.dtype).kind in "iu" else scaled, tensor)]

    def invocations(self, body: Any) -> Arrays:
        """MLflow's `inputs`, `instances` or `dataframe_split`, as its scoring server reads them."""
        forms = ("inputs", "instances", "dataframe_split")
        form = next((form for form in forms if isinstance(body, dict) and form in body), " or ".join(forms))
        given, several = _only(body, form), len(self.inputs) > 1
        if form == "dataframe_split":
            rows = _only(given, "data", ("columns", "index"))
            columns = given.get("columns") or []
            given = [dict(zip(columns, row, strict=False)) for row in rows] if several and _is_table(rows) else rows
        if form != "inputs" and several:
            if not isinstance(given, list) or not all(isinstance(row, dict) for row in given):
                raise BadRequest(422, f"Expected rows that have each input by its name: {self._described}.")
            given = {name: [row[name] for row in given if name in row] for name in (one.name for one in self.inputs)}
        if not several and not isinstance(given, dict):
            return [to_array(given, self.inputs[0])]
        if not isinstance(given, dict) or given.keys() != {tensor.name for tensor in self.inputs}:
            raise BadRequest(422, f"Expected the inputs by their names: {self._described}.")
        return _same_rows([to_array(given[tensor.name], tensor) for tensor in self.inputs])

    @property
    def _described(self) -> str:
        return ", ".join(f"{tensor.name} ({tensor})" for tensor in self.inputs)

    def infer(self, body: Any) -> Arrays:
        """The Open Inference Protocol's inference request, its tensors as JSON."""
        tensors = _only(body, "inputs", ("id", "outputs", "parameters"))
        if not isinstance(tensors, list) or not all(isinstance(one, dict) for one in tensors):
            raise BadRequest(422, "Expected `inputs` to be a list of objects with name, shape, datatype and data.")
        given = {str(one.get("name")): one for one in tensors}
        if len(given) != len(tensors) or given.keys() != {tensor.name for tensor in self.inputs}:
            raise BadRequest(422, f"Expected the tensors {self._described}; found others.")
        return _same_rows([_inferred(given[tensor.name], tensor) for tensor in self.inputs])

    def scored(self, outputs: Arrays, probabilities: bool) -> Any:
        """The answer of `/score`: the class of each row, or its number where the model gives one; or what it gives."""
        (found,) = outputs
        if probabilities or found.ndim != 2:
            return found
        return found[:, 0] if found.shape[1] == 1 else found.argmax(axis=1)

    def predicted(self, outputs: Arrays) -> Any:
        """The answer of `/invocations`, as MLflow's server gives it."""
        if self.named_outputs:
            return {"predictions": {tensor.name: one for tensor, one in zip(self.outputs, outputs, strict=True)}}
        return {"predictions": outputs[0] if len(outputs) == 1 else outputs}

    def inferred(self, outputs: Arrays) -> list[dict[str, Any]]:
        """The tensors that answer the Open Inference Protocol."""
        pairs = zip(self.outputs, outputs, strict=True)
        return [tensor.metadata | {"shape": found.shape, "data": found.reshape(-1)} for tensor, found in pairs]


def read_json(body: bytes) -> Any:
    """The body as JSON, whatever content type was named."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(400, f"The body is no JSON ({error.msg}, at character {error.pos:,}).") from None


def as_json(content: Any) -> bytes:
    """JSON of arrays and what contains them."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY, default=lambda array: array.tolist())


def _only(body: Any, key: str, optional: Sequence[str] = ()) -> Any:
    """What an object has under its one key; any further one is refused, for nothing would heed it."""
    if not isinstance(body, dict) or key not in body or body.keys() - {key, *optional}:
        found = "one with others" if isinstance(body, dict) and body else _kind(body)
        raise BadRequest(422, f"Expected a JSON object with {key} and nothing else; found {found}.")
    return body[key]


def _kind(value: Any) -> str:
    names = {dict: "an empty object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _is_table(rows: Any) -> bool:
    return isinstance(rows, list) and all(isinstance(row, list) for row in rows)


def _as_numpy(values: Any, tensor: Tensor) -> np.ndarray:
    if not isinstance(values, list):
        raise BadRequest(422, f"Expected a list of {tensor}; found {_kind(values)}.")
    try:
        array = np.array(values)
    except ValueError:
        raise BadRequest(422, f"Expected {tensor}; found rows of different lengths.") from None
    if array.size and array.dtype.kind not in {"str": "U", "bool": "b"}.get(tensor.dtype, "iuf"):
        raise BadRequest(422, f"Expected {tensor}; found values of another kind.")
    return array


def _inferred(given: dict[str, Any], tensor: Tensor) -> np.ndarray:
    expected, shape = DATATYPES[tensor.dtype], given.get("shape")
    if given.get("datatype") != expected:
        raise BadRequest(422, f"Expected the datatype {expected} for {tensor.name}; found another.")
    values = _as_numpy(given.get("data"), tensor).reshape(-1)
    sizes = shape if isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape) else []
    if not sizes or prod(sizes) != values.size:
        raise BadRequest(422, f"Expected a shape for {tensor.name} that its {values.size:,} values fill.")
    return to_array(values.reshape(sizes), tensor)


def to_array(values: Any, tensor: Tensor) -> np.ndarray:
    """The rows as an array of the tensor's dtype, shape (n, *its shape); a row of a known shape may come flat."""
    if isinstance(values, list | np.ndarray) and not 0 < len(values) <= MAX_ROWS:
        raise BadRequest(413 if values else 422, f"Expected 1 to {MAX_ROWS:,} rows; found {len(values):,}.")
    array = values if isinstance(values, np.ndarray) else _as_numpy(values, tensor)
    if not tensor.fits(array.shape[1:]):
        if not tensor.fits_flat(array.shape[1:]):
            raise BadRequest(422, f"Expected {tensor}; found rows of shape ({', '.join(map(str, array.shape[1:]))}).")
        array = array.reshape(len(array), *(size or 0 for size in tensor.shape))
    dtype = np.dtype(tensor.dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        wrong = (array < limits.min) | (array > limits.max) | (array != np.floor(array))
        _refuse_row(wrong, f"Expected {tensor}; row {{row}} has no whole number from {limits.min} to {limits.max}")
    elif dtype.kind == "f":
        with np.errstate(over="ignore"):
            wrong = ~np.isfinite(array.astype(dtype))
        _refuse_row(wrong, f"Expected {tensor}; row {{row}} has a number that is none there")
    return array.astype(dtype)


def _same_rows(arrays: Arrays) -> Arrays:
    if len({len(array) for array in arrays}) > 1:
        raise BadRequest(422, "Expected as many rows in each input; found different numbers.")
    return arrays


def check_finite(outputs: Arrays) -> None:
    """Raise `BadRequest` for an answer that JSON has no number for."""
    for array in outputs:
        if array.dtype.kind == "f":
            _refuse_row(~np.isfinite(array), "The model answers row {row} with a number that is not finite")


def _refuse_row(wrong: np.ndarray, sentence: str) -> None:
    if wrong.any():
        row = int(wrong.reshape(len(wrong), -1).any(axis=1).argmax())
        raise BadRequest(422, f"{sentence.format(row=row)}.")
