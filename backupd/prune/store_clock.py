"""The store's clock: how old an object is, whatever the clocks of the hosts say."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from backupd.errors import StoreUnavailableError
from backupd.store.keys import clock_key, sweeps_prefix

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from backupd.store import Store, StoredObject

_CONTENT = b"{}\n"


class StoreClock:
    """Tells ages of objects of one database. The store is asked once, and only when there may be something to do.

    It is asked by putting an object and listing it. (The newest time that a listing shows would be no substitute: one
    object from a day when the clock was wrong, or one that somebody copied, and everything would seem old.) With
    `is_dry_run` nothing is put, and this host's own time, `now`, stands in.
    """

    def __init__(self, store: Store, database: str, *, now: datetime, is_dry_run: bool = False) -> None:
        self._store = store
        self._database = database
        self._local_now = now
        self._now = now if is_dry_run else None

    def is_older(self, stored: StoredObject, age: timedelta) -> bool:
        """Whether `stored` was put `age` ago or more, by both clocks. Raises the errors of `Store`."""
        if self._local_now - stored.modified_at < age:
            return False
        if self._now is None:
            self._now = self._ask()
        return self._now - stored.modified_at >= age

    def _ask(self) -> datetime:
        key = clock_key(self._database)
        self._store.put(key, _CONTENT, sha256=hashlib.sha256(_CONTENT).digest())
        times = {stored.key: stored.modified_at for stored in self._store.list(sweeps_prefix(self._database))}
        if key not in times:
            raise StoreUnavailableError(
                f"{self._store.url} took {key}, and does not show it",
                hint="try again; if this repeats, the store loses what it acknowledges",
            )
        return times[key]
