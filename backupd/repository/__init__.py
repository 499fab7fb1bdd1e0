"""One store as a repository: that it is one, what it holds, and who may write to it.

What it holds is read with `manifests`, `records` and `packs`, and the next snapshot is written with `writing`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from backupd.cache import Cache
from backupd.encryption import NO_ENCRYPTION
from backupd.errors import (
    DamageError,
    NoSuchObjectError,
    StoreUnavailableError,
    UnreadableObjectError,
    UnsupportedFormatError,
)
from backupd.format import FORMAT_VERSION, FormatError
from backupd.format.manifest import MAX_MANIFEST_BYTES
from backupd.logs import log
from backupd.repository.readable import MAX_REPOSITORY_OBJECT_BYTES, decode_repository, require_readable
from backupd.rescue import leave_rescue_objects
from backupd.store import canonical_url
from backupd.store.keys import (
    REPOSITORY_KEY,
    RecordKey,
    RecordKind,
    SnapshotKey,
    database_prefix,
    is_object_key,
)
from backupd.survey import Survey, survey_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backupd.encryption import Encryption
    from backupd.state import StateDirectory
    from backupd.store import Store

_LOCK_SECONDS = 30.0


class Repository:
    """All databases in one store. Methods raise the errors of `Store`."""

    def __init__(self, store: Store, state: StateDirectory, encryption: Encryption = NO_ENCRYPTION) -> None:
        """Asks the store for nothing yet."""
        self.store = store
        self.encryption = encryption
        self.cache = Cache(self._cache_directory)
        self.state = state
        self._id: str | None = None
        self._told: set[str] = set()
        self._telling = threading.Lock()
        self._has_left_rescue = False
        self._creation = threading.Lock()

    @property
    def url(self) -> str:
        """The store's URL, for people."""
        return self.store.url

    @property
    def id(self) -> str | None:
        """The repository's own id, as `exists` last found it; None before."""
        return self._id

    def exists(self) -> bool:
        """Whether the store holds a repository that this version can read. Asks the store on every call.

        Raises `UnsupportedFormatError` for a newer format and `DamageError` for an unreadable `backupd.json`.
        """
        try:
            content = self.store.get(REPOSITORY_KEY, limit_bytes=MAX_REPOSITORY_OBJECT_BYTES)
        except NoSuchObjectError:
            return False
        try:
            version, repository_id = decode_repository(content)
        except FormatError as error:
            raise DamageError(
                f"{REPOSITORY_KEY} in {self.url} cannot be read: it is not what backupd writes",
                hint="if this place was never a backupd repository, choose another; otherwise somebody, or a broken "
                "disk, wrote over it: look what else is gone, as docs/restore.md says (After somebody overwrote the "
                "store); if it is that object alone, delete it, and the next `backupd now` writes it again",
            ) from error
        if version > FORMAT_VERSION:
            raise UnsupportedFormatError(
                f"{self.url} was written by a newer backupd (format {version}; this one knows {FORMAT_VERSION})",
                hint="install the newer version; nothing was changed",
            )
        self._id = repository_id
        return True

    def create_if_missing(self) -> None:
        """Make the store a repository. Repeatable; of two that try at once on one machine, one does it."""
        if self.exists():
            return
        with self.state.lock(f"the creation of {self.url}", timeout=_LOCK_SECONDS):
            if not self.exists():
                content = json.dumps({"format": FORMAT_VERSION, "repository": secrets.token_hex(16)}).encode() + b"\n"
                self.put_object(REPOSITORY_KEY, content)
                if not self.exists():
                    raise StoreUnavailableError(
                        f"{self.url} took {REPOSITORY_KEY}, and does not have it",
                        hint="try again; if this repeats, the store loses what it acknowledges",
                    )

    def create_once(self) -> None:
        """As `create_if_missing`, and asks the store for nothing once it was found to be a repository."""
        with self._creation:
            if self._id is None:
                self.create_if_missing()

    def leave_rescue_once(self) -> None:
        """Put what restores without backupd into the repository, if it may lack that. Raises nothing."""
        # What a store does not take may cost no snapshot, and is not asked again all day.
        if not self._has_left_rescue and self._id is not None:
            self._has_left_rescue = True
            leave_rescue_objects(self.store, self.state, self._id)

    @contextmanager
    def lock(self, database: str, *, timeout: float) -> Iterator[None]:
        """Keep other runs with the same state directory away from `database` in this store. Raises `BusyError`."""
        with self.state.lock(f"{database} in {canonical_url(self.url)}", timeout=timeout):
            yield

    def databases(self, *, with_trash: bool = False) -> list[str]:
        """Names of the databases that have a snapshot, sorted; on demand also of those that have only removed ones."""
        names = set()
        for found in self.store.list(""):
            if snapshot := SnapshotKey.parse(found.key):
                names.add(snapshot.database)
            elif with_trash and (record := RecordKey.parse(found.key)) and record.kind is RecordKind.TRASH:
                names.add(record.database)
        return sorted(names)

    def strangers(self) -> list[str]:
        """Keys of objects that belong to no database and are not of this format, in their order."""
        databases: dict[str, bool] = {}
        outside: list[str] = []
        for found in self.store.list(""):
            name, slash, _ = found.key.partition("/")
            is_ours = is_object_key(found.key)
            if slash:
                databases[name] = databases.get(name, False) or is_ours
            if not is_ours:
                outside.append(found.key)
        return [key for key in outside if not databases.get(key.partition("/")[0], False)]

    def survey(self, database: str) -> Survey:
        """One listing of everything of `database`."""
        return survey_of(database, self.store.list(database_prefix(database)))

    def shows(self, database: str, snapshot_id: str) -> bool:
        """Whether the store has the manifest of this snapshot now, and a reader accepts it. One request."""
        key = str(SnapshotKey(database, snapshot_id))
        try:
            require_readable(key, self.store.get(key, limit_bytes=MAX_MANIFEST_BYTES), url=self.url)
        except (NoSuchObjectError, DamageError, UnreadableObjectError):
            return False
        return True

    def put_object(self, key: str, content: bytes) -> None:
        """Put one small object. Raises `UnreadableObjectError`, and puts nothing, when a reader would refuse it."""
        require_readable(key, content, url=self.url)
        self.store.put(key, content, sha256=hashlib.sha256(content).digest())

    def tell_once(self, event: str, *, reason: str) -> None:
        """Log `event` once, however often it happens, in however many threads."""
        with self._telling:
            is_told = event in self._told
            self._told.add(event)
        if not is_told:
            log.info(event, reason=reason)

    def _cache_directory(self, database: str) -> Path:
        if self._id is None and not self.exists():
            raise NoSuchObjectError(f"{self.url} holds no backups", hint="make one with: backupd now")
        assert self._id is not None  # noqa: S101
        # A copy of a repository has its id too, and goes on with another history.
        place = hashlib.sha256(os.fsencode(canonical_url(self.url))).hexdigest()[:8]
        return self.state.cache(f"{self._id}-{place}", database)
