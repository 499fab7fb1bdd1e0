"""What changed between two states of a database: its schema, then the rows of each table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import apsw

from backupd.inside.pages import StoredPages
from backupd.inside.tables import is_internal, is_same, joined, literal, placeholder, quoted, read_schema, rows_of
from backupd.inside.trees import EVERYTHING, ChangedPages

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from backupd.inside.pages import PageSource
    from backupd.inside.tables import Row, Schema, Table
    from backupd.inside.trees import Part, Span

_FEW = 16
"""Of all pages, so many times fewer than that are taken for changed without a look at their hashes."""


class Kind(StrEnum):
    """What became of a row or of an object of the schema."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    RENAMED = "renamed"


class SchemaChange(NamedTuple):
    """A change of an object. `name` is that of before, unless it was added. The SQL is None where there is none."""

    kind: Kind
    what: str
    name: str
    new_name: str
    before: str | None
    after: str | None


class RowChange(NamedTuple):
    """A change of a row. `key` has the values that identify it; the rows have those of the compared columns.

    `rowid` is its rowid where that is what identifies it: it has no primary key, or has NULL in it.
    """

    kind: Kind
    key: Row
    before: Row | None
    after: Row | None
    rowid: int | None = None


@dataclass(frozen=True, slots=True)
class State:
    """One of the two states: its pages, a connection that reads them, and its schema."""

    pages: PageSource
    connection: apsw.Connection
    schema: Schema

    @classmethod
    def of(cls, pages: PageSource, connection: apsw.Connection) -> State:
        """Read the schema of a state."""
        return cls(pages, connection, read_schema(connection))


@dataclass(frozen=True, slots=True)
class TablePair:
    """A table that both states have. `why_not` says why its rows cannot be matched; None where they can.

    `columns` are those that both store, which are compared, and `identity` those that rows are matched by.
    """

    before: Table
    after: Table
    columns: tuple[str, ...]
    identity: tuple[str, ...]
    why_not: str | None = None

    @property
    def columns_of_one(self) -> tuple[str, ...]:
        """Stored columns that only one of both states has, which are not compared."""
        return tuple(sorted({*self.before.columns} ^ {*self.after.columns}))

    def condition(self, change: RowChange, table: Table, encoding: str) -> str:
        """Return the condition of SQL that finds the row of a change in `table`, one of both, in this encoding."""
        if change.rowid is not None:
            return f"{quoted(table.rowid or 'rowid')} = {change.rowid}"
        columns = zip(self.identity, change.key, strict=True)
        return " AND ".join(f"{quoted(column)} = {literal(value, encoding)}" for column, value in columns)

    @property
    def is_same_table(self) -> bool:
        """Whether it was not altered, but for its name."""
        is_renamed = self.before.name != self.after.name
        return is_renamed or self.before.sql == self.after.sql


class Difference:
    """What changed from `before` to `after`. Nothing but the schemas is read before it is asked for."""

    def __init__(self, before: State, after: State) -> None:
        self.before = before
        self.after = after
        self._changes: ChangedPages | None = None
        self._renamed = _renamed(before.schema, after.schema)

    def schema_changes(self) -> list[SchemaChange]:
        """Return the changes of the schema: tables first, in the order of their names."""
        before, after = (_objects(state.schema) for state in (self.before, self.after))
        changes = [
            SchemaChange(Kind.RENAMED, "table", old, new, before.pop(("table", old)), after.pop(("table", new)))
            for old, new in self._renamed.items()
        ]
        for what, name in sorted(before.keys() | after.keys(), key=lambda each: (each[0] != "table", each)):
            old, new = before.get((what, name)), after.get((what, name))
            if old != new:
                kind = Kind.ADDED if old is None else Kind.REMOVED if new is None else Kind.CHANGED
                changes.append(SchemaChange(kind, what, name, name, old, new))
        return changes

    def table_pairs(self) -> list[TablePair]:
        """Return the tables that both states have, SQLite's own left out, in the order of the later state."""
        old_names = {new: old for old, new in self._renamed.items()}
        before = self.before.schema.tables
        return [
            _pair(before[old], table, self.before.connection, self.after.connection)
            for table in self.after.schema.tables.values()
            if (old := old_names.get(table.name, table.name)) in before and not is_internal(table.name)
        ]

    def row_changes(self, pair: TablePair) -> Iterator[RowChange]:
        """Yield the changes of the rows of a table, in the order of their rowids or keys.

        Only those parts of it are read that may differ. Raises `DamageError` and `StoreError`.
        """
        if pair.why_not is not None:
            return
        before, after = _Side(self.before.connection, pair, pair.before), _Side(self.after.connection, pair, pair.after)
        if pair.after.has_rowid:
            yield from _by_rowid(before, after, self._parts(pair))
        elif not pair.is_same_table:
            yield from _by_lookups(before, after)
        elif not self._is_untouched(pair):
            yield from _by_key(before, after)

    def _parts(self, pair: TablePair) -> Sequence[Part]:
        changes = self._changed_pages()
        if changes is None or pair.before.root != pair.after.root or changes.may_hide_rows:
            return [EVERYTHING]
        return changes.parts(pair.after.root)

    def _is_untouched(self, pair: TablePair) -> bool:
        """Whether a table without rowids is the same by its pages."""
        changes = self._changed_pages()
        return not (
            changes is None or pair.before.root != pair.after.root or changes.has_other_trees or changes.may_hide_rows
        )

    def _changed_pages(self) -> ChangedPages | None:
        """Find the pages that differ; None where pages of one state cannot be those of the other."""
        before, after = self.before.pages, self.after.pages
        if before.page_size != after.page_size or self.before.schema.encoding != self.after.schema.encoding:
            return None
        if self._changes is None:
            changed = frozenset(changed_pages(before, after))
            for one, other in ((after, before), (before, after)):
                if isinstance(one, StoredPages):
                    one.share(other, changed)
                    break
            self._changes = ChangedPages(before, after, changed)
        return self._changes


def changed_pages(before: PageSource, after: PageSource) -> Collection[int]:
    """Return the numbers of all pages that differ, and those that one state lacks; and maybe some others."""
    if isinstance(before, StoredPages) and isinstance(after, StoredPages):
        found = [*before.may_differ(after)]
        # Whole packs are written again now and then, with the same pages.
        if len(found) * _FEW < after.page_count:
            return found
    else:
        found = [*range(1, max(before.page_count, after.page_count) + 1)]
    both = min(before.page_count, after.page_count)
    return [number for number in found if number > both or before.hash_of(number) != after.hash_of(number)]


def _objects(schema: Schema) -> dict[tuple[str, str], str]:
    tables = {("table", table.name): table.sql for table in schema.tables.values() if not is_internal(table.name)}
    others = {key: other.sql for key, other in schema.others.items()}
    return tables | {("table", name): sql for name, sql in schema.virtual.items()} | others


def _renamed(before: Schema, after: Schema) -> dict[str, str]:
    """Return new names by old ones, of tables that are still the same tree with the same columns."""
    gone = {table.root: table for table in before.tables.values() if table.name not in after.tables}
    return {
        old.name: new.name
        for new in after.tables.values()
        if new.name not in before.tables
        and (old := gone.get(new.root)) is not None
        and _without_name(old.sql) == _without_name(new.sql)
    }


def _without_name(sql: str) -> str:
    return sql[sql.find("(") :]


def _pair(before: Table, after: Table, *connections: apsw.Connection) -> TablePair:
    columns = tuple(column for column in after.columns if column in before.columns)
    matches_by_key = before.key == after.key and all(map(_can_find, connections, (before, after)))
    reason = None
    if before.has_rowid != after.has_rowid:
        reason = "it has rowids in one of both states only"
    elif not after.has_rowid and before.key != after.key:
        reason = "its primary key is another one"
    elif not after.has_rowid and not matches_by_key:
        reason = "its primary key has a collation that only the application knows"
    elif after.has_rowid and None in {before.rowid, after.rowid}:
        reason = "its columns hide the rowid"
    return TablePair(before, after, columns, after.key if matches_by_key else (after.rowid or "",), reason)


def _can_find(connection: apsw.Connection, table: Table) -> bool:
    """Whether SQLite can look rows up by the primary key, without a collation that only the application knows."""
    if not table.key:
        return False
    condition = " AND ".join(f"{quoted(column)} = ?" for column in table.key)
    try:
        connection.execute(
            f"SELECT 1 FROM main.{quoted(table.name)} WHERE {condition} LIMIT 0",  # noqa: S608  (names are quoted)
            [None] * len(table.key),
        ).fetchall()
    except apsw.SQLError:
        return False
    return True


class _Side:
    """The rows of a table in one state: each one begins with its rowid, or with nothing, then come the columns."""

    def __init__(self, connection: apsw.Connection, pair: TablePair, table: Table) -> None:
        is_by_key = bool(table.key) and pair.identity == pair.after.key
        self._key_places = [pair.columns.index(column) for column in table.key] if is_by_key else []
        self._is_by_rowid = (pair.before.is_key_rowid and pair.after.is_key_rowid) or not is_by_key
        self._connection = connection
        self._table = table
        self._columns = [quoted(column) for column in pair.columns]

    def between(self, span: Span, most_rows: int | None) -> Iterator[tuple[int, Row]]:
        """Yield rowids and rows in a span of rowids, in order.

        SQLite would look at the next row to see the end of the span: where `most_rows` is known, it need not, and does
        not read the next leaf.
        """
        rowid = quoted(self._table.rowid or "rowid")
        rest, values = f"FROM main.{quoted(self._table.name)} NOT INDEXED", tuple[int, ...]()
        if most_rows is not None:
            rest, values = f"{rest} WHERE {rowid} BETWEEN ? AND ?", (*span, most_rows)
        rest += f" ORDER BY {rowid}{'' if most_rows is None else ' LIMIT ?'}"
        for number, *row in rows_of(self._connection, [rowid, *self._columns], rest, values):
            yield int(number), tuple(row)  # type: ignore[arg-type]

    def in_order_of_key(self) -> Iterator[Row]:
        """Yield all rows in the order of the primary key."""
        rest = f"FROM main.{quoted(self._table.name)} ORDER BY {joined(self._table.key)}"
        return rows_of(self._connection, self._columns, rest)

    def key_of(self, row: Row) -> Row:
        """Return the primary key of a row."""
        return tuple(row[place] for place in self._key_places)

    def identifying(self, row: Row | None) -> Row | None:
        """Return the primary key of a row, if that and not its rowid identifies it."""
        key = None if row is None or self._is_by_rowid else self.key_of(row)
        return None if key is None or None in key else key

    def find(self, key: Row) -> Row | None:
        """Return the row with a primary key; None when there is none, or a part of the key is NULL."""
        condition = " AND ".join(
            f"{quoted(column)} = {placeholder(value)}" for column, value in zip(self._table.key, key, strict=True)
        )
        rest = f"FROM main.{quoted(self._table.name)} WHERE {condition}"
        return next(rows_of(self._connection, self._columns, rest, key), None)


def _by_rowid(before: _Side, after: _Side, parts: Sequence[Part]) -> Iterator[RowChange]:
    for part in parts:
        old_rows = before.between(part.span, part.rows_before)
        for rowid, old, new in _paired(old_rows, after.between(part.span, part.rows_after)):
            if old is not None and new is not None and is_same(old, new):
                continue
            yield from _changes_at(rowid, old, new, before, after)


def _paired(
    before: Iterator[tuple[int, Row]], after: Iterator[tuple[int, Row]]
) -> Iterator[tuple[int, Row | None, Row | None]]:
    """Yield each rowid that one of both has, in order, with its rows in both."""
    old, new = next(before, None), next(after, None)
    while old is not None or new is not None:
        if old is not None and (new is None or old[0] < new[0]):
            yield (*old, None)
            old = next(before, None)
        elif new is not None and (old is None or new[0] < old[0]):
            yield new[0], None, new[1]
            new = next(after, None)
        elif old is not None and new is not None:
            yield (*old, new[1])
            old, new = next(before, None), next(after, None)


def _changes_at(rowid: int, old: Row | None, new: Row | None, before: _Side, after: _Side) -> Iterator[RowChange]:
    """Yield what became of the rows with a rowid. One with a primary key may have another rowid in the other state."""
    old_key, new_key = before.identifying(old), after.identifying(new)
    if old is not None and new is not None and old_key == new_key:
        yield _change(old_key, rowid, old, new)
        return
    if old is not None:
        moved = None if old_key is None else after.find(old_key)
        if moved is None or not is_same(old, moved):
            yield _change(old_key, rowid, old, moved)
    if new is not None and (new_key is None or before.find(new_key) is None):
        yield _change(new_key, rowid, None, new)


def _change(key: Row | None, rowid: int, old: Row | None, new: Row | None) -> RowChange:
    kind = Kind.ADDED if old is None else Kind.REMOVED if new is None else Kind.CHANGED
    return RowChange(kind, (rowid,), old, new, rowid) if key is None else RowChange(kind, key, old, new)


def _by_lookups(before: _Side, after: _Side) -> Iterator[RowChange]:
    """Compare all rows of tables whose keys may be ordered in different ways."""
    for old in before.in_order_of_key():
        key = before.key_of(old)
        new = after.find(key)
        if new is None or not is_same(old, new):
            yield RowChange(Kind.REMOVED if new is None else Kind.CHANGED, key, old, new)
    for new in after.in_order_of_key():
        key = after.key_of(new)
        if before.find(key) is None:
            yield RowChange(Kind.ADDED, key, None, new)


def _by_key(before: _Side, after: _Side) -> Iterator[RowChange]:
    """Compare all rows. Which of two different keys comes first is left to SQLite: a lookup tells what both have."""
    old_rows, new_rows = before.in_order_of_key(), after.in_order_of_key()
    old, new = next(old_rows, None), next(new_rows, None)
    while old is not None and new is not None:
        old_key, new_key = before.key_of(old), after.key_of(new)
        found = new if old_key == new_key else after.find(old_key)
        if found is None:
            yield RowChange(Kind.REMOVED, old_key, old, None)
            old = next(old_rows, None)
        elif old_key != new_key and before.find(new_key) is None:
            yield RowChange(Kind.ADDED, new_key, None, new)
            new = next(new_rows, None)
        else:  # one key, perhaps in two spellings that its collation takes for the same
            if not is_same(old, found):
                yield RowChange(Kind.CHANGED, old_key, old, found)
            old, new = next(old_rows, None), next(new_rows, None)
    for left in () if old is None else chain([old], old_rows):
        yield RowChange(Kind.REMOVED, before.key_of(left), left, None)
    for left in () if new is None else chain([new], new_rows):
        yield RowChange(Kind.ADDED, after.key_of(left), None, left)
