"""Statements of a person over a restore point, and SQLite's shell."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import apsw

from backupd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.inside.tables import Row

_UNKNOWN_COLLATION = ("no query solution", "no such collation")


@dataclass(frozen=True, slots=True)
class Result:
    """The rows of a statement, which are read when they are asked for, and the names of their columns."""

    columns: tuple[str, ...]
    rows: Iterator[Row]


def run(connection: apsw.Connection, sql: str) -> Result:
    """Begin one statement. Raises `UsageError` for what is no SQL, for more than one statement, and for a change."""
    statements: list[tuple[str, ...]] = []

    def begun(cursor: apsw.Cursor, _sql: str, _bindings: object) -> bool:
        statements.append(tuple(name for name, *_ in cursor.get_description()))
        if len(statements) > 1:
            raise UsageError("there is more than one statement", hint="give one at a time, or open the shell without")
        return True

    cursor = connection.cursor()
    cursor.exec_trace = begun
    with rejecting_mistakes():
        cursor.execute(sql)
    return Result(statements[0] if statements else (), _rows(cursor))


def _rows(cursor: apsw.Cursor) -> Iterator[Row]:
    with rejecting_mistakes():
        yield from cursor


def run_shell(connection: apsw.Connection, name: str) -> None:
    """Read statements and commands from the terminal until its end; `name` is shown for the database.

    Ctrl-C ends a statement, and not the shell.
    """
    from apsw.shell import Shell  # noqa: PLC0415  (large, and rarely wanted)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    shell = Shell(args=[])
    shell.db = connection, name
    shell.cmdloop(intro="")  # type: ignore[no-untyped-call]


@contextmanager
def rejecting_mistakes() -> Iterator[None]:
    """Raise SQLite's errors about a statement as mistakes of the person who wrote it."""
    try:
        yield
    except apsw.ReadOnlyError as error:
        raise UsageError(
            "a snapshot cannot be changed",
            hint="bring all of it back with backupd restore, or rows with backupd recover",
        ) from error
    except (apsw.SQLError, apsw.AuthError, apsw.MismatchError, apsw.RangeError, apsw.BindingsError) as error:
        hint = "see what there is: backupd query SNAPSHOT, then .schema"
        if any(words in str(error) for words in _UNKNOWN_COLLATION):
            hint = "a key has a collation that only the application knows: backupd dump prints such a table"
        raise UsageError(str(error), hint=hint) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            "a text is not valid in the encoding of the database", hint="select it as a blob: CAST(column AS BLOB)"
        ) from error
