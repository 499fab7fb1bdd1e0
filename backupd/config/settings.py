"""The whole configuration, with its defaults."""

import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from backupd.config.databases import DatabaseSettings
from backupd.config.discovery import entries_by_name, reject_twins
from backupd.config.encryption import EncryptionSettings
from backupd.config.retention import RetentionSettings
from backupd.config.schedule import ScheduleSettings
from backupd.config.stores import StoreSettings
from backupd.config.unattended import (
    DaemonSettings,
    HealthSettings,
    HeartbeatSettings,
    HttpSettings,
    NotificationSettings,
)
from backupd.config.values import AbsolutePath, Count, InvalidValueError, Size, Table, Wait, format_size
from backupd.encryption import Encryption

_SMALLEST_LIMIT_BYTES = 10**6


def _refuse_bytes_that_lack_a_unit(size_bytes: int) -> int:
    if size_bytes < _SMALLEST_LIMIT_BYTES:
        raise InvalidValueError(
            f"{format_size(size_bytes)} is less than {format_size(_SMALLEST_LIMIT_BYTES)}",
            hint='a number without a unit is in bytes; write it like "256MB"',
        )
    return size_bytes


Limit = Annotated[Size, AfterValidator(_refuse_bytes_that_lack_a_unit)]


class CaptureSettings(Table):
    """How far a capture may go before it gives up rather than disturb the application."""

    lock_timeout: Wait = timedelta(seconds=30)
    max_lock: Wait = timedelta(seconds=3)
    deadline: Wait = timedelta(hours=1)
    max_wal_growth: Limit = 256 * 10**6


class PackSettings(Table):
    """How packs are compressed, kept until they are uploaded, and uploaded. `spool_limit` is in bytes."""

    compression_level: Annotated[Count, Field(ge=1, le=19)] = 2
    spool_limit: Limit = 256 * 10**6
    upload_threads: Annotated[Count, Field(ge=1, le=64)] = 4


def home_directory(environ: Mapping[str, str]) -> Path | None:
    """$HOME, else what the system knows of this user; None when neither says."""
    try:
        home = Path(environ.get("HOME") or Path.home())
    except RuntimeError:
        return None
    return home if home.is_absolute() else None


def default_state_dir(environ: Mapping[str, str], *, is_root: bool) -> Path:
    """Where state is kept when nobody says: a directory of the system for root, else the user's XDG state directory.

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
    """Everything that can be configured. `load` makes one from a file and the environment; this class reads neither."""

    state_dir: AbsolutePath = Field(default_factory=lambda: default_state_dir(os.environ, is_root=os.geteuid() == 0))
    run_as_owner: bool = False
    identity_file: AbsolutePath | None = None
    databases: tuple[DatabaseSettings, ...] = ()
    stores: tuple[StoreSettings, ...] = ()
    capture: CaptureSettings = CaptureSettings()
    packs: PackSettings = PackSettings()
    encryption: EncryptionSettings = EncryptionSettings()
    retention: RetentionSettings = RetentionSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    daemon: DaemonSettings = DaemonSettings()
    health: HealthSettings = HealthSettings()
    http: HttpSettings = HttpSettings()
    notifications: tuple[NotificationSettings, ...] = ()
    heartbeats: tuple[HeartbeatSettings, ...] = ()

    _source: Path | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Take the file that `load` read from pydantic's validation context."""
        if context is not None:
            self._source = context["source"]

    @property
    def source(self) -> Path | None:
        """The file that these settings came from, for messages; None when there was none."""
        return self._source

    @property
    def stores_or_default(self) -> tuple[StoreSettings, ...]:
        """The configured stores, or `./backups` in the current directory when there are none."""
        return self.stores or (StoreSettings(url="./backups"),)

    def open_encryption(self) -> Encryption:
        """What encrypts and decrypts objects as configured. Reads no key yet."""
        return Encryption(self.encryption.recipients, self.identity_file)

    def policies(self, store: StoreSettings) -> dict[str, RetentionSettings]:
        """How long snapshots are kept in `store`, by the names of the databases that are configured at this moment.

        Where a key is written several times, that of the store wins, then that of the database. A database that is not
        here has no policy, and nothing of it is removed: a configuration that was lost must not cost snapshots. Nor has
        a file that cannot have its name.
        """
        return {
            name: self.retention.overridden_by(entry.retention, store.retention)
            for name, entry in entries_by_name(self.databases).items()
        }

    def grace(self, store: StoreSettings) -> timedelta:
        """How long what was removed by hand can be had back from `store`, of a database without a policy."""
        return self.retention.overridden_by(store.retention).grace

    def schedule_of(self, entry: DatabaseSettings) -> ScheduleSettings:
        """When things are done for the databases of `entry`: its own keys win."""
        return self.schedule.overridden_by(entry.schedule)

    @model_validator(mode="after")
    def _refuse_twins(self) -> Self:
        # What patterns find changes while backupd runs, and is looked at then.
        reject_twins(entry for entry in self.databases if not entry.is_glob)
        _refuse_shared_patterns(entry.path for entry in self.databases if entry.is_glob)
        by_url: dict[str, StoreSettings] = {}
        for store in self.stores:
            first = by_url.setdefault(store.url, store)
            if first is not store:
                _refuse_shared_url(first, store)
        return self


def _refuse_shared_patterns(patterns: Iterable[str]) -> None:
    """Raise `InvalidValueError`: the second of two equal ones would never find a file, and its keys have no effect."""
    known: set[str] = set()
    for pattern in patterns:
        if pattern in known:
            raise InvalidValueError(f"{pattern} has two entries", hint="take one of them out: the first has every file")
        known.add(pattern)


def _refuse_shared_url(first: StoreSettings, second: StoreSettings) -> None:
    """Raise `InvalidValueError`: commands, locks, notes and alarms know a store by its URL."""
    url = first.url
    if first.endpoint_url == second.endpoint_url:
        raise InvalidValueError(f"the store {url} has two entries", hint="take one of them out")
    where = [store.endpoint_url or "AWS" for store in (first, second)]
    raise InvalidValueError(
        f"two stores have the URL {url}: one at {where[0]}, and one at {where[1]}",
        hint=f"give one of them another prefix, such as {url}-2: everything knows a store by its URL",
    )


def tables_in(table: type[Table]) -> Mapping[str, type[Table]]:
    """The tables in a table by their keys, those that may be left out and those that there may be several of, too."""
    inner = {key: _table_in(field.annotation) for key, field in table.model_fields.items()}
    return {key: found for key, found in inner.items() if found is not None}


def _table_in(annotation: Any) -> type[Table] | None:
    innermost = (get_args(annotation) or (annotation,))[0]
    return innermost if isinstance(innermost, type) and issubclass(innermost, Table) else None


TABLES = tables_in(Settings)
"""The tables of the file by their keys."""

ENTRIES = frozenset(key for key in TABLES if get_args(Settings.model_fields[key].annotation))
"""The keys of those tables that there may be several of."""
