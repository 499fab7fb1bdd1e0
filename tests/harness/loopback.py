"""An HTTP server on loopback that answers as a test tells it to: for what no real S3 server does on demand."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from email.message import Message


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: Message
    body: bytes


@dataclass(slots=True)
class Loopback:
    """A running server: where it is, what it was asked, and whether its answers should end."""

    endpoint_url: str
    requests: list[Request] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    """One connection; an answer writes to it."""

    protocol_version = "HTTP/1.1"
    loopback: Loopback

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a whole answer. `_` in a header's name stands for `-`."""
        self.start(status, length=len(body), **headers)
        self.wfile.write(body)

    def start(self, status: int, *, length: int, **headers: str) -> None:
        """Send the head of an answer whose body has `length` bytes."""
        self.send_response_only(status)
        for name, value in {"ETag": '"etag"', **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.flush()

    def error(self, status: int, code: str, message: str = "", **headers: str) -> None:
        """Send an error as S3 spells it."""
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.answer(status, body, Content_Type="application/xml", **headers)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing."""


@contextmanager
def loopback(answer: Callable[[Handler, Request], None], *, tls: ssl.SSLContext | None = None) -> Iterator[Loopback]:
    """A server that calls `answer` for each request, in a thread of the connection. Ends with the block."""

    class _Handler(Handler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = Request(self.command, self.path, self.headers, body)
            self.loopback.requests.append(request)
            # The client may go before the answer is complete.
            with suppress(ConnectionError):
                answer(self, request)
            self.close_connection = self.close_connection or self.loopback.closing.is_set()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

    class _Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A connection that breaks is what these tests are about."""

    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        _Handler.loopback = Loopback(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield _Handler.loopback
        finally:
            _Handler.loopback.closing.set()
            server.shutdown()
            thread.join()
