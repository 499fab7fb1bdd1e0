"""A proxy in front of a real S3 server, which answers as bad networks and bad servers do, and can move its clock."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import unescape

from harness.loopback import loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.loopback import Handler, Request

_UPSTREAM_SECONDS = 30
_NOT_PASSED_ON = {"content-length", "transfer-encoding", "connection", "date", "server"}
_LISTED = re.compile(rb"<Key>([^<]*)</Key>.*?<LastModified>([^<]*)</LastModified>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said."""

    status: int
    headers: dict[str, str]
    body: bytes


class Exchange:
    """One request on its way to the server, which a fault may pass on, answer or break."""

    def __init__(self, proxy: Proxy, handler: Handler, request: Request) -> None:
        self.handler = handler
        self.request = request
        # The head and the body of an answer are written by themselves.
        handler.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._proxy = proxy

    @property
    def key(self) -> str:
        """The object's key in its bucket."""
        return unquote(urlsplit(self.request.path).path).split("/", 2)[-1]

    @property
    def is_listing(self) -> bool:
        return "list-type" in parse_qs(urlsplit(self.request.path).query)

    def pass_on(self) -> Answer:
        """Ask the server."""
        return self._proxy.ask(self.request)

    def answer(self, answer: Answer) -> None:
        """Send a whole answer. One to HEAD has no body, and says how long it would be."""
        length = int(answer.headers.get("Content-Length", 0)) if self.request.method == "HEAD" else len(answer.body)
        self.handler.start(answer.status, length=length, **_passed_on(answer))
        if self.request.method != "HEAD":
            self.handler.wfile.write(answer.body)

    def answer_in_part(self, answer: Answer) -> None:
        """Promise the whole body, send half of it, and end the connection."""
        self.handler.start(answer.status, length=len(answer.body), **_passed_on(answer))
        self.handler.wfile.write(answer.body[: len(answer.body) // 2])
        self.handler.wfile.flush()
        self.handler.close_connection = True

    def reset(self) -> None:
        """End the connection with a RST."""
        connection = self.handler.connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.handler.close_connection = True
        with suppress(OSError):
            connection.close()

    def earlier_listing(self) -> Answer | None:
        """What this listing showed before the fault began."""
        return self._proxy.earlier_listing(self.request.path)

    def wait(self) -> None:
        """Hold the request back until the fault is over."""
        self._proxy.flowing.wait()


class Proxy:
    """Passes requests on, or lets `fault` deal with those that `concerns` is true of."""

    def __init__(self, server_url: str) -> None:
        self.endpoint_url = ""
        self.remembered: list[Request] = []
        self.hits = 0
        """How many requests the present fault has dealt with."""
        self.flowing = threading.Event()
        self.flowing.set()
        self._server = urlsplit(server_url)
        self._fault: Callable[[Exchange], None] | None = None
        self._concerns: Callable[[Exchange], bool] = lambda _: True
        self._lock = threading.Lock()
        self._listings: dict[str, Answer] = {}
        self._aged: dict[str, timedelta] = {}

    @contextmanager
    def failing(
        self, fault: Callable[[Exchange], None], concerns: Callable[[Exchange], bool] = lambda _: True
    ) -> Iterator[None]:
        """Let `fault` deal with requests within the block."""
        self.hits = 0
        self.flowing.clear()
        self._concerns, self._fault = concerns, fault
        try:
            yield
        finally:
            self._fault = None
            self.flowing.set()

    def age(self, by: timedelta) -> None:
        """Make every object that a listing shows from now on older, but for packs: their times are part of them."""
        with self._lock:
            for key in self._aged:
                if not key.endswith((".zst", ".age")):
                    self._aged[key] += by

    def serve(self, handler: Handler, request: Request) -> None:
        """Deal with one request."""
        self.remembered.clear()
        exchange = Exchange(self, handler, request)
        fault = self._fault
        if fault is not None and self._concerns(exchange):
            self.hits += 1
            fault(exchange)
            return
        answer = exchange.pass_on()
        if exchange.is_listing:
            with self._lock:
                self._listings[request.path] = answer
        exchange.answer(answer)

    def ask(self, request: Request) -> Answer:
        """Hand a request on; a server that is not there becomes a 503, as behind a load balancer."""
        assert self._server.hostname is not None
        connection = http.client.HTTPConnection(self._server.hostname, self._server.port, timeout=_UPSTREAM_SECONDS)
        try:
            connection.request(request.method, request.path, request.body or None, dict(request.headers))
            response = connection.getresponse()
            answer = Answer(response.status, dict(response.headers), response.read())
        except (OSError, http.client.HTTPException):
            return Answer(503, {}, b"<Error><Code>ServiceUnavailable</Code><Message>gone</Message></Error>")
        finally:
            connection.close()
        if request.method == "PUT" and answer.status == 200:
            with self._lock:
                self._aged[unquote(urlsplit(request.path).path).split("/", 2)[-1]] = timedelta(0)
        return Answer(answer.status, answer.headers, _LISTED.sub(self._as_aged, answer.body))

    def _as_aged(self, listed: re.Match[bytes]) -> bytes:
        aged = self._aged.get(unescape(listed[1].decode()), timedelta(0))
        if not aged:
            return listed[0]
        shown = datetime.fromisoformat(listed[2].decode()) - aged
        return listed[0].replace(listed[2], f"{shown.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}".encode())

    def earlier_listing(self, path: str) -> Answer | None:
        with self._lock:
            return self._listings.get(path)


def _passed_on(answer: Answer) -> dict[str, str]:
    named = {"ETag" if name.lower() == "etag" else name: value for name, value in answer.headers.items()}
    return {name.replace("-", "_"): value for name, value in named.items() if name.lower() not in _NOT_PASSED_ON}


@contextmanager
def proxy(server_url: str) -> Iterator[Proxy]:
    """A proxy to the server at `server_url`. Ends with the block."""
    found = Proxy(server_url)
    with loopback(found.serve) as listening:
        found.endpoint_url = listening.endpoint_url
        # What is remembered of each request would be gigabytes after an hour.
        found.remembered = listening.requests
        try:
            yield found
        finally:
            found.flowing.set()
