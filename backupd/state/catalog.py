"""The catalog of an archive: what its objects said when they were read, so that a run reads only what is new.

Manifests, records and private parts are rows of the state database; page hashes are files, because they are mapped. An
object counts as known while the store lists it with the size and the time that it had. All of it may be lost: the
objects are then read again. So nothing here raises because the state can be neither read nor written.
"""

from __future__ import annotations

import os
import secrets
import shutil
import zlib
from array import array
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
from msgspec.structs import replace

from backupd.format import SnapshotId
from backupd.format.manifest import PackEntry, Replayed, SealedSummary, SnapshotKind, SourceFacts, Summary, Writer
from backupd.format.seal import Value
from backupd.state import UNUSABLE_STATE
from backupd.system.files import belong_to_owner

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    from backupd.format.manifest import AnySummary
    from backupd.format.pagemap import PageHashes
    from backupd.state.database import StateDatabase
    from backupd.store import StoredObject

_T = TypeVar("_T")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_HASHES = ".hashes"
_HEAD, _FACTS, _PACKS, _ENTRY, _CONTENT = (
    f"CAST(coalesce({name}, '') AS BLOB)" for name in ("head", "facts", "packs", "entry", "content")
)
"""Columns as bytes: a damaged row may have values of other types."""


class _Own(Value, frozen=True):
    """The values of a manifest that differ from one to the next."""

    sequence: int
    base: str | None
    kind: SnapshotKind
    tags: tuple[str, ...]
    page_size: int
    page_count: int
    changed_pages: int
    stored_bytes: int
    image_digest: str | None = None
    free_pages: int = 0
    schema_version: int = 0
    replayed: tuple[str, int] | None = None


class _Shared(Value, frozen=True):
    """The values that most manifests of a database have in common. An encrypted one shows only the id of its writer."""

    database: str
    writer: Writer | str
    source: SourceFacts | None = None


_OWN_VALUES = ("sequence", "kind", "tags", "page_size", "page_count", "changed_pages", "stored_bytes")


class Catalog:
    """What is known of one database in one repository."""

    def __init__(
        self,
        database: StateDatabase,
        place: Callable[[], tuple[str, str]],
        directory: Callable[[], Path],
        on_failure: Callable[[str], None],
    ) -> None:
        """`place` gives the key of the repository and the name of the database; what it raises passes through here.

        `directory` gives a directory that exists, for the files. `on_failure` gets the reason when nothing can be kept.
        """
        self._database = database
        self._place = place
        self._directory = directory
        self._on_failure = on_failure

    def summaries(
        self, listed: Mapping[SnapshotId, StoredObject], *, keys: str | None
    ) -> tuple[dict[SnapshotId, AnySummary], bool]:
        """Return what is known of the manifests that the store lists as in `listed`, and whether others are known.

        With `keys`, the digest of the secret keys that there are, encrypted ones that were not tried with these count
        as unknown.
        """
        ids = {str(snapshot_id): snapshot_id for snapshot_id in listed}

        def read(connection: sqlite3.Connection, archive: int) -> tuple[dict[SnapshotId, AnySummary], bool]:
            reader = _Reader(connection, archive, ids)
            found, has_others = {}, False
            for text, size, modified_at, tried, *row in connection.execute(
                f"SELECT id, size, modified_at, tried_with, {_HEAD}, {_FACTS}, {_PACKS}, checksum FROM manifests"  # noqa: S608
                " WHERE archive = ?",
                (archive,),
            ):
                snapshot_id = ids.get(text)
                if snapshot_id is None:
                    has_others = True
                elif (size, modified_at) == _seen(listed[snapshot_id]):
                    summary = reader.summary(snapshot_id, *row)
                    is_untried = isinstance(summary, SealedSummary) and keys is not None and tried != keys
                    if summary is not None and not is_untried:
                        found[snapshot_id] = summary
            return found, has_others

        return self._read(read) or ({}, False)

    def keep_summaries(
        self, read: Mapping[SnapshotId, AnySummary], listed: Mapping[SnapshotId, StoredObject], *, keys: str | None
    ) -> None:
        """Keep what was `read` of manifests that the store lists as in `listed`, and forget what it does not list.

        `keys` is the digest of the secret keys with which that was done.
        """

        def write(connection: sqlite3.Connection, archive: int) -> None:
            _forget(connection, archive, {*map(str, listed)})
            rows = _PackRows(connection, archive)
            for snapshot_id, summary in read.items():
                head, facts = _texts(summary)
                packs = array("Q", map(rows.of, summary.packs)).tobytes()
                seen = _seen(listed[snapshot_id])
                row = (archive, str(snapshot_id), *seen, keys, head, facts, packs)
                connection.execute(
                    "INSERT OR REPLACE INTO manifests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*row, _checksum(snapshot_id.encode(), head, facts, packs)),
                )

        self._write(write)

    def private_part(self, snapshot_id: SnapshotId) -> bytes | None:
        """Return the private part of an encrypted manifest, in clear."""
        return self._content(f"SELECT {_CONTENT} FROM private_parts WHERE archive = ? AND id = ?", str(snapshot_id))  # noqa: S608

    def keep_private_part(self, snapshot_id: SnapshotId, content: bytes) -> None:
        """Keep the private part of an encrypted manifest."""
        self._put("INSERT OR REPLACE INTO private_parts VALUES (?, ?, ?)", str(snapshot_id), content)

    def record(self, stored: StoredObject) -> bytes | None:
        """Return the content of a record, if it was kept as it is listed."""
        statement = f"SELECT {_CONTENT} FROM records WHERE (archive, key, size, modified_at) = (?, ?, ?, ?)"  # noqa: S608
        return self._content(statement, stored.key, *_seen(stored))

    def keep_record(self, stored: StoredObject, content: bytes) -> None:
        """Keep the content of a record, unless another one was put since it was listed."""
        if len(content) == stored.size_bytes:
            self._put("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?)", stored.key, *_seen(stored), content)

    def drop_records(self, present: Collection[str]) -> None:
        """Forget the records whose keys are not `present`."""

        def write(connection: sqlite3.Connection, archive: int) -> None:
            known = connection.execute("SELECT key FROM records WHERE archive = ?", (archive,))
            gone = [(archive, key) for (key,) in known if key not in present]
            connection.executemany("DELETE FROM records WHERE archive = ? AND key = ?", gone)

        self._write(write)

    def hashes(self, snapshot_id: SnapshotId) -> Path:
        """The file for the page hashes of a snapshot, present or not. Raises `TargetUnwritableError`."""
        return self._directory() / f"{snapshot_id}{_HASHES}"

    def keep_hashes(self, snapshot_id: SnapshotId, source: Path) -> None:
        """Give `source`, a finished file of the spool, a second name here; files of other snapshots are removed.

        What lies beside it and has its name with an ending comes too.
        """
        with self._losing_is_fine():
            file = self.hashes(snapshot_id)
            for each in source.parent.glob(f"{source.name}*"):
                _link_atomically(each, file.with_name(f"{file.name}{each.name.removeprefix(source.name)}"))
            for other in file.parent.iterdir():
                if _HASHES in other.name and not other.name.startswith(file.name):
                    other.unlink(missing_ok=True)

    def _content(self, statement: str, *values: object) -> bytes | None:
        row = self._read(lambda connection, archive: connection.execute(statement, (archive, *values)).fetchone())
        return None if row is None else row[0]

    def _put(self, statement: str, *values: object) -> None:
        self._write(lambda connection, archive: connection.execute(statement, (archive, *values)))

    def _read(self, work: Callable[[sqlite3.Connection, int], _T]) -> _T | None:
        place = self._place()

        def read(connection: sqlite3.Connection) -> _T | None:
            archive = _archive(connection, place)
            return None if archive is None else work(connection, archive)

        with self._losing_is_fine():
            return self._database.read(read)
        return None

    def _write(self, work: Callable[[sqlite3.Connection, int], object]) -> None:
        place = self._place()

        def write(connection: sqlite3.Connection) -> None:
            archive = _archive(connection, place)
            if archive is None:
                connection.execute("INSERT INTO archives (repository, database) VALUES (?, ?)", place)
                archive = _archive(connection, place)
            work(connection, cast("int", archive))

        with self._losing_is_fine():
            self._database.write(write)

    @contextmanager
    def _losing_is_fine(self) -> Iterator[None]:
        try:
            yield
        except (OSError, *UNUSABLE_STATE) as error:
            self._on_failure(str(error))


def write_atomically(file: Path, content: PageHashes) -> None:
    """Write a file of page hashes. It needs no fsync: it proves itself when it is read."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        _rename_for_owner(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


class _Reader:
    """Makes summaries of rows. What many of them have in common is made once.

    A row with another checksum than it was written with counts as absent, and so does one of whose packs that is true,
    or that are others than those it was written with: a damaged disk must not change what a prune removes.
    """

    def __init__(self, connection: sqlite3.Connection, archive: int, ids: Mapping[str, SnapshotId]) -> None:
        decode = msgspec.json.Decoder(PackEntry).decode
        self._packs = {
            _pack_number(row, checksum): decode(entry)
            for row, checksum, entry in connection.execute(
                f"SELECT id, checksum, {_ENTRY} FROM packs WHERE archive = ?",  # noqa: S608
                (archive,),
            )
            if checksum == _checksum(entry)
        }
        self._ids = ids
        self._decode = msgspec.json.Decoder(_Own).decode
        self._shared: dict[bytes, _Shared] = {}
        self._windows: dict[str, SnapshotId] = {}
        self._sources: dict[tuple[bytes, int, int], SourceFacts] = {}

    def summary(
        self, snapshot_id: SnapshotId, head: bytes, facts: bytes, packs: bytes, checksum: int
    ) -> AnySummary | None:
        if checksum != _checksum(snapshot_id.encode(), head, facts, packs):
            return None
        try:
            entries = tuple(map(self._packs.__getitem__, array("Q", packs)))
        except KeyError:
            return None
        own, shared = self._decode(head), self._shared.get(facts) or self._decoded(facts)
        kind: Any = SealedSummary
        private: dict[str, Any] = {"writer_id": shared.writer}
        if shared.source is not None:
            kind, private = Summary, {"image_digest": own.image_digest, "writer": shared.writer}
            private["source"] = self._source(facts, shared.source, own)
        return cast(
            "AnySummary",
            kind(
                id=snapshot_id,
                sequence=own.sequence,
                base=None if own.base is None else self._ids.get(own.base) or SnapshotId(own.base),
                database=shared.database,
                kind=own.kind,
                tags=own.tags,
                page_size=own.page_size,
                page_count=own.page_count,
                changed_pages=own.changed_pages,
                stored_bytes=own.stored_bytes,
                replayed=own.replayed and self._replayed(*own.replayed),
                packs=entries,
                **private,
            ),
        )

    def _replayed(self, window: str, commit: int) -> Replayed:
        window_id = self._windows.get(window) or self._windows.setdefault(window, SnapshotId(window))
        return Replayed(window=window_id, commit=commit)

    def _source(self, facts: bytes, shared: SourceFacts, own: _Own) -> SourceFacts:
        key = (facts, own.free_pages, own.schema_version)
        source = self._sources.get(key)
        if source is None:
            made = replace(shared, free_pages=own.free_pages, schema_version=own.schema_version)
            source = self._sources.setdefault(key, made)
        return source

    def _decoded(self, facts: bytes) -> _Shared:
        return self._shared.setdefault(facts, msgspec.json.decode(facts, type=_Shared))


def _texts(summary: AnySummary) -> tuple[bytes, bytes]:
    """A summary without its id and packs, as two texts of JSON: its own values, and those that most snapshots share."""
    own = {name: getattr(summary, name) for name in _OWN_VALUES}
    if summary.replayed is not None:
        own["replayed"] = str(summary.replayed.window), summary.replayed.commit
    base = None if summary.base is None else str(summary.base)
    if isinstance(summary, SealedSummary):
        shared = _Shared(database=summary.database, writer=summary.writer_id)
        return msgspec.json.encode(_Own(**own, base=base)), msgspec.json.encode(shared)
    source = summary.source
    head = _Own(
        **own,
        base=base,
        image_digest=summary.image_digest,
        free_pages=source.free_pages,
        schema_version=source.schema_version,
    )
    common = replace(source, free_pages=0, schema_version=0)
    shared = _Shared(database=summary.database, writer=summary.writer, source=common)
    return msgspec.json.encode(head), msgspec.json.encode(shared)


class _PackRows:
    """The rows of packs, added when they are missing."""

    def __init__(self, connection: sqlite3.Connection, archive: int) -> None:
        self._connection = connection
        self._archive = archive
        self._numbers: dict[PackEntry, int] = {}

    def of(self, pack: PackEntry) -> int:
        """The number of `pack` in the rows of manifests."""
        return self._numbers.get(pack) or self._numbers.setdefault(pack, self._find(pack))

    def _find(self, pack: PackEntry) -> int:
        entry = msgspec.json.encode(pack)
        checksum = _checksum(entry)
        self._connection.execute(
            "INSERT INTO packs (archive, entry, checksum) VALUES (?, ?, ?)"
            " ON CONFLICT (archive, entry) DO UPDATE SET checksum = excluded.checksum",
            (self._archive, entry, checksum),
        )
        # Not RETURNING: the SQLite of some long-lived distributions is too old for it.
        place = (self._archive, entry)
        row = self._connection.execute("SELECT id FROM packs WHERE archive = ? AND entry = ?", place).fetchone()
        return _pack_number(row[0], checksum)


def _pack_number(row: int, checksum: int) -> int:
    """The number by which rows of manifests name a row of packs: it changes with what the row says."""
    return row << 32 | checksum


def _forget(connection: sqlite3.Connection, archive: int, present: Collection[str]) -> None:
    """Remove the rows of snapshots that are not `present`, and then those of packs that no other one needs."""
    of_archive, as_text = "WHERE archive = ?", "CAST(coalesce(id, '') AS TEXT)"
    for table in ("manifests", "private_parts"):
        ids = connection.execute(f"SELECT {as_text} FROM {table} {of_archive}", (archive,))  # noqa: S608
        # The listing may be older than a private part that another run has just kept, and that cannot be read again.
        newest = max(present, default="") if table == "private_parts" else None
        gone = [(archive, text) for (text,) in ids if text not in present and (newest is None or text <= newest)]
        connection.executemany(f"DELETE FROM {table} {of_archive} AND {as_text} = ?", gone)  # noqa: S608
        if gone and table == "manifests":
            needed: set[int] = set()
            for (packs,) in connection.execute(f"SELECT {_PACKS} FROM manifests {of_archive}", (archive,)):  # noqa: S608
                needed.update(array("Q", packs[: len(packs) // 8 * 8]))
            checksum = "CAST(coalesce(checksum, 0) AS INTEGER)"
            known = connection.execute(f"SELECT id, {checksum} FROM packs {of_archive}", (archive,))  # noqa: S608
            unneeded = [(row,) for row, checksum in known if _pack_number(row, checksum) not in needed]
            connection.executemany("DELETE FROM packs WHERE id = ?", unneeded)


def _archive(connection: sqlite3.Connection, place: tuple[str, str]) -> int | None:
    row = connection.execute("SELECT id FROM archives WHERE repository = ? AND database = ?", place).fetchone()
    return None if row is None else row[0]


def _checksum(*parts: bytes) -> int:
    return zlib.crc32(b"\0".join(parts))


def _seen(stored: StoredObject) -> tuple[int, int]:
    """Size and time (microseconds) of an object as it was listed."""
    return stored.size_bytes, (stored.modified_at - _EPOCH) // _MICROSECOND


def _link_atomically(source: Path, file: Path) -> None:
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        try:
            os.link(source, temporary)  # one file system: the spool is in the state directory too
        except OSError:
            shutil.copyfile(source, temporary)
        _rename_for_owner(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _rename_for_owner(temporary: Path, file: Path) -> None:
    with temporary.open("rb") as written:
        belong_to_owner(written.fileno(), file.parent)
    temporary.rename(file)
