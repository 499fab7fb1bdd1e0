"""Signs of life for a service that worries when they stay away, in the way of healthchecks.io.

    <url>/start   a run has begun
    <url>         it has ended well
    <url>/fail    it has failed

The body says what became of it. The URL is a secret, and never told: whoever has it can say that all is well.
"""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit
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


class _Beat(NamedTuple):
    url: str
    body: str


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
        dropped = self._sender.put(_Beat(_with_event(url, event), body[:_LONGEST_BODY]))
        if dropped is not None:
            log.warning(
                "a heartbeat was dropped: too many are waiting",
                target=_host(dropped.url),
                hint="the server of the heartbeats takes too long to answer",
            )

    def _deliver(self, beat: _Beat) -> None:
        host = _host(beat.url)
        for _ in range(_TRIES):
            problem = _post(beat)
            if problem is None:
                break
        # Once when it begins and once when it is over: a server that is down is no news at every run.
        if problem is not None and host not in self._lost:
            self._lost.add(host)
            log.warning(f"a heartbeat could not be sent: {problem}", target=host, hint="backups go on without it")
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
    return _post(_Beat(settings.url.get_secret_value(), body))


def host_of(settings: HeartbeatSettings) -> str:
    """Scheme and host of the URL, without its secret part."""
    return _host(settings.url.get_secret_value())


def _post(beat: _Beat) -> str | None:
    """Send it once; what went wrong, in words without the URL, or None."""
    request = Request(  # noqa: S310  (the configuration allows http and https only)
        beat.url,
        data=sendable(beat.body).encode(),
        headers={"User-Agent": f"backupd/{__version__}", "Content-Type": "text/plain; charset=utf-8"},
        method="POST",
    )
    try:
        with urlopen(request, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310  (as above)
            response.read(1)
    except HTTPError as error:
        with error:
            return f"the server answered {error.code}"
    except URLError as error:
        return _words(error.reason)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return _words(error)
    return None


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
