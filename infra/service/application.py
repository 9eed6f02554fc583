"""The web application around the version that is served: who may ask what, limits, metrics, and the page."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.service.contract import Arrays, BadRequest, as_json, check_finite, read_json
from infra.service.page import page
from infra.service.served import Served, Standing

LOGGER = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 2**20
BODY_SECONDS = 60.0
"""For a request to arrive."""
MAX_HELD_BYTES = 16 * MAX_BODY_BYTES
"""Of all requests that are arriving."""
MAX_WAITING = 256
"""Requests that have arrived and are not answered yet; further ones are turned away at once."""
LARGE_BYTES = 2**17
"""A larger body is read by a thread, while others are answered."""

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

OPEN_PATHS = ("/v2/health/live", "/v2/health/ready", "/metrics")
"""Those that nobody needs a key for."""


class Metrics:
    """Prometheus's, in a registry of their own."""

    def __init__(self, standing: Standing) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("requests", "Requests answered.", ("path", "status"), registry=self.registry)
        self.seconds = Histogram("request_seconds", "From a request's arrival to its answer.", registry=self.registry)
        for name, described, value in (
            ("model_version", "The version that is served.", lambda: standing.served.version if standing.served else 0),
            ("model_version_refused", "The version that stays out, or 0.", lambda: next(iter(standing.refused), 0)),
            ("registry_away", "1 while MLflow does not answer.", lambda: int(bool(standing.away))),
        ):
            Gauge(name, described, registry=self.registry).set_function(value)

    def totals(self) -> dict[str, int]:
        """Requests by path and status."""
        samples = (sample for metric in self.requests.collect() for sample in metric.samples)
        found = ((one.labels, one.value) for one in samples if one.name == "requests_total")
        return {f"{labels['path']} {labels['status']}": int(value) for labels, value in found}


class Answering:
    """Takes requests in, within its limits, and has the served version answer them."""

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self._threads = ThreadPoolExecutor(2, "answering")
        self._held_bytes = 0
        self._waiting = 0

    async def __call__(self, request: Request, asked: str, form: Callable[[Served, Arrays, Any], Any]) -> Response:
        """The answer of the version that is served when the request has arrived; `asked` is its contract's reader."""
        body = await self._body(request)
        with self._place():
            served = self.served
            read = partial(self._read, served, asked, body)
            inputs, given = await self._in_thread(read) if len(body) > LARGE_BYTES else read()
            outputs = await self._outputs(served, inputs)
            check_finite(outputs)
            return Response(
                as_json(form(served, outputs, given)), media_type="application/json", headers=served.headers
            )

    async def _outputs(self, served: Served, inputs: Arrays) -> Arrays:
        try:
            return await served.answer(inputs, self._in_thread)
        except Exception as error:
            kind = type(error).__name__  # Its text may quote the data.
            if kind == "InvalidArgumentError":  # TensorFlow's, of what its layers do not take.
                raise BadRequest(422, "The network does not take rows of this size.") from None
            LOGGER.error("Version %d fails to answer: %s", served.version, kind)
            raise BadRequest(500, f"The network failed: {kind}.") from None

    @property
    def served(self) -> Served:
        """The version that is served now."""
        if self.standing.served is None:
            raise BadRequest(503, "No version is served yet.")
        return self.standing.served

    def _read(self, served: Served, asked: str, body: bytes) -> tuple[Arrays, Any]:
        given = read_json(body)
        return getattr(served.network.contract, asked)(given), given

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _body(self, request: Request) -> bytes:
        told = f"Expected a body of at most {MAX_BODY_BYTES:,} bytes"
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
            raise BadRequest(413, f"{told}; found {int(announced):,}.")
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    size += len(part)
                    self._held_bytes += len(part)
                    parts.append(part)
                    if size > MAX_BODY_BYTES:
                        raise BadRequest(413, f"{told}; found more.")
                    if self._held_bytes > MAX_HELD_BYTES:
                        raise BadRequest(503, "Too much is arriving at once.")
        except ClientDisconnect:
            raise BadRequest(400, "The body broke off.") from None
        except TimeoutError:
            raise BadRequest(408, f"Expected the whole body within {BODY_SECONDS:.0f} s.") from None
        finally:
            self._held_bytes -= size
        return b"".join(parts)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._waiting >= MAX_WAITING:
            raise BadRequest(503, f"{MAX_WAITING} requests are waiting already.")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1


def application(standing: Standing) -> ASGIApp:
    """The application; whoever needs a key to reach it is somebody else's matter."""
    app = FastAPI(title="A registered model", docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    metrics, answering = Metrics(standing), Answering(standing)
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"description": "`error`: what was expected and found"} for status in (400, 404, 408, 413, 422, 503)
    }

    def asks(path: str, example: Any) -> Callable[[Endpoint], Endpoint]:
        content = {"application/json": {"schema": {"type": "object"}, "example": example}}
        described = {"requestBody": {"content": content, "required": True}}
        return app.post(path, responses=refusals, openapi_extra=described)

    @asks("/score", {"data": [[0.0]]})
    async def score(request: Request, probabilities: bool = False) -> Response:
        return await answering(
            request, "score", lambda served, found, _: served.network.contract.scored(found, probabilities)
        )

    @asks("/invocations", {"instances": [[0]]})
    async def invocations(request: Request) -> Response:
        return await answering(
            request, "invocations", lambda served, found, _: served.network.contract.predicted(found)
        )

    @asks("/v2/models/{name}/infer", {"inputs": []})
    async def infer(request: Request, name: str) -> Response:
        _named(answering.served, name)
        return await answering(request, "infer", lambda served, found, given: served.inferred(found, given.get("id")))

    @app.get("/v2/models/{name}", responses=refusals)
    async def model(name: str) -> Response:
        return Response(as_json(_named(answering.served, name).metadata), media_type="application/json")

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", responses=refusals)
    async def ready() -> Response:
        return Response(as_json(standing.as_dict()), 200 if standing.is_ready else 503, media_type="application/json")

    @app.get("/v2/models/{name}/ready", responses=refusals)
    async def model_ready(name: str) -> Response:
        _named(answering.served, name)
        return await ready()

    @app.get("/metrics")
    async def measured() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def start_page() -> HTMLResponse:
        text, policy = page(standing, metrics.totals())
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    for kind in (BadRequest, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, partial(_refused, standing))
    return Counted(app, metrics, standing)


async def _refused(standing: Standing, _: Request, error: Exception) -> Response:
    match error:
        case BadRequest():
            status, sentence = error.status, error.sentence
        case HTTPException():
            status, sentence = error.status_code, str(error.detail)
        case _:
            status, sentence = 422, "Expected probabilities to be true or false."
    headers = dict(standing.served.headers) if standing.served else {}
    headers |= {"Retry-After": "1"} if status == 503 else {}
    # What is still on its way of a body that is not wanted goes with its connection.
    headers |= {"Connection": "close"} if status in (408, 413) else {}
    return Response(as_json({"error": sentence}), status, headers, media_type="application/json")


def _named(served: Served, name: str) -> Served:
    if name != served.name:
        raise BadRequest(404, f"The model here is {served.name}.")
    return served


class Counted:
    """`app`, its answers counted and timed; while the service ends, each is the last of its connection."""

    def __init__(self, app: ASGIApp, metrics: Metrics, standing: Standing) -> None:
        self._app, self._metrics, self._standing = app, metrics, standing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = asyncio.get_running_loop().time()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.requests.labels(route, message["status"]).inc()
                self._metrics.seconds.observe(asyncio.get_running_loop().time() - start)
                if self._standing.ending:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, counted)
