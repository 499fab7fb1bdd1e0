"""Stores that do not answer: how long one is waited for, and who is spared the same wait.

A store that is slow answers all the same, one request after the other, and is waited for as long as it does.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from backupd.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from backupd.config import StoreSettings
    from backupd.store import ObjectFacts, Store, StoredObject

_SLACK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Patience:
    """For how many seconds a store may leave everything that it was asked unanswered before it is given up."""

    longest: float = 310.0
    """In any case. A pack on a slow line is one request, and the usual `time_limit` of one is 5 minutes."""
    others_wait: float = 90.0
    """Before the capture, for small requests, while another store is ready and waits: long enough for a connection
    that was lost in silence to time out (60 s) and the next to answer."""
    rest: float = 300.0
    """After it was given up, other databases do without it: a thousand of them must not wait for it in turn."""

    def longest_for(self, store: Store, configured: Sequence[StoreSettings]) -> float:
        """The longest for this store: never less than the `time_limit` that is configured, which it keeps itself."""
        own = [each.time_limit for each in configured if each.is_s3 and each.url == store.url]
        return max([self.longest, *(limit.total_seconds() + _SLACK_SECONDS for limit in own)])


class WatchedStore:
    """Implements `Store` by another one, and knows for how long that has not answered.

    Every object of a listing is an answer. After `abandon`, each new call raises `StoreUnavailableError`: a thread that
    was left behind in a call goes no further than that.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._asked: dict[object, tuple[float, str]] = {}
        self._answered_at = 0.0
        self._is_abandoned = False
        self.silent_before_error_seconds = 0.0
        """The longest silence that ended in `StoreUnavailableError`."""

    @property
    def url(self) -> str:
        """That of the other store."""
        return self._store.url

    def silence(self) -> tuple[float, str]:
        """For how many seconds nothing of what it was asked has been answered, and the first that was not.

        Such as `list app/`. 0 and no text when it is asked nothing.
        """
        with self._lock:
            if not self._asked:
                return 0.0, ""
            since, asked = min(self._asked.values())
            return self._clock() - max(self._answered_at, since), asked

    def abandon(self) -> None:
        """Let no new call through. What goes on in the store already cannot be stopped."""
        self._is_abandoned = True

    def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:
        """As the other store."""
        with self._watched("put", key):
            self._store.put(key, content, sha256=sha256)

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """As the other store."""
        with self._watched("get", key):
            return self._store.get(key, limit_bytes=limit_bytes)

    def get_range(self, key: str, *, offset: int, length: int) -> bytes:
        """As the other store."""
        with self._watched("get", key):
            return self._store.get_range(key, offset=offset, length=length)

    def facts(self, key: str) -> ObjectFacts:
        """As the other store."""
        with self._watched("head", key):
            return self._store.facts(key)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """As the other store."""
        found = self._store.list(prefix)
        while True:
            with self._watched("list", prefix):
                stored = next(found, None)
            if stored is None:
                return
            yield stored

    def delete(self, key: str) -> None:
        """As the other store."""
        with self._watched("delete", key):
            self._store.delete(key)

    @contextmanager
    def _watched(self, verb: str, key: str) -> Iterator[None]:
        if self._is_abandoned:
            raise StoreUnavailableError(f"{self.url} was given up before {verb} {key}", hint="see what was told before")
        call = object()
        with self._lock:
            self._asked[call] = (self._clock(), f"{verb} {key}")
        try:
            yield
        except StoreUnavailableError:
            self.silent_before_error_seconds = max(self.silent_before_error_seconds, self.silence()[0])
            raise
        finally:
            with self._lock:
                del self._asked[call]
                self._answered_at = self._clock()


@dataclass(slots=True)
class _Silence:
    """A store was given up for `database`. `calls` are the threads that may still be in it."""

    database: str
    began_at: float
    calls: Sequence[Future[None]]


class SilentStores:
    """Which stores were given up lately in this process. Threads may use all of it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._found: WeakKeyDictionary[Store, dict[str, _Silence]] = WeakKeyDictionary()

    def note(self, store: Store, database: str, calls: Sequence[Future[None]]) -> None:
        """It was given up for a database; `calls` were left behind."""
        with self._lock:
            self._found.setdefault(store, {})[database] = _Silence(database, self._clock(), calls)

    def forget(self, store: Store) -> None:
        """It works: nobody is to do without it."""
        with self._lock:
            self._found.pop(store, None)

    def reason_to_spare(self, store: Store, database: str, *, rest_seconds: float) -> StoreUnavailableError | None:
        """Why not to ask `store` for `database` now, or None.

        Another database waited for it in vain a short while ago; or this one did, and its call still hangs: another one
        would do the same. (This one may try again as soon as it does not, because some retries find the store mended.)
        """
        now = self._clock()
        with self._lock:
            for silence in self._found.get(store, {}).values():
                if silence.database == database:
                    is_spared = not all(call.done() for call in silence.calls)
                else:
                    is_spared = now - silence.began_at < rest_seconds
                if is_spared:
                    return StoreUnavailableError(
                        f"{store.url} was not asked, because a snapshot of {silence.database} waited for it in vain "
                        f"until {now - silence.began_at:.0f} s ago",
                        hint=HINT,
                    )
        return None


HINT = (
    "check the store, the network to it, and that a mounted directory is not hung; "
    "other stores are not held up, and a later snapshot asks again"
)
