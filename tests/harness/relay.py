"""A relay on loopback in front of a server: connections can stall in it, or not come about, as in a bad network."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from harness.command_line import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BLOCK_BYTES = 1 << 16


class Relay:
    """Passes bytes on, both ways, until the test says otherwise. What it holds back, it passes on with `flow`."""

    def __init__(self, target_url: str) -> None:
        target = urlsplit(target_url)
        self._target = (target.hostname or "", target.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.held = 0
        """How many requests were held back since that was asked for."""
        self._holds: Callable[[bytes], bool] = lambda _: False
        self._delay_seconds = 0.0
        self._flowing = threading.Event()
        self._flowing.set()
        self._open: set[socket.socket] = set()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def delay(self, seconds: float) -> None:
        """Let each block that a client sends wait so long from now on: the round trip of a network."""
        self._delay_seconds = seconds

    def flow(self) -> None:
        """Hold nothing back any more."""
        self._holds = lambda _: False
        self._flowing.set()

    def hang(self) -> None:
        """Accept connections from now on, and pass on nothing of what clients send: they get no answer."""
        self._hold(lambda _: True)

    def stall_uploads(self) -> None:
        """Hold every upload of a pack back from now on."""
        self._hold(lambda sent: _is_for_a_pack(sent, b"PUT"))

    def stall_downloads(self) -> None:
        """Hold every download of a pack back from now on."""
        self._hold(lambda sent: _is_for_a_pack(sent, b"GET"))

    def _hold(self, holds: Callable[[bytes], bool]) -> None:
        self.held = 0
        self._flowing.clear()
        self._holds = holds

    def wait_until_held(self) -> None:
        """Return when a request is held back."""
        wait_until(lambda: self.held > 0)

    def close(self) -> None:
        """End, with every connection."""
        # A thread that waits in `accept` is woken by this, and not by closing alone.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.flow()
        self._acceptor.join()
        for each in [*self._open]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(self._target) as server:
            self._open |= {client, server}
            back = threading.Thread(target=self._pass_on, args=(server, client, lambda _: False), daemon=True)
            back.start()
            self._pass_on(client, server, self._is_held)
            back.join()
            self._open -= {client, server}

    def _is_held(self, sent: bytes) -> bool:
        """Asked for each block: what is to be held changes while connections are open."""
        time.sleep(self._delay_seconds)
        return self._holds(sent)

    def _pass_on(self, source: socket.socket, sink: socket.socket, holds: Callable[[bytes], bool]) -> None:
        with suppress(OSError):
            while block := source.recv(_BLOCK_BYTES):
                if holds(block):
                    self.held += 1
                    self._flowing.wait()
                sink.sendall(block)
        # A server closes a connection on which it waits for long; a network that stalls does not pass that on either.
        self._flowing.wait()
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _is_for_a_pack(sent: bytes, method: bytes) -> bool:
    first_line = sent.partition(b"\r\n")[0]
    return first_line.startswith(method + b" ") and b"/packs/" in first_line


@contextmanager
def relay(target_url: str) -> Iterator[Relay]:
    """A relay to the server at `target_url`. Ends with the block."""
    found = Relay(target_url)
    try:
        yield found
    finally:
        found.close()
