"""Stores that do not answer: how long a snapshot waits for one, and which later snapshots skip it.

A slow store still answers, one request after the other, and is waited for as long as it does.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

import msgspec

from backupd.errors import StoreUnavailableError
from backupd.store import StoreWrapper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from backupd.config import StoreSettings
    from backupd.store import Store, StoredObject

_T = TypeVar("_T")
_SLACK_SECONDS = 10.0
_ANSWER_SECONDS = 0.1
_MOST_IN_ANSWER = 1000


class Patience(msgspec.Struct, frozen=True):
    """How many seconds a store may leave all requests unanswered before it is given up."""

    longest: float = 310.0
    """The limit in any case. A pack on a slow line is one request, and the default `time_limit` is 5 minutes."""
    others_wait: float = 90.0
    """The limit for small requests before the capture, while another store is ready and waits.

    Long enough for a connection that was lost silently to time out (60 s) and for the next one to answer.
    """
    rest: float = 300.0
    """How long other databases skip a store that was given up: a thousand must not wait for it one after another."""

    def longest_for(self, store: Store, configured: Sequence[StoreSettings]) -> float:
        """The limit for this store, which is never less than its configured `time_limit`, which it enforces itself."""
        own = [each.time_limit for each in configured if each.is_s3 and each.url == store.url]
        return max([self.longest, *(limit.total_seconds() + _SLACK_SECONDS for limit in own)])


class WatchedStore(StoreWrapper):
    """A `Store` that passes calls on to another one, and measures for how long that has not answered.

    What a listing gives within a tenth of a second is an answer. After `abandon`, each new call raises
    `StoreUnavailableError`: a thread that was left behind in a call goes no further than that.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(store)
        self._clock = clock
        self._lock = threading.Lock()
        self._asked: dict[object, tuple[float, str]] = {}
        self._answered_at = 0.0
        self._is_abandoned = False
        self.silent_before_error_seconds = 0.0
        """The longest time without an answer that ended in `StoreUnavailableError`."""

    def unanswered(self) -> tuple[float, str]:
        """Return how many seconds no request has been answered, and the oldest open request, such as `list app/`.

        0 and no text when no request is open.
        """
        with self._lock:
            if not self._asked:
                return 0.0, ""
            since, asked = min(self._asked.values())
            return self._clock() - max(self._answered_at, since), asked

    def abandon(self) -> None:
        """Let no new call through. Calls that the store is already busy with cannot be stopped."""
        self._is_abandoned = True

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """List the objects below a prefix, as `Store.list`."""
        return self._watched(prefix, self._store.list(prefix))

    def survey(self, prefix: str, *, is_known: Callable[[str], bool]) -> Iterator[StoredObject | str]:
        """List the objects below a prefix, as `Store.survey`."""
        return self._watched(prefix, self._store.survey(prefix, is_known=is_known))

    def _watched(self, prefix: str, found: Iterator[_T]) -> Iterator[_T]:
        while True:
            with self._around("list", prefix):
                answer = self._answer(found)
            if not answer:
                return
            yield from answer

    def _answer(self, found: Iterator[_T]) -> Sequence[_T]:
        """The next of what a listing gives: many if they come at once, none at its end."""
        answer: list[_T] = []
        ends_at = self._clock() + _ANSWER_SECONDS
        for each in found:
            answer.append(each)
            if len(answer) == _MOST_IN_ANSWER or self._clock() >= ends_at:
                break
        return answer

    @contextmanager
    def _around(self, verb: str, key: str) -> Iterator[None]:
        if self._is_abandoned:
            hint = "see the messages before this one"
            raise StoreUnavailableError(f"{self.url} was given up before {verb} {key}", hint=hint)
        call = object()
        with self._lock:
            self._asked[call] = (self._clock(), f"{verb} {key}")
        try:
            yield
        except StoreUnavailableError:
            self.silent_before_error_seconds = max(self.silent_before_error_seconds, self.unanswered()[0])
            raise
        finally:
            with self._lock:
                del self._asked[call]
                self._answered_at = self._clock()


@dataclass(slots=True)
class _GivenUp:
    """A store that was given up for `database`. `calls` are those that may still hang in it."""

    database: str
    began_at: float
    calls: Sequence[Future[None]]


class SilentStores:
    """The stores that were recently given up in this process. Threads may share it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._found: WeakKeyDictionary[Store, dict[str, _GivenUp]] = WeakKeyDictionary()

    def note(self, store: Store, database: str, calls: Sequence[Future[None]]) -> None:
        """Note that `store` was given up for a database, and that `calls` were left behind."""
        with self._lock:
            self._found.setdefault(store, {})[database] = _GivenUp(database, self._clock(), calls)

    def forget(self, store: Store) -> None:
        """Note that `store` works again, so that no database skips it any more."""
        with self._lock:
            self._found.pop(store, None)

    def reason_to_spare(self, store: Store, database: str, *, rest_seconds: float) -> StoreUnavailableError | None:
        """The reason not to ask `store` for `database` now, or None.

        Either another database recently gave it up; or this one did, and its call still hangs: another call would hang
        too. (When it no longer hangs, this database may try again: the store may work again.)
        """
        now = self._clock()
        with self._lock:
            for given_up in self._found.get(store, {}).values():
                if given_up.database == database:
                    is_spared = not all(call.done() for call in given_up.calls)
                else:
                    is_spared = now - given_up.began_at < rest_seconds
                if is_spared:
                    return StoreUnavailableError(
                        f"{store.url} was not asked, because a snapshot of {given_up.database} gave it up "
                        f"{now - given_up.began_at:.0f} s ago",
                        hint=HINT,
                    )
        return None


HINT = (
    "check the store, the network to it, and that a mounted directory is not hung; "
    "other stores are not held up, and a later snapshot asks again"
)
