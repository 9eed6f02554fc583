"""The service under load while its champion changes, bad versions are made champion, and MLflow is away for 20 s.

    python -m tests.service_trial [--clients 50] [--seconds 60]

Then clients are let loose on it that nobody wants (bodies of 1 GB, slow ones, idle ones), and it is told to end under
load. Prints what was seen, and exits with 1 if a call failed.
"""

import argparse
import http.client
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from tests.pipeline import wait_until
from tests.service_case import ANSWERS, SIGNATURE, TRUNCATED, ServiceCase, running_case
from tests.service_load import Load


def changing(case: ServiceCase, clients: int, seconds: float) -> dict[str, Any]:
    """The champion changes three times, three bad versions are champion for a while, MLflow is killed for 20 s."""
    load = Load(case.service.address, case.service.key, case.digits)
    refused, start = {}, time.monotonic()
    with load.of(clients):
        time.sleep(seconds / 20)
        case.promote(2)
        wait_until(lambda: case.service.ready()["version"] == 2, 30, "version 2")
        for number in (TRUNCATED, SIGNATURE, ANSWERS):
            case.promote(number)
            wait_until(partial(case.keeps_out, number), 60, f"version {number} to be refused")
            refused[number] = case.refusal(number)
        case.promote(1)
        wait_until(lambda: case.service.ready()["version"] == 1, 30, "version 1")
        case.mlflow.kill()
        time.sleep(20)
        away = case.service.ready()["registry_away"]
        case.mlflow.start()
        case.promote(2)
        moved = time.monotonic()
        wait_until(lambda: case.service.ready()["version"] == 2, 60, "version 2")
        took = time.monotonic() - moved
        time.sleep(max(0.0, start + seconds - time.monotonic()))
    return {
        "seconds": round(time.monotonic() - start),
        "calls": dict(load.versions),
        "failed": load.failed[:5],
        "refused": refused,
        "away": away,
        "seconds_to_change": round(took, 1),
        "changes": [version for _, version in load.order],
        "p50_ms": round(1000 * statistics.median(load.seconds), 1),
        "p99_ms": round(1000 * float(np.percentile(load.seconds, 99)), 1),
        "max_ms": round(1000 * max(load.seconds), 1),
    }


@contextmanager
def unwanted(case: ServiceCase) -> Iterator[dict[str, Any]]:
    """Idle connections, slow ones, and bodies of 1 GB, while the block runs."""
    place = urlsplit(case.service.address)
    where, seen, ends = (str(place.hostname), int(place.port or 0)), dict[str, Any](), [False]
    idle = [socket.create_connection(where) for _ in range(1_000)]
    slow = [socket.create_connection(where) for _ in range(50)]

    def drip() -> None:
        head = f"POST /score HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {case.service.key}\r\n"
        for one in slow:
            one.sendall(f"{head}Content-Length: 5000\r\n\r\n".encode() if one in slow[:25] else head.encode())
        while not ends[0]:
            for one in slow:
                with suppress(OSError):
                    one.sendall(b"X" if one in slow[:25] else b"X-A: b\r\n")
            time.sleep(0.5)

    def pour() -> None:
        for chunked in (False, True):
            connection = http.client.HTTPConnection(*where, timeout=60)
            headers = {"Authorization": f"Bearer {case.service.key}"}
            headers |= {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(10**9)}
            sent = 0

            def body(count: int = 1_000) -> Iterator[bytes]:
                nonlocal sent
                for _ in range(count):
                    sent += 10**6
                    yield b" " * 10**6

            with suppress(OSError):
                connection.request("POST", "/score", body(), headers, encode_chunked=chunked)
            try:
                answer: Any = connection.getresponse().status
            except (OSError, http.client.HTTPException) as error:
                answer = type(error).__name__
            seen["chunked" if chunked else "announced"] = f"{answer} after {sent / 1e6:.0f} MB"

    threads = [Thread(target=drip, daemon=True), Thread(target=pour, daemon=True)]
    for thread in threads:
        thread.start()
    try:
        yield seen
        threads[1].join(60)
    finally:
        ends[0] = True
        for one in (*idle, *slow):
            one.close()


def besieged(case: ServiceCase) -> dict[str, Any]:
    """Others are answered meanwhile."""
    load = Load(case.service.address, case.service.key, case.digits)
    with unwanted(case) as seen, load.of(4):
        time.sleep(10)
    late = round(1000 * float(np.percentile(load.seconds, 99)), 1)
    return {**seen, "calls": len(load.seconds), "failed": load.failed[:5], "p99_ms": late}


def ending(case: ServiceCase, clients: int) -> dict[str, Any]:
    """SIGTERM under load."""
    load = Load(case.service.address, case.service.key, case.digits)
    with load.of(clients):
        time.sleep(3)
        start = time.monotonic()
        status = case.service.stop()
        took = time.monotonic() - start
    return {"status": status, "seconds": round(took, 1), "calls": len(load.seconds), "failed": load.failed[:5]}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_case(Path(folder)) as case:
        seen = {"changing": changing(case, options.clients, options.seconds)}
        seen["besieged"] = besieged(case)
        seen["ending"] = ending(case, options.clients)
        sys.stdout.write(json.dumps(seen, indent=1) + "\n")
    return int(any(part["failed"] for part in seen.values()) or seen["ending"]["status"] != 0)


if __name__ == "__main__":
    sys.exit(main())
