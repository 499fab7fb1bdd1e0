"""Stores that fail on purpose, around a real one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from backupd.errors import StoreRefusedError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backupd.store import ObjectFacts, Store, StoredObject


class FaultyStore:
    """Passes calls on, counts them, and fails the one numbered `fail_at` (from 0) before or after it was done."""

    def __init__(self, store: Store, *, fail_at: int | None = None, after: bool = False) -> None:
        self.calls: list[str] = []
        self._store = store
        self._fail_at = fail_at
        self._after = after

    @property
    def url(self) -> str:
        return self._store.url

    def _count(self, call: str) -> bool:
        """Whether this call is the one that fails after it was done; raises when it is the one that fails before."""
        self.calls.append(call)
        is_chosen = len(self.calls) - 1 == self._fail_at
        if is_chosen and not self._after:
            raise StoreUnavailableError(f"{self.url}: {call} failed on purpose")
        return is_chosen

    def _fail(self, call: str) -> None:
        raise StoreUnavailableError(f"{self.url}: the answer to {call} was lost on purpose")

    def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:
        is_chosen = self._count("put")
        self._store.put(key, content, sha256=sha256)
        if is_chosen:
            self._fail("put")

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        is_chosen = self._count("get")
        content = self._store.get(key, limit_bytes=limit_bytes)
        if is_chosen:
            self._fail("get")
        return content

    def get_range(self, key: str, *, offset: int, length: int) -> bytes:
        is_chosen = self._count("get_range")
        content = self._store.get_range(key, offset=offset, length=length)
        if is_chosen:
            self._fail("get_range")
        return content

    def facts(self, key: str) -> ObjectFacts:
        is_chosen = self._count("head")
        found = self._store.facts(key)
        if is_chosen:
            self._fail("head")
        return found

    def list(self, prefix: str) -> Iterator[StoredObject]:
        is_chosen = self._count("list")
        yield from self._store.list(prefix)
        if is_chosen:
            self._fail("list")

    def delete(self, key: str) -> None:
        is_chosen = self._count("delete")
        self._store.delete(key)
        if is_chosen:
            self._fail("delete")


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
