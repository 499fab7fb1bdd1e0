"""The object that doctor puts into a store for a moment, and its removal, whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import secrets
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

from backupd.errors import DamageError, InterruptedByUserError, NoSuchObjectError, StoreError
from backupd.store.keys import is_probe_key, probe_key, probes_prefix

if TYPE_CHECKING:
    from backupd.store import Store, StoredObject

_CONTENT_BYTES = 4096
# One that cannot be removed is the same each time, so that there is never more than one of them.
_STAYING_TOKEN = "0" * 32
_STAYING_CONTENT = b"put here by backupd doctor, with keys that may not delete it again\n"
_OTHERS_ARE_DONE_AFTER = timedelta(hours=1)


class Probe:
    """One object under a random key. `remove` is to be called whatever became of the other calls.

    One that `stays`, because the store is to refuse its removal, always has the same key and content. The methods raise
    the errors of `Store`; `InterruptedByUserError` after `cancel`.
    """

    def __init__(self, store: Store, *, stays: bool = False) -> None:
        self.key = probe_key(_STAYING_TOKEN if stays else secrets.token_hex(16))
        self._store = store
        self._content = _STAYING_CONTENT if stays else secrets.token_bytes(_CONTENT_BYTES)
        self._may_be_there = False
        self._is_cancelled = threading.Event()

    def cancel(self) -> None:
        """Have the methods that ask for more end soon; from any thread. `remove` still works."""
        self._is_cancelled.set()

    def write(self) -> None:
        """Put the object."""
        self._reject_cancelled()
        # A put whose answer never came may have been done all the same.
        self._may_be_there = True
        self._store.put(self.key, self._content, sha256=hashlib.sha256(self._content).digest())
        # Another thread may have removed it meanwhile, before it was there.
        self._may_be_there = True

    def read_back(self) -> None:
        """Get the object and compare. Raises `DamageError` for other bytes."""
        self._reject_cancelled()
        found = self._store.get(self.key, limit_bytes=_CONTENT_BYTES)
        if found != self._content:
            raise DamageError(
                f"{self._store.url} gives back other bytes than were put (object {self.key})",
                hint="do not trust this store: look for a proxy or gateway that changes content, and at its disks",
            )

    def find(self) -> StoredObject:
        """The object as a listing shows it. Raises `StoreError` when it does not, or with another size."""
        self._reject_cancelled()
        for stored in self._store.list(probes_prefix()):
            if stored.key == self.key and stored.size_bytes == len(self._content):
                return stored
        raise StoreError(
            f"{self._store.url} took {self.key}, and its listing does not show it",
            hint="a listing that lags behind is no place for backups: look at the server's documentation and version",
        )

    def remove_older_ones(self, than: StoredObject) -> None:
        """Delete what a doctor that was killed left an hour before `than`, this probe, was put."""
        for stored in self._store.list(probes_prefix()):
            if is_probe_key(stored.key) and than.modified_at - stored.modified_at > _OTHERS_ARE_DONE_AFTER:
                self._reject_cancelled()
                self._store.delete(stored.key)

    def remove(self) -> None:
        """Delete the object if it may be there. Repeatable."""
        if self._may_be_there:
            self._store.delete(self.key)
            self._may_be_there = False

    def is_gone(self) -> bool:
        """Whether the store neither gives nor shows the object any more."""
        try:
            self._store.get(self.key, limit_bytes=_CONTENT_BYTES)
        except NoSuchObjectError:
            return all(stored.key != self.key for stored in self._store.list(self.key))
        return False

    def _reject_cancelled(self) -> None:
        if self._is_cancelled.is_set():
            raise InterruptedByUserError("interrupted")
