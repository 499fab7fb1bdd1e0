"""`backupd dump`: the tables of a snapshot as SQL, CSV, JSON or a database, without restoring it."""

from __future__ import annotations

from pathlib import Path

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


@click.command(
    "dump",
    cls=Verb,
    short_help="Print tables of a snapshot as SQL, CSV or JSON.",
    examples=(
        "backupd dump latest > app.sql",
        "backupd dump app@2h users orders",
        "backupd dump latest users --format csv --where 'id > 100'",
        "backupd dump latest users --format sqlite --to users.db",
    ),
)
@snapshot_argument
@click.argument("tables", nargs=-1, metavar="[TABLE]...")
@click.option(
    "--format", "form", type=click.Choice(["sql", "csv", "json", "sqlite"]), help="What to make. [default: sql]"
)
@click.option("--where", metavar="SQL", help="Only rows that meet this condition.")
@click.option("--to", metavar="FILE", type=click.Path(path_type=Path), help="Write to a new file instead of stdout.")
@database_option
@store_option
@identity_option
@global_options
@click.pass_obj
def command(
    invocation: Invocation,
    snapshot: str,
    tables: tuple[str, ...],
    form: str | None,
    where: str | None,
    to: Path | None,
    database: str | None,
    store: str | None,
) -> None:
    """Print all of SNAPSHOT, or only its TABLEs, as SQL that makes them in an empty database: types stay exact.

    SNAPSHOT is an id, `latest`, a time (14:03: the last commit before it where the log was followed), an age (90s, 2h)
    or a tag. Virtual tables are named and left out: their rows are in other tables, which are there. --json is
    --format json.
    """
    from backupd.cli.restore import given_target
    from backupd.cli.session import Session
    from backupd.cli.windows import print_gap
    from backupd.inside.dump import Form, parts_of, reject_condition, write_database, write_file
    from backupd.inside.image import opened_point
    from backupd.inside.query import rejecting_mistakes
    from backupd.inside.tables import read_schema

    session = Session(invocation)
    form = form or ("json" if session.is_json else "sql")
    if form == "csv" and len(tables) != 1:
        raise UsageError("CSV has the rows of one table", hint="name it: backupd dump SNAPSHOT TABLE --format csv")
    if form == "sqlite" and to is None:
        raise UsageError("a database cannot be written to standard output", hint="name a file: --to FILE")
    if session.is_json and form != "json":
        raise UsageError(f"--json and --format {form} are two forms of the same rows", hint="leave one of them out")
    point = session.restore_point(snapshot, database, store)
    print_gap(point)
    with opened_point(point, session.state.reading()) as (_, connection), rejecting_mistakes():
        schema = read_schema(connection)
        chosen = schema.selected(tables, where=point.name)
        for name in () if tables else schema.virtual:
            output.print_warning(f"the virtual table {name} is left out; the tables that hold its rows are there")
        if where is not None:
            reject_condition(connection, chosen, where)
        parts = parts_of(connection, schema, chosen, Form(form), where, is_whole=not tables)
        if to is None:
            output.write_data(parts)
        elif form == "sqlite":
            write_database(given_target(to), parts)
        else:
            write_file(given_target(to), parts)
