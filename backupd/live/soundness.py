"""The soundness of a restored image, as SQLite sees it: a short look, or a full examination.

The image may be forged: anyone who can write to a store can write one. The full examination is a separate program, so
that nothing in an image can end or stall its caller. With the argument FILE, it prints a `Soundness` as one JSON
object, or one with the key `failure`. It ends when its stdin does, so that it does not outlive the process that started
it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import apsw

from backupd.capture.facts import TooMuchError, bounded, distrust
from backupd.capture.limits import FACTS_SECONDS
from backupd.concurrency import start_thread
from backupd.errors import LimitReachedError

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_FINDINGS = 100
_LONGEST_LINE = 500
_HEADINGS = ("*** in database",)
# FTS5 reports this instead of an error when the application's tokenizer is missing.
_FOREIGN = ("unable to validate the inverted index",)
_OF_WRONG_LENGTH = ": out of memory"
_LENGTH_IS_WRONG = "SQLite needs more memory for it than any sound table does: a length in it is wrong"
# What integrity_check says about values alone: pages, records, order and indexes are right, and each value reads as it
# was written. The declared type, NOT NULL or CHECK differs from that when it was written: the schema was edited, or the
# program that wrote it ignored them. An index with an imprecise number is one of an older SQLite, which rounded
# differently. Everything else is damage; so are two equal entries in a unique index, which SQLite never leaves, and
# which give wrong answers. Source: sqlite3Pragma in pragma.c, PragTyp_INTEGRITY_CHECK.
_OF_VALUES = re.compile(
    r"(?:NULL|NUMERIC|TEXT|non-[A-Z]+) value in |CHECK constraint failed in "
    r"|index .* stores an imprecise floating-point value for row "
)
_NO_LIMIT = 2**31 - 1
_A_LITTLE_MEMORY_BYTES = 32 << 20
# Errors that no content of a database causes.
_OF_THIS_MACHINE = (apsw.IOError, apsw.FullError, apsw.CantOpenError)


@contextmanager
def opened_image(file: Path) -> Iterator[apsw.Connection]:
    """Open a file that no process changes, leaving nothing beside it and executing nothing from its schema.

    Source: https://www.sqlite.org/security.html, "untrusted SQLite database files". No extension can be loaded: that is
    off unless it is switched on.
    """
    uri = f"file:{quote(os.fsencode(file))}?immutable=1"
    connection = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    try:
        distrust(connection)
        connection.pragma("cell_size_check", True)
        yield connection
    finally:
        connection.close()


def why_unreadable(file: Path, page_count: int, *, needs_schema: bool, checks_pages: bool = False) -> str | None:
    """Return why SQLite does not accept `file`, an image of `page_count` pages, or None if it does.

    No other process may have it open: it is opened as immutable, or SQLite would leave `-wal` and `-shm` beside it.
    With `needs_schema` its tables are read too, and with `checks_pages` every page (`PRAGMA quick_check`).
    """
    try:
        with opened_image(file) as connection:
            connection.execute("BEGIN")
            connection.pragma("schema_version")
            connection.pragma("writable_schema", True)  # a schema that was damaged when it was captured is accepted
            # A schema may be crafted to take endless time: the part that is read in time must suffice.
            with suppress(TooMuchError), bounded(connection, seconds=FACTS_SECONDS):
                connection.pragma("journal_mode")  # the first statement that reads the schema
                if needs_schema:
                    connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            seen = connection.pragma("page_count")
            found = _Found()
            if checks_pages:
                connection.pragma("ignore_check_constraints", True)
                with suppress(apsw.SQLError):  # a table needs the application's code: its pages came before that
                    found.check(connection, "1", verb="quick_check")
    except apsw.Error as error:
        return str(error)
    if found.findings:
        return found.findings[0]
    return None if seen == page_count else f"SQLite sees {seen} pages instead of {page_count}"


@dataclass(slots=True)
class Soundness:
    """The result of an examination, in lines: `findings` are damage, `unchecked` needs the application's code.

    Not damage are `odd_values`, which do not fit the type or constraint of their column, and `orphans`, rows that refer
    to missing rows. `rows` has the count by table, None where it is unknown. `page_count` is the size of the image as
    SQLite sees it; None when it cannot say.
    """

    page_count: int | None = None
    findings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    odd_values: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    rows: dict[str, int | None] = field(default_factory=dict)


def examine(file: Path) -> Soundness:
    """Examine a whole image that no process changes: each page, each index against its table, each foreign key.

    Rows that break a CHECK constraint are not damage. Raises `apsw.Error` when the image cannot be read at all, because
    memory is short or the disk fails. Where SQLite wants more memory although there is some, a length in the database
    is wrong: that is damage.
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
    """Describe the damage for which SQLite reports `error`. Raises the error when the machine may be to blame."""
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
        found.check(connection, str(MOST_FINDINGS))
        if found.is_full and not found.findings:
            # A hundred odd values may hide a damaged index, which comes after them. Damaged pages come before them.
            found = _Found()
            found.check(connection, str(_NO_LIMIT))
        found.add_to(soundness)
    except apsw.Error as error:
        # A table that needs the application's collation, function or module, or whose damage is an error, keeps SQLite
        # from checking any table. What it reported about pages before that, it reports for no single table.
        soundness.findings += found.findings
        for table in tables:
            _check_table(connection, table, soundness)
        if not isinstance(error, apsw.SQLError) and not soundness.findings:
            _add(soundness.findings, _why_damaged(error))


def _check_table(connection: apsw.Connection, table: str, soundness: Soundness) -> None:
    found = _Found()
    try:
        found.check(connection, _quoted(table))
    except apsw.SQLError as error:
        _add(soundness.unchecked, f"table {table}: {error}")
    except apsw.Error as error:
        _add(soundness.findings, f"table {table}: {_why_damaged(error)}")
    found.add_to(soundness)
    if found.is_full and not found.findings:
        _add(soundness.unchecked, f"table {table}: SQLite stopped after so many odd values")


@dataclass(slots=True)
class _Found:
    """The findings of one integrity_check."""

    findings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    odd_values: Counter[str] = field(default_factory=Counter)

    @property
    def is_full(self) -> bool:
        """Whether SQLite may have stopped because that was enough."""
        return len(self.findings) + len(self.unchecked) + self.odd_values.total() >= MOST_FINDINGS

    def check(self, connection: apsw.Connection, argument: str, *, verb: str = "integrity_check") -> None:
        """Run the check, and sort what it reports, up to a hundred lines of damage."""
        for (text,) in connection.execute(f"PRAGMA {verb}({argument})"):
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

    def add_to(self, soundness: Soundness) -> None:
        """Add everything to `soundness`."""
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
    """Print what is found in the file that the argument names; exit 0."""
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
