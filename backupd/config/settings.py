"""The whole configuration with its defaults, the settings of the daemon, and the rules that concern several tables."""

import os
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from backupd.config.databases import DatabaseSettings
from backupd.config.discovery import reject_duplicates
from backupd.config.policies import RetentionSettings, ScheduleSettings
from backupd.config.stores import EncryptionSettings, StoreSettings
from backupd.config.tables import Table, computed
from backupd.config.values import (
    AbsolutePath,
    Count,
    Duration,
    HiddenText,
    InvalidValueError,
    Secret,
    Size,
    Text,
    Wait,
    at_least,
    at_most,
    format_duration,
    format_size,
    is_port,
    read_secret,
    read_text,
    reject_impossible_port,
)
from backupd.encryption import Encryption
from backupd.errors import keep_secret_url

# The apprise schemes whose URLs have a host after `//`. Others may have a token there: tgram://token/chat.
SCHEMES_WITH_A_HOST = frozenset(("form", "forms", "http", "https", "json", "jsons", "mailto", "mailtos", "xml", "xmls"))

_SHORTEST_TOKEN = 16
_LISTEN = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\s/]+):(?P<port>[0-9]{1,5})")
_SMALLEST_LIMIT_BYTES = 10**6
_SHORTEST_INTERVAL = timedelta(seconds=1)


def _checked_listen(text: str) -> str:
    match = _LISTEN.fullmatch(text)
    if text and (match is None or not is_port(match["port"])):
        raise InvalidValueError(
            f"{text!r} is not an address to listen on", hint='write it like "127.0.0.1:9620"; "" turns it off'
        )
    return text


def _long_enough(token: Secret) -> Secret:
    if len(token.reveal()) < _SHORTEST_TOKEN or not token.reveal().isprintable():
        raise InvalidValueError(
            f"must have {_SHORTEST_TOKEN} or more printable characters", hint="make one with: openssl rand -hex 32"
        )
    return token


def _checked_target(url: Secret) -> Secret:
    # No message repeats the URL: it usually contains a secret.
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url.reveal())
    if scheme is None or not url.reveal().isprintable():
        raise InvalidValueError("must be an apprise URL", hint="write it like mailto://user:password@example.org")
    has_host = scheme[1].lower() in SCHEMES_WITH_A_HOST
    keep_secret_url(url.reveal(), is_host_public=has_host)
    if has_host:
        _reject_impossible_port_of_target(url.reveal())
    return url


def _reject_impossible_port_of_target(url: str) -> None:
    """Raise `InvalidValueError` for the port of a target; apprise itself would drop it, and use another one."""
    host = re.split(r"[/?&=#]", url.partition("://")[2].rpartition("@")[2])[0]
    if host.rpartition(":")[2].isdecimal():  # otherwise it is a name, or part of a password
        reject_impossible_port(host)


def _checked_heartbeat(url: Secret) -> Secret:
    try:
        parts = urlsplit(url.reveal())
    except ValueError:
        raise InvalidValueError("must be an http:// or https:// URL with a host") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or not url.reveal().isprintable():
        raise InvalidValueError("must be an http:// or https:// URL with a host")
    keep_secret_url(url.reveal())
    reject_impossible_port(parts.netloc.rpartition("@")[2])
    return url


class DaemonSettings(Table):
    """Settings for runs and retries of `backupd run`."""

    concurrent_runs: Annotated[Count, at_least(1), at_most(64)] = 2
    stop_timeout: Wait = timedelta(seconds=7)
    retry_after: Wait = timedelta(seconds=30)


class HealthSettings(Table):
    """The time until a database counts as stale, and until a lasting failure is reported again."""

    grace: Duration = timedelta(minutes=15)
    remind_after: Duration = timedelta(hours=1)


class HttpSettings(Table):
    """The HTTP server for health, metrics and requests. `listen` is `host:port`, or empty for no server."""

    listen: Annotated[str, read_text, _checked_listen] = "127.0.0.1:9620"
    token: Annotated[HiddenText, _long_enough] | None = None

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port to listen on, or None."""
        match = _LISTEN.fullmatch(self.listen)
        return None if match is None else (match["host"].strip("[]"), int(match["port"]))


class NotificationSettings(Table):
    """One target of notifications, as an apprise URL."""

    url: Annotated[Secret, read_secret, _checked_target]


class HeartbeatSettings(Table):
    """One URL that is requested at each run: of `database`, or of every database."""

    url: Annotated[Secret, read_secret, _checked_heartbeat]
    database: Text | None = None


def _reject_missing_unit(size_bytes: int) -> int:
    if size_bytes < _SMALLEST_LIMIT_BYTES:
        raise InvalidValueError(
            f"{format_size(size_bytes)} is less than {format_size(_SMALLEST_LIMIT_BYTES)}",
            hint='a number without a unit is in bytes; write it like "256MB"',
        )
    return size_bytes


def _not_too_often(interval: timedelta) -> timedelta:
    if interval < _SHORTEST_INTERVAL:
        raise InvalidValueError("is less than a second", hint='write it like "1s" or "10s"')
    return interval


Limit = Annotated[Size, _reject_missing_unit]


class FollowSettings(Table):
    """Whether the write-ahead logs of databases are followed, and how often what was committed goes to the stores.

    Without an `interval`, that is every second if all stores are directories, and every ten seconds otherwise. An alarm
    is raised when what a store has of a database is older than `max_age`.
    """

    enabled: bool = False
    interval: Annotated[Wait, _not_too_often] | None = None
    spool: Limit = 64 * 10**6
    max_age: Duration = timedelta(minutes=5)

    def check(self) -> None:
        """Raise `InvalidValueError` when recovery points would always be too old."""
        if self.interval is not None and self.max_age <= self.interval:
            raise InvalidValueError(
                f"max_age ({format_duration(self.max_age)}) is not longer than interval "
                f"({format_duration(self.interval)})",
                hint="a recovery point is as old as the interval: allow at least twice that",
            )


class CaptureSettings(Table):
    """Limits at which a capture gives up rather than disturb the application."""

    lock_timeout: Wait = timedelta(seconds=30)
    max_lock: Wait = timedelta(seconds=3)
    deadline: Wait = timedelta(hours=1)
    max_wal_growth: Limit = 256 * 10**6


class PackSettings(Table):
    """Settings for the compression, spooling and upload of packs. `spool_limit` is in bytes."""

    compression_level: Annotated[Count, at_least(1), at_most(19)] = 2
    spool_limit: Limit = 256 * 10**6
    upload_threads: Annotated[Count, at_least(1), at_most(64)] = 4


def home_directory(environ: Mapping[str, str]) -> Path | None:
    """Return $HOME, or the home directory in the user database; None when there is neither."""
    try:
        home = Path(environ.get("HOME") or Path.home())
    except RuntimeError:
        return None
    return home if home.is_absolute() else None


def default_state_dir(environ: Mapping[str, str], *, is_root: bool) -> Path:
    """Return the default for `state_dir`: /var/lib/backupd for root, the XDG state directory for other users.

    Raises `InvalidValueError` when there is no home directory to put it in.
    """
    if is_root:
        return Path("/var/lib/backupd")
    # The XDG specification has relative paths in its variables ignored.
    xdg_state_home = Path(environ.get("XDG_STATE_HOME", ""))
    if xdg_state_home.is_absolute():
        return xdg_state_home / "backupd"
    home = home_directory(environ)
    if home is None:
        raise InvalidValueError(
            "there is no home directory to keep state in", hint="set state_dir or BACKUPD_STATE_DIR"
        )
    return home / ".local/state/backupd"


class Settings(Table):
    """Everything that can be configured, with defaults. `load` fills it from a file and the environment."""

    state_dir: AbsolutePath = computed(default_factory=lambda: default_state_dir(os.environ, is_root=os.geteuid() == 0))
    run_as_owner: bool = False
    identity_file: AbsolutePath | None = None
    databases: tuple[DatabaseSettings, ...] = ()
    stores: tuple[StoreSettings, ...] = ()
    capture: CaptureSettings = CaptureSettings()
    follow: FollowSettings = FollowSettings()
    packs: PackSettings = PackSettings()
    encryption: EncryptionSettings = EncryptionSettings()
    retention: RetentionSettings = RetentionSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    daemon: DaemonSettings = DaemonSettings()
    health: HealthSettings = HealthSettings()
    http: HttpSettings = HttpSettings()
    notifications: tuple[NotificationSettings, ...] = ()
    heartbeats: tuple[HeartbeatSettings, ...] = ()

    @classmethod
    def from_file(cls, source: Path | None, values: Mapping[str, object]) -> Self:
        """Return the settings of `values`, which came from this file. Raises `InvalidTableError`."""
        settings = cls.read(values)
        vars(settings)["_source"] = source
        return settings

    @property
    def source(self) -> Path | None:
        """The file that these settings came from; None when there was none."""
        source: Path | None = vars(self).get("_source")
        return source

    @property
    def stores_or_default(self) -> tuple[StoreSettings, ...]:
        """The configured stores, or `./backups` in the current directory when there are none."""
        return self.stores or (StoreSettings(url="./backups"),)

    def open_encryption(self) -> Encryption:
        """Return the configured encryption. Reads no key yet."""
        return Encryption(self.encryption.recipients, self.identity_file)

    def policies(self, store: StoreSettings, entries: Mapping[str, DatabaseSettings]) -> dict[str, RetentionSettings]:
        """Return the retention policies in `store` of the databases in `entries`, by their names.

        The store's keys win over those of the database's entry, and these over the general ones. A database that is
        missing here has no policy, and none of its snapshots are removed: losing the configuration must not cost
        snapshots. The same holds for a file whose name is not usable.
        """
        return {name: self.retention.overridden_by(entry.retention, store.retention) for name, entry in entries.items()}

    def grace(self, store: StoreSettings) -> timedelta:
        """Return for how long snapshots that were removed by hand can be undeleted, for databases without a policy."""
        return self.retention.overridden_by(store.retention).grace

    def schedule_of(self, entry: DatabaseSettings) -> ScheduleSettings:
        """Return the schedule for the databases of `entry`, whose own keys win."""
        return self.schedule.overridden_by(entry.schedule)

    def check(self) -> None:
        """Raise `InvalidValueError` for two entries for the same files, or the same store."""
        # What patterns find changes while backupd runs, and is checked then.
        reject_duplicates(entry for entry in self.databases if not entry.is_glob)
        _reject_shared_patterns(entry.path for entry in self.databases if entry.is_glob)
        by_url: dict[str, StoreSettings] = {}
        for store in self.stores:
            first = by_url.setdefault(store.url, store)
            if first is not store:
                _reject_shared_url(first, store)


def _reject_shared_patterns(patterns: Iterable[str]) -> None:
    """Raise `InvalidValueError` for two equal patterns: the second would find no file, and its keys have no effect."""
    known: set[str] = set()
    for pattern in patterns:
        if pattern in known:
            raise InvalidValueError(f"{pattern} has two entries", hint="remove one of them: the first has every file")
        known.add(pattern)


def _reject_shared_url(first: StoreSettings, second: StoreSettings) -> None:
    """Raise `InvalidValueError` for two stores with one URL: commands, locks, notes and alarms know a store by it."""
    url = first.url
    if first.endpoint_url == second.endpoint_url:
        raise InvalidValueError(f"the store {url} has two entries", hint="remove one of them")
    where = [store.endpoint_url or "AWS" for store in (first, second)]
    raise InvalidValueError(
        f"two stores have the URL {url}: one at {where[0]}, and one at {where[1]}",
        hint=f"give one of them another prefix, such as {url}-2: everything knows a store by its URL",
    )


def tables_in(table: type[Table]) -> Mapping[str, type[Table]]:
    """Return the tables inside a table by their keys, optional and repeated ones included."""
    return {name: key.table for name, key in table.keys.items() if key.table is not None}


TABLES = tables_in(Settings)
"""All tables of the file by their keys."""

ENTRIES = frozenset(name for name in TABLES if Settings.keys[name].is_list)
"""The keys of the tables that can be repeated, such as [[stores]]."""
