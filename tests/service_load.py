"""Clients that ask a service without a pause, and judge each answer by the version that it names."""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.served_models import IMAGES


@dataclass
class Load:
    """What the clients saw."""

    address: str
    key: str
    digits: Mapping[int, list[int]]
    """By version, the class that it gives each of `IMAGES`."""
    versions: Counter[int] = field(default_factory=Counter)
    """Calls that were answered rightly, by version."""
    failed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each call."""
    order: list[tuple[float, int]] = field(default_factory=list)
    """When an answer came from another version than the one before, and which."""

    def __post_init__(self) -> None:
        self._leave = threading.Event()
        self._bodies = [json.dumps({"data": [(image.reshape(-1) / 255).tolist()]}).encode() for image in IMAGES]

    @contextmanager
    def of(self, clients: int) -> Iterator["Load"]:
        """While the block runs, and until each client has its last answer."""
        threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._leave.set()
            for thread in threads:
                thread.join(30)

    def _ask(self, number: int) -> None:
        place = urlsplit(self.address)
        connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
        headers = {"Authorization": f"Bearer {self.key}"}
        while not self._leave.is_set():
            image = number % len(IMAGES)
            number += 1
            start = time.monotonic()
            try:
                connection.request("POST", "/score", self._bodies[image], headers)
                answer = connection.getresponse()
                said: Any = answer.read()
            except ConnectionRefusedError:
                return  # It listens no longer: nobody was let down.
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                return
            self.seconds.append(time.monotonic() - start)
            self._judge(answer.status, int(answer.headers.get("X-Model-Version", 0)), image, said)

    def _judge(self, status: int, version: int, image: int, said: bytes) -> None:
        if status != 200 or json.loads(said) != [self.digits.get(version, [None] * len(IMAGES))[image]]:
            self.failed.append(f"status {status}, version {version}, image {image}: {said[:200]!r}")
            return
        if not self.order or self.order[-1][1] != version:
            self.order.append((time.monotonic(), version))
        self.versions[version] += 1
