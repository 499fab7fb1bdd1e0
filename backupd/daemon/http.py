"""The daemon's HTTP: the status page, /healthz and /metrics, and with the token POST /snapshots.

It never serves stored data.

There is no encryption here: beyond loopback, this is for a network of containers that trust each other.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from backupd.daemon.listening import Server
from backupd.daemon.pages import MOST_AT_ONCE as MOST_PAGES_AT_ONCE
from backupd.daemon.pages import Pages
from backupd.daemon.requests import MOST_AT_ONCE, Requests, parse_request
from backupd.errors import BackupdError, ExitCode, LimitReachedError, UsageError, limit_reached
from backupd.health.alarms import is_healthy
from backupd.health.metrics import CONTENT_TYPE, metrics_text
from backupd.logs import log
from backupd.page import document

if TYPE_CHECKING:
    from collections.abc import Mapping
    from wsgiref.types import StartResponse, WSGIEnvironment

    from backupd.daemon.alert_loop import AlertLoop
    from backupd.daemon.work import Context

# However many clients wait for their snapshots or for pages, two threads are left for health and metrics.
_THREADS = MOST_AT_ONCE + MOST_PAGES_AT_ONCE + 2
_RETRY_AFTER_SECONDS = 5
_SCHEME = "Bearer "
_STATUS_OF = {
    ExitCode.DONE: HTTPStatus.OK,
    ExitCode.USAGE: HTTPStatus.BAD_REQUEST,
    ExitCode.BUSY: HTTPStatus.CONFLICT,
}
"""The exit codes of `backupd now` as HTTP codes; all others are 503, so that `curl --fail` fails."""


@dataclass(frozen=True, slots=True)
class _Answer:
    code: HTTPStatus
    content: bytes
    content_type: str = "application/json"
    header: tuple[str, str] | None = None
    """One more header, if the code needs it."""
    page_headers: tuple[tuple[str, str], ...] = ()

    @property
    def headers(self) -> list[tuple[str, str]]:
        headers = [("Content-Type", self.content_type), ("Cache-Control", "no-store")]
        headers += [("Content-Length", str(len(self.content))), *self.page_headers]
        return [*headers, self.header] if self.header else headers


class HttpServer:
    """Listens where the configuration says, and answers for the context that is in force."""

    def __init__(self, alerts: AlertLoop, context: Context) -> None:
        self._alerts = alerts
        self._context = context
        self._requests = Requests()
        self._pages = Pages(alerts)
        self._server: Server | None = None

    def listen(self) -> None:
        """Listen at the configured address, if there is one. Raises `UsageError` or `LimitReachedError`."""
        http = self._context.settings.http
        if http.address is not None:
            self._server = Server(http.address, self._application, threads=_THREADS)
            log.info("listening", url=self._server.url, takes_snapshots=http.token is not None)

    def reconfigure(self, context: Context) -> None:
        """Answer for `context` from now on, at its address.

        Raises `UsageError` or `LimitReachedError`, and continues as before, when that address cannot be used.
        """
        before, self._context = self._context, context
        listened_at = None if self._server is None else self._server.asked_for
        if context.settings.http.address == listened_at:
            return
        self.close()  # first: the new address may contain the old one, as 0.0.0.0 does
        try:
            self.listen()
        except BackupdError:
            self._context = before
            if listened_at is not None:
                self.listen()
            raise

    def close(self) -> None:
        """Stop listening. Answers that are being given are not waited for."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _application(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        """Answer one complete request, in one of waitress's threads."""
        try:
            answer = self._answer(environ, self._context)
        except Exception as error:  # noqa: BLE001  (the client must get an answer)
            code = HTTPStatus.INTERNAL_SERVER_ERROR if limit_reached(error) is None else HTTPStatus.SERVICE_UNAVAILABLE
            answer = _json(code, {"error": log.unexpected(error, path=environ["PATH_INFO"]).values()})
        start_response(f"{answer.code.value} {answer.code.phrase}", answer.headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.content]

    def _answer(self, environ: WSGIEnvironment, context: Context) -> _Answer:
        match environ["REQUEST_METHOD"], environ["PATH_INFO"]:
            case "GET" | "HEAD", "/healthz":
                return self._health(context)
            case "GET" | "HEAD", "/metrics":
                content = metrics_text(context.status.read(), self._alerts.alarms(), now=datetime.now(UTC))
                return _Answer(HTTPStatus.OK, content, CONTENT_TYPE)
            case "GET" | "HEAD", path:
                return self._page(path, environ["QUERY_STRING"], context)
            case "POST", "/snapshots" if context.settings.http.token is not None:
                return self._snapshots(environ, context, context.settings.http.token.reveal())
            case "POST", _:
                hint = "POST /snapshots needs http.token to be set"
                return _refusal(HTTPStatus.NOT_FOUND, "nothing is here", hint=hint)
            case _:
                hint, header = "there are GET, HEAD and POST", ("Allow", "GET, HEAD, POST")
                return _refusal(HTTPStatus.METHOD_NOT_ALLOWED, "no such method is here", hint=hint, header=header)

    def _health(self, context: Context) -> _Answer:
        alarms = self._alerts.alarms()
        is_well = is_healthy(context.status.read(), alarms)
        shown = [
            {"kind": alarm.kind, "database": alarm.database, "store": alarm.store, "since": alarm.since.isoformat()}
            for alarm in alarms
        ]
        code = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
        return _json(code, {"is_healthy": is_well, "alarms": shown})

    def _page(self, path: str, query: str, context: Context) -> _Answer:
        """Answer with a page of what this machine knows."""
        try:
            found = self._pages.page(path, query, context)
        except LimitReachedError as error:
            header = ("Retry-After", str(_RETRY_AFTER_SECONDS))
            return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": error.values()}, header=header)
        if found is None:
            return _refusal(HTTPStatus.NOT_FOUND, "nothing is here", hint="there are /, /healthz and /metrics")
        code = HTTPStatus.OK if found.is_found else HTTPStatus.NOT_FOUND
        return _Answer(code, found.content, document.CONTENT_TYPE, page_headers=document.HEADERS)

    def _snapshots(self, environ: WSGIEnvironment, context: Context, token: str) -> _Answer:
        """Take a snapshot, for clients that know the token."""
        if not _has_token(environ, token):
            return _refusal(
                HTTPStatus.UNAUTHORIZED,
                "this needs the token of http.token",
                hint="send the header: Authorization: Bearer TOKEN",
                header=("WWW-Authenticate", "Bearer"),
            )
        try:
            given = self._requests.answer(parse_request(_values(environ)), context)
        except LimitReachedError as error:
            header = ("Retry-After", str(_RETRY_AFTER_SECONDS))
            return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": error.values()}, header=header)
        except BackupdError as error:
            code = _STATUS_OF.get(error.exit_code, HTTPStatus.SERVICE_UNAVAILABLE)
            return _json(code, {"error": error.values()})
        code = _STATUS_OF.get(given.exit_code, HTTPStatus.SERVICE_UNAVAILABLE)
        return _json(HTTPStatus.ACCEPTED if "accepted" in given.values else code, given.values)


def _has_token(environ: WSGIEnvironment, token: str) -> bool:
    given: str = environ.get("HTTP_AUTHORIZATION", "")
    # WSGI gives every header as Latin-1.
    sent = given.removeprefix(_SCHEME).strip().encode("latin-1", errors="replace")
    return given.startswith(_SCHEME) and hmac.compare_digest(sent, token.encode())


def _values(environ: WSGIEnvironment) -> Mapping[str, object]:
    """Return the fields that were sent: as a form or as JSON, and in the query of the URL."""
    content = environ["wsgi.input"].read()
    content_type = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    try:
        pairs: list[tuple[str, object]] = [*_form(environ["QUERY_STRING"].encode("latin-1"))]
        if content_type == "application/json":
            # No field is a number, and Python refuses to convert integers of many digits.
            given: _Pairs = json.loads(content or b"{}", object_pairs_hook=_Pairs, parse_int=float)
            pairs += given.items()
        else:
            pairs += _form(content)
    except (ValueError, AttributeError, RecursionError) as error:
        raise UsageError(
            "the body of the request cannot be read", hint="send: curl -d database=app -d tag=before-upgrade"
        ) from error
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UsageError(f"{twice!r} is given more than once", hint="send each key once, in the body or in the URL")
    return values


class _Pairs:
    """A JSON object that keeps its duplicate keys."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        self._pairs = pairs

    def items(self) -> list[tuple[str, object]]:
        return self._pairs


def _form(content: bytes) -> list[tuple[str, str]]:
    return parse_qsl(content.decode(), keep_blank_values=True, errors="strict")


def _refusal(code: HTTPStatus, message: str, *, hint: str, header: tuple[str, str] | None = None) -> _Answer:
    return _json(code, {"error": {"message": message, "hint": hint}}, header=header)


def _json(code: HTTPStatus, values: Mapping[str, object], *, header: tuple[str, str] | None = None) -> _Answer:
    return _Answer(code, json.dumps(values, indent=2).encode() + b"\n", header=header)
