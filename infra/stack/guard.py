"""Who may speak to a server: a layer before any ASGI application that looks at `Host`, `Origin` and a key.

Loopback is not a wall: every user of the machine reaches it, and so does every page in a browser there.
"""

import base64
import binascii
import hmac
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

IN_STACK_ENV = (
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of the file stack.env, or that password as "
    "MLFLOW_TRACKING_TOKEN"
)


class Guard:
    """`app`, for those who call it by one of its `addresses`, from its own pages, and with the key.

    The key is asked for on every path but `open_paths`: as the password of HTTP Basic, whatever the user's name, which
    a browser asks a person for once; or as a bearer token. Without a `key` the application asks for its own; several
    that may change are a function that returns them. Without `addresses` any will do, and pages of the one called.
    """

    def __init__(
        self,
        app: ASGIApp,
        addresses: Collection[str],
        key: str | Callable[[], Collection[bytes]] | None = None,
        open_paths: Collection[str] = (),
        kept_in: str = IN_STACK_ENV,
    ) -> None:
        """`kept_in` says to who has no key where it is."""
        self._app = app
        self._kept_in = kept_in
        self._addresses = tuple(addresses)
        # Exactly: a page of another port is another person's, whatever the cookies and passwords that it shares.
        self._hosts = {urlsplit(address).netloc.lower() for address in addresses}
        self._origins = {address.lower() for address in addresses}
        self._keys = (lambda: (key.encode(),)) if isinstance(key, str) else key
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
        host = headers.get("host", "").lower()
        if self._hosts and host not in self._hosts:
            return PlainTextResponse(f"This server is {' or '.join(self._addresses)}, and no other name.\n", 403)
        # Browsers name it with all that a page may send elsewhere, preflights and WebSockets included.
        own = self._origins or {f"http://{host}", f"https://{host}"}
        if "origin" in headers and headers["origin"].lower() not in own:
            return PlainTextResponse("Pages of other origins may not use this server.\n", 403)
        if self._keys is None or scope["path"] in self._open_paths:
            return None
        given = _key_of(headers.get("authorization", ""))
        if any(hmac.compare_digest(given, key) for key in self._keys()):
            return None
        return PlainTextResponse(
            f"This server asks for a key: {self._kept_in}.\n",
            401,
            {"WWW-Authenticate": f'Basic realm="{self._kept_in}", charset="UTF-8"'},
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
