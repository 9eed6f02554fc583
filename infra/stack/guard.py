"""Who may speak to a server: a layer before any ASGI application that looks at `Host`, `Origin` and a key.

Loopback is not a wall: every user of the machine reaches it, and so does every page in a browser there.
"""

import base64
import binascii
import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send


class Guard:
    """`app`, for those who call it by one of its `addresses`, from its own pages, and with the key.

    The key is asked for on every path but `open_paths`: as the password of HTTP Basic, whatever the user's name, which
    a browser asks a person for once; or as a bearer token. Without a `key` the application asks for its own.
    """

    def __init__(
        self, app: ASGIApp, addresses: Collection[str], key: str | None = None, open_paths: Collection[str] = ()
    ) -> None:
        self._app = app
        self._addresses = tuple(addresses)
        # Exactly: a page of another port is another person's, whatever the cookies and passwords that it shares.
        self._hosts = {urlsplit(address).netloc.lower() for address in addresses}
        self._origins = {address.lower() for address in addresses}
        self._key = key.encode() if key is not None else None
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entry."""
        refusal = None if scope["type"] == "lifespan" else self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            # Before it is accepted: the server answers the handshake with 403.
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        # Another name for this address: a page that rebinds its own, to be of the same origin.
        if headers.get("host", "").lower() not in self._hosts:
            return PlainTextResponse(f"This server is {' or '.join(self._addresses)}, and no other name.\n", 403)
        # Browsers name it with all that a page may send elsewhere, preflights and WebSockets included.
        if "origin" in headers and headers["origin"].lower() not in self._origins:
            return PlainTextResponse("Pages of other origins may not use this server.\n", 403)
        if self._key is None or scope["path"] in self._open_paths:
            return None
        if hmac.compare_digest(_key_of(headers.get("authorization", "")), self._key):
            return None
        return PlainTextResponse(
            "This server asks for a key: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of the file stack.env, "
            "or that password as MLFLOW_TRACKING_TOKEN.\n",
            401,
            {"WWW-Authenticate": 'Basic realm="the key in stack.env", charset="UTF-8"'},
        )


def _key_of(authorization: str) -> bytes:
    """What a header gives for the key; empty if nothing."""
    scheme, _, given = authorization.partition(" ")
    match scheme.lower():
        case "bearer":
            return given.strip().encode()
        case "basic":
            try:
                return base64.b64decode(given, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return b""
    return b""
