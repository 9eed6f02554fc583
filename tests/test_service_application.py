"""The service's application: who may ask, what is refused and when, who answers while versions change."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.types import ASGIApp

from infra.service import application as module
from infra.service.application import OPEN_PATHS, application
from infra.service.keys import Keys
from infra.service.page import page
from infra.service.served import Standing
from infra.stack.guard import Guard
from tests.numpy_network import NumpyNetwork, row, served, standing

ADDRESS = "http://127.0.0.1:8000"


class Client:
    """Asks an application as an HTTP client would."""

    def __init__(self, app: ASGIApp, address: str = ADDRESS) -> None:
        self._app, self._address = app, address

    def request(self, method: str, path: str, **how: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with connected(self._app, self._address) as client:
                return await client.request(method, path, **how)

        return asyncio.run(ask())

    def get(self, path: str, **how: Any) -> httpx.Response:
        return self.request("GET", path, **how)

    def post(self, path: str, **how: Any) -> httpx.Response:
        return self.request("POST", path, **how)


def connected(app: ASGIApp, address: str = ADDRESS) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=address)


@pytest.fixture
def now() -> Standing:
    return standing(NumpyNetwork())


@pytest.fixture
def client(now: Standing) -> Client:
    return Client(application(now))


def test_score_answers_with_a_bare_list_whatever_the_content_type_and_says_who_answered(client: Client) -> None:
    for kind in ("application/json", "application/x-www-form-urlencoded", "text/plain"):
        body = json.dumps({"data": [row(3), row(17)]})
        answer = client.post("/score", content=body, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()) == (200, [3, 7]), answer.text
    headers = (answer.headers["X-Model-Version"], answer.headers["X-Model-Run-Id"], answer.headers["X-Weights-SHA256"])
    assert headers == ("1", "run-1", "0" * 64)
    shares = client.post("/score?probabilities=true", json={"data": [row(2)]}).json()
    assert shares == [[0, 0, 1, 0, 0, 0, 0, 0, 0, 0]]


def test_mlflow_s_and_the_open_inference_protocol_s_clients_are_answered(client: Client) -> None:
    image = [[0] * 28] * 27 + [[1] * 5 + [0] * 23]
    assert client.post("/invocations", json={"instances": [image]}).json()["predictions"][0].index(1) == 5
    tensor = {"name": "image", "shape": [1, 28, 28], "datatype": "UINT8", "data": np.ravel(image).tolist()}
    answer = client.post("/v2/models/digits/infer", json={"id": "one", "inputs": [tensor]}).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("digits", "1", "one")
    (output,) = answer["outputs"]
    assert output.pop("data").index(1) == 5
    assert output == {"name": "output_0", "datatype": "FP32", "shape": [1, 10]}
    described = client.get("/v2/models/digits").json()
    assert described["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28]}]
    assert client.get("/v2/models/other").status_code == 404
    assert client.post("/v2/models/other/infer", json={}).status_code == 404
    assert client.get("/v2/models/digits/ready").json()["ready"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/score", b"no", 400),
        ("POST", "/score", b'{"data": [[1, 2]]}', 422),
        ("POST", "/score?probabilities=perhaps", b'{"data": [[0]]}', 422),
        ("POST", "/nothing", b"", 404),
        ("GET", "/score", None, 405),
        ("POST", "/v2/models/digits/infer", b"[]", 422),
    ],
)
def test_a_refusal_is_one_sentence(client: Client, method: str, path: str, body: bytes | None, status: int) -> None:
    answer = client.request(method, path, content=body)
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}


def test_a_body_above_the_limit_is_refused_without_being_read(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 1_000)

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(2):
            yield b" " * 600

    for body in (b" " * 1_001, parts()):
        answer = client.post("/score", content=body)
        assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert client.post("/score", content=b" " * 1_000).status_code == 400
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 500)
    answer = client.post("/score", content=b" " * 600)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_only_who_has_one_of_the_two_keys_is_answered(now: Standing, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "service")
    guarded = Client(Guard(application(now), [ADDRESS], keys, OPEN_PATHS, "the key in keys.json"))
    kept = json.loads(keys.file.read_text())
    body = {"data": [row(0)]}

    def status(key: str) -> int:
        return guarded.post("/score", json=body, headers={"Authorization": f"Bearer {key}"}).status_code

    assert (status(kept["primary"]), status(kept["secondary"]), status("wrong"), status("")) == (200, 200, 401, 401)
    assert {guarded.get(path).status_code for path in ("/", "/openapi.json", "/v2/models/digits", "/nothing")} == {401}
    assert {guarded.get(path).status_code for path in OPEN_PATHS} == {200}
    assert {path.stat().st_mode & 0o777 for path in keys.file.parent.iterdir()} == {0o600}

    keys.rotate()
    fresh = json.loads(keys.file.read_text())
    assert fresh["secondary"] == kept["primary"]
    assert (status(fresh["primary"]), status(kept["primary"]), status(kept["secondary"])) == (200, 200, 401)
    assert keys.header.read_text() == f"Authorization: Bearer {fresh['primary']}\n"
    shown = guarded.get("/", auth=("anybody", fresh["primary"]))
    assert shown.status_code == 200
    assert not any(key in shown.text for key in (*fresh.values(), *kept.values()))


def test_a_page_of_another_origin_may_not_ask_and_any_host_may_be_named_where_no_address_is(now: Standing) -> None:
    local = Client(Guard(application(now), [ADDRESS], lambda: (b"key",), OPEN_PATHS))
    assert local.get("/metrics", headers={"Host": "rebound.example"}).status_code == 403
    anywhere = Client(Guard(application(now), [], lambda: (b"key",), OPEN_PATHS), "http://model.example:8000")
    assert anywhere.get("/metrics").status_code == 200
    assert anywhere.get("/metrics", headers={"Origin": "http://model.example:8000"}).status_code == 200
    assert anywhere.get("/metrics", headers={"Origin": "http://other.example"}).status_code == 403


def test_nothing_served_is_not_ready_and_says_when_to_ask_again() -> None:
    nothing = Client(application(Standing(refused={4: "It is broken."}, away="MLflow is away")))
    answer = nothing.post("/score", json={"data": [row(0)]})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    ready = nothing.get("/v2/health/ready")
    assert (ready.status_code, ready.json()["registry_away"]) == (503, "MLflow is away")
    assert ready.json()["refused"] == [{"version": 4, "reason": "It is broken."}]
    assert nothing.get("/v2/health/live").status_code == 200
    assert "model_version_refused 4.0" in nothing.get("/metrics").text


def test_a_service_that_ends_is_not_ready_and_has_its_clients_leave(client: Client, now: Standing) -> None:
    now.ending = True
    answer = client.post("/score", json={"data": [row(1)]})
    assert (answer.json(), answer.headers["connection"]) == ([1], "close")
    assert client.get("/v2/health/ready").status_code == 503


def test_metrics_count_by_route_and_status_and_never_by_what_a_client_makes_up(client: Client) -> None:
    client.post("/score", json={"data": [row(1)]})
    client.post("/v2/models/made-up/infer", json={})
    client.get("/made-up")
    text = client.get("/metrics").text
    assert 'requests_total{path="/score",status="200"} 1.0' in text
    assert 'requests_total{path="/v2/models/{name}/infer",status="404"} 1.0' in text
    assert "made-up" not in text
    assert "model_version 1.0" in text
    assert "request_seconds_count 3.0" in text


def test_the_page_asks_nobody_else_and_shows_what_the_registry_says_as_text(client: Client, now: Standing) -> None:
    now.served = served(NumpyNetwork(), 3, dataset="<b>data</b>", test_accuracy="0.9826")
    now.refused = {4: "<script>alert(1)</script>"}
    answer = client.get("/")
    assert "digits, version 3" in answer.text
    assert "0.9826" in answer.text
    assert "<b>" not in answer.text
    assert "<script>alert" not in answer.text
    assert re.findall(r'(?:src|href)="([^"]*)"', answer.text) == ["http://mlflow/run-3"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    text, policy = page(Standing(), {})
    assert "No version is served yet" in text
    assert "sha256-" in policy


def asks(app: ASGIApp, *bodies: list[float]) -> list[httpx.Response]:
    """The answers to requests that are sent at once."""

    async def ask() -> list[httpx.Response]:
        async with connected(app) as client:
            return await asyncio.gather(*(client.post("/score", json={"data": [body]}) for body in bodies))

    return asyncio.run(ask())


def test_requests_that_wait_are_answered_together_each_with_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    network = NumpyNetwork(is_quick=False, gathers=True)
    answers = asks(application(standing(network)), *(row(total) for total in range(40)))
    assert [answer.json() for answer in answers] == [[total % 10] for total in range(40)]
    assert len(network.sizes) < 40
    assert max(network.sizes) <= 32
    alone = NumpyNetwork(is_quick=False, gathers=False)
    answers = asks(application(standing(alone)), row(1), row(2), row(3))
    assert ([answer.json() for answer in answers], alone.sizes) == ([[1], [2], [3]], [1, 1, 1])


def test_a_network_that_fails_is_told_of_to_all_that_waited_for_it_and_to_nobody_later() -> None:
    network = NumpyNetwork(is_quick=False, gathers=True, fails=1)
    app = application(standing(network))
    assert {answer.status_code for answer in asks(app, row(1), row(2))} == {500}
    assert [answer.json() for answer in asks(app, row(3))] == [[3]]


def test_beyond_the_queue_s_limit_a_request_is_turned_away_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    network = NumpyNetwork(is_quick=False, release=Event())
    app = application(standing(network))

    async def ask() -> None:
        async with connected(app) as client:
            body = {"data": [row(5)]}
            first = [asyncio.create_task(client.post("/score", json=body)) for _ in range(2)]
            while len(network.sizes) < 2:  # noqa: ASYNC110  Both are in a thread then.
                await asyncio.sleep(0.01)
            third = await client.post("/score", json=body)
            assert (third.status_code, third.headers["retry-after"]) == (503, "1")
            assert (await client.get("/v2/health/live")).status_code == 200
            assert network.release
            network.release.set()
            assert [(await one).json() for one in first] == [[5], [5]]
            assert (await client.post("/score", json=body)).json() == [5]

    asyncio.run(ask())


def test_a_request_is_answered_by_the_version_that_its_headers_name_while_versions_change() -> None:
    old, new = NumpyNetwork(is_quick=False, release=Event()), NumpyNetwork(shift=1)
    now = standing(old)
    app = application(now)

    async def ask() -> None:
        async with connected(app) as client:
            body = {"data": [row(5)]}
            begun = asyncio.create_task(client.post("/score", json=body))
            while not old.sizes:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            now.served = served(new, 2)
            later = await client.post("/score", json=body)
            assert (later.json(), later.headers["X-Model-Version"]) == ([6], "2")
            assert old.release
            old.release.set()
            answer = await begun
            assert (answer.json(), answer.headers["X-Model-Version"]) == ([5], "1")

    asyncio.run(ask())
