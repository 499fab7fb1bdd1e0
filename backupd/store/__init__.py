"""Stores of objects by key: a directory, or a prefix in an S3-compatible bucket."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime  # noqa: TC003  (a struct keeps its types)
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta
    from pathlib import Path

    from backupd.config import StoreSettings


class StoredObject(msgspec.Struct, frozen=True, gc=False):
    """An object in a listing. `modified_at` is by the store's clock, aware, UTC. Thousands of them are made quickly."""

    key: str
    size_bytes: int
    modified_at: datetime


def key_of(shown: StoredObject | str) -> str:
    """Return the key of what a survey gives."""
    return shown if isinstance(shown, str) else shown.key


class ObjectFacts(msgspec.Struct, frozen=True):
    """Properties of one object that a store knows without reading it.

    `sha256` (32 bytes, of the whole content) is the one that the store itself computed or checked when the object was
    put; None if it keeps none.
    """

    size_bytes: int
    sha256: bytes | None


class Store(Protocol):
    """Objects by key. Every method may be called from several threads at once and may be repeated.

    Keys are relative to the store's root, with `/` between parts. Every method raises `StoreUnavailableError` when the
    store cannot be reached within its time limit (a retry can help) and another `StoreError` when it refuses; an unsafe
    key (absolute, empty parts, `..`) is a ValueError.
    """

    @property
    def url(self) -> str:
        """The URL of this store, as users know it, without secrets."""

    def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:
        """Write one object from memory or from a local file, replacing what was there.

        Atomic: a reader sees the old object, the new one, or none, never a part. Durable when it returns.
        `sha256` (32 bytes, of the whole content) goes with the request for stores that check it. A local file that
        cannot be opened raises OSError: that is not a failure of the store.
        """

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """Return the whole object. Raises `NoSuchObjectError`, and `DamageError` if it is larger than `limit_bytes`."""

    def get_range(self, key: str, *, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, fewer at the object's end. Raises `NoSuchObjectError`."""

    def facts(self, key: str) -> ObjectFacts:
        """Return what the store knows of one object without reading it. Raises `NoSuchObjectError`."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """List all objects whose key begins with `prefix`, in the order of the keys' UTF-8 bytes.

        Objects that were put before the first one is requested are shown; later ones may be. Lazy: errors come with the
        objects, and the time limit applies to each page of a bucket's listing.
        """

    def survey(self, prefix: str, *, is_known: Callable[[str], bool]) -> Iterator[StoredObject | str]:
        """List as `list` does, but give an object as its key alone if `is_known` says so and its size costs a call.

        `look` gives the rest, if the object is still there.
        """

    def look(self, key: str) -> StoredObject | None:
        """Return one object as a listing shows it now; None when it does not exist."""

    def delete(self, key: str) -> None:
        """Remove one object; nothing happens when it does not exist."""


class StoreWrapper:
    """Implements `Store` by passing each call on to another store. Subclasses override what they change.

    `_around` is entered for each call, and for each object of a listing: a subclass that does the same for all of them
    overrides only that.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def _around(self, verb: str, key: str) -> AbstractContextManager[object]:  # noqa: ARG002  (for subclasses)
        """Return the block in which one call is passed on; `verb` is `put`, `get`, `head`, `list` or `delete`."""
        return nullcontext()

    @property
    def url(self) -> str:
        """The URL of the wrapped store."""
        return self._store.url

    def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:
        """Write one object, as `Store.put`."""
        with self._around("put", key):
            self._store.put(key, content, sha256=sha256)

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """Read one object, as `Store.get`."""
        with self._around("get", key):
            return self._store.get(key, limit_bytes=limit_bytes)

    def get_range(self, key: str, *, offset: int, length: int) -> bytes:
        """Read a part of one object, as `Store.get_range`."""
        with self._around("get", key):
            return self._store.get_range(key, offset=offset, length=length)

    def facts(self, key: str) -> ObjectFacts:
        """Return what the store knows of one object, as `Store.facts`."""
        with self._around("head", key):
            return self._store.facts(key)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """List the objects below a prefix, as `Store.list`."""
        found = self._store.list(prefix)
        while True:
            with self._around("list", prefix):
                stored = next(found, None)
            if stored is None:
                return
            yield stored

    def survey(self, prefix: str, *, is_known: Callable[[str], bool]) -> Iterator[StoredObject | str]:  # noqa: ARG002
        """List the objects below a prefix, as `Store.survey` may: whole, so that what changes `list` changes this."""
        return self.list(prefix)

    def look(self, key: str) -> StoredObject | None:
        """Return one object as a listing shows it, as `Store.look`."""
        with self._around("list", key):
            return self._store.look(key)

    def delete(self, key: str) -> None:
        """Remove one object, as `Store.delete`."""
        with self._around("delete", key):
            self._store.delete(key)


class Versioning(StrEnum):
    """Whether a bucket keeps the old version of an object that is deleted or replaced."""

    OFF = "off"
    ON = "on"
    SUSPENDED = "suspended"


class LifecycleRule(msgspec.Struct, frozen=True):
    """A rule by which a bucket deletes or archives objects of the store. `prefix` is as the bucket has it.

    `expires` says when current objects are deleted, such as `after 30 days`; `archive_class` is the storage class that
    they are moved to, and that cannot be read at once. One of the two is set, the other may be None.
    """

    name: str
    prefix: str
    expires: str | None
    archive_class: str | None


class Bucket(Protocol):
    """Properties of a bucket. Each method requests them, raises the errors of `Store`, and may be repeated.

    Many credentials and servers do not allow it, which raises `StoreRefusedError`.
    """

    def clock_ahead(self) -> timedelta | None:
        """Return how far the server's clock is ahead of this machine's, to about a second; None if it does not show."""

    def versioning(self) -> Versioning:
        """Return what happens to deleted objects."""

    def has_object_lock(self) -> bool:
        """Whether the bucket prevents the deletion of each object for some time."""

    def lifecycle_rules(self) -> tuple[LifecycleRule, ...]:
        """Return the enabled rules that delete or archive current objects of this store, or some of them."""

    def remove_versions(self, key: str) -> None:
        """Remove all versions and delete markers that the bucket kept of a deleted object."""


def canonical_url(url: str) -> str:
    """Return one spelling for all paths of a directory, symbolic links resolved; other URLs as they are."""
    return os.path.realpath(url) if url.startswith("/") else url


def open_store(settings: StoreSettings) -> Store:
    """Return the store at `settings.url`. Makes no request and creates nothing: the first method call does."""
    if settings.is_s3:
        from backupd.store.s3 import S3Store  # noqa: PLC0415  (boto3 takes 0.2 s to import)

        return S3Store(settings)
    from backupd.store.directory import DirectoryStore  # noqa: PLC0415

    return DirectoryStore(settings.directory)


def open_bucket(settings: StoreSettings) -> Bucket | None:
    """Return the bucket of an S3 store, for its properties; None for a directory. Makes no request."""
    if not settings.is_s3:
        return None
    from backupd.store.s3_bucket import S3Bucket  # noqa: PLC0415  (as above)

    return S3Bucket(settings)
