"""The whole configuration, with its defaults."""

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from backupd.config.databases import DatabaseSettings, find_databases
from backupd.config.stores import StoreSettings
from backupd.config.values import AbsolutePath, Count, Duration, InvalidValueError, Size, Table, format_size

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

    lock_timeout: Duration = timedelta(seconds=30)
    max_lock: Duration = timedelta(seconds=3)
    deadline: Duration = timedelta(hours=1)
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
    databases: tuple[DatabaseSettings, ...] = ()
    stores: tuple[StoreSettings, ...] = ()
    capture: CaptureSettings = CaptureSettings()
    packs: PackSettings = PackSettings()

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

    @model_validator(mode="after")
    def _refuse_twins(self) -> Self:
        # What patterns find changes while backupd runs, and is looked at then.
        find_databases(entry for entry in self.databases if not entry.is_glob)
        stores = [(store.url, store.endpoint_url) for store in self.stores]
        for position, store in enumerate(stores):
            if store in stores[:position]:
                raise InvalidValueError(f"the store {store[0]} has two entries", hint="take one of them out")
        return self


def _table_in(annotation: Any) -> type[Table] | None:
    innermost = get_args(annotation)[0] if get_args(annotation) else annotation
    return innermost if issubclass(innermost, Table) else None


TABLES: Mapping[str, type[Table]] = {
    key: table for key, field in Settings.model_fields.items() if (table := _table_in(field.annotation))
}
"""The tables of the file by their keys."""

ENTRIES = frozenset(key for key in TABLES if get_args(Settings.model_fields[key].annotation))
"""The keys of those tables that there may be several of."""
