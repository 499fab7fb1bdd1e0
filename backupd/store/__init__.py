"""Where packs and manifests live: a directory, or a prefix in an S3-compatible bucket."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime, timedelta
    from pathlib import Path

    from backupd.config import StoreSettings


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object as a listing shows it. `modified_at` is by the store's clock, aware, UTC."""

    key: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """What a store tells of one object without giving its content.

    `sha256` (32 bytes, of the whole content) is what the store itself computed or checked when it took the object; None
    where it keeps none.
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
        """What the user calls this store; never contains a secret."""

    def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:
        """Write one object from memory or from a local file, replacing what was there.

        Atomic: a reader sees the old object, the new one, or none, never a part. Durable when it returns.
        `sha256` (32 bytes, of the whole content) goes with the request, so that a store that can check it does. A local
        file that cannot be opened raises OSError: that is not the store's doing.
        """

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """The whole object. Raises `NoSuchObjectError`, and `DamageError` when it is larger than `limit_bytes`."""

    def get_range(self, key: str, *, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer at the object's end. Raises `NoSuchObjectError`."""

    def facts(self, key: str) -> ObjectFacts:
        """What the store tells of one object without reading it. Raises `NoSuchObjectError`."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Every object whose key begins with `prefix`, in the order of the keys' UTF-8 bytes; empty if there is none.

        Objects that were put before the first one is asked for are shown; ones put after may be. Lazy: errors come with
        the objects, and the time limit counts for each page of a bucket's listing.
        """

    def delete(self, key: str) -> None:
        """Remove one object; nothing happens when it is not there."""


class Versioning(StrEnum):
    """What a bucket does with an object that is deleted or replaced."""

    OFF = "off"
    ON = "on"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class LifecycleRule:
    """A rule by which a bucket itself changes objects of the store. `prefix` is that of the rule, as the bucket has it.

    `expires` says when current objects are deleted, such as `after 30 days`, or is None; `archive_class` is the class
    that they are moved to and cannot be read from at once, or None. One of the two is set.
    """

    name: str
    prefix: str
    expires: str | None
    archive_class: str | None


class Bucket(Protocol):
    """What a bucket says of itself. Every method asks it; raises the errors of `Store`, and may be repeated.

    Many credentials, and many servers, do not give these answers: then it is `StoreRefusedError`.
    """

    def clock_ahead(self) -> timedelta | None:
        """How far the server's clock is ahead of this machine's, to about a second; None when it does not say."""

    def versioning(self) -> Versioning:
        """What happens to what is deleted."""

    def has_object_lock(self) -> bool:
        """Whether objects can not be deleted before a time that the bucket sets for each."""

    def lifecycle_rules(self) -> tuple[LifecycleRule, ...]:
        """The enabled rules that delete or archive current objects of this store, or some of them."""

    def remove_versions(self, key: str) -> None:
        """Remove what the bucket kept of an object that was deleted: all its versions, and the marks of deletion."""


def canonical_url(url: str) -> str:
    """The same text for each spelling of one directory, through symbolic links or not; any other URL as it is."""
    return os.path.realpath(url) if url.startswith("/") else url


def open_store(settings: StoreSettings) -> Store:
    """The store that `settings.url` names. Makes no request and creates nothing: the first method call does."""
    if settings.is_s3:
        from backupd.store.s3 import S3Store  # noqa: PLC0415  (boto3 takes 0.2 s to import)

        return S3Store(settings)
    from backupd.store.directory import DirectoryStore  # noqa: PLC0415

    return DirectoryStore(settings.directory)


def open_bucket(settings: StoreSettings) -> Bucket | None:
    """The bucket of an S3 store, to be asked about itself; None for a directory. Makes no request."""
    if not settings.is_s3:
        return None
    from backupd.store.s3_bucket import S3Bucket  # noqa: PLC0415  (as above)

    return S3Bucket(settings)
