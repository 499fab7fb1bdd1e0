"""What is there at a moment: files come and go, and each round looks again."""

from __future__ import annotations

import threading
import time
from functools import cached_property
from typing import TYPE_CHECKING

from backupd.config import look_for_databases, nothing_found
from backupd.upkeep.configured import Configured
from backupd.upkeep.stores import RotatedStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backupd.config import DatabaseSettings, RetentionSettings, Settings, StoreSettings
    from backupd.errors import BackupdError
    from backupd.repository import Repository

_COUNTS_FOR_SECONDS = 1.0


class Sight:
    """What was found at one moment. Entries are known by their identity: equal ones may be there."""

    def __init__(
        self,
        settings: Settings,
        repositories: Sequence[tuple[StoreSettings, Repository]],
        known: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._settings = settings
        self._repositories = repositories
        self._found = look_for_databases(settings.databases, known)
        schedules = {id(entry): settings.schedule_of(entry) for entry in settings.databases}
        self._by_entry: dict[int, list[Configured]] = {id(entry): [] for entry in settings.databases}
        for entry, database in self._found.databases:
            self._by_entry[id(entry)].append(Configured(database, schedules[id(entry)]))

    @cached_property
    def all_databases(self) -> list[Configured]:
        """Every database."""
        return [configured for databases in self._by_entry.values() for configured in databases]

    def databases(self, entry: DatabaseSettings) -> tuple[list[Configured], BackupdError | None]:
        """Those of an entry, and why it lacks one, or gives none at all."""
        databases = self._by_entry[id(entry)]
        problem: BackupdError | None = next((why for owner, why in self._found.problems if owner is entry), None)
        if not databases and problem is None:
            problem = nothing_found(entry.path)
        return databases, problem

    @cached_property
    def stores(self) -> list[RotatedStore]:
        """The stores with the policies of these databases. Their repositories are always the same."""
        stores = []
        for store, repository in self._repositories:
            policies: dict[str, RetentionSettings] = {}
            for entry in self._settings.databases:
                policy = self._settings.retention.overridden_by(entry.retention, store.retention)
                policies.update((configured.name, policy) for configured in self._by_entry[id(entry)])
            stores.append(RotatedStore(repository, policies, self._settings.grace(store), store.put_only))
        return stores


class Sights:
    """The last look. Entries that have their rounds at the same time look once, and not each over all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[float, Sight] | None = None

    def now(
        self,
        settings: Settings,
        repositories: Sequence[tuple[StoreSettings, Repository]],
        known: Callable[[], Mapping[str, str]],
    ) -> Sight:
        """What is there now, or was a second ago; of the same settings at each call."""
        with self._lock:
            if self._last is None or time.monotonic() - self._last[0] > _COUNTS_FOR_SECONDS:
                self._last = time.monotonic(), Sight(settings, repositories, known)
            return self._last[1]
