"""The version that is served, and what there is to be said of it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

import numpy as np

from infra.service.contract import MAX_ROWS, Arrays
from infra.service.network import GATHERED_ROWS, Network

WAIT_SECONDS = 0.002
"""The most that a request waits for others, to be answered together with them."""

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]


@dataclass(frozen=True)
class Served:
    """A version of a registered model with its network."""

    name: str
    version: int
    run_id: str
    network: Network
    tags: Mapping[str, str]
    """Those of the version."""
    links: Mapping[str, str]
    """Pages of run and version, where MLflow has pages."""
    since: datetime = field(default_factory=lambda: datetime.now(UTC))

    @cached_property
    def headers(self) -> dict[str, str]:
        """What every answer says of who gave it."""
        digest = self.network.weights_sha256
        return {"X-Model-Version": str(self.version), "X-Model-Run-Id": self.run_id, "X-Weights-SHA256": digest}

    @property
    def metadata(self) -> dict[str, Any]:
        """As the Open Inference Protocol describes a model."""
        contract = self.network.contract
        inputs, outputs = ([tensor.metadata for tensor in side] for side in (contract.inputs, contract.outputs))
        return {
            "name": self.name,
            "versions": [str(self.version)],
            "platform": "keras",
            "inputs": inputs,
            "outputs": outputs,
        }

    def inferred(self, outputs: Arrays, request_id: Any) -> dict[str, Any]:
        """An answer of the Open Inference Protocol."""
        named = {"id": request_id} if isinstance(request_id, str) else {}
        facts = {"model_name": self.name, "model_version": str(self.version)}
        return {**facts, **named, "outputs": self.network.contract.inferred(outputs)}

    async def answer(self, inputs: Arrays, in_thread: InThread) -> Arrays:
        """The network's outputs: at once, by a thread, or together with those of requests that wait."""
        if self.network.is_quick and len(inputs[0]) <= GATHERED_ROWS:
            return self.network(inputs)
        if self.network.gathers and len(inputs[0]) < GATHERED_ROWS:
            return await self._gathering.answer(inputs, in_thread)
        return list(await in_thread(partial(self.network, inputs)))

    @cached_property
    def _gathering(self) -> "_Gathering":
        return _Gathering(self.network)


class _Gathering:
    """Requests of one network that wait, answered `GATHERED_ROWS` rows at a time."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._waiting: list[tuple[Arrays, asyncio.Future[Arrays]]] = []
        self._work: asyncio.Task[None] | None = None

    async def answer(self, inputs: Arrays, in_thread: InThread) -> Arrays:
        future: asyncio.Future[Arrays] = asyncio.get_running_loop().create_future()
        self._waiting.append((inputs, future))
        if self._work is None:
            self._work = asyncio.create_task(self._answer_all(in_thread))
        return await future

    async def _answer_all(self, in_thread: InThread) -> None:
        await asyncio.sleep(WAIT_SECONDS)
        while self._waiting:
            batch = self._next_batch()
            together = [np.concatenate(arrays) for arrays in zip(*(inputs for inputs, _ in batch), strict=True)]
            try:
                outputs = await in_thread(partial(self._network, together))
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            start = 0
            for inputs, future in batch:
                rows = slice(start, start := start + len(inputs[0]))
                if not future.done():  # Its client may have left.
                    future.set_result([array[rows] for array in outputs])
        self._work = None

    def _next_batch(self) -> list[tuple[Arrays, "asyncio.Future[Arrays]"]]:
        """The first that waits, and as many after it, of rows of the same shape, as are answered at once."""
        batch: list[tuple[Arrays, asyncio.Future[Arrays]]] = []
        shape, rows = [array.shape[1:] for array in self._waiting[0][0]], 0
        for one in list(self._waiting):
            rows += len(one[0][0])
            if [array.shape[1:] for array in one[0]] == shape and (rows <= GATHERED_ROWS or not batch):
                batch.append(one)
                self._waiting.remove(one)
        return batch


@dataclass
class Standing:
    """How the service stands; changed by who follows the alias, read by who answers."""

    served: Served | None = None
    refused: dict[int, str] = field(default_factory=dict)
    """The version that the alias names and that stays out, with the reason; empty if there is none."""
    away: str | None = None
    """Why MLflow was not asked the last time; None: it answered."""
    ending: bool = False

    @property
    def is_ready(self) -> bool:
        """True if requests are answered and will be."""
        return self.served is not None and not self.ending

    def as_dict(self) -> dict[str, Any]:
        """What `ready` says."""
        served = self.served
        who = {"model": served.name, "version": served.version, "since": served.since} if served else {}
        refused = [{"version": version, "reason": reason} for version, reason in self.refused.items()]
        return {"ready": self.is_ready, **who, "refused": refused, "registry_away": self.away, "max_rows": MAX_ROWS}
