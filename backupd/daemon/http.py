"""Who may ask: GET /healthz and /metrics, and with the token POST /snapshots. No request is ever answered with data.

There is no encryption here: beyond loopback, this is for a network of containers that trust each other.
"""

from __future__ import annotations

import hmac
import json
import socket
import sys
import threading
import traceback
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from backupd import __version__
from backupd.daemon.requested import answer, parse_request
from backupd.errors import BackupdError, ExitCode, UsageError
from backupd.health.judging import is_healthy
from backupd.health.metrics import CONTENT_TYPE, metrics_text
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backupd.daemon.attention import Attention
    from backupd.daemon.charge import Charge

_MOST_BODY_BYTES = 16_384
_MOST_CONNECTIONS = 32
_IDLE_SECONDS = 10.0
_REQUEST_SECONDS = 20.0
_SCHEME = "Bearer "
_STATUS_OF = {
    ExitCode.DONE: HTTPStatus.OK,
    ExitCode.USAGE: HTTPStatus.BAD_REQUEST,
    ExitCode.BUSY: HTTPStatus.CONFLICT,
}
"""What `backupd now` would have ended with, as HTTP says it; anything else is 503, so that `curl --fail` fails."""


class HttpServer:
    """Listens where the configuration says, and answers for the charge that holds at that moment."""

    def __init__(self, attention: Attention) -> None:
        self._attention = attention
        self._server: _Server | None = None

    def listen(self, charge: Charge) -> None:
        """Answer for `charge` from now on, at its address. Raises `UsageError`, and goes on as before, if it cannot."""
        address = charge.settings.http.address
        if self._server is not None and address == self._server.asked_for:
            self._server.charge = charge
            return
        before = self._server
        self.close()  # first: the new address may contain the old one, as 0.0.0.0 does
        if address is None:
            return
        try:
            self._serve(_bound(address, charge, self._attention))
        except UsageError:
            if before is not None:
                self._serve(_bound(before.asked_for, before.charge, self._attention))
            raise

    def _serve(self, server: _Server) -> None:
        self._server = server
        threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
        log.info("listening", url=server.url, takes_snapshots=server.charge.settings.http.token is not None)

    def close(self) -> None:
        """Listen no more. Answers that are being given are not waited for."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], charge: Charge, attention: Attention) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.asked_for = address
        self.charge = charge
        self.attention = attention
        self._room = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def server_bind(self) -> None:
        # The one of http.server asks a name server for this host's name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  (as it is called)
        """A client that goes away is no news; anything else is a bug."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("this is a bug in backupd", error=repr(error), traceback=traceback.format_exc())


def _bound(address: tuple[str, int], charge: Charge, attention: Attention) -> _Server:
    try:
        return _Server(address, charge, attention)
    except OSError as error:
        host, port = address
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint='set http.listen (BACKUPD_HTTP__LISTEN) to another address, or to "" for none',
        ) from error


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = f"backupd/{__version__}"
    sys_version = ""
    timeout = _IDLE_SECONDS

    def setup(self) -> None:
        """Give the client a time for its whole request: one byte now and then would keep its place for hours."""
        super().setup()
        self._patience = threading.Timer(_REQUEST_SECONDS, self._give_up)
        self._patience.daemon = True
        self._patience.start()

    def finish(self) -> None:
        """Whatever came of it."""
        self._patience.cancel()
        super().finish()

    def _give_up(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        """Health and metrics."""
        match urlsplit(self.path).path:
            case "/healthz":
                self._answer_health()
            case "/metrics":
                self._answer_metrics()
            case _:
                self._refuse(HTTPStatus.NOT_FOUND, "nothing is here", hint="there are /healthz and /metrics")

    do_HEAD = do_GET  # noqa: N815  (the name that http.server asks for)

    def do_POST(self) -> None:
        """A snapshot, for whoever knows the token; without one in the configuration, nothing is here."""
        token = self.server.charge.settings.http.token
        if token is None or urlsplit(self.path).path != "/snapshots":
            self._refuse(HTTPStatus.NOT_FOUND, "nothing is here", hint="POST /snapshots needs http.token to be set")
        elif not self._has_token(token.get_secret_value()):
            self._refuse(
                HTTPStatus.UNAUTHORIZED,
                "this needs the token of http.token",
                hint="send the header: Authorization: Bearer TOKEN",
            )
        else:
            self._take_snapshot()

    def _answer_health(self) -> None:
        alarms = self.server.attention.alarms()
        is_well = is_healthy(self.server.charge.status.read(), alarms)
        told = [
            {"kind": alarm.kind, "database": alarm.database, "store": alarm.store, "since": alarm.since.isoformat()}
            for alarm in alarms
        ]
        code = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
        self._send_json(code, {"is_healthy": is_well, "alarms": told})

    def _answer_metrics(self) -> None:
        content = metrics_text(self.server.charge.status.read(), self.server.attention.alarms())
        self._send(HTTPStatus.OK, content, CONTENT_TYPE)

    def _take_snapshot(self) -> None:
        try:
            given = answer(parse_request(self._body()), self.server.charge)
        except BackupdError as error:
            code = _STATUS_OF.get(error.exit_code, HTTPStatus.SERVICE_UNAVAILABLE)
            self._send_json(code, {"error": error.values()})
            return
        code = _STATUS_OF.get(given.exit_code, HTTPStatus.SERVICE_UNAVAILABLE)
        self._send_json(HTTPStatus.ACCEPTED if "accepted" in given.values else code, given.values)

    def _has_token(self, token: str) -> bool:
        given = self.headers.get("Authorization", "")
        # http.server reads headers as Latin-1, whatever they are.
        sent = given.removeprefix(_SCHEME).strip().encode("latin-1", errors="replace")
        return given.startswith(_SCHEME) and hmac.compare_digest(sent, token.encode())

    def _body(self) -> Mapping[str, object]:
        """What was sent, as a form or as JSON, and what stands in the URL behind the question mark."""
        length = self.headers.get("Content-Length") or "0"
        # A body in chunks would be passed over: the snapshot would lack its tag.
        if "Transfer-Encoding" in self.headers or not length.isdecimal() or int(length) > _MOST_BODY_BYTES:
            raise UsageError(
                "the body of the request is too large, or of no known length",
                hint="send: curl -d database=app -d tag=before-upgrade",
            )
        content = self.rfile.read(int(length))
        if len(content) < int(length):
            raise UsageError("the body of the request broke off", hint="nothing was done; send it again")
        self._patience.cancel()  # what follows takes as long as a snapshot
        values: dict[str, object] = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        try:
            if self.headers.get_content_type() == "application/json":
                return values | dict(json.loads(content or b"{}"))
            return values | dict(parse_qsl(content.decode(), keep_blank_values=True))
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(
                "the body of the request cannot be read", hint="send: curl -d database=app -d tag=before-upgrade"
            ) from error

    def _refuse(self, code: HTTPStatus, message: str, *, hint: str) -> None:
        self._send_json(code, {"error": {"message": message, "hint": hint}})

    def _send_json(self, code: HTTPStatus, values: Mapping[str, object]) -> None:
        self._send(code, json.dumps(values, indent=2).encode() + b"\n", "application/json")

    def _send(self, code: HTTPStatus, content: bytes, content_type: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        if code is HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (its name)
        """Every 30 s somebody asks for /healthz: that is no event."""
