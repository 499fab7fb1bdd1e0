"""`backupd query`: ask a snapshot, or a moment between two, in SQL, where it is stored."""

from __future__ import annotations

import json
import sys
from itertools import islice
from typing import TYPE_CHECKING

import click

from backupd.cli import output
from backupd.cli.verbs import (
    Invocation,
    Verb,
    database_option,
    global_options,
    identity_option,
    snapshot_argument,
    store_option,
)
from backupd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.inside.query import Result

_SECONDS = 300.0
_ROWS_AT_ONCE = 1000
_MOST_BLOB_BYTES = 24


@click.command(
    "query",
    cls=Verb,
    short_help="Ask a snapshot in SQL, without restoring it.",
    examples=(
        'backupd query latest "SELECT count(*) FROM users"',
        'backupd query app@2h "SELECT * FROM users WHERE id = 7" --json',
        "backupd query latest",
    ),
)
@snapshot_argument
@click.argument("sql", required=False)
@click.option("--csv", "is_csv", is_flag=True, help="Rows as CSV, with a line of column names.")
@click.option(
    "--timeout",
    "seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=_SECONDS,
    show_default=True,
    help="Seconds for the statement.",
)
@database_option
@store_option
@identity_option
@global_options
@click.pass_obj
def command(
    invocation: Invocation,
    snapshot: str,
    sql: str | None,
    database: str | None,
    store: str | None,
    seconds: float,
    *,
    is_csv: bool,
) -> None:
    """Ask SNAPSHOT in SQL: only those parts are read from the store that the statement needs, and each is proven.

    SNAPSHOT is an id, `latest`, a time (14:03: the last commit before it where the log was followed), an age (90s, 2h)
    or a tag. Without SQL, and with a terminal, it is the shell of SQLite: .tables, .schema, .help. Nothing can be
    written, and functions in the schema are not trusted.
    """
    from backupd.cli.session import Session
    from backupd.cli.windows import print_gap
    from backupd.inside.image import opened_point
    from backupd.inside.query import run, run_shell

    session = Session(invocation)
    if session.is_json and is_csv:
        raise UsageError("--json and --csv are two forms of the same rows", hint="leave one of them out")
    if sql is None and (session.is_json or is_csv or not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty())):
        raise UsageError(
            "there is no statement, and no terminal to ask for one on",
            hint='give it after the snapshot: backupd query latest "SELECT ..."',
        )
    point = session.restore_point(snapshot, database, store)
    print_gap(point)
    with opened_point(point, session.state.reading(), seconds=None if sql is None else seconds) as (_, connection):
        if sql is None:
            from backupd.cli.plans import described

            output.print_note(f"{described(point)} from {point.archive.url}, read-only; .help shows what there is")
            run_shell(connection, output.printable(f"{point.manifest.database}@{point.manifest.id}"))
            return
        result = run(connection, sql)
        if session.is_json:
            output.write_data(_json(result))
        elif is_csv:
            output.write_data(_csv(result))
        else:
            _print_tables(result)


def _json(result: Result) -> Iterator[str]:
    from backupd.inside.dump import json_value

    yield f'{{\n  "columns": {json.dumps(result.columns)},\n  "rows": ['
    separator = "\n    "
    for row in result.rows:
        yield separator + json.dumps([json_value(value) for value in row], ensure_ascii=False)
        separator = ",\n    "
    yield "\n  ]\n}\n"


def _csv(result: Result) -> Iterator[str]:
    from backupd.inside.dump import csv_line

    if result.columns:
        yield csv_line(result.columns)
    yield from map(csv_line, result.rows)


def _print_tables(result: Result) -> None:
    """Print the rows as they come, with the headings again after many: no more of them are in memory."""
    headings, has_rows = [*map(output.printable, result.columns)], False
    while rows := [tuple(map(_cell, row)) for row in islice(result.rows, _ROWS_AT_ONCE)]:
        output.print_data(output.table(headings, [("", rows)]).lstrip("\n"))
        has_rows = True
    if headings and not has_rows:
        output.print_note("no rows")


def _cell(value: object) -> str:
    if value is None:
        return "NULL"
    if not isinstance(value, bytes):
        return str(value)
    digits = value[:_MOST_BLOB_BYTES].hex().upper()
    return f"X'{digits}'" if len(value) <= _MOST_BLOB_BYTES else f"X'{digits}...' ({output.count(len(value), 'byte')})"
