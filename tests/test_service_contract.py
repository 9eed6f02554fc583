"""What the service takes and gives: the tutorial's, MLflow's and the Open Inference Protocol's requests."""

import json
from typing import Any

import numpy as np
import pytest

from infra.service.contract import MAX_ROWS, BadRequest, Contract, Tensor, as_json, check_finite, read_json

PIXELS = Tensor("image", "uint8", (2, 3))
SHARES = Tensor("output_0", "float32", (4,))
DIGITS = Contract((PIXELS,), (SHARES,), named_outputs=False, score_scale=255.0)
TABLE = Contract((Tensor("row", "float32", (3,)),), (Tensor("output_0", "float32", (1,)),), named_outputs=False)
SEVERAL = Contract(
    (Tensor("a", "float32", (2,)), Tensor("b", "int32", ())),
    (Tensor("left", "float32", (1,)), Tensor("right", "float32", (1,))),
    named_outputs=True,
)
IMAGE = [[0, 1, 2], [253, 254, 255]]
FLAT = [*IMAGE[0], *IMAGE[1]]


def refusal(call: Any, *given: Any) -> tuple[int, str]:
    with pytest.raises(BadRequest) as refused:
        call(*given)
    return refused.value.status, refused.value.sentence


def test_score_takes_numbers_from_0_to_1_flat_or_in_shape_and_the_model_gets_its_pixels() -> None:
    unit = np.array(IMAGE) / 255
    for row in (unit.tolist(), unit.reshape(-1).tolist()):
        (array,) = DIGITS.score({"data": [row, row]})
        assert (array.dtype.name, array.tolist()) == ("uint8", [IMAGE, IMAGE])


def test_every_pixel_comes_back_from_0_to_1() -> None:
    one = Contract((Tensor("pixel", "uint8", (1,)),), (SHARES,), False, 255.0)
    (array,) = one.score({"data": [[value] for value in (np.arange(256) / 255).tolist()]})
    assert array.reshape(-1).tolist() == list(range(256))


def test_score_of_a_version_that_says_no_scale_takes_what_the_model_takes() -> None:
    (array,) = TABLE.score({"data": [[1, 2.5, -300]]})
    assert (array.dtype.name, array.tolist()) == ("float32", [[1.0, 2.5, -300.0]])


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [IMAGE]},
        {"instances": [IMAGE]},
        {"instances": [FLAT]},
        {"dataframe_split": {"columns": list("abcdef"), "index": [0], "data": [FLAT]}},
        {"inputs": {"image": [IMAGE]}},
    ],
)
def test_invocations_takes_what_mlflow_s_clients_send(body: Any) -> None:
    (array,) = DIGITS.invocations(body)
    assert (array.dtype.name, array.tolist()) == ("uint8", [IMAGE])


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": {"a": [[1, 2], [3, 4]], "b": [5, 6]}},
        {"instances": [{"a": [1, 2], "b": 5}, {"a": [3, 4], "b": 6}]},
        {"dataframe_split": {"columns": ["a", "b"], "data": [[[1, 2], 5], [[3, 4], 6]]}},
    ],
)
def test_several_inputs_go_by_name(body: Any) -> None:
    a, b = SEVERAL.invocations(body)
    assert (a.tolist(), b.tolist(), b.dtype.name) == ([[1, 2], [3, 4]], [5, 6], "int32")


def test_the_open_inference_protocol_takes_flat_and_nested_data() -> None:
    for data in (FLAT, [IMAGE]):
        tensor = {"name": "image", "shape": [1, 2, 3], "datatype": "UINT8", "data": data}
        (array,) = DIGITS.infer({"id": "7", "inputs": [tensor]})
        assert array.tolist() == [IMAGE]
    assert PIXELS.metadata == {"name": "image", "datatype": "UINT8", "shape": [-1, 2, 3]}
    found = DIGITS.inferred([np.array([[0.25, 0.5, 0, 0.25]], np.float32)])
    assert json.loads(as_json(found)) == [
        {"name": "output_0", "datatype": "FP32", "shape": [1, 4], "data": [0.25, 0.5, 0.0, 0.25]}
    ]


@pytest.mark.parametrize(
    ("status", "words", "body"),
    [
        (422, "found a list", []),
        (422, "found an empty object", {}),
        (422, "and nothing else", {"data": [IMAGE], "more": 1}),
        (422, "found text", {"data": "0.5"}),
        (422, "found none|found 0", {"data": []}),
        (413, "found 1,001", {"data": [[0.0] * 6] * (MAX_ROWS + 1)}),
        (422, "rows of different lengths", {"data": [[0.0] * 6, [0.0] * 5]}),
        (422, r"found rows of shape \(5\)", {"data": [[0.0] * 5]}),
        (422, "of another kind", {"data": [[None] * 6]}),
        (422, "of another kind", {"data": [["a"] * 6]}),
        (422, "of another kind", {"data": [[True] * 6]}),
        (422, "of another kind", {"data": [[{}] * 6]}),
        (422, "row 1 has another", {"data": [[0.0] * 6, [0.0] * 5 + [1.5]]}),
    ],
)
def test_what_score_does_not_take_is_refused_in_a_sentence(status: int, words: str, body: Any) -> None:
    found, sentence = refusal(DIGITS.score, body)
    assert found == status
    assert any(word in sentence for word in words.replace("\\", "").split("|")), sentence
    assert sentence.endswith(".")
    assert sentence.count(". ") == 0


@pytest.mark.parametrize("value", [0.5, -1, 256, 1e300])
def test_a_number_that_is_no_pixel_is_refused_by_its_row(value: float) -> None:
    rows = [IMAGE, [[0, 1, 2], [253, 254, value]]]
    assert refusal(DIGITS.invocations, {"instances": rows}) == (
        422,
        "Expected uint8 rows of shape (2, 3); row 1 has no whole number from 0 to 255.",
    )


def test_a_number_beyond_the_model_s_own_kind_is_refused() -> None:
    assert "row 0" in refusal(TABLE.invocations, {"inputs": [[1, 2, 1e39]]})[1]


@pytest.mark.parametrize("text", [b"", b"{", b"no", b'{"data": [[NaN]]}', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_refused_and_not_quoted(text: bytes) -> None:
    status, sentence = refusal(read_json, text)
    assert status == 400
    assert sentence.startswith("The body is no JSON")


@pytest.mark.parametrize(
    "tensor",
    [
        {"name": "other", "shape": [1, 2, 3], "datatype": "UINT8", "data": [0] * 6},
        {"name": "image", "shape": [1, 2, 3], "datatype": "FP32", "data": [0] * 6},
        {"name": "image", "shape": [1, 2, 4], "datatype": "UINT8", "data": [0] * 6},
        {"name": "image", "shape": [1, 6, -1], "datatype": "UINT8", "data": [0] * 6},
        {"name": "image", "shape": None, "datatype": "UINT8", "data": [0] * 6},
        {"name": "image", "shape": [], "datatype": "UINT8", "data": []},
        {"name": "image", "shape": [2**40, 2**40], "datatype": "UINT8", "data": [0] * 6},
        {"name": ["image"], "shape": [1, 2, 3], "datatype": ["UINT8"], "data": None},
    ],
)
def test_a_tensor_that_is_not_the_model_s_is_refused(tensor: Any) -> None:
    assert refusal(DIGITS.infer, {"inputs": [tensor]})[0] == 422


@pytest.mark.parametrize("given", [{}, {"a": [[1, 2]]}, [[1, 2]], {"a": [[1, 2]], "b": [1, 2]}])
def test_inputs_that_are_missing_or_of_different_lengths_are_refused(given: Any) -> None:
    assert refusal(SEVERAL.invocations, {"inputs": given})[0] == 422
    assert refusal(SEVERAL.invocations, {"instances": [given]})[0] == 422
    assert refusal(SEVERAL.score, {"data": [[1, 2]]})[0] == 422


def test_answers_are_as_each_client_expects_them() -> None:
    shares = np.array([[0.1, 0.9], [0.75, 0.25]], np.float32)
    assert as_json(DIGITS.scored([shares], probabilities=False)) == b"[1,0]"
    assert as_json(DIGITS.scored([shares], probabilities=True)) == b"[[0.1,0.9],[0.75,0.25]]"
    assert as_json(TABLE.scored([np.array([[1.5], [2.0]], np.float32)], probabilities=False)) == b"[1.5,2.0]"
    assert as_json(TABLE.predicted([np.array([[1.5]], np.float32)])) == b'{"predictions":[[1.5]]}'
    both: list[np.ndarray] = [np.array([[1.0]], np.float32), np.array([[2.0]], np.float16)]
    assert json.loads(as_json(SEVERAL.predicted(both))) == {"predictions": {"left": [[1.0]], "right": [[2.0]]}}


def test_an_answer_that_is_no_number_is_refused_by_its_row() -> None:
    for wrong in (np.nan, np.inf):
        outputs = [np.zeros((3, 2), np.float32), np.array([[0.0], [0.0], [wrong]], np.float32)]
        assert refusal(check_finite, outputs) == (422, "The model answers row 2 with a number that is not finite.")
