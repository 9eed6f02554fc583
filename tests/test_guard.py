"""Who is let in: names, origins and keys before an application that would let in everyone."""

import asyncio
import base64
from typing import Any

import httpx
import pytest

from infra.stack.guard import Guard

ADDRESSES = ("http://127.0.0.1:5000", "https://mlflow.example.org")
KEY = "a-long-random-key"


async def everyone(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"in"})


def ask(address: str = ADDRESSES[0], key: str | None = KEY, method: str = "GET", **headers: str) -> httpx.Response:
    async def answer() -> httpx.Response:
        guarded = Guard(everyone, ADDRESSES, key, open_paths=["/health"])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=guarded)) as client:
            sent = [(name.encode(), text.encode("latin-1")) for name, text in headers.items()]
            return await client.request(method, address, headers=sent)

    return asyncio.run(answer())


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    "authorization", [f"Bearer {KEY}", f"bearer {KEY}", basic(f"pipeline:{KEY}"), basic(f"whoever:{KEY}")]
)
def test_the_key_lets_in(authorization: str) -> None:
    assert ask(f"{ADDRESSES[0]}/anything", Authorization=authorization).text == "in"


@pytest.mark.parametrize(
    "authorization",
    [
        *("", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Token {KEY}", KEY, "Basic ü", "Basic ="),
        *(basic(KEY), basic(f"{KEY}:"), basic(f"pipeline:{KEY} "), basic("pipeline:ü")),
    ],
)
def test_anything_else_does_not_and_a_browser_asks_for_it(authorization: str) -> None:
    refused = ask(f"{ADDRESSES[0]}/anything", Authorization=authorization)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith("Basic ")
    assert KEY not in refused.text


@pytest.mark.parametrize("path", ["/", "/healthy", "/health/", "//health", "/api/health", "/health%2F..", "/HEALTH"])
def test_no_path_but_that_of_health_goes_without(path: str) -> None:
    assert ask(f"{ADDRESSES[0]}{path}").status_code == 401
    assert ask(f"{ADDRESSES[0]}/health").text == "in"


@pytest.mark.parametrize("host", ["", "localhost:5000", "127.0.0.1", "127.0.0.1:5001", "127.0.0.1:5000.evil.example"])
def test_another_name_is_refused_even_for_health(host: str) -> None:
    assert ask(f"{ADDRESSES[0]}/health", Host=host).status_code == 403
    assert ask(f"{ADDRESSES[0]}/health", Host="mlflow.example.org").text == "in"


@pytest.mark.parametrize("origin", ["null", "", "http://127.0.0.1", "http://127.0.0.1:5001", "https://127.0.0.1:5000"])
@pytest.mark.parametrize("key", [None, KEY])
def test_a_page_of_another_origin_is_refused_with_the_key(origin: str, key: str | None) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        refused = ask(ADDRESSES[0], key, method, Origin=origin, Authorization=f"Bearer {KEY}")
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
    for own in ADDRESSES:
        assert ask(ADDRESSES[0], key, Origin=own, Authorization=f"Bearer {KEY}").text == "in"


@pytest.mark.parametrize(
    ("headers", "answered"),
    [
        ({"host": "127.0.0.1:5000"}, "websocket.accept"),
        ({"host": "127.0.0.1:5000", "origin": ADDRESSES[0]}, "websocket.accept"),
        ({"host": "127.0.0.1:5000", "origin": "http://127.0.0.1:8888"}, "websocket.close"),
        ({"host": "rebound.example"}, "websocket.close"),
    ],
)
def test_websockets_are_refused_before_they_are_accepted(headers: dict[str, str], answered: str) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    scope = {
        "type": "websocket",
        "path": "/",
        "headers": [(name.encode(), text.encode()) for name, text in headers.items()],
    }
    asyncio.run(Guard(everyone, ADDRESSES)(scope, receive, send))
    assert sent == [answered]
