"""The catalog of an archive: what its objects said when they were read, so that a run reads only what is new.

Manifests, records and private parts are in the state database; page hashes are files, because they are mapped. An
object counts as known while the store lists it with the size and the time that it had. All of it may be lost: the
objects are then read again. So nothing here raises because the state can be neither read nor written.

Each row has a batch of manifests, because every run needs something of all of them: with 10,000, reading and decoding a
row for each took 0.2 s of CPU time. What many of them have in common, such as a pack, has a row of its own, so that it
is kept once; of the packs, which few runs need, each is decoded on demand.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import zlib
from array import array
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

import msgspec
from msgspec.structs import replace

from backupd.format import SnapshotId
from backupd.format.manifest import PackEntry, Replayed, SealedSummary, SnapshotKind, SourceFacts, Summary, Writer
from backupd.format.seal import Value
from backupd.state import UNUSABLE_STATE
from backupd.store import StoredObject, canonical_url
from backupd.system.files import belong_to_owner

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from backupd.format.manifest import AnySummary
    from backupd.format.pagemap import PageHashes
    from backupd.state.database import StateDatabase

_T = TypeVar("_T")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_HASHES = ".hashes"
_IDS, _CONTENT = (f"CAST(coalesce({name}, '') AS BLOB)" for name in ("ids", "content"))
"""Columns as bytes: a damaged row may have values of other types."""
_BATCHES = f"SELECT number, {_IDS}, {_CONTENT}, checksum FROM manifests WHERE archive = ?"  # noqa: S608
_MOST_IN_BATCH = 64
"""Manifests in a batch: it is written again when one of them is new, or gone."""
_FULL_BATCH_BYTES = 80_000
"""A batch of this size takes no other manifest: that of a database with very many packs is alone."""
_REFERENCE, _REFERENCE_BYTES = "Q", 8
"""How rows of manifests name a row of packs or facts: its number, and the checksum of what it says."""
_CHECKSUM_BITS = 32
_LAST_NUMBER = 2**31
_MOST_RECALLED_RECORDS = 5000
_MOST_RECALLED_BYTES = 1 << 20
_HAS_NUMBER = f"typeof(number) = 'integer' AND number BETWEEN 0 AND {_LAST_NUMBER}"


class _Row(msgspec.Struct, frozen=True, array_like=True, gc=False, kw_only=True):
    """What a manifest says, and the size and the time (microseconds) with which it was listed.

    `facts` refers to a row, and `packs` is an array of such references. An encrypted manifest shows no `image_digest`,
    and neither of the two values after it.
    """

    id: str
    size: int
    modified_at: int
    tried_with: str | None
    facts: int = 0
    packs: bytes = b""
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


class _Facts(Value, frozen=True):
    """The values that most manifests of a database have in common. An encrypted one shows only the id of its writer."""

    database: str
    writer: Writer | str
    source: SourceFacts | None = None


class _Name(msgspec.Struct, frozen=True, gc=False):
    """The part of a `PackEntry` that names the pack."""

    sha256: str


_encode = msgspec.msgpack.Encoder().encode
_decode_rows = msgspec.msgpack.Decoder(list[_Row]).decode
_decode_raw_rows = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_name = msgspec.msgpack.Decoder(_Name).decode
_OWN_VALUES = ("sequence", "kind", "tags", "page_size", "page_count", "changed_pages", "stored_bytes")


class _Shared(Generic[_T]):
    """The rows of packs, or of facts. Each is decoded once, when it is needed.

    A row that says something else than it was written with counts as absent, and so does a manifest that refers to it:
    a damaged disk must not change what a prune removes.
    """

    def __init__(self, connection: sqlite3.Connection, archive: int, table: str, type_: type[_T]) -> None:
        rows = connection.execute(
            f"SELECT number, checksum, {_CONTENT} FROM {table} WHERE archive = ? AND {_HAS_NUMBER} ORDER BY number",  # noqa: S608
            (archive,),
        )
        self.contents: dict[int, bytes] = {
            _reference(number, checksum): content
            for number, checksum, content in rows
            if checksum == _checksum(content)
        }
        self._decode = msgspec.msgpack.Decoder(type_).decode
        self._decoded: dict[int, _T] = {}

    def __getitem__(self, reference: int) -> _T:
        found = self._decoded.get(reference)
        return self._decoded.setdefault(reference, self._decode(self.contents[reference])) if found is None else found

    @cached_property
    def names(self) -> dict[int, str]:
        """The SHA-256 (hex) of each pack."""
        return {reference: _decode_name(content).sha256 for reference, content in self.contents.items()}


class KnownPacks(msgspec.Struct, frozen=True, eq=False, gc=False):
    """The packs of a snapshot, in place of a tuple of them: they are decoded when they are looked at, which few are."""

    known: _Shared[PackEntry]
    references: bytes

    def names(self) -> Iterator[str]:
        """The SHA-256 (hex) of each."""
        return map(self.known.names.__getitem__, array(_REFERENCE, self.references))

    def __iter__(self) -> Iterator[PackEntry]:
        return map(self.known.__getitem__, array(_REFERENCE, self.references))

    def __len__(self) -> int:
        return len(self.references) // _REFERENCE_BYTES

    def __getitem__(self, position: int) -> PackEntry:
        return tuple(self)[position]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple | KnownPacks) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


def names_of_packs(packs: tuple[PackEntry, ...] | KnownPacks) -> Iterable[str]:
    """Return the SHA-256 (hex) of each pack of a snapshot, without decoding more of it."""
    return packs.names() if isinstance(packs, KnownPacks) else (pack.sha256 for pack in packs)


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
            found: dict[SnapshotId, AnySummary] = {}
            has_others = False
            reader = _Reader(connection, archive, ids)
            for _, known, content, checksum in connection.execute(_BATCHES, (archive,)):
                if checksum != _checksum(known, content):
                    has_others = True
                    continue
                for row in _decode_rows(content):
                    snapshot_id = ids.get(row.id)
                    if snapshot_id is None:
                        has_others = True
                    elif (row.size, row.modified_at) == _seen(listed[snapshot_id]):
                        summary = reader.summary(snapshot_id, row)
                        is_untried = isinstance(summary, SealedSummary) and keys is not None and row.tried_with != keys
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
            present = {*map(str, listed)}
            _forget_private_parts(connection, archive, present)
            kept, is_less = _taken_out(connection, archive, present.difference(map(str, read)))
            if is_less:
                _forget_shared(connection, archive, kept.values())
            rows = _RowMaker(connection, archive)
            kept |= {str(each): _encode(rows.row(summary, listed[each], keys)) for each, summary in read.items()}
            for batch in _in_batches(kept):
                ids, content = " ".join(batch).encode(), _encode([msgspec.Raw(kept[each]) for each in batch])
                connection.execute(
                    "INSERT INTO manifests (archive, ids, content, checksum) VALUES (?, ?, ?, ?)",
                    (archive, ids, content, _checksum(ids, content)),
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


def place_key(url: str) -> str:
    """Return the part of an archive's key that stands for the place: the store at `url`, however it is spelled."""
    return hashlib.sha256(os.fsencode(canonical_url(url))).hexdigest()[:8]


class Recalled(NamedTuple):
    """What was last known of one database in one store, without looking there."""

    summaries: tuple[AnySummary, ...] = ()
    """Of the manifests that were listed last, in no order. Encrypted ones may be open."""
    records: tuple[tuple[StoredObject, bytes], ...] = ()
    """The records that were read, as they were listed: the newest ones, if there are very many."""


def recall(database: StateDatabase, url: str, name: str) -> Recalled:
    """Return what this machine knows of the database `name` in the store at `url`. Asks no store.

    It is from the last time that the archive was read; of a repository that was made again in the same place, only the
    newest counts. Raises the errors in `UNUSABLE_STATE`.
    """

    def read(connection: sqlite3.Connection) -> Recalled:
        place = (name, f"%-{place_key(url)}")
        found = "SELECT max(id) FROM archives WHERE database = ? AND repository LIKE ?"
        (archive,) = connection.execute(found, place).fetchone()
        if archive is None:
            return Recalled()
        rows = [
            row
            for _, ids, content, checksum in connection.execute(_BATCHES, (archive,))
            if checksum == _checksum(ids, content)
            for row in _decode_rows(content)
        ]
        ids = {row.id: SnapshotId(row.id) for row in rows}
        reader = _Reader(connection, archive, ids)
        summaries = [reader.summary(ids[row.id], row) for row in rows]
        records = connection.execute(
            f"SELECT CAST(key AS TEXT), CAST(size AS INTEGER), CAST(modified_at AS INTEGER), {_CONTENT} FROM records"  # noqa: S608
            " WHERE archive = ? AND length(content) <= ? ORDER BY modified_at DESC LIMIT ?",
            (archive, _MOST_RECALLED_BYTES, _MOST_RECALLED_RECORDS),
        )
        return Recalled(
            tuple(each for each in summaries if each is not None),
            tuple(
                (StoredObject(key, size, _EPOCH + modified_at * _MICROSECOND), content)
                for key, size, modified_at, content in records
            ),
        )

    return database.read(read)


def write_atomically(file: Path, content: PageHashes) -> None:
    """Write a file of page hashes. It needs no fsync: it proves itself when it is read."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        _rename_for_owner(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


class _Reader:
    """Makes summaries of the rows of manifests. What several of them have in common is made once."""

    def __init__(self, connection: sqlite3.Connection, archive: int, ids: Mapping[str, SnapshotId]) -> None:
        self._packs = _Shared(connection, archive, "packs", PackEntry)
        self._facts = _Shared(connection, archive, "facts", _Facts)
        self._ids = ids
        self._windows: dict[str, SnapshotId] = {}
        self._sources: dict[tuple[int, int, int], SourceFacts] = {}

    def summary(self, snapshot_id: SnapshotId, row: _Row) -> AnySummary | None:
        """Return what `row` says; None when it refers to a row that is damaged or absent."""
        if row.facts not in self._facts.contents:
            return None
        if not all(map(self._packs.contents.__contains__, array(_REFERENCE, row.packs))):
            return None
        facts = self._facts[row.facts]
        base = None if row.base is None else self._ids.get(row.base) or SnapshotId(row.base)
        packs = cast("tuple[PackEntry, ...]", KnownPacks(self._packs, row.packs))
        if facts.source is None:
            return SealedSummary(
                id=snapshot_id,
                sequence=row.sequence,
                base=base,
                database=facts.database,
                kind=row.kind,
                tags=row.tags,
                page_size=row.page_size,
                page_count=row.page_count,
                changed_pages=row.changed_pages,
                stored_bytes=row.stored_bytes,
                replayed=self._replayed(row),
                packs=packs,
                writer_id=cast("str", facts.writer),
            )
        return Summary(
            id=snapshot_id,
            sequence=row.sequence,
            base=base,
            database=facts.database,
            kind=row.kind,
            tags=row.tags,
            page_size=row.page_size,
            page_count=row.page_count,
            changed_pages=row.changed_pages,
            stored_bytes=row.stored_bytes,
            replayed=self._replayed(row),
            image_digest=cast("str", row.image_digest),
            packs=packs,
            source=self._source(facts.source, row),
            writer=cast("Writer", facts.writer),
        )

    def _replayed(self, row: _Row) -> Replayed | None:
        if row.replayed is None:
            return None
        window, commit = row.replayed
        known = self._windows.get(window) or self._windows.setdefault(window, SnapshotId(window))
        return Replayed(window=known, commit=commit)

    def _source(self, shared: SourceFacts, row: _Row) -> SourceFacts:
        key = (row.facts, row.free_pages, row.schema_version)
        source = self._sources.get(key)
        if source is None:
            source = replace(shared, free_pages=row.free_pages, schema_version=row.schema_version)
            self._sources[key] = source
        return source


class _RowMaker:
    """Makes the rows of manifests, and those of the packs and the facts that they refer to."""

    def __init__(self, connection: sqlite3.Connection, archive: int) -> None:
        self._packs = _SharedRows(connection, archive, "packs")
        self._facts = _SharedRows(connection, archive, "facts")

    def row(self, summary: AnySummary, stored: StoredObject, keys: str | None) -> _Row:
        values: dict[str, Any] = {name: getattr(summary, name) for name in _OWN_VALUES}
        if summary.replayed is not None:
            values["replayed"] = str(summary.replayed.window), summary.replayed.commit
        if isinstance(summary, SealedSummary):
            facts = _Facts(database=summary.database, writer=summary.writer_id)
        else:
            source = summary.source
            facts = _Facts(
                database=summary.database, writer=summary.writer, source=replace(source, free_pages=0, schema_version=0)
            )
            values |= {"free_pages": source.free_pages, "schema_version": source.schema_version}
            values["image_digest"] = summary.image_digest
        size, modified_at = _seen(stored)
        return _Row(
            id=str(summary.id),
            size=size,
            modified_at=modified_at,
            tried_with=keys,
            facts=self._facts.of(facts),
            packs=array(_REFERENCE, map(self._packs.of, summary.packs)).tobytes(),
            base=None if summary.base is None else str(summary.base),
            **values,
        )


class _SharedRows:
    """The rows of packs, or of facts, added when they are missing."""

    def __init__(self, connection: sqlite3.Connection, archive: int, table: str) -> None:
        self._connection = connection
        self._archive = archive
        self._table = table
        self._references: dict[Value, int] = {}
        highest = f"SELECT max(number) FROM {table} WHERE archive = ? AND {_HAS_NUMBER}"  # noqa: S608
        self._last: int = connection.execute(highest, (archive,)).fetchone()[0] or 0

    def of(self, value: Value) -> int:
        """Return the reference to the row of `value`."""
        return self._references.get(value) or self._references.setdefault(value, self._find(_encode(value)))

    def _find(self, content: bytes) -> int:
        checksum = _checksum(content)
        row = self._connection.execute(
            f"SELECT number FROM {self._table} INDEXED BY {self._table}_by_checksum"  # noqa: S608
            f" WHERE archive = ? AND checksum = ? AND content = ? AND {_HAS_NUMBER}",
            (self._archive, checksum, content),
        ).fetchone()
        if row is not None:
            return _reference(row[0], checksum)
        self._last += 1
        values = (self._archive, self._last, content, checksum)
        self._connection.execute(f"INSERT OR REPLACE INTO {self._table} VALUES (?, ?, ?, ?)", values)  # noqa: S608
        return _reference(self._last, checksum)


def _taken_out(connection: sqlite3.Connection, archive: int, wanted: Collection[str]) -> tuple[dict[str, bytes], bool]:
    """Remove the batches that are damaged, not full, or have other manifests than the `wanted`.

    Return the encoded rows of these that were in them, by id, and whether any other row was. They are put into new
    batches, so that few batches are not full, whatever was removed.
    """
    taken: dict[str, bytes] = {}
    gone, is_less = [], False
    for number, ids, content, checksum in connection.execute(_BATCHES, (archive,)):
        is_whole = checksum == _checksum(ids, content)
        known = ids.decode().split() if is_whole else []
        has_others = not is_whole or not all(each in wanted for each in known)
        is_full = len(known) >= _MOST_IN_BATCH or len(content) >= _FULL_BATCH_BYTES
        if is_full and not has_others:
            continue
        gone.append((number,))
        is_less |= has_others
        if is_whole:
            rows = zip(known, _decode_raw_rows(content), strict=True)
            taken |= {each: bytes(row) for each, row in rows if each in wanted}
    connection.executemany("DELETE FROM manifests WHERE number = ?", gone)
    return taken, is_less


def _forget_shared(connection: sqlite3.Connection, archive: int, taken: Iterable[bytes]) -> None:
    """Remove the rows of packs and facts to which no manifest refers, be it in a batch or `taken` out of one."""
    needed: dict[str, set[int]] = {"packs": set(), "facts": set()}
    batches = (content for _, _, content, _ in connection.execute(_BATCHES, (archive,)))
    for content in chain(batches, (_encode([msgspec.Raw(row)]) for row in taken)):
        for row in _decode_rows(content):
            needed["packs"].update(array(_REFERENCE, row.packs))
            needed["facts"].add(row.facts)
    for table, references in needed.items():
        rows = connection.execute(
            f"SELECT number, CAST(coalesce(checksum, 0) AS INTEGER), {_HAS_NUMBER} FROM {table} WHERE archive = ?",  # noqa: S608
            (archive,),
        )
        gone = [
            (archive, number)
            for number, checksum, has_number in rows
            if not has_number or _reference(number, checksum) not in references
        ]
        connection.executemany(f"DELETE FROM {table} WHERE archive = ? AND number = ?", gone)  # noqa: S608


def _in_batches(kept: Mapping[str, bytes]) -> Iterator[list[str]]:
    """Divide the ids of encoded rows, so that at most one batch is not full. A row that fills one is alone."""
    batch: list[str] = []
    size = 0
    for each in sorted(kept):
        if len(kept[each]) >= _FULL_BATCH_BYTES:
            yield [each]
            continue
        batch.append(each)
        size += len(kept[each])
        if len(batch) == _MOST_IN_BATCH or size >= _FULL_BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _forget_private_parts(connection: sqlite3.Connection, archive: int, present: Collection[str]) -> None:
    """Remove the private parts of snapshots that are not `present`.

    The listing may be older than one that another run has just kept, and that cannot be read again.
    """
    newest = max(present, default="")
    as_text = "CAST(coalesce(id, '') AS TEXT)"
    ids = connection.execute(f"SELECT {as_text} FROM private_parts WHERE archive = ?", (archive,))  # noqa: S608
    gone = [(archive, text) for (text,) in ids if text not in present and text <= newest]
    connection.executemany(f"DELETE FROM private_parts WHERE archive = ? AND {as_text} = ?", gone)  # noqa: S608


def _archive(connection: sqlite3.Connection, place: tuple[str, str]) -> int | None:
    row = connection.execute("SELECT id FROM archives WHERE repository = ? AND database = ?", place).fetchone()
    return None if row is None else row[0]


def _reference(number: int, checksum: int) -> int:
    return number << _CHECKSUM_BITS | checksum


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
