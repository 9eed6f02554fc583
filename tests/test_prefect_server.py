"""A Prefect server that will not do is told, with the reason, before a run that names it does anything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.prefect_server import check_reachable
from infra.errors import PrefectUnreachable
from tasks.cancellation import ask, state_of
from tests.http_server import Behaviour, refusing, serving
from tests.silent_server import silent_server


def refused(address: str, timeout_seconds: float = 20) -> str:
    with (
        temporary_settings({PREFECT_API_URL: address, PREFECT_API_AUTH_STRING: "me:word"}),
        pytest.raises(PrefectUnreachable) as raised,
    ):
        check_reachable(timeout_seconds)
    return str(raised.value)


@contextmanager
def answering(status: int, body: bytes = b"") -> Iterator[str]:
    with serving({"version": body}) as server:
        server.behaviour["version"] = Behaviour(status=status, content_type="application/json")
        yield f"{server.address}api"


@pytest.mark.slow
def test_a_server_that_is_there_will_do(prefect_api: str) -> None:
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        check_reachable()


def test_a_server_that_will_not_do_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing() as address:
        assert f"Prefect's server at {address} cannot be used: ConnectError: [Errno 1" in refused(address)
        monkeypatch.setenv("HTTP_PROXY", address)
        assert f"http://192.0.2.1/api through the proxy {address} (HTTP_PROXY)" in refused("http://192.0.2.1/api")
        del os.environ["HTTP_PROXY"]
    with silent_server() as address:
        assert "did not answer within 0.5 s" in refused(address, 0.5)
        with (
            temporary_settings({PREFECT_API_URL: address}),
            pytest.raises(TimeoutError, match=r"no answer within 0\.3 s"),
        ):
            ask("know a run", partial(state_of, str(uuid4())), 0.3)
    with answering(401) as address:
        told = refused(address)
        assert "answered HTTP 401.\nCheck PREFECT_API_AUTH_STRING" in told
        assert "word" not in told
    with answering(404) as address:
        assert "answered HTTP 404.\nStart it, correct PREFECT_API_URL" in refused(address)
    with answering(200, b"<html>") as address:
        assert "cannot be used: JSONDecodeError" in refused(address)
    with answering(200, b'"2.0.0"') as address:
        assert "incompatible versions" in refused(address)
