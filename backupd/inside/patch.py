"""The differences between two states as SQL that turns one into the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.inside.diff import Kind
from backupd.inside.dump import created, in_comment, insertion, table_as_sql
from backupd.inside.tables import is_internal, quoted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from backupd.inside.diff import Difference, TablePair
    from backupd.inside.tables import Schema


def statements(difference: Difference) -> Iterator[str]:
    """Yield the statements, each with its end of line: one transaction, without foreign keys, triggers and views.

    A table that was altered, or whose rows cannot be matched, is made again with all of its rows. Virtual tables are
    named in comments. All rows of a table that are removed or replaced go before one is added, because they may
    exchange values that are unique.
    """
    before, after = difference.before.schema, difference.after.schema
    kept = [pair for pair in difference.table_pairs() if pair.is_same_table and pair.why_not is None]
    staying = _indexes_that_stay(before, after, {pair.before.name for pair in kept})
    yield "PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\n"
    yield from _removals(before, kept, staying)
    made = [table for table in after.tables.values() if table.name not in {pair.after.name for pair in kept}]
    for table in made:
        if not is_internal(table.name):
            yield from table_as_sql(difference.after.connection, table, after.encoding)
    for pair in kept:
        yield from _row_statements(difference, pair)
    yield from (created(other.sql) for key, other in after.others.items() if key not in staying)
    for name in {**before.virtual, **after.virtual}:
        if before.virtual.get(name) != after.virtual.get(name):
            yield f"-- the virtual table {in_comment(name)} differs, and is left out\n"
    for name in ("user_version", "application_id"):
        numbers = [state.connection.pragma(name) for state in (difference.before, difference.after)]
        if numbers[0] != numbers[1]:
            yield f"PRAGMA {name}={numbers[1]};\n"
    yield "COMMIT;\n"


def _indexes_that_stay(before: Schema, after: Schema, kept: Collection[str]) -> set[tuple[str, str]]:
    """Return the indexes that both states have, by kind and name, on tables that are not made again."""
    return {
        (kind, name)
        for (kind, name), other in before.others.items()
        if kind == "index" and after.others.get((kind, name)) == other and other.table in kept
    }


def _removals(before: Schema, kept: Sequence[TablePair], staying: Collection[tuple[str, str]]) -> Iterator[str]:
    """Remove what is made again later or is gone, and give tables their new names."""
    for key in reversed(before.others):
        if key not in staying:
            kind, name = key
            yield f"DROP {kind.upper()} {quoted(name)};\n"
    for name in before.tables.keys() - {pair.before.name for pair in kept}:
        if not is_internal(name):
            yield f"DROP TABLE {quoted(name)};\n"
    for pair in kept:
        if pair.before.name != pair.after.name:
            yield f"ALTER TABLE {quoted(pair.before.name)} RENAME TO {quoted(pair.after.name)};\n"


def _row_statements(difference: Difference, pair: TablePair) -> Iterator[str]:
    encoding, table = difference.after.schema.encoding, pair.after.name
    for change in difference.row_changes(pair):
        if change.kind is not Kind.ADDED:
            yield f"DELETE FROM {quoted(table)} WHERE {pair.condition(change, pair.after, encoding)};\n"  # noqa: S608
    for change in difference.row_changes(pair):
        if change.after is not None:
            # Elsewhere the rowid may be taken by a row that did not change, but has another one by now.
            rowid = () if pair.after.key or pair.after.rowid is None else (pair.after.rowid,)
            row = (change.rowid, *change.after) if rowid else change.after
            yield insertion(table, (*rowid, *pair.columns), row, encoding)
