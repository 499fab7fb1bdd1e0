"""The databases that exist at this moment: files come and go, and each round searches again."""

from __future__ import annotations

import threading
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from backupd.config import discover_databases, no_match_error
from backupd.errors import UsageError
from backupd.jobs.configured import ConfiguredDatabase, ConfiguredStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backupd.config import DatabaseSettings, RetentionSettings, Settings, StoreSettings
    from backupd.errors import BackupdError
    from backupd.health import Status, StatusFile
    from backupd.repository import Repository

_REUSE_SECONDS = 1.0


class Inventory:
    """The databases that were found at one moment, and the stores with the policies of those databases.

    Entries are distinguished by identity, because the configuration may hold two equal ones.
    """

    def __init__(
        self,
        settings: Settings,
        repositories: Sequence[tuple[StoreSettings, Repository]],
        known: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """Search the file system for every entry. `known` gives the path of each database that was backed up before."""
        self._settings = settings
        self._repositories = repositories
        self._found = discover_databases(settings.databases, known)
        schedules = {id(entry): settings.schedule_of(entry) for entry in settings.databases}
        self._by_entry: dict[int, list[ConfiguredDatabase]] = {id(entry): [] for entry in settings.databases}
        for entry, database in self._found.databases:
            self._by_entry[id(entry)].append(ConfiguredDatabase(database, schedules[id(entry)]))

    @cached_property
    def all_databases(self) -> list[ConfiguredDatabase]:
        """Every database."""
        return [configured for databases in self._by_entry.values() for configured in databases]

    def database(self, name: str) -> ConfiguredDatabase:
        """Return the database with this name. Raises `UsageError` when there is none."""
        for configured in self.all_databases:
            if configured.name == name:
                return configured
        raise UsageError(f"no database {name!r} is configured", hint="backupd status shows those that are")

    def databases(self, entry: DatabaseSettings) -> tuple[list[ConfiguredDatabase], BackupdError | None]:
        """Return the databases of an entry, and why it lacks one, or has none at all."""
        databases = self._by_entry[id(entry)]
        problem: BackupdError | None = next((why for owner, why in self._found.problems if owner is entry), None)
        if not databases and problem is None:
            problem = no_match_error(entry.path)
        return databases, problem

    @cached_property
    def stores(self) -> list[ConfiguredStore]:
        """The configured stores, with the retention policies of these databases."""
        stores = []
        for store, repository in self._repositories:
            policies: dict[str, RetentionSettings] = {}
            for entry in self._settings.databases:
                policy = self._settings.retention.overridden_by(entry.retention, store.retention)
                policies.update((configured.name, policy) for configured in self._by_entry[id(entry)])
            stores.append(ConfiguredStore(repository, policies, self._settings.grace(store), store.put_only))
        return stores


class Discovery:
    """Finds what one configuration means. Entries whose rounds begin together share one search. Threads may use it."""

    def __init__(
        self,
        settings: Settings,
        repositories: Sequence[tuple[StoreSettings, Repository]],
        status: StatusFile,
        *,
        reuse_seconds: float = _REUSE_SECONDS,
    ) -> None:
        """`repositories` are the same for every search; a result is given again for `reuse_seconds`."""
        self._settings = settings
        self._repositories = repositories
        self._status = status
        self._reuse_seconds = reuse_seconds
        self._lock = threading.Lock()
        self._last: tuple[float, Inventory] | None = None

    def now(self) -> Inventory:
        """Return what exists now, or did a second ago. Searches all patterns: call it once for each piece of work."""
        with self._lock:
            if self._last is None or time.monotonic() - self._last[0] >= self._reuse_seconds:
                found = Inventory(self._settings, self._repositories, lambda: self._status.read().paths)
                self._last = time.monotonic(), found
            return self._last[1]


def missing_databases(
    entry: DatabaseSettings, databases: Sequence[ConfiguredDatabase], status: Status, *, with_vanished: bool = False
) -> dict[str, OSError | None]:
    """Find what the pattern of `entry` matched before and is not among `databases`: by name, why it is out of reach.

    None means that the file is gone. With an error, the file may exist, and the application may be writing it.
    Databases that are known to have vanished are left out, unless `with_vanished`.
    """
    if not entry.is_glob:
        return {}
    names = {each.name for each in databases}
    missing: dict[str, OSError | None] = {}
    for name, known in status.databases.items():
        is_expected = known.is_scheduled and (known.vanished_at is None or with_vanished)
        if not is_expected or name in names:
            continue
        path, reason = Path(known.path), None
        try:
            path.stat()
            continue  # it is where it was: another entry has it now, or none
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            reason = error
        if _finds(entry, name, path):
            missing[name] = reason
    return missing


def _finds(entry: DatabaseSettings, name: str, path: Path) -> bool:
    try:
        return entry.database_at(path).name == name
    except UsageError:
        return False
