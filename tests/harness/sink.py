"""A server on the loopback interface that takes what is sent to it, and answers as the test says."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple

from harness.command_line import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


class Received(NamedTuple):
    """One request that came in."""

    path: str
    body: str


@dataclass
class Sink:
    """What came in. `code` is what the next requests are answered with; `gate` holds answers back while it is clear."""

    port: int = 0
    code: int = 200
    codes: dict[str, int] = field(default_factory=dict)
    """Of requests with this method, or with this path, in place of `code`."""
    received: list[Received] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """The URL at which the sink listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def paths(self) -> list[str]:
        """The paths of the requests, in their order."""
        return [each.path for each in self.received]

    def wait_for(self, count: int) -> list[Received]:
        """What came in, as soon as it is so many."""
        wait_until(lambda: len(self.received) >= count)
        return self.received


@contextmanager
def sink() -> Iterator[Sink]:
    """A sink that answers 200 until the test says otherwise."""
    found = Sink()
    found.gate.set()

    class _Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            code = found.codes.get(self.command, found.codes.get(self.path, found.code))
            if self.command not in found.codes:
                found.received.append(Received(self.path, body))
            found.gate.wait(30)
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    found.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        found.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()
