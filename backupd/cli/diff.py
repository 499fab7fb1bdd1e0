"""`backupd diff`: what changed between two snapshots, or between one and the live database."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output
from backupd.cli.verbs import (
    Invocation,
    Verb,
    complete_snapshots,
    database_option,
    global_options,
    identity_option,
    store_option,
)
from backupd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from backupd.cli.session import Session
    from backupd.inside.diff import Difference, RowChange, SchemaChange, State, TablePair
    from backupd.inside.tables import Value
    from backupd.repository.moments import RestorePoint

_ROWS_SHOWN = 5
_LONGEST_VALUE = 60
_LIVE = "live"
_SIGNS = {"added": "+", "removed": "-", "changed": "~", "renamed": "~"}


@click.command(
    "diff",
    cls=Verb,
    short_help="Show what changed between two snapshots, row by row.",
    examples=(
        "backupd diff latest~1 latest",
        "backupd diff app@14:00 app@14:10 users --rows 50",
        "backupd diff latest live",
        "backupd diff latest~1 latest --sql > forward.sql",
    ),
)
@click.argument("before", shell_complete=complete_snapshots)
@click.argument("after", shell_complete=complete_snapshots)
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option(
    "--rows",
    "most_rows",
    type=click.IntRange(min=0),
    default=_ROWS_SHOWN,
    show_default=True,
    help="How many rows of each table to show.",
)
@click.option("--sql", "is_sql", is_flag=True, help="SQL that turns BEFORE into AFTER.")
@database_option
@store_option
@identity_option
@global_options
@click.pass_obj
def command(
    invocation: Invocation,
    before: str,
    after: str,
    tables: tuple[str, ...],
    most_rows: int,
    database: str | None,
    store: str | None,
    *,
    is_sql: bool,
) -> None:
    """Show what changed from BEFORE to AFTER: the schema, then the rows of each TABLE, by primary key or rowid.

    Both are snapshots or moments, as for restore: an id, `latest`, a time, an age or a tag; or `live`, the database as
    it is now. What did not change is not read: the cost follows the change.
    """
    from backupd.cli.session import Session
    from backupd.inside.diff import Difference

    session = Session(invocation)
    if is_sql and (session.is_json or tables):
        raise UsageError("--sql gives all changes, as SQL", hint="leave out --json and the tables, or leave out --sql")
    with ExitStack() as opened:
        sides = _Sides(session, opened, before, after, database, store)
        difference = Difference(*sides.states)
        if is_sql:
            from backupd.inside.patch import statements

            output.write_data(statements(difference))
            return
        chosen = _chosen(difference, tables)
        schema = difference.schema_changes()
        if session.is_json:
            before_values, after_values = sides.values()
            document = {
                "before": before_values,
                "after": after_values,
                "schema": [schema_values(each) for each in schema],
                "tables": [table_values(difference, pair, most_rows) for pair in chosen],
            }
            output.print_data(json.dumps(document, indent=2, ensure_ascii=False))
            return
        _print(sides, schema, table_lines(difference, chosen, most_rows))


class _Sides:
    """What is compared: the points that were found, and the states that were opened from them."""

    def __init__(
        self, session: Session, opened: ExitStack, before: str, after: str, database: str | None, store: str | None
    ) -> None:
        texts = before, after
        if texts == (_LIVE, _LIVE):
            raise UsageError("live and live are one state", hint="name a snapshot: backupd diff latest live")
        from backupd.cli.windows import print_gap

        self.points: list[RestorePoint | None] = [
            None if text == _LIVE else session.restore_point(text, database, store) for text in texts
        ]
        found = [point for point in self.points if point is not None]
        for point in found:
            print_gap(point)
        names = {point.manifest.database for point in found}
        if len(names) > 1:
            output.print_warning(f"these are two databases: {' and '.join(sorted(names))}")
        self._session = session
        self.states = [self._opened(opened, point, found[0], database) for point in self.points]

    def _opened(self, opened: ExitStack, point: RestorePoint | None, other: RestorePoint, text: str | None) -> State:
        from backupd.inside.diff import State
        from backupd.inside.image import opened_live, opened_point

        directory = self._session.state.reading()
        if point is not None:
            return State.of(*opened.enter_context(opened_point(point, directory)))
        path = self._session.database_to_restore(other, text).file()
        lock_timeout = self._session.settings.capture.lock_timeout.total_seconds()
        return State.of(*opened.enter_context(opened_live(path, self._session.state, lock_timeout=lock_timeout)))

    def described(self) -> list[str]:
        """Describe both for people."""
        from backupd.cli.plans import described

        return [_LIVE if point is None else described(point) for point in self.points]

    def values(self) -> list[dict[str, Any] | None]:
        """Describe both in JSON documents; null is the live database."""
        from backupd.cli.plans import point_values

        return [None if point is None else point_values(point) for point in self.points]


@dataclass(slots=True)
class _TableChanges:
    """The changes of the rows of a table: how many of each kind, and the first ones."""

    pair: TablePair
    counts: dict[str, int] = field(default_factory=lambda: {"added": 0, "removed": 0, "changed": 0})
    rows: list[RowChange] = field(default_factory=list)

    @classmethod
    def of(cls, difference: Difference, pair: TablePair, most_rows: int) -> _TableChanges:
        """Compare a table."""
        found = cls(pair)
        for change in difference.row_changes(pair):
            found.counts[change.kind] += 1
            if len(found.rows) < most_rows:
                found.rows.append(change)
        return found


def _chosen(difference: Difference, names: Sequence[str]) -> list[TablePair]:
    pairs = difference.table_pairs()
    if not names:
        return pairs
    for name in names:
        if all(name.lower() not in {pair.before.name.lower(), pair.after.name.lower()} for pair in pairs):
            from backupd.inside.tables import listed

            known = listed(pair.after.name for pair in pairs)
            raise UsageError(f"no table {name!r} is in both states", hint=f"in both are: {known}")
    wanted = {name.lower() for name in names}
    return [pair for pair in pairs if wanted & {pair.before.name.lower(), pair.after.name.lower()}]


def schema_values(change: SchemaChange) -> dict[str, Any]:
    """A change of the schema in JSON documents."""
    return {
        "kind": str(change.kind),
        "type": change.what,
        "name": change.name,
        "new_name": change.new_name,
        "before": change.before,
        "after": change.after,
    }


def table_values(difference: Difference, pair: TablePair, most_rows: int) -> dict[str, Any]:
    """The changes of a table in JSON documents, with its first `most_rows` rows that changed."""
    from backupd.inside.dump import json_value

    found = _TableChanges.of(difference, pair, most_rows)

    def values(row: Sequence[Value] | None) -> dict[str, object] | None:
        return None if row is None else dict(zip(pair.columns, map(json_value, row), strict=True))

    return {
        "table": pair.after.name,
        "identity": list(pair.identity),
        "not_compared": pair.why_not,
        "columns_of_one": list(pair.columns_of_one),
        **(dict.fromkeys(found.counts) if pair.why_not else found.counts),
        "rows": [
            {
                "kind": str(each.kind),
                "key": [json_value(value) for value in each.key],
                "before": values(each.before),
                "after": values(each.after),
            }
            for each in found.rows
        ],
    }


def table_lines(difference: Difference, pairs: Iterable[TablePair], most_rows: int) -> Iterator[str]:
    """The changes of tables for people, each with its first `most_rows` rows that changed; they are content."""
    same = 0
    for pair in pairs:
        if pair.why_not is not None:
            yield f"{pair.after.name}  not compared: {pair.why_not}"
            continue
        found = _TableChanges.of(difference, pair, most_rows)
        all_rows = sum(found.counts.values())
        if pair.columns_of_one:
            yield f"{pair.after.name}  not compared: what only one state has: {', '.join(pair.columns_of_one)}"
        if not all_rows:
            same += not pair.columns_of_one
            continue
        counts = ", ".join(f"{output.count(number)} {kind}" for kind, number in found.counts.items() if number)
        yield f"{pair.after.name}  {counts}"
        yield from (f"  {row_line(each, pair)}" for each in found.rows)
        if most_rows and all_rows > most_rows:
            yield f"  and {output.count(all_rows - most_rows, 'more row')}"
    if same:
        yield f"{output.count(same, 'table')} with the same rows"


def _print(sides: _Sides, schema: Iterable[SchemaChange], lines: Iterable[str]) -> None:
    output.print_line(" -> ".join(sides.described()))
    for each in schema:
        name = each.name if each.name == each.new_name else f"{each.name} -> {each.new_name}"
        output.print_line(f"schema  {_SIGNS[each.kind]} {each.what} {name}")
    for line in lines:
        output.print_data(output.printable(line))


def row_line(change: RowChange, pair: TablePair, *, is_back: bool = False) -> str:
    """A changed row for people: its key, and its values, or those that differ. `is_back`: the change is taken back."""
    from backupd.inside.diff import Kind

    if is_back:
        kind = {Kind.REMOVED: Kind.ADDED, Kind.ADDED: Kind.REMOVED}.get(change.kind, change.kind)
        change = change._replace(kind=kind, before=change.after, after=change.before)
    key = ", ".join(map(_shown, change.key))
    return f"{_SIGNS[change.kind]} {key}: {'; '.join(_column_texts(change, pair.columns))}"


def _column_texts(change: RowChange, columns: Sequence[str]) -> Iterator[str]:
    row = change.after if change.before is None else change.before
    if change.before is None or change.after is None:
        yield from (f"{name} {_shown(value)}" for name, value in zip(columns, row or (), strict=True))
        return
    for name, old, new in zip(columns, change.before, change.after, strict=True):
        if type(old) is not type(new) or old != new:
            yield f"{name} {_shown(old)} -> {_shown(new)}"


def _shown(value: Value) -> str:
    """A value as SQL has it, cut where it is long."""
    from backupd.inside.tables import literal

    if isinstance(value, (str, bytes)) and len(value) > _LONGEST_VALUE:
        return f"{literal(value[:_LONGEST_VALUE], 'UTF-8')}... ({output.count(len(value))} long)"
    return literal(value, "UTF-8")
