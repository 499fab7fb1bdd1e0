"""A database, or some tables of it, as SQL, CSV or JSON, in parts that follow each other."""

from __future__ import annotations

import base64
import json
import os
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

import apsw

from backupd.inside.tables import is_internal, joined, literal, quoted, rows_of
from backupd.restore import reject_unusable_target
from backupd.restore.placing import give_name, partial_file, reporting_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from backupd.inside.tables import Row, Schema, Table, Value


class Form(StrEnum):
    """The forms of a dump."""

    SQL = "sql"
    CSV = "csv"
    JSON = "json"
    SQLITE = "sqlite"


_SEQUENCE, _STATISTICS = "sqlite_sequence", "sqlite_stat1"


def parts_of(
    connection: apsw.Connection,
    schema: Schema,
    tables: Sequence[Table],
    form: Form,
    where: str | None,
    *,
    is_whole: bool,
) -> Iterator[str]:
    """Yield `tables` in a form, of CSV the first one, as `as_sql`, `as_csv` and `as_json` do."""
    if where is None:
        # SQLite reads no table whose key has a collation that it does not know. The order of the rows does not matter.
        connection.collation_needed(lambda known, name: known.create_collation(name, _in_any_order))
    match form:
        case Form.CSV:
            return as_csv(connection, tables[0], where)
        case Form.JSON:
            return as_json(connection, tables, where)
        case Form.SQL | Form.SQLITE:
            return as_sql(connection, schema, tables, is_whole=is_whole, where=where)


def _in_any_order(one: str, other: str) -> int:
    return (one > other) - (one < other)


def reject_condition(connection: apsw.Connection, tables: Sequence[Table], where: str) -> None:
    """Raise SQLite's error for a condition that does not fit one of `tables`, before anything is written."""
    for table in tables:
        connection.execute(f"SELECT 1 FROM main.{quoted(table.name)} WHERE ({where}) LIMIT 0").fetchall()  # noqa: S608


def as_sql(
    connection: apsw.Connection, schema: Schema, tables: Sequence[Table], *, is_whole: bool, where: str | None = None
) -> Iterator[str]:
    """Yield statements, each with its end of line, that make `tables` with the same content in an empty database.

    With `is_whole`, indexes, triggers, views and the numbers of the header come too, as `.dump` of the `sqlite3` shell
    has them. A virtual table is named in a comment: its rows are in other tables. `where` is a condition for all rows.
    """
    yield "PRAGMA foreign_keys=OFF;\n"
    if schema.encoding != "UTF-8":
        yield f"PRAGMA encoding='{schema.encoding}';\n"
    yield "BEGIN TRANSACTION;\n"
    for table in tables:
        if not is_internal(table.name):
            yield from table_as_sql(connection, table, schema.encoding, where)
    if is_whole:
        yield from _numbers(connection)
        yield from _internal(connection, schema)
        for name, sql in schema.virtual.items():
            yield f"-- the virtual table {in_comment(name)} is left out; it was made by: {in_comment(sql)}\n"
        for other in schema.others.values():
            yield created(other.sql)
    yield "COMMIT;\n"


def table_as_sql(connection: apsw.Connection, table: Table, encoding: str, where: str | None = None) -> Iterator[str]:
    """Yield the statements that make a table and its rows, without its indexes."""
    yield created(table.sql)
    yield from _inserts(connection, table, encoding, where)


def _inserts(connection: apsw.Connection, table: Table, encoding: str, where: str | None = None) -> Iterator[str]:
    columns = table.columns if table.generated else ()
    return (insertion(table.name, columns, row, encoding) for row in rows_in(connection, table, where))


def insertion(table: str, columns: Sequence[str], row: Row, encoding: str) -> str:
    """Return the statement that adds a row with values for `columns`, or for all when there are none."""
    names = f"({joined(columns)})" if columns else ""
    values = ",".join([literal(value, encoding) for value in row])
    return f"INSERT INTO {quoted(table)}{names} VALUES({values});\n"


def _numbers(connection: apsw.Connection) -> Iterator[str]:
    for name in ("user_version", "application_id"):
        if number := connection.pragma(name):
            yield f"PRAGMA {name}={number};\n"


def _internal(connection: apsw.Connection, schema: Schema) -> Iterator[str]:
    if _STATISTICS in schema.tables:
        yield "ANALYZE sqlite_schema;\n"
    # Without such a table, there is none of the numbers in an empty database.
    has_numbers = any("AUTOINCREMENT" in table.sql.upper() for table in schema.tables.values())
    for name in (_STATISTICS, *([_SEQUENCE] if has_numbers else [])):
        if name in schema.tables:
            yield f"DELETE FROM {name};\n"  # noqa: S608  (one of two names)
            yield from _inserts(connection, schema.tables[name], schema.encoding)


def created(sql: str) -> str:
    """Return how an object was created as a statement: its text may end with a comment."""
    return f"{sql}\n;\n" if "--" in sql or "/*" in sql else f"{sql};\n"


def in_comment(text: str) -> str:
    """Return a text on one line, which a comment of SQL can hold."""
    return " ".join(text.split())


def rows_in(connection: apsw.Connection, table: Table, where: str | None) -> Iterator[Row]:
    """Yield the stored columns of the rows of a table that meet the condition `where`, in the order of their tree."""
    condition = f" WHERE ({where})" if where else ""
    hint = " NOT INDEXED" if table.has_rowid and not where else ""
    return rows_of(
        connection,
        [quoted(column) for column in table.columns],
        f"FROM main.{quoted(table.name)}{hint}{condition}",
    )


def as_csv(connection: apsw.Connection, table: Table, where: str | None = None) -> Iterator[str]:
    """Yield the rows of a table as lines of CSV (RFC 4180), under the names of its columns. NULL is an empty cell.

    An empty text is `""`, and a blob its hex digits, as SQL has it: `X'00FF'`.
    """
    yield csv_line(table.columns)
    for row in rows_in(connection, table, where):
        yield csv_line(row)


def csv_line(values: Sequence[Value]) -> str:
    """Return values as a line of CSV, as `as_csv` has them."""
    return ",".join(map(_cell, values)) + "\r\n"


def _cell(value: Value) -> str:
    if value is None:
        return ""
    text = f"X'{value.hex().upper()}'" if isinstance(value, bytes) else str(value)
    if isinstance(value, str) and (not text or any(sign in text for sign in ',"\r\n')):
        return '"' + text.replace('"', '""') + '"'
    return text


def as_json(connection: apsw.Connection, tables: Sequence[Table], where: str | None = None) -> Iterator[str]:
    """Yield one JSON document, in parts: an object with a list of rows, as objects, for each table.

    Values that JSON has no form for are objects: `{"base64": ...}` for a blob or a text that cannot be decoded,
    `{"real": "Infinity"}` for an infinity.
    """
    yield "{"
    for number, table in enumerate(tables):
        yield f"{',' if number else ''}\n{json.dumps(table.name)}: ["
        separator = "\n"
        for row in rows_in(connection, table, where):
            values = {name: json_value(value) for name, value in zip(table.columns, row, strict=True)}
            yield separator + json.dumps(values, ensure_ascii=False)
            separator = ",\n"
        yield "\n]"
    yield "\n}\n"


def json_value(value: Value) -> object:
    """Return a value as JSON has it; see `as_json`."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, float) and value in {float("inf"), float("-inf")}:
        return {"real": "Infinity" if value > 0 else "-Infinity"}
    return value


def write_file(target: Path, parts: Iterable[str]) -> None:
    """Write `parts` to a new file, private to its owner, that appears whole or not at all.

    Raises `TargetExistsError`, `TargetUnwritableError`, and what `parts` raises.
    """
    with (
        _new_file(target) as (_, descriptor),
        open(descriptor, "w", encoding="utf-8", newline="", closefd=False) as file,
    ):
        file.writelines(parts)


def write_database(target: Path, statements: Iterable[str]) -> None:
    """Make a new database at `target` by the statements of `as_sql`, as `write_file` makes a file."""
    with _new_file(target) as (partial, _):
        connection = apsw.Connection(os.fspath(partial))
        try:
            connection.pragma("journal_mode", "off")
            connection.pragma("synchronous", "off")
            for each in statements:
                connection.execute(each)
        finally:
            connection.close(force=True)


@contextmanager
def _new_file(target: Path) -> Iterator[tuple[Path, int]]:
    """Give a file beside `target` and its descriptor, which gets that name at the end of the block, durably."""
    reject_unusable_target(target, force=False)
    with reporting_errors(target), partial_file(target) as (partial, descriptor):
        yield partial, descriptor
        os.fsync(descriptor)
        reject_unusable_target(target, force=False)
        give_name(partial, descriptor, target)
