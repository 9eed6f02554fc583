"""The server of the application: uvicorn, which lets clients go before it closes what they speak through."""

import asyncio
import resource
import signal
import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from infra.errors import ArgumentError
from infra.service.served import Standing

SECONDS_TO_LEAVE = 2.0
"""For clients that keep their connections, to hear with an answer that it is the last one."""

SECONDS_TO_END = 20
"""For what is in flight then."""


SECONDS_TO_KEEP = 75
"""An idle connection: longer than clients keep theirs, which would ask at the moment in which it is closed."""

DESCRIPTORS = 10_240


class Server(uvicorn.Server):
    """Serves an application until it is told to end: then it takes no new connections, and answers what it has."""

    def __init__(self, app: ASGIApp, standing: Standing) -> None:
        # Connections that are idle cost a descriptor each, and nobody's turn.
        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = DESCRIPTORS if most == resource.RLIM_INFINITY else min(DESCRIPTORS, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, wanted), most))
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                timeout_keep_alive=SECONDS_TO_KEEP,
                timeout_graceful_shutdown=SECONDS_TO_END,
            )
        )
        self._standing, self._leaving = standing, False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # uvicorn reacts to the first two by itself, from a moment on that is not before it listens.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.handle_exit)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does; and remember the loop, for signals."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End in order; told again, at once."""
        if self._leaving or not self.started:
            self.should_exit = self.force_exit = True
            return
        self._leaving = True
        self._loop.call_soon_threadsafe(lambda: self._loop.create_task(self._leave()))

    async def _leave(self) -> None:
        # In this order: a client that was told to leave would be back, in a line that nobody looks at any more.
        for server in self.servers:
            server.close()
        self._standing.ending = True
        until = self._loop.time() + SECONDS_TO_LEAVE
        while self.server_state.connections and self._loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        self.should_exit = True


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the port, and takes no connection before it listens. Raises `ArgumentError` for one in use."""
    # The protocol by its number: of a socket without it asyncio leaves Nagle's algorithm on, and an answer, which is
    # two writes, waits 40 ms for the client to acknowledge the first.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((host, port))
    except (OSError, OverflowError) as error:
        place.close()
        raise ArgumentError(f"Cannot listen at {host}, port {port}: {error}.\nName another with --port.") from error
    return place
