"""A store as a repository: whether it is one, what databases it holds, and the objects that belong to none of them."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backupd.encryption import NO_ENCRYPTION
from backupd.errors import DamageError, NoSuchObjectError, StoreUnavailableError, UnsupportedFormatError
from backupd.format import FORMAT_VERSION, FormatError
from backupd.logs import log
from backupd.repository.archive import Archive
from backupd.repository.commit import MAX_REPOSITORY_OBJECT_BYTES, decode_repository, require_readable
from backupd.repository.history import NOTHING_SEEN, Listing
from backupd.rescue import put_rescue_objects
from backupd.state.catalog import place_key
from backupd.store import key_of
from backupd.store.keys import REPOSITORY_KEY, RecordKey, RecordKind, SnapshotKey, is_object_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.encryption import Encryption
    from backupd.repository.history import SeenHistory
    from backupd.state import StateDirectory
    from backupd.store import Store, StoredObject

_LOCK_SECONDS = 30.0
_SEEN_FOR_SECONDS = 60.0


@dataclass(slots=True)
class _Known:
    """The facts that a process has learned of a repository, shared by all threads and by all wrappers of its store."""

    id: str | None = None
    reported: set[str] = field(default_factory=set)
    rescue_settled_for: str | None = None
    """The id of the repository that has the rescue objects, or whose store refused them."""
    seen: tuple[str, float, SeenHistory] | None = None
    """The database whose history was read last, and when, for the prune that follows."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    creation: threading.Lock = field(default_factory=threading.Lock)


class Repository:
    """All databases in one store. A process has one per store, which threads share. Raises the errors of `Store`."""

    def __init__(
        self,
        store: Store,
        state: StateDirectory,
        encryption: Encryption = NO_ENCRYPTION,
        *,
        _known: _Known | None = None,
    ) -> None:
        """Take a store as a repository. Asks the store for nothing yet."""
        self.store = store
        self.encryption = encryption
        self.state = state
        self._known = _known or _Known()
        self._archives: dict[str, Archive] = {}

    def through(self, store: Store, encryption: Encryption | None = None) -> Repository:
        """Return this repository with `store`: a wrapper of its own store, or the same place opened again.

        Both know what either has learned. `encryption` replaces the present one.
        """
        return Repository(store, self.state, encryption or self.encryption, _known=self._known)

    def archive(self, database: str) -> Archive:
        """The archive of one database, whether it has snapshots or not."""
        return self._archives.setdefault(database, Archive(self, database))

    @property
    def url(self) -> str:
        """The store's URL, for messages."""
        return self.store.url

    @property
    def id(self) -> str | None:
        """The repository's own id, as `exists` last found it; None before that, or when there was none."""
        return self._known.id

    def exists(self) -> bool:
        """Whether the store holds a repository that this version can read. Asks the store on every call.

        Raises `UnsupportedFormatError` for a newer format and `DamageError` for an unreadable `backupd.json`.
        """
        try:
            content = self.store.get(REPOSITORY_KEY, limit_bytes=MAX_REPOSITORY_OBJECT_BYTES)
        except NoSuchObjectError:
            self._known.id = None
            return False
        try:
            version, repository_id = decode_repository(content)
        except FormatError as error:
            raise DamageError(
                f"{REPOSITORY_KEY} in {self.url} cannot be read: it is not what backupd writes",
                hint="if this place was never a backupd repository, choose another; otherwise another program, or a "
                "broken disk, wrote over it: check what else is gone, as docs/restore.md says (After an attacker "
                "overwrote the store); if it is that object alone, delete it: the next `backupd now` writes it again",
            ) from error
        if version > FORMAT_VERSION:
            raise UnsupportedFormatError(
                f"{self.url} was written by a newer backupd (format {version}; this one knows {FORMAT_VERSION})",
                hint="install the newer version; nothing was changed",
            )
        self._known.id = repository_id
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

    def ensure_created(self) -> None:
        """Make the store a repository, unless it was one when it was last asked: then the store is not asked again."""
        with self._known.creation:
            if self._known.id is None:
                self.create_if_missing()

    def leave_rescue(self) -> None:
        """Put the objects that restore without backupd into the repository, if it may lack them. Raises nothing.

        A store that refuses is not asked again by this process.
        """
        repository_id = self._known.id
        if repository_id is None or repository_id == self._known.rescue_settled_for:
            return
        if put_rescue_objects(self.store, self.state, repository_id):
            self._known.rescue_settled_for = repository_id

    def databases(self, *, with_trash: bool = False) -> list[str]:
        """Names of the databases that have a snapshot, sorted; on demand also of those that have only removed ones."""
        names = set()
        for key in self._keys():
            if snapshot := SnapshotKey.parse(key):
                names.add(snapshot.database)
            elif with_trash and (record := RecordKey.parse(key)) and record.kind is RecordKind.TRASH:
                names.add(record.database)
        return sorted(names)

    def listings(self) -> dict[str, Listing]:
        """List the store once: what it has of each database that has a snapshot, by name and sorted."""
        objects: dict[str, list[StoredObject]] = {}
        names = set()
        for found in self.store.list(""):
            objects.setdefault(found.key.partition("/")[0], []).append(found)
            if snapshot := SnapshotKey.parse(found.key):
                names.add(snapshot.database)
        return {name: Listing.of(name, objects[name]) for name in sorted(names)}

    def foreign_objects(self) -> list[str]:
        """Keys of objects that belong to no database and are not of this format, in the order of the listing."""
        databases: dict[str, bool] = {}
        outside: list[str] = []
        for key in self._keys():
            name, slash, _ = key.partition("/")
            is_ours = is_object_key(key)
            if slash:
                databases[name] = databases.get(name, False) or is_ours
            if not is_ours:
                outside.append(key)
        return [key for key in outside if not databases.get(key.partition("/")[0], False)]

    def _keys(self) -> Iterator[str]:
        """The keys of all objects, in the order of a listing."""
        return (key_of(found) for found in self.store.survey("", is_known=lambda _: True))

    def put_object(self, key: str, content: bytes) -> None:
        """Put one small object. Raises `UnreadableObjectError`, and puts nothing, when a reader would refuse it."""
        require_readable(key, content, url=self.url)
        self.store.put(key, content, sha256=hashlib.sha256(content).digest())

    def keep_seen(self, database: str, seen: SeenHistory) -> None:
        """Keep what was seen of a database just now for `take_seen`: of one database, because it can be much."""
        self._known.seen = (database, time.monotonic(), seen)

    def take_seen(self, database: str) -> SeenHistory:
        """Return what was kept of a database, once, and for a minute: then the store may look different."""
        with self._known.lock:
            kept, self._known.seen = self._known.seen, None
        is_fresh = kept is not None and kept[0] == database and time.monotonic() - kept[1] < _SEEN_FOR_SECONDS
        return kept[2] if kept is not None and is_fresh else NOTHING_SEEN

    def report_once(self, event: str, *, reason: str) -> None:
        """Log `event` once in a process, however often and in however many threads it happens."""
        with self._known.lock:
            is_news = event not in self._known.reported
            self._known.reported.add(event)
        if is_news:
            log.info(event, reason=reason)

    def local_key(self) -> str:
        """The key of what this machine knows of the repository. Raises `NoSuchObjectError` when this is none.

        It has the place in it: a copy of a repository has the same id, and continues with another history.
        """
        repository_id = self._known.id
        if repository_id is None and self.exists():
            repository_id = self._known.id
        if repository_id is None:
            raise NoSuchObjectError(f"{self.url} holds no backups", hint="make one with: backupd now")
        return f"{repository_id}-{place_key(self.url)}"
