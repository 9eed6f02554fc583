"""A real HTTP server on loopback that serves bytes and, when told to, misbehaves like the servers out there."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Behaviour:
    """How the server treats one file; the default is well."""

    status: int = 200
    """Answered in place of the file, unless 200."""
    location: str | None = None
    """Where an answer other than 200 sends the client."""
    content_type: str = "application/gzip"
    ranges: bool = True
    """Honours `Range`; otherwise it sends the whole file each time."""
    shift: int = 0
    """How far the range that it sends lies from the one that was asked for."""
    length: bool = True
    """Announces the length; otherwise the body comes in chunks, of which the last says that it is the last."""
    silent: bool = False
    """Takes the request and does not answer before `HttpServer.resume` is set."""
    break_after: int | None = None
    """Cuts the connection after so many bytes of an answer."""
    stall_after: int | None = None
    """Sends so many bytes of an answer, then none until `HttpServer.resume` is set."""
    times: int = 1 << 30
    """How many requests are treated badly; those after it are treated well."""


@dataclass
class HttpServer:
    """What the server has, what it was asked, and how it behaves; all may change while it runs."""

    files: dict[str, bytes] = field(default_factory=dict)
    behaviour: dict[str, Behaviour] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """File name and `Range` header of each request, in the order in which they came."""
    sent: int = 0
    """Bytes of bodies that were written to connections."""
    resume: threading.Event = field(default_factory=threading.Event)
    """Set it to let stalled answers go on."""
    address: str = ""
    stop: Callable[[], None] = lambda: None
    """Stop listening for good, before the block ends."""

    def requests_for(self, name: str) -> list[str | None]:
        """The `Range` header of each request for `name`."""
        return [asked for file, asked in self.requests if file == name]


@contextlib.contextmanager
def serving(files: dict[str, bytes] | None = None) -> Iterator[HttpServer]:
    """Serve `files` by name until the block ends; `HttpServer.address` ends with a slash."""
    state = HttpServer(files=dict(files or {}))
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2].partition("?")[0]
            asked = self.headers.get("Range")
            with lock:
                state.requests.append((name, asked))
                behaviour = state.behaviour.get(name, Behaviour())
                if behaviour.times <= 0:
                    behaviour = Behaviour()
                behaviour.times -= 1
            self.close_connection = True
            if behaviour.silent:
                state.resume.wait()
            if behaviour.location is not None:
                self.send_response(behaviour.status)
                self.send_header("Location", behaviour.location)
                self.send_header("Content-Length", "0")
                self.send_header("Connection", "close")
                self.end_headers()
            elif behaviour.status != 200 or name not in state.files:
                self.send_error(404 if behaviour.status == 200 else behaviour.status)
            else:
                self.answer(state.files[name], asked, behaviour)

        def answer(self, data: bytes, asked: str | None, behaviour: Behaviour) -> None:
            start = 0
            if asked and behaviour.ranges:
                start = int(asked.removeprefix("bytes=").removesuffix("-")) + behaviour.shift
                if start >= len(data):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(data)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            body = data[start:]
            self.send_header("Content-Type", behaviour.content_type)
            if behaviour.length:
                self.send_header("Content-Length", str(len(body)))
            else:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            stop = min(
                limit for limit in (behaviour.break_after, behaviour.stall_after, len(body)) if limit is not None
            )
            with contextlib.suppress(ConnectionError):
                self.send_body(body[:stop], behaviour)
                if behaviour.stall_after is not None:
                    state.resume.wait()
                    self.send_body(body[stop:], behaviour)
                if behaviour.break_after is None and not behaviour.length:
                    self.wfile.write(b"0\r\n\r\n")

        def send_body(self, data: bytes, behaviour: Behaviour) -> None:
            for position in range(0, len(data), 65_536):
                piece = data[position : position + 65_536]
                self.wfile.write(piece if behaviour.length else b"%x\r\n%b\r\n" % (len(piece), piece))
                with lock:
                    state.sent += len(piece)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        state.address = f"http://127.0.0.1:{server.server_port}/folder/"

        def stop() -> None:
            state.resume.set()
            server.shutdown()
            thread.join()
            server.socket.close()

        state.stop = stop
        try:
            yield state
        finally:
            stop()


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """The address of a port of this machine that is held, and where nobody listens."""
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}/folder/"
