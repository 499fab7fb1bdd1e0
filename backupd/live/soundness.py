"""What SQLite finds in a restored image: a program of its own, so that nothing in an image can end or stall its caller.

`python -m backupd.live.soundness FILE` prints a `Soundness` as one JSON object, or one with the key `failure`. It ends
when its stdin does, so that it does not outlive whoever started it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import apsw

from backupd.capture.image import opened_image

MOST_FINDINGS = 100
_LONGEST_LINE = 500
_HEADINGS = ("*** in database",)
# FTS5 says this in place of an error when the application's tokenizer is not here.
_FOREIGN = ("unable to validate the inverted index",)


@dataclass(slots=True)
class Soundness:
    """Lines for people: `findings` are damage, `unchecked` is what needs the application's own code to be checked.

    `orphans` are rows that refer to rows which are not there, and no damage. `rows` is by table, None where they cannot
    be counted. `page_count` is what SQLite takes the image's size for; None when it cannot say.
    """

    page_count: int | None = None
    findings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    rows: dict[str, int | None] = field(default_factory=dict)


def examine(file: Path) -> Soundness:
    """Look through a whole image that nobody changes: each page, each index against its table, each foreign key.

    Rows that break a CHECK constraint are the application's business. Raises `apsw.Error` when the image cannot be
    read at all, for want of memory or by a failing disk.
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
        except (apsw.CorruptError, apsw.NotADBError, UnicodeDecodeError) as error:
            _add(soundness.findings, str(error))
    return soundness


def _tables(connection: apsw.Connection) -> list[str]:
    found = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
    return [str(name) for (name,) in found]


def _check(connection: apsw.Connection, tables: list[str], soundness: Soundness) -> None:
    try:
        _check_integrity(connection, str(MOST_FINDINGS), soundness)
    except apsw.SQLError:
        # One table that needs the application's collation, function or module keeps SQLite from checking any.
        soundness.findings.clear()
        soundness.unchecked.clear()
        for table in tables:
            try:
                _check_integrity(connection, _quoted(table), soundness)
            except apsw.SQLError as error:
                _add(soundness.unchecked, f"table {table}: {error}")


def _check_integrity(connection: apsw.Connection, argument: str, soundness: Soundness) -> None:
    for (text,) in connection.execute(f"PRAGMA integrity_check({argument})"):
        for line in str(text).splitlines():
            if line.startswith(_FOREIGN):
                _add(soundness.unchecked, line)
            elif line != "ok" and not line.startswith(_HEADINGS):
                _add(soundness.findings, line)


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
    return int(str(count))


def _add(lines: list[str], line: str) -> None:
    if len(lines) < MOST_FINDINGS:
        lines.append(line[:_LONGEST_LINE])


def _quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Print what is found in the file that is named; exit 0."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        values: dict[str, object] = asdict(examine(Path(sys.argv[1])))
    except apsw.Error as error:
        values = {"failure": str(error)}
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the thread that waits for stdin must not be waited for


if __name__ == "__main__":
    main()
