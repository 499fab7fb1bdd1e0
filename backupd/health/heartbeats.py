"""Signs of life for a service that worries when they stay away, in the way of healthchecks.io.

    <url>/start   a run has begun
    <url>         it has ended well
    <url>/fail    it has failed

They are POSTs, and the body says what became of it; where a service takes no POST, they are GETs without it. A push
monitor of Uptime Kuma (`/api/push/`) is asked for with GET and `status=up`, or `status=down` and `msg`, and hears of no
beginning. The URL is a secret, and is in no output: who has it can report that all is well.
"""

from __future__ import annotations

import base64
import http.client
from typing import TYPE_CHECKING, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from backupd import __version__
from backupd.health.sending import Sender, sendable
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from backupd.config.unattended import HeartbeatSettings
    from backupd.errors import BackupdError

_TIMEOUT_SECONDS = 5.0
_TRIES = 2
_MOST_WAITING = 200
_LONGEST_BODY = 10_000


# How a service says that it knows no such path, or not this method. Some say the first for the second.
_NOT_KNOWN = frozenset((404, 405, 501))
_PUSH_PATH = "/api/push/"
_LONGEST_PUSH_MESSAGE = 200


class _Beat(NamedTuple):
    url: str
    """As it is configured."""
    event: str
    """"start", "fail", or "" for a good end."""
    body: str


class _Problem(NamedTuple):
    words: str
    code: int | None = None
    """Of HTTP, when the server answered."""


class Heartbeats:
    """Sends signs of life in a thread, in their order. Its methods return at once, raise nothing, and fail no run."""

    def __init__(
        self, settings: Sequence[HeartbeatSettings], *, overall: Callable[[], str | None] | None = None
    ) -> None:
        """`overall` says what is wrong with anything at all, or None.

        It is asked before a heartbeat for everything says that all is well: one entry's good round must not hide that
        another has failed, or has not ended for hours.
        """
        self._urls: dict[str | None, list[str]] = {}
        self.follow(settings)
        self._overall = overall
        self._lost: set[str] = set()
        self._unknown: set[tuple[str, str]] = set()
        self._sender = Sender("heartbeats", self._deliver, most=_MOST_WAITING)

    def follow(self, settings: Sequence[HeartbeatSettings]) -> None:
        """Send to these from now on."""
        urls: dict[str | None, list[str]] = {}
        for each in settings:
            urls.setdefault(each.database, []).append(each.url.get_secret_value())
        self._urls = urls

    def started(self, database: str | None) -> None:
        """A run of `database` has begun; None: a whole round has."""
        for url in self._urls.get(database, ()):
            self._send(url, "start", "")

    def finished(self, database: str | None, error: BackupdError | None) -> None:
        """It has ended: well, in all stores (of all databases), when `error` is None."""
        urls = self._urls.get(database, ())
        if not urls:
            return
        problem = None if error is None else _told(error)
        if problem is None and database is None and self._overall is not None:
            problem = self._overall()
        for url in urls:
            self._send(url, "" if problem is None else "fail", problem or "done in full")

    def close(self, timeout: float) -> bool:
        """Send what is waiting, and stop; after `timeout` seconds it is given up. Gives whether all was sent."""
        return self._sender.close(timeout)

    def _send(self, url: str, event: str, body: str) -> None:
        dropped = self._sender.put(_Beat(url, event, body[:_LONGEST_BODY]))
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
            # A service may take one sign alone. If it is the URL that is wrong, the next good end is refused too.
            if (host, beat.event) not in self._unknown:
                self._unknown.add((host, beat.event))
                hint = "it worries when the others stay away; if it should know this, check the URL"
                log.info("the service of a heartbeat does not know this sign", sign=beat.event, target=host, hint=hint)
            return
        # Once when it begins and once when it is over: a server that is down is no news at every run.
        if problem is not None and host not in self._lost:
            self._lost.add(host)
            log.warning(f"a heartbeat could not be sent: {problem.words}", target=host, hint="backups go on without it")
        elif problem is None and host in self._lost:
            self._lost.remove(host)
            log.info("heartbeats can be sent again", target=host)


def unknown_databases(settings: Iterable[HeartbeatSettings], names: Collection[str]) -> list[str]:
    """The databases that heartbeats are for and that are not among `names`, each once: nothing is sent for them."""
    wanted = {each.database for each in settings if each.database is not None}
    return sorted(wanted.difference(names))


def warn_of_unknown_databases(settings: Iterable[HeartbeatSettings], names: Collection[str]) -> None:
    """Log a warning of each. A pattern may find such a file later, and then its heartbeats begin."""
    for name in unknown_databases(settings, names):
        log.warning(
            f"no database is called {name}: its heartbeat is not asked for",
            hint="correct `database` under [[heartbeats]], unless a pattern is to find that file later",
        )


def send_once(settings: HeartbeatSettings, body: str) -> str | None:
    """Ask for the URL now, as after a run that ended well; what went wrong, in words without the URL, or None."""
    problem = _sent(_Beat(settings.url.get_secret_value(), "", body))
    return None if problem is None else problem.words


def host_of(settings: HeartbeatSettings) -> str:
    """Scheme and host of the URL, without its secret part."""
    return _host(settings.url.get_secret_value())


def _sent(beat: _Beat) -> _Problem | None:
    """Send it once, in the way that the service takes; what went wrong, in words without the URL, or None."""
    if _PUSH_PATH in urlsplit(beat.url).path:
        return None if beat.event == "start" else _asked(_pushed(beat), "GET")
    url = _with_event(beat.url, beat.event)
    problem = _asked(url, "POST", sendable(beat.body).encode())
    if problem is not None and problem.code in _NOT_KNOWN:
        return _asked(url, "GET")
    return problem


def _asked(url: str, method: str, body: bytes | None = None) -> _Problem | None:
    parts = urlsplit(url)
    # urllib takes "user:password@" for part of the host's name.
    login, _, place = parts.netloc.rpartition("@")
    request = Request(urlunsplit(parts._replace(netloc=place)), data=body, method=method)  # noqa: S310  (the configuration allows http and https only)
    request.add_header("User-Agent", f"backupd/{__version__}")
    if login:
        basic = base64.b64encode(unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {basic}")  # another host is not to have it
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
    """The URL of a push monitor with the sign in its query, in place of what is there."""
    parts = urlsplit(beat.url)
    told = {"status": "down" if beat.event else "up", "msg": sendable(beat.body)[:_LONGEST_PUSH_MESSAGE] or "OK"}
    query = {**dict(parse_qsl(parts.query, keep_blank_values=True)), **told}
    return urlunsplit(parts._replace(query=urlencode(query)))


def _words(reason: object) -> str:
    """The text of an error of the system; of others only the name, because some repeat the URL."""
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


def _told(error: BackupdError) -> str:
    return f"{error.message}\n{error.hint}" if error.hint else error.message
