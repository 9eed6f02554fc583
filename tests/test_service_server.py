"""The service's server under clients that nobody wants, and told to end while others ask; behind it, NumPy."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from tests.numpy_network import KEY, row
from tests.pipeline import ROOT, wait_until
from tests.served_models import IMAGES
from tests.service_load import Load

pytestmark = pytest.mark.slow

DIGITS = {1: [int(image.astype(int).sum()) % 10 for image in IMAGES]}


class Served:
    """The process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.numpy_network"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())
        self.address = f"http://127.0.0.1:{self.port}"

    def load(self) -> Load:
        return Load(self.address, KEY, DIGITS)

    def head(self, length: int) -> bytes:
        """The beginning of a request."""
        told = f"POST /score HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {length}\r\n\r\n"
        return told.encode()


@pytest.fixture
def server() -> Iterator[Served]:
    running = Served()
    yield running
    running.process.kill()
    running.process.wait()


def test_told_to_end_under_load_it_lets_nobody_down(server: Served) -> None:
    load = server.load()
    begun = socket.create_connection(("127.0.0.1", server.port))
    body = json.dumps({"data": [row(4)]}).encode()
    with load.of(8):
        wait_until(lambda: sum(load.versions.values()) > 100, 30, "calls")
        begun.sendall(server.head(len(body)) + body[:50])
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not listens(server.port), 10, "it to take nothing in any more")
        begun.sendall(body[50:])
        answer = http.client.HTTPResponse(begun)
        answer.begin()
        assert (answer.status, json.loads(answer.read())) == (200, [4])
        assert server.process.wait(20) == 0
    assert load.failed == []
    assert server.process.stdout
    assert server.process.stdout.read() == "ended\n"


def listens(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


def test_idle_clients_slow_ones_and_large_bodies_keep_nobody_from_being_answered(server: Served) -> None:
    where = ("127.0.0.1", server.port)
    idle = [socket.create_connection(where) for _ in range(400)]
    slow = [socket.create_connection(where) for _ in range(20)]
    for one in slow:
        one.sendall(server.head(5_000) + b"{")
    large = socket.create_connection(where)
    large.sendall(server.head(10**9))
    answer = http.client.HTTPResponse(large)
    answer.begin()
    assert answer.status == 413, "it is refused by what it announces"
    assert "at most 16,777,216 bytes; found 1,000,000,000" in json.loads(answer.read())["error"]
    load = server.load()
    with load.of(4):
        wait_until(lambda: sum(load.versions.values()) > 200, 30, "calls")
        for one in slow:
            one.sendall(b" ")
    assert load.failed == []
    slow[0].close()  # In the middle of its body.
    broken = httpx.get(f"{server.address}/metrics", trust_env=False)
    assert broken.status_code == 200
    assert 'status="500"' not in broken.text
    for one in (*idle, *slow, large):
        one.close()


def test_a_small_answer_does_not_wait_for_an_acknowledgement(server: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    body, took = json.dumps({"data": [row(4)]}), []
    for _ in range(20):
        start = time.monotonic()
        connection.request("POST", "/score", body, {"Authorization": f"Bearer {KEY}"})
        assert connection.getresponse().read() == b"[4]"
        took.append(time.monotonic() - start)
    assert min(took) < 0.03, "with Nagle's algorithm each takes 40 ms"


def test_told_twice_it_ends_at_once(server: Served) -> None:
    held = socket.create_connection(("127.0.0.1", server.port))
    held.sendall(server.head(5_000))
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: not listens(server.port), 10, "it to end")
    start = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
    assert time.monotonic() - start < 5
    held.close()
