"""What SQLite finds in a restored image: a program of its own, so that nothing in an image can end or stall its caller.

With the argument FILE, it prints a `Soundness` as one JSON object, or one with the key `failure`. It ends when its
stdin does, so that it does not outlive the process that started it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import apsw

from backupd.capture.image import opened_image
from backupd.errors import LimitReachedError
from backupd.threads import start_thread

MOST_FINDINGS = 100
_LONGEST_LINE = 500
_HEADINGS = ("*** in database",)
# FTS5 says this in place of an error when the application's tokenizer is not here.
_FOREIGN = ("unable to validate the inverted index",)
_OF_WRONG_LENGTH = ": out of memory"
_LENGTH_IS_WRONG = "SQLite wants more memory for it than anything sound needs: a length in it is wrong"
# What integrity_check says of values alone: pages, records, order and indexes are right, and each value reads as it was
# written. The declared type, NOT NULL or CHECK is another than the one it was written under: the schema was edited, or
# the program that wrote it ignored them. An index with an imprecise number is one of an older SQLite, which rounded
# otherwise. Everything else is damage; so are two equal entries in a unique index, which SQLite never leaves, and which
# give wrong answers. Source: sqlite3Pragma in pragma.c, PragTyp_INTEGRITY_CHECK.
_OF_VALUES = re.compile(
    r"(?:NULL|NUMERIC|TEXT|non-[A-Z]+) value in |CHECK constraint failed in "
    r"|index .* stores an imprecise floating-point value for row "
)
_NO_LIMIT = 2**31 - 1
_A_LITTLE_MEMORY_BYTES = 32 << 20
# What no database can be to blame for.
_OF_THIS_MACHINE = (apsw.IOError, apsw.FullError, apsw.CantOpenError)


@dataclass(slots=True)
class Soundness:
    """Lines for people: `findings` are damage, `unchecked` is what needs the application's own code to be checked.

    No damage are `odd_values`, which do not fit the type or constraint of their column, and `orphans`, rows that refer
    to rows which are not there. `rows` is by table, None where they cannot be counted. `page_count` is what SQLite
    takes the image's size for; None when it cannot say.
    """

    page_count: int | None = None
    findings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    odd_values: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    rows: dict[str, int | None] = field(default_factory=dict)


def examine(file: Path) -> Soundness:
    """Look through a whole image that nobody changes: each page, each index against its table, each foreign key.

    Rows that break a CHECK constraint are the application's business. Raises `apsw.Error` when the image cannot be
    read at all, for want of memory or by a failing disk. Where SQLite wants more memory although there is some, a
    length in the database is wrong: that is damage.
    """
    soundness = Soundness()
    with opened_image(file) as connection:
        try:
            connection.pragma("ignore_check_constraints", True)
            soundness.page_count = int(str(connection.pragma("page_count")))
            tables = _tables(connection)
            _check(connection, tables, soundness)
            _find_orphans(connection, soundness)
            for table in tables:
                if not table.startswith("sqlite_"):
                    soundness.rows[table] = _count(connection, table, soundness)
        except (apsw.Error, UnicodeDecodeError) as error:
            _add(soundness.findings, _why_damaged(error))
    return soundness


def _why_damaged(error: Exception) -> str:
    """What is wrong with the database for which SQLite answers `error`. Raises it when the machine may be to blame."""
    if isinstance(error, _OF_THIS_MACHINE):
        raise error
    if not isinstance(error, apsw.NoMemError):
        return str(error)
    try:
        bytearray(_A_LITTLE_MEMORY_BYTES)
    except MemoryError:
        raise error from None
    return _LENGTH_IS_WRONG


def _tables(connection: apsw.Connection) -> list[str]:
    found = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
    return [str(name) for (name,) in found]


def _check(connection: apsw.Connection, tables: list[str], soundness: Soundness) -> None:
    found = _Found()
    try:
        found.look(connection, str(MOST_FINDINGS))
        if found.is_full and not found.findings:
            # A hundred values may hide a damaged index, which comes after them. No page is damaged: pages come first.
            found = _Found()
            found.look(connection, str(_NO_LIMIT))
        found.tell(soundness)
    except apsw.Error as error:
        # One table that needs the application's collation, function or module, or in which something is wrong that is
        # an error, keeps SQLite from checking any. What it said of pages before that, it says of no single table.
        soundness.findings += found.findings
        for table in tables:
            _check_table(connection, table, soundness)
        if not isinstance(error, apsw.SQLError) and not soundness.findings:
            _add(soundness.findings, _why_damaged(error))


def _check_table(connection: apsw.Connection, table: str, soundness: Soundness) -> None:
    found = _Found()
    try:
        found.look(connection, _quoted(table))
    except apsw.SQLError as error:
        _add(soundness.unchecked, f"table {table}: {error}")
    except apsw.Error as error:
        _add(soundness.findings, f"table {table}: {_why_damaged(error)}")
    found.tell(soundness)
    if found.is_full and not found.findings:
        _add(soundness.unchecked, f"table {table}: SQLite looked no further after so many odd values")


@dataclass(slots=True)
class _Found:
    """What one integrity_check has said."""

    findings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    odd_values: Counter[str] = field(default_factory=Counter)

    @property
    def is_full(self) -> bool:
        """Whether SQLite may have stopped because that was enough."""
        return len(self.findings) + len(self.unchecked) + self.odd_values.total() >= MOST_FINDINGS

    def look(self, connection: apsw.Connection, argument: str) -> None:
        """Have SQLite look, and sort what it says, up to a hundred lines of damage."""
        for (text,) in connection.execute(f"PRAGMA integrity_check({argument})"):
            for line in str(text).splitlines():
                self._add(line)
            if len(self.findings) >= MOST_FINDINGS:
                return

    def _add(self, line: str) -> None:
        if _OF_VALUES.match(line):
            self.odd_values[line.partition(" for row ")[0]] += 1
        elif line.startswith(_FOREIGN) and not line.endswith(_OF_WRONG_LENGTH):
            _add(self.unchecked, line)
        elif line != "ok" and not line.startswith(_HEADINGS):
            _add(self.findings, line)

    def tell(self, soundness: Soundness) -> None:
        """Add all of it to `soundness`."""
        for line in self.findings:
            _add(soundness.findings, line)
        for line in self.unchecked:
            _add(soundness.unchecked, line)
        for line, count in self.odd_values.items():
            _add(soundness.odd_values, line if count == 1 else f"{line} ({count} times)")


def _find_orphans(connection: apsw.Connection, soundness: Soundness) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    try:
        for table, _, parent, _ in connection.execute("PRAGMA foreign_key_check"):
            counts[str(table), str(parent)] += 1
    except apsw.SQLError as error:
        _add(soundness.orphans, f"foreign keys were not checked: {error}")
    for (table, parent), count in counts.items():
        rows = "1 row" if count == 1 else f"{count} rows"
        _add(soundness.orphans, f"{rows} of {table} without the row of {parent} that they refer to")


def _count(connection: apsw.Connection, table: str, soundness: Soundness) -> int | None:
    try:
        ((count,),) = connection.execute(f"SELECT count(*) FROM {_quoted(table)}")  # noqa: S608  (a name cannot be bound)
    except apsw.SQLError as error:
        if not any(line.startswith(f"table {table}: ") for line in soundness.unchecked):
            _add(soundness.unchecked, f"table {table}: {error}")
        return None
    except apsw.Error as error:
        _add(soundness.findings, f"table {table}: {_why_damaged(error)}")
        return None
    return int(str(count))


def _add(lines: list[str], line: str) -> None:
    line = line[:_LONGEST_LINE]
    if len(lines) < MOST_FINDINGS and line not in lines:
        lines.append(line)


def _quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Print what is found in the file that is named; exit 0."""
    try:
        start_thread(_end_with_parent, name="parent")
        values: dict[str, object] = asdict(examine(Path(sys.argv[1])))
    except (apsw.Error, LimitReachedError) as error:
        values = {"failure": str(error)}
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the thread that waits for stdin must not be waited for


if __name__ == "__main__":
    main()
