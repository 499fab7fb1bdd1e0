"""What `backupd run` does besides its schedule: how it runs, when it worries, and whom it tells."""

import re
from datetime import timedelta
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from backupd.config.values import Count, Duration, InvalidValueError, SecretIfAny, Table, Text, Wait
from backupd.masking import keep_secret_url

# Where the part of an apprise URL that looks like a host is one. Elsewhere it may be a token: tgram://token/chat.
SCHEMES_WITH_A_HOST = frozenset(("form", "forms", "http", "https", "json", "jsons", "mailto", "mailtos", "xml", "xmls"))

_SHORTEST_TOKEN = 16
_LISTEN = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\s/]+):(?P<port>[0-9]{1,5})")
_PORTS = range(1, 1 << 16)


def _checked_listen(text: str) -> str:
    match = _LISTEN.fullmatch(text)
    if text and (match is None or int(match["port"]) not in _PORTS):
        raise InvalidValueError(
            f"{text!r} is not an address to listen on", hint='write it like "127.0.0.1:9620"; "" is for not at all'
        )
    return text


def _long_enough(token: SecretStr | None) -> SecretStr | None:
    if token is None:
        return None
    if len(token.get_secret_value()) < _SHORTEST_TOKEN or not token.get_secret_value().isprintable():
        raise InvalidValueError(
            f"must have {_SHORTEST_TOKEN} or more printable characters", hint="make one with: openssl rand -hex 32"
        )
    return token


def _checked_target(url: SecretStr) -> SecretStr:
    # No message repeats the URL: it nearly always holds a secret.
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url.get_secret_value())
    if scheme is None or not url.get_secret_value().isprintable():
        raise InvalidValueError("must be an apprise URL", hint="write it like mailto://user:password@example.org")
    keep_secret_url(url.get_secret_value(), is_host_public=scheme[1].lower() in SCHEMES_WITH_A_HOST)
    return url


def _checked_heartbeat(url: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(url.get_secret_value())
    except ValueError:
        raise InvalidValueError("must be an http:// or https:// URL with a host") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or not url.get_secret_value().isprintable():
        raise InvalidValueError("must be an http:// or https:// URL with a host")
    keep_secret_url(url.get_secret_value())
    return url


class DaemonSettings(Table):
    """How `backupd run` runs."""

    concurrent_runs: Annotated[Count, Field(ge=1, le=64)] = 2
    stop_timeout: Wait = timedelta(seconds=7)
    retry_after: Wait = timedelta(seconds=30)


class HealthSettings(Table):
    """When a database counts as stale, and how soon a failure that goes on is told again."""

    grace: Duration = timedelta(minutes=15)
    remind_after: Duration = timedelta(hours=1)


class HttpSettings(Table):
    """Where health and metrics can be asked for. `listen` is `host:port`, or empty for nowhere."""

    listen: Annotated[str, AfterValidator(_checked_listen)] = "127.0.0.1:9620"
    token: Annotated[SecretIfAny, AfterValidator(_long_enough)] = None

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port to listen on, or None."""
        match = _LISTEN.fullmatch(self.listen)
        return None if match is None else (match["host"].strip("[]"), int(match["port"]))


class NotificationSettings(Table):
    """One target of notifications, as apprise writes it."""

    url: Annotated[SecretStr, AfterValidator(_checked_target)]


class HeartbeatSettings(Table):
    """One URL that is asked for at each run: of `database`, or of every database."""

    url: Annotated[SecretStr, AfterValidator(_checked_heartbeat)]
    database: Text | None = None
