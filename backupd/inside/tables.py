"""The tables of a database as `dump`, `diff` and `recover` need them: columns, what identifies a row, and literals."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from backupd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import apsw

Value: TypeAlias = "int | float | str | bytes | Undecodable | None"
Row: TypeAlias = "tuple[Value, ...]"
_ROWID_NAMES = ("rowid", "_rowid_", "oid")
_STORED, _GENERATED = 0, (2, 3)
_UTF_16 = {"UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}
_NAMES_SHOWN = 8


class Undecodable(bytes):
    """The bytes of a text that is not valid in the encoding of its database."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that holds rows. `sql` is how it was created.

    `columns` are those that are stored, and `generated` those that are computed. `key` are the columns of its declared
    primary key, none if it has none.
    """

    name: str
    sql: str
    root: int
    columns: tuple[str, ...]
    generated: tuple[str, ...]
    key: tuple[str, ...]
    is_key_rowid: bool
    """Whether the primary key is the rowid."""
    rowid: str | None
    """A name by which SQL finds its rowid; None where it has none, or columns have taken all three names."""
    has_rowid: bool
    is_shadow: bool

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns by which rows of two states are matched: its primary key or, without one, its rowid if it can."""
        return self.key or ((self.rowid,) if self.rowid else ())


class Other(NamedTuple):
    """An index, a trigger or a view: how it was created, and the name of the table that it belongs to."""

    sql: str
    table: str


@dataclass(frozen=True, slots=True)
class Schema:
    """All objects of a database. `others` has indexes, triggers and views by kind and name, in their order.

    `virtual` has the SQL of virtual tables by name: their rows are what a program makes of others.
    """

    tables: dict[str, Table]
    virtual: dict[str, str]
    others: dict[tuple[str, str], Other]
    encoding: str

    def selected(self, names: Sequence[str], *, where: str) -> list[Table]:
        """Return the tables that `names` mean, or all but SQLite's own. Raises `UsageError` naming `where`."""
        if not names:
            return [table for table in self.tables.values() if not is_internal(table.name)]
        by_name = {name.lower(): table for name, table in self.tables.items()}
        chosen = []
        for name in names:
            if name in self.virtual:
                raise UsageError(
                    f"{name} in {where} is a virtual table, whose rows are kept in other tables",
                    hint=f"use those: {listed(table for table in self.tables if table.startswith(f'{name}_'))}",
                )
            if name.lower() not in by_name:
                raise UsageError(f"{where} has no table {name!r}", hint=f"it has: {listed(self.tables)}")
            chosen.append(by_name[name.lower()])
        return [*dict.fromkeys(chosen)]


def listed(names: Iterable[str]) -> str:
    """Return names for a message, with the first ones of many."""
    found = [*names]
    return ", ".join(found[:_NAMES_SHOWN]) + (" and more" if len(found) > _NAMES_SHOWN else "") or "none"


def is_internal(name: str) -> bool:
    """Whether a table is one of SQLite's own."""
    return name.lower().startswith("sqlite_")


def read_schema(connection: apsw.Connection) -> Schema:
    """Read the objects of a database. Raises the errors of SQLite."""
    tables: dict[str, Table] = {}
    virtual: dict[str, str] = {}
    others: dict[tuple[str, str], Other] = {}
    kinds = {
        str(name): (str(kind), not without_rowid)
        for _, name, kind, _, without_rowid, _ in connection.execute("PRAGMA main.table_list")
    }
    rows = connection.execute("SELECT type, name, tbl_name, rootpage, sql FROM main.sqlite_schema ORDER BY rowid")
    for kind, name, owner, root, sql in rows.fetchall():
        kind, name = str(kind), str(name)  # noqa: PLW2901
        if kind != "table":
            if sql is not None:  # an index of a UNIQUE constraint has none
                others[kind, name] = Other(str(sql), str(owner))
        elif not root:
            virtual[name] = str(sql)
        else:
            what, has_rowid = kinds.get(name, ("table", True))
            tables[name] = _table(
                connection, name, str(sql), int(root), is_shadow=what == "shadow", has_rowid=has_rowid
            )
    return Schema(tables, virtual, others, str(connection.pragma("encoding")))


def _table(
    connection: apsw.Connection,
    name: str,
    sql: str,
    root: int,
    *,
    is_shadow: bool,
    has_rowid: bool,
) -> Table:
    found: list[Any] = connection.execute(f"PRAGMA main.table_xinfo({quoted(name)})").fetchall()
    columns = tuple(str(column) for _, column, _, _, _, _, hidden in found if hidden == _STORED)
    generated = tuple(str(column) for _, column, _, _, _, _, hidden in found if hidden in _GENERATED)
    key = tuple(str(each[1]) for each in sorted(found, key=lambda each: each[5]) if each[5])
    taken = {column.lower() for column in (*columns, *generated)}
    rowid = next((each for each in _ROWID_NAMES if each not in taken), None) if has_rowid else None
    is_key_rowid = len(key) == 1 and has_rowid
    if is_key_rowid:
        origins = connection.execute(f"PRAGMA main.index_list({quoted(name)})").fetchall()
        is_key_rowid = all(origin != "pk" for _, _, _, origin, _ in origins)
    if is_key_rowid:
        rowid = key[0]
    return Table(name, sql, root, columns, generated, key, is_key_rowid, rowid, has_rowid, is_shadow)


def quoted(name: str) -> str:
    """Return a name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def joined(names: Sequence[str]) -> str:
    """Return names as a list in SQL."""
    return ", ".join(map(quoted, names))


def literal(value: Value, encoding: str) -> str:
    """Return `value` as SQL that gives exactly it, type included, in a database with this encoding."""
    match value:
        case Undecodable():
            return f"CAST(X'{value.hex().upper()}' AS TEXT)"
        case bytes():
            return f"X'{value.hex().upper()}'"
        case str() if "\0" in value or "\r" in value:  # the shell of SQLite drops a CR at the end of a line
            return literal(Undecodable(value.encode(_UTF_16.get(encoding, "utf-8"))), encoding)
        case str():
            return "'" + value.replace("'", "''") + "'"
        case float() if math.isinf(value):
            return "9e999" if value > 0 else "-9e999"
        case _:
            return "NULL" if value is None else repr(value)


def placeholder(value: Value) -> str:
    """Return what stands in SQL for a value that is bound: of a text that cannot be decoded, its bytes are."""
    return "CAST(? AS TEXT)" if isinstance(value, Undecodable) else "?"


def is_same(one: Row, other: Row) -> bool:
    """Whether two rows have the same values of the same types: 1, 1.0, '1' and x'31' are four values."""
    return one == other and all(type(mine) is type(its) for mine, its in zip(one, other, strict=True))


def rows_of(
    connection: apsw.Connection, columns: Sequence[str], rest: str, values: Sequence[Value] = ()
) -> Iterator[Row]:
    """Yield `columns`, expressions of SQL, of what the `rest` of the statement selects, in the order that it gives.

    A text that cannot be decoded comes as `Undecodable`. `rest` must give the same order each time.
    """
    codec = _UTF_16.get(str(connection.pragma("encoding")))
    done = 0
    if codec is None:  # of UTF-16, SQLite would join a surrogate that stands alone with what follows
        with suppress(UnicodeDecodeError):
            for row in connection.execute(f"SELECT {', '.join(columns)} {rest}", values):
                yield row
                done += 1
            return
    # Twice as many values for each row, so only where it is needed.
    exact = [f"CASE typeof({each}) WHEN 'text' THEN CAST({each} AS BLOB) ELSE {each} END" for each in columns]
    kinds = [f"typeof({each})" for each in columns]
    found = connection.execute(f"SELECT {', '.join([*exact, *kinds])} {rest}", values)
    for row in islice(found, done, None):
        half = len(columns)
        yield tuple(
            _decoded(value, codec or "utf-8") if kind == "text" else value
            for value, kind in zip(row[:half], row[half:], strict=True)
        )


def _decoded(value: bytes, codec: str) -> str | Undecodable:
    try:
        return value.decode(codec)
    except UnicodeDecodeError:
        return Undecodable(value)
