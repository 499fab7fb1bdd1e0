"""Stores that fail on purpose, around a real one."""

from __future__ import annotations

import itertools
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from backupd.errors import StoreRefusedError, StoreUnavailableError
from backupd.store import StoreWrapper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backupd.store import Store, StoredObject


class FaultyStore(StoreWrapper):
    """Passes calls on, counts them, and fails the one numbered `fail_at` (from 0) before or after it was done."""

    def __init__(self, store: Store, *, fail_at: int | None = None, after: bool = False) -> None:
        super().__init__(store)
        self.calls: list[str] = []
        self._numbers = itertools.count()
        self._fail_at = fail_at
        self._after = after

    def _count(self, call: str) -> bool:
        """Whether this call is the one that fails after it was done; raises when it is the one that fails before."""
        is_chosen = next(self._numbers) == self._fail_at  # threads never get the same number
        self.calls.append(call)
        if is_chosen and not self._after:
            raise StoreUnavailableError(f"{self.url}: {call} failed on purpose")
        return is_chosen

    def _fail(self, call: str) -> None:
        raise StoreUnavailableError(f"{self.url}: the answer to {call} was lost on purpose")

    @contextmanager
    def _around(self, verb: str, key: str) -> Iterator[None]:  # noqa: ARG002  (for subclasses)
        is_chosen = self._count(verb)
        yield
        if is_chosen:
            self._fail(verb)

    def get_range(self, key: str, *, offset: int, length: int) -> bytes:
        with self._around("get_range", key):
            return self._store.get_range(key, offset=offset, length=length)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        with self._around("list", prefix):
            yield from self._store.list(prefix)


class BlockedStore(FaultyStore):
    """Takes no pack until `release` is called: a store that hangs."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._released = threading.Event()

    def release(self) -> None:
        self._released.set()

    def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:
        if "/packs/" in key:
            self._released.wait(timeout=60)
        super().put(key, content, sha256=sha256)


class ForgetfulStore(FaultyStore):
    """Acknowledges the first pack and loses it."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.lost: list[str] = []

    def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:
        super().put(key, content, sha256=sha256)
        if "/packs/" in key and not self.lost:
            self._store.delete(key)
            self.lost.append(key)


late_hooks: list[object] = []
"""The hooks of one test that had to be called after the run, because it made fewer calls than the counted one."""


def come_last(hook: Callable[[], None]) -> None:
    """Call a hook whose call of the store never came."""
    late_hooks.append(hook)
    hook()


class Killed(BaseException):
    """The end of a process, as far as its code can tell: nothing catches this."""


class DeadlyStore(FaultyStore):
    """Ends the run at the call numbered `fail_at`, before or after it was done."""

    def _count(self, call: str) -> bool:
        try:
            return super()._count(call)
        except StoreUnavailableError as error:
            raise Killed from error

    def _fail(self, _call: str) -> None:
        raise Killed


class HookedStore(FaultyStore):
    """Calls `hook` before the step numbered `at` (from 0), and never again.

    Each call is a step, and in a listing so is each directory: others may act while a listing goes on.
    """

    def __init__(self, store: Store, *, at: int | None = None, hook: Callable[[], None] = lambda: None) -> None:
        super().__init__(store)
        self.steps: list[str] = []
        self._at = at
        self._hook = hook
        self._stepping = threading.Lock()

    def _count(self, call: str) -> bool:
        self._step(call)
        return super()._count(call)

    def _step(self, step: str) -> None:
        with self._stepping:
            self.steps.append(step)
            if len(self.steps) - 1 == self._at:
                self._hook()

    def list(self, prefix: str) -> Iterator[StoredObject]:
        directory = prefix.rpartition("/")[0]
        for stored in super().list(prefix):
            if directory != (directory := stored.key.rpartition("/")[0]):
                self._step(f"list {directory}")
            yield stored


class RefusingStore(FaultyStore):
    """Refuses deletions, as a bucket under Object Lock or a key without permission does."""

    def delete(self, key: str) -> None:
        self._count("delete")
        raise StoreRefusedError(f"cannot delete {key} in {self.url}", hint="allow it")


class PretendingStore(FaultyStore):
    """Acknowledges deletions of keys with `part` in them, and does not do them."""

    def __init__(self, store: Store, *, part: str) -> None:
        super().__init__(store)
        self._part = part

    def delete(self, key: str) -> None:
        if self._part not in key:
            super().delete(key)
