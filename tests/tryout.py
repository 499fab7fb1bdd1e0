"""The main job once through, on a sample or on a database of your own: `make try`, `make try DB=path`.

A snapshot, some changes (to the sample only), another snapshot, a list, a restore, and the proof that the restored file
equals its source; with the sample, a restore into the running application too. Everything that it writes is in
./backups and ./build/try; it may be run again and again.
"""

# ruff: noqa: T201  (it talks to people)

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote

import apsw
from blake3 import blake3
from harness.creditrobot import ALEMBIC_REVISION, generate, update_scattered

_STORE = "./backups"
_SCRATCH = Path("build/try")
_SAMPLE = _SCRATCH / "creditrobot.db"
_SAMPLE_BYTES = 40 * 10**6
_CHANGED_ROWS = 250
_ATTEMPTS = 3
_TABLES_SHOWN = 12
_BYTES_COMPARED_AT_ONCE = 1 << 20
_COUNTER_BYTES = frozenset([*range(24, 28), *range(92, 96)])
"""Of the first page: the file change counter and the copy of it. https://www.sqlite.org/fileformat2.html"""


class Table(NamedTuple):
    """What one table holds: how many rows, and a digest of their values in the order of the table's tree."""

    rows: int
    digest: str


def main() -> None:
    """Do it all; exit 0 only if the restored file equals its source."""
    own = Path(sys.argv[1]).expanduser() if len(sys.argv) > 1 and sys.argv[1] else None
    if own is not None and not own.exists():
        _fail(f"DB={own}: there is no such file", "give the path of an SQLite database: make try DB=path/to/app.db")
    _SCRATCH.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("BACKUPD_STATE_DIR", str(_SCRATCH.absolute() / "state"))
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    started = time.monotonic()
    database = own or _SAMPLE
    if own is None:
        _take_sample_snapshots()
    else:
        _say(f"A snapshot of your database {own}, which is only read. It goes into {_STORE}.")
        _backupd("now", str(own), "--store", _STORE)
    _say("What is there now:")
    _backupd("list", str(database), "--store", _STORE)
    _restore_and_compare(database, is_sample=own is None)
    if own is None:
        _break_and_restore_live()
    _say(
        f"Done in {time.monotonic() - started:.0f} s; the snapshots stay in {_STORE}. Next: put your own database and "
        "a store on another machine into backupd.toml; config.example.toml shows every key. "
        "(Here, `backupd` is .venv/bin/backupd.)"
    )


def _take_sample_snapshots() -> None:
    if _SAMPLE.exists():
        _reject_foreign_sample()
        _say(f"The sample database {_SAMPLE} is there from an earlier run, and its snapshots go on in {_STORE}.")
    else:
        _say(f"A sample database, {_SAMPLE}: users, reports and payments of a web service that sells credit reports.")
        generate(_SAMPLE, size_bytes=_SAMPLE_BYTES)
    _say(f"A snapshot of it, into {_STORE}:")
    _backupd("now", str(_SAMPLE), "--store", _STORE)
    _say(f"Now the application changes {_CHANGED_ROWS} payments all over the file, and only those pages are stored:")
    update_scattered(_SAMPLE, _CHANGED_ROWS, seed=time.time_ns())
    _backupd("now", str(_SAMPLE), "--store", _STORE)


def _reject_foreign_sample() -> None:
    try:
        with closing(_opened(_SAMPLE)) as connection:
            revision = connection.execute("SELECT version_num FROM alembic_version").get
    except apsw.Error:
        revision = None
    if revision != ALEMBIC_REVISION:
        _fail(f"{_SAMPLE} is not the sample that belongs there", "move it away and run this again")


def _restore_and_compare(database: Path, *, is_sample: bool) -> None:
    """Restore the newest snapshot and compare it with the source; once more when an application wrote in between."""
    before = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            _say("The database was written to in the meantime. Once more:")
            _backupd("now", str(database), "--store", _STORE)
        with tempfile.TemporaryDirectory(prefix="restored-", dir=_SCRATCH) as directory:
            restored = Path(directory) / "restored.db"
            _say("Restore the newest to a new file:")
            newest = _newest(database)
            _backupd("restore", f"{newest['database']}@latest", "--store", _STORE, "--to", str(restored))
            _check_integrity(restored, database)
            source, copy = _content(database), _content(restored)
            if source == copy:
                _print_tables(copy)
                _compare_pages(database, restored, newest["page_size"])
                return
            if is_sample or source == before:
                _print_differences(source, copy)
        before = source
    _say("The application writes all the time, so there was no quiet moment to compare in; the copy itself is sound.")


def _break_and_restore_live() -> None:
    """Lose rows, and bring them back under an application that keeps its connection open."""
    with closing(apsw.Connection(str(_SAMPLE))) as application:
        count = "SELECT count(*) FROM payments"
        before = application.execute(count).get
        application.execute("DELETE FROM payments")
        _say("A mistake: the application has deleted all payments, and it still runs. Restore into its database:")
        _backupd("restore", "latest", "--database", str(_SAMPLE), "--store", _STORE, "--yes")
        after = application.execute(count).get
        print(f"The application's open connection sees {after:,} of {before:,} payments again.")
        if after != before:
            _fail("rows are missing after the restore", "please report this")


def _check_integrity(restored: Path, source: Path) -> None:
    _say("Is it a sound database, and is it equal to its source?")
    found = _integrity(restored)
    print(f"PRAGMA integrity_check: {'; '.join(found[:_TABLES_SHOWN])}", flush=True)
    if found != ["ok"]:
        if found != _integrity(source):
            _fail("the restored database is damaged, and its source is not", "please report this")
        print("The source has the same damage: the copy is faithful, the database needs repair.")


def _integrity(file: Path) -> list[str]:
    with closing(_opened(file)) as connection:
        try:
            return [str(line) for (line,) in connection.execute("PRAGMA integrity_check")]
        except apsw.Error as error:
            return [str(error)]


def _content(file: Path) -> dict[str, Table]:
    """Every table of one committed state."""
    with closing(_opened(file)) as connection, connection:
        names = connection.execute(
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'shadow') ORDER BY name"
        ).fetchall()
        return {name: _digest(connection, name) for (name,) in names}


def _digest(connection: apsw.Connection, table: str) -> Table:
    quoted = _identifier(table)
    columns = [_identifier(name) for _, name, *_ in connection.execute(f"PRAGMA table_info({quoted})")]
    # As bytes, because the text of a database need not be valid; with its type, so that '1' is not 1.
    values = [f"typeof({each}), iif(typeof({each}) = 'text', CAST({each} AS BLOB), {each})" for each in columns]
    digest, rows = blake3(), 0
    for row in connection.execute(f"SELECT {', '.join(values)} FROM {quoted} NOT INDEXED"):
        digest.update(repr(row).encode())
        rows += 1
    return Table(rows, digest.hexdigest()[:16])


def _compare_pages(source: Path, restored: Path, page_size: int) -> None:
    """Compare the files as bytes, where the source's file is all of it: pages may also be in its WAL."""
    wal = source.with_name(f"{source.name}-wal")
    if wal.exists() and wal.stat().st_size:
        print(f"Every table is equal. (Bytes are not compared: part of the source is in {wal.name}.)")
        return
    different = _different_bytes(source, restored)
    if different is None or not different <= _COUNTER_BYTES:
        _fail("the files differ in more than SQLite's change counter", "please report this")
    but = ", but for SQLite's own change counter in page 1" if different else ""
    pages = source.stat().st_size // page_size if page_size else 0
    print(f"Every table is equal, and so is every byte of all {pages:,} pages{but}.")


def _different_bytes(one: Path, other: Path) -> set[int] | None:
    """Offsets at which two files differ, or None when that is more than their first blocks."""
    if one.stat().st_size != other.stat().st_size:
        return None
    different: set[int] = set()
    with one.open("rb") as left, other.open("rb") as right:
        is_first = True
        while block := left.read(_BYTES_COMPARED_AT_ONCE):
            against = right.read(_BYTES_COMPARED_AT_ONCE)
            if block != against:
                if not is_first:
                    return None
                different |= {at for at, (a, b) in enumerate(zip(block, against, strict=True)) if a != b}
            is_first = False
    return different


def _print_tables(content: dict[str, Table]) -> None:
    width = max(map(len, content), default=0)
    for name, table in list(content.items())[:_TABLES_SHOWN]:
        print(f"{name:{width}} {table.rows:>10,} rows, content {table.digest}: equal")
    if len(content) > _TABLES_SHOWN:
        print(f"and {len(content) - _TABLES_SHOWN} more tables, all equal")


def _print_differences(source: dict[str, Table], copy: dict[str, Table]) -> NoReturn:
    for name in sorted(source.keys() | copy.keys()):
        if source.get(name) != copy.get(name):
            print(f"{name}: {source.get(name)} in the source, {copy.get(name)} restored")
    _fail("the restored database differs from its source", "please report this")


def _newest(database: Path) -> dict[str, Any]:
    command = ["backupd", "list", str(database), "--store", _STORE, "--json"]
    listed = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(listed.stdout)["snapshots"][-1])


def _opened(file: Path) -> apsw.Connection:
    """A connection that cannot write."""
    uri = f"file:{quote(str(file.absolute()))}?mode=ro"
    connection = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    connection.set_busy_timeout(10_000)
    return connection


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _backupd(*arguments: str) -> None:
    """Run the real command line, after showing it."""
    command = ["backupd", *arguments]
    print(f"$ {shlex.join(command)}", flush=True)
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(status)


def _say(text: str) -> None:
    print(f"\n{textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)}", flush=True)


def _fail(error: str, hint: str) -> NoReturn:
    print(f"error: {error}\nhint: {hint}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
