"""The sockets behind the daemon's HTTP: waitress, with limits that leave room for the next client.

waitress limits how long a client may be silent, not how long a request may take to arrive: here a request has to be
complete in time, and when there are too many connections, the oldest one without a request makes room.
"""

from __future__ import annotations

import json
import logging
import resource
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask

from backupd import __version__
from backupd.concurrency import start_thread
from backupd.errors import BackupdError, LimitReachedError, UsageError, limit_reached
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable
    from wsgiref.types import WSGIApplication

MOST_BODY_BYTES = 16_384
_MOST_HEADER_BYTES = 16_384
_MOST_CONNECTIONS = 64
_REQUEST_SECONDS = 20.0
_MOST_WAITING_BYTES = 64 << 20  # of one answer, in memory: there may be no directory for temporary files
_LOOK_SECONDS = 1.0
_CLOSE_SECONDS = 1.0
_HINTS = {
    400: "send a request as in: curl http://HOST:PORT/healthz",
    413: f"a body has at most {MOST_BODY_BYTES} bytes; send: curl -d database=app -d tag=before-upgrade",
    431: f"a request has at most {_MOST_HEADER_BYTES} bytes before its body",
}


class _Parser(HTTPRequestParser):  # type: ignore[misc]  # it has no types
    def parse_header(self, header_plus: bytes) -> None:
        """Refuse numbers and addresses that Python cannot parse; waitress would drop the connection."""
        try:
            super().parse_header(header_plus)
        except ValueError as error:
            raise ParsingError("the request cannot be read") from error


class _AnswerTask(WSGITask):  # type: ignore[misc]  # it has no types
    def start(self) -> None:
        """Answer one request, and close the connection: clients ask too rarely for it to be worth keeping."""
        super().start()
        self.request.headers["CONNECTION"] = "close"


class _RefusalTask(ErrorTask):  # type: ignore[misc]  # it has no types
    def execute(self) -> None:
        """Refuse a malformed request in JSON, as all other refusals are."""
        error = self.request.error
        refusal = {"message": f"{error.reason.lower()}: {error.body}", "hint": _HINTS.get(error.code)}
        body = json.dumps({"error": refusal}, indent=2).encode() + b"\n"
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Dispatcher(ThreadedTaskDispatcher):  # type: ignore[misc]  # it has no types
    def start_new_thread(self, target: Callable[[int], None], thread_no: int) -> None:
        """Start a worker thread. Raises `LimitReachedError` when the system gives none."""
        start_thread(target, thread_no, name=f"http-{thread_no}")


class _Channel(HTTPChannel):  # type: ignore[misc]  # it has no types
    task_class = _AnswerTask
    error_task_class = _RefusalTask
    parser_class = _Parser

    def service(self) -> None:
        """Answer a request. After an error, waitress would log it and leave the client waiting: here it is dropped."""
        try:
            super().service()
        except Exception as error:  # noqa: BLE001  (the thread has others to answer)
            log.unexpected(error)
            self.cancel()
            self.server.pull_trigger()

    def handle_read(self) -> None:
        """Read what has arrived, unless `_make_room` has: waitress would take an empty read for the end."""
        with suppress(OSError):  # waitress handles other errors
            try:
                self.socket.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return
        super().handle_read()

    def handle_error(self) -> None:
        """Close the connection. That a client has gone is not logged; anything else is a bug, or a limit."""
        _report(sys.exception())
        self.handle_close()


class Server(TcpWSGIServer):  # type: ignore[misc]  # it has no types
    """Listens at one address, in a thread of its own, until it is closed."""

    channel_class = _Channel

    def __init__(
        self,
        address: tuple[str, int],
        application: WSGIApplication,
        *,
        threads: int,
        request_seconds: float = _REQUEST_SECONDS,
    ) -> None:
        """Listen, and have `threads` threads answer requests that are complete within `request_seconds`.

        Raises `UsageError` when the address cannot be used, and `LimitReachedError`.
        """
        self.asked_for = address
        self._request_seconds = request_seconds
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._is_over = False
        self._refuses_until = 0.0
        # At least as many as there are threads, of which some are never held by requests that wait.
        self._most_connections = max(threads, _most_connections())
        # `handle_error` and the application report everything that can go wrong.
        logging.getLogger("waitress").disabled = logging.getLogger("waitress.queue").disabled = True
        listening = _bound(address)
        dispatcher = _Dispatcher()
        try:
            dispatcher.set_thread_count(threads)
            super().__init__(
                application,
                map={},
                _sock=listening,
                dispatcher=dispatcher,
                adj=_adjustments(listening),
                sockinfo=(listening.family, listening.type, listening.proto, listening.getsockname()),
                bind_socket=False,
            )
            start_thread(self._work, name="http")
        except (OSError, LimitReachedError) as error:
            dispatcher.shutdown(timeout=0)
            listening.close()
            if "trigger" in vars(self):
                self.trigger.close()
            raise _unusable(address, error) from error

    @property
    def url(self) -> str:
        """The URL it listens at, with the actual port when the configured one is 0."""
        host, port = self.effective_host, self.effective_port
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def close(self) -> None:
        """Stop listening, and drop the clients without a request; answers that are being given may finish."""
        if not self._is_closed.is_set():
            self.pull_trigger(self._stop_listening)
            self._is_closed.wait(_CLOSE_SECONDS)

    def _stop_listening(self) -> None:
        self.accepting = False
        self.del_channel()
        self.socket.close()
        for channel in self._idle_channels():
            channel.handle_close()
        self.task_dispatcher.shutdown(timeout=0)
        self._is_closed.set()

    def _work(self) -> None:
        while not self._is_closed.is_set() or self.active_channels:
            try:
                self.asyncore.loop(timeout=_LOOK_SECONDS, use_poll=True, map=self._map, count=1)
                self.maintenance(time.time())
            except Exception as error:  # noqa: BLE001  (health checks must still be answered)
                log.unexpected(error)
                time.sleep(_LOOK_SECONDS)
        with self._lock:
            self._is_over = True
            self.trigger.close()

    def pull_trigger(self, call: Callable[[], None] | None = None) -> None:
        """Wake the thread that reads and writes, and have it do `call`; nothing once that thread has ended.

        The descriptor may belong to another file by then.
        """
        with self._lock:
            if not self._is_over:
                self.trigger.pull_trigger(call)

    def readable(self) -> bool:
        """Whether the next client may connect. It has to wait while every connection has a request."""
        has_room = len(self.active_channels) < self._most_connections or bool(self._idle_channels())
        return bool(self.accepting) and has_room and time.monotonic() >= self._refuses_until

    def maintenance(self, now: float) -> None:
        """Drop clients that take too long to send their request or to read their answer."""
        for channel in self._idle_channels():
            if channel.creation_time < now - self._request_seconds:
                channel.handle_close()

    def handle_accept(self) -> None:
        """Accept a client. When there are too many, the oldest connection without a request is closed."""
        if len(self.active_channels) >= self._most_connections and not self._make_room():
            return
        try:
            accepted = self.accept()
        except OSError as error:
            if limit_reached(error) and not self._make_room():
                self._refuses_until = time.monotonic() + _LOOK_SECONDS  # or this thread would spin on the socket
            return
        if accepted is None:
            return
        client, address = accepted
        try:
            self.set_socket_options(client)
            self.channel_class(self, client, address, self.adj, map=self._map)
        except OSError:  # it has gone
            client.close()

    def handle_error(self) -> None:
        """Continue to listen after an error with one client."""
        _report(sys.exception())

    def _make_room(self) -> bool:
        for channel in sorted(self._idle_channels(), key=lambda channel: channel.creation_time):
            if channel.readable():
                channel.handle_read()  # its request may have arrived, and not been read yet
            if not channel.requests:
                if channel.connected:  # unless reading found that it has gone
                    channel.handle_close()
                return True
        return False

    def _idle_channels(self) -> list[Any]:
        """Return the connections without work: no request has arrived, or it was answered."""
        return [channel for channel in self.active_channels.values() if not channel.requests]


def _report(error: BaseException | None) -> None:
    if error is not None and (not isinstance(error, OSError) or limit_reached(error)):
        log.unexpected(error)


def _most_connections() -> int:
    """Return how many connections to allow, so that most descriptors are left for the backups."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_CONNECTIONS if allowed == resource.RLIM_INFINITY else max(1, min(_MOST_CONNECTIONS, allowed // 4))


def _adjustments(listening: socket.socket) -> Any:
    return Adjustments(
        sockets=[listening],
        ident=f"backupd/{__version__}",
        backlog=_MOST_CONNECTIONS * 2,
        # waitress refuses requests of exactly these lengths too.
        max_request_header_size=_MOST_HEADER_BYTES + 1,
        max_request_body_size=MOST_BODY_BYTES + 1,
        inbuf_overflow=MOST_BODY_BYTES * 2,
        outbuf_overflow=_MOST_WAITING_BYTES,
        log_socket_errors=False,
        clear_untrusted_proxy_headers=False,  # they are not used
    )


def _bound(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        listening = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _unusable(address, error) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise _unusable(address, error) from error
    return listening


def _unusable(address: tuple[str, int], error: OSError | BackupdError) -> BackupdError:
    if isinstance(error, BackupdError):
        return error
    host, port = address
    return limit_reached(error) or UsageError(
        f"cannot listen on {host}:{port}: {error.strerror or error}",
        hint='set http.listen (BACKUPD_HTTP__LISTEN) to another address, or to "" for none',
    )
