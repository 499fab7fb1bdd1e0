"""Heartbeats: signs of life for a service that raises an alarm when they stop, such as healthchecks.io.

    <url>/start   a run has begun
    <url>         it has succeeded
    <url>/fail    it has failed

They are POSTs whose body says what became of the run; where a service takes no POST, they are GETs without a body. A
push monitor of Uptime Kuma (`/api/push/`) gets a GET with `status=up`, or `status=down` and `msg`, and no start. The
URL is a secret and is never shown: anyone who has it can report that all is well.
"""

from __future__ import annotations

import base64
import http.client
import threading
from collections import deque
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from backupd import __version__
from backupd.concurrency import start_thread
from backupd.errors import LimitReachedError
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from backupd.config.settings import HeartbeatSettings
    from backupd.errors import BackupdError

_T = TypeVar("_T")

_TIMEOUT_SECONDS = 5.0
_TRIES = 2
_MOST_WAITING = 200
_LONGEST_BODY = 10_000
# The answers for an unknown path or method. Some services give the first for the second.
_NOT_KNOWN = frozenset((404, 405, 501))
_PUSH_PATH = "/api/push/"
_LONGEST_PUSH_MESSAGE = 200


class _Beat(NamedTuple):
    url: str
    """The configured URL."""
    event: str
    """"start", "fail", or "" for a success."""
    body: str


class _Problem(NamedTuple):
    words: str
    code: int | None = None
    """The HTTP status code, when the server answered."""


class Heartbeats:
    """Sends heartbeats in a thread, in their order. Its methods return at once, raise nothing, and fail no run."""

    def __init__(
        self, settings: Sequence[HeartbeatSettings], *, overall: Callable[[], str | None] | None = None
    ) -> None:
        """`overall` describes what is wrong with any database, or returns None.

        It is called before a heartbeat for all databases reports a success: one entry's good round must not hide that
        another has failed, or has not ended for hours.
        """
        self._urls: dict[str | None, list[str]] = {}
        self.reconfigure(settings)
        self._overall = overall
        self._lost: set[str] = set()
        self._unknown: set[tuple[str, str]] = set()
        self._outbox = Outbox("heartbeats", self._deliver, most=_MOST_WAITING)

    def reconfigure(self, settings: Sequence[HeartbeatSettings]) -> None:
        """Send to these URLs from now on."""
        urls: dict[str | None, list[str]] = {}
        for each in settings:
            urls.setdefault(each.database, []).append(each.url.reveal())
        self._urls = urls

    def started(self, database: str | None) -> None:
        """Report that a run of `database`, or (None) a whole round, has begun."""
        for url in self._urls.get(database, ()):
            self._send(url, "start", "")

    def finished(self, database: str | None, error: BackupdError | None) -> None:
        """Report the end of a run or a round: with success in all stores (of all databases) when `error` is None."""
        urls = self._urls.get(database, ())
        if not urls:
            return
        problem = None if error is None else _described(error)
        if problem is None and database is None and self._overall is not None:
            problem = self._overall()
        for url in urls:
            self._send(url, "" if problem is None else "fail", problem or "done in full")

    def close(self, timeout: float) -> bool:
        """Send what waits, for at most `timeout` seconds, and stop. Returns whether all was sent."""
        return self._outbox.close(timeout)

    def _send(self, url: str, event: str, body: str) -> None:
        dropped = self._outbox.put(_Beat(url, event, body[:_LONGEST_BODY]))
        if dropped is not None:
            log.warning(
                "a heartbeat was dropped: too many are waiting",
                target=_host(dropped.url),
                hint="the server of the heartbeats takes too long to answer",
            )

    def _deliver(self, beat: _Beat) -> None:
        host = _host(beat.url)
        for _ in range(_TRIES):
            problem = _sent(beat)
            if problem is None or problem.code in _NOT_KNOWN:
                break
        if problem is not None and beat.event and problem.code in _NOT_KNOWN:
            # A service may know successes alone. If the URL is wrong, the next success is refused too.
            if (host, beat.event) not in self._unknown:
                self._unknown.add((host, beat.event))
                hint = "it raises an alarm when the other heartbeats stop; if it should know this one, check the URL"
                log.info("the service does not know this heartbeat", heartbeat=beat.event, target=host, hint=hint)
            return
        # Logged when it begins and when it is over, not for every run while a server is down.
        if problem is not None and host not in self._lost:
            self._lost.add(host)
            log.warning(
                f"a heartbeat could not be sent: {problem.words}", target=host, hint="backups continue without it"
            )
        elif problem is None and host in self._lost:
            self._lost.remove(host)
            log.info("heartbeats can be sent again", target=host)


def unknown_databases(settings: Iterable[HeartbeatSettings], names: Collection[str]) -> list[str]:
    """Return the databases of heartbeats that are not among `names`, each once: nothing is sent for them."""
    wanted = {each.database for each in settings if each.database is not None}
    return sorted(wanted.difference(names))


def warn_of_unknown_databases(settings: Iterable[HeartbeatSettings], names: Collection[str]) -> None:
    """Log a warning for each of `unknown_databases`. When a pattern finds such a file later, its heartbeats begin."""
    for name in unknown_databases(settings, names):
        log.warning(
            f"no database is called {name}: its heartbeat is never sent",
            hint="correct `database` under [[heartbeats]], unless a pattern will find that file later",
        )


def send_once(settings: HeartbeatSettings, body: str) -> str | None:
    """Send the heartbeat of a success now. Return what went wrong, in words without the URL, or None."""
    problem = _sent(_Beat(settings.url.reveal(), "", body))
    return None if problem is None else problem.words


def host_of(settings: HeartbeatSettings) -> str:
    """Return scheme and host of the URL, without its secret part."""
    return _host(settings.url.reveal())


def _sent(beat: _Beat) -> _Problem | None:
    """Send one heartbeat, in the way that the service accepts. Return what went wrong, or None."""
    if _PUSH_PATH in urlsplit(beat.url).path:
        return None if beat.event == "start" else _requested(_pushed(beat), "GET")
    url = _with_event(beat.url, beat.event)
    problem = _requested(url, "POST", sendable(beat.body).encode())
    if problem is not None and problem.code in _NOT_KNOWN:
        return _requested(url, "GET")
    return problem


def _requested(url: str, method: str, body: bytes | None = None) -> _Problem | None:
    parts = urlsplit(url)
    # urllib takes "user:password@" for a part of the host's name.
    login, _, place = parts.netloc.rpartition("@")
    request = Request(urlunsplit(parts._replace(netloc=place)), data=body, method=method)  # noqa: S310  (the configuration allows http and https only)
    request.add_header("User-Agent", f"backupd/{__version__}")
    if login:
        basic = base64.b64encode(unquote(login).encode()).decode()
        request.add_unredirected_header(
            "Authorization", f"Basic {basic}"
        )  # a redirect must not pass it on to another host
    if body is not None:
        request.add_header("Content-Type", "text/plain; charset=utf-8")
    try:
        with urlopen(request, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310  (as above)
            response.read(1)
    except HTTPError as error:
        with error:
            return _Problem(f"the server answered {error.code}", error.code)
    except URLError as error:
        return _Problem(_words(error.reason))
    except (OSError, ValueError, http.client.HTTPException) as error:
        return _Problem(_words(error))
    return None


def _pushed(beat: _Beat) -> str:
    """Return the URL of a push monitor, with the heartbeat in its query."""
    parts = urlsplit(beat.url)
    values = {"status": "down" if beat.event else "up", "msg": sendable(beat.body)[:_LONGEST_PUSH_MESSAGE] or "OK"}
    query = {**dict(parse_qsl(parts.query, keep_blank_values=True)), **values}
    return urlunsplit(parts._replace(query=urlencode(query)))


def _words(reason: object) -> str:
    """Describe an error of the system by its text, and any other by its type alone, because some repeat the URL."""
    if isinstance(reason, TimeoutError):
        return f"no answer within {_TIMEOUT_SECONDS:.0f} s"
    return (reason.strerror if isinstance(reason, OSError) else None) or type(reason).__name__


def _with_event(url: str, event: str) -> str:
    if not event:
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{event}"))


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}"


def _described(error: BackupdError) -> str:
    return f"{error.message}\n{error.hint}" if error.hint else error.message


class Outbox(Generic[_T]):
    """Sends one message after the other in a thread, so that no caller waits for a network.

    The thread begins with the first message, and does not delay the end of the process.
    """

    def __init__(self, name: str, send: Callable[[_T], None], *, most: int) -> None:
        """`send` reports by itself what goes wrong; at most `most` messages wait for it."""
        self._name = name
        self._send = send
        self._most = most
        self._changed = threading.Condition()
        self._waiting: deque[_T] = deque()
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def put(self, message: _T) -> _T | None:
        """Queue a message, and return at once; returns the oldest waiting message if that was dropped to make room."""
        with self._changed:
            dropped = self._waiting.popleft() if len(self._waiting) >= self._most else None
            self._waiting.append(message)
            self._changed.notify_all()
            if self._thread is None:
                try:
                    self._thread = start_thread(self._work, name=self._name)
                except LimitReachedError as error:  # what waits is sent with the next message
                    log.error("nothing can be sent now", to=self._name, error=error.values())
        return dropped

    def close(self, timeout: float) -> bool:
        """Send what waits, for at most `timeout` seconds, and stop. Returns whether all was sent."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if not self._waiting:
                    return
                message = self._waiting.popleft()
            with log.catch():
                self._send(message)


def sendable(text: str) -> str:
    """Return `text` with escapes for what UTF-8 cannot encode: bytes of a file's name that are not text."""
    return text.encode(errors="backslashreplace").decode()
