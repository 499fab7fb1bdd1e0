"""Looking at a database destroys nothing, whatever lies at its path, and refuses nothing that SQLite reads."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness.capturing import capture
from harness.cli import PLAIN, Runner, tree
from harness.confinement import ANOTHER_UID, another_user, shared_directory
from harness.extent import in_parts, part_of, sampled, slow
from harness.place import connected, create_database
from harness.surroundings import Cell, Parts, killed

from backupd.errors import BusyError, NotADatabaseError, SourceUnusableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Everything that opens a database with SQLite, in one process for all cells; and SQLite alone, on a copy.
_LOOK_AT_EACH = """
import json, sys, shutil
from pathlib import Path
import apsw
from backupd.doctor.database_child import inspect
from backupd.errors import BackupdError
from backupd.live.contents import contents_of_live

def told_by_sqlite(path):
    try:
        connection = apsw.Connection(f"file:{path}", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        try:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            return connection.pragma("page_size") * connection.pragma("page_count")
        finally:
            connection.close()
    except apsw.Error as error:
        return str(error)

answers = []
for path, copy in json.load(sys.stdin):
    found = inspect(path, lock_timeout=0.5, max_lock=3)
    answer = {"refusal": found.refusal and found.refusal.error, "image_bytes": found.image_bytes, "plan": None}
    try:
        contents_of_live(Path(path), lock_timeout=0.5)
    except BackupdError as error:
        answer["plan"] = type(error).__name__
    answer["sqlite"] = told_by_sqlite(copy) if copy else None
    answers.append(answer)
print(json.dumps(answers))
"""
_HEADER_VERSIONS = [(0, 0), (3, 1), (0, 1), (9, 2), (1, 0), (2, 1), (255, 2)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """What the files of a database are made of."""
    return Parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def other_user() -> Iterator[Runner]:
    """Runs processes as another user."""
    with another_user() as runner:
        yield runner


def _answers(runner: Runner, paths: list[tuple[Path, Path | None]]) -> list[dict[str, Any]]:
    command = [*runner.enter, *runner.become, runner.python, "-c", _LOOK_AT_EACH]
    asked = json.dumps([[str(path), copy and str(copy)] for path, copy in paths])
    done = subprocess.run(
        command, input=asked, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **runner.environ}
    )
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def _laid_out(parts: Parts, home: Path, owner: int, cells: list[Cell]) -> dict[Cell, Path]:
    laid_out = {cell: parts.lay_out(cell, home / str(number)) for number, cell in enumerate(cells)}
    for database in laid_out.values():
        for path in (database.parent, *database.parent.iterdir()):
            os.chown(path, owner, owner)
    return laid_out


def _reject_changes(cell: Cell, database: Path, before: dict[str, Any], owner: int) -> None:
    """SQLite reads a log by way of an index, and makes both where there is none: empty, and with the owner's rights."""
    after = tree(database.parent)
    assert {name: after.get(name) for name in before if name != "."} == {
        name: facts for name, facts in before.items() if name != "."
    }, cell
    has_log = cell.log not in {"none", "empty"} or cell.main == "sound-with-log"
    may_come = {"app.db-wal", "app.db-shm"} if has_log and not cell.is_lost else set()
    assert set(after) - set(before) <= may_come, cell
    for name in set(after) - set(before):
        status = (database.parent / name).stat()
        assert (status.st_uid, status.st_mode) == (owner, database.stat().st_mode), (cell, name)
        assert name == "app.db-shm" or status.st_size == 0


@slow
@pytest.mark.parametrize(("is_other_user", "owner"), sampled([(1, ANOTHER_UID), (0, 0), (0, ANOTHER_UID), (1, 0)]))
@in_parts
def test_capture_changes_no_combination_of_files(
    parts: Parts, other_user: Runner, is_other_user: int, owner: int, part: int
) -> None:
    """Bytes, owners, modes and names are the same; and refused is what SQLite cannot read, or would destroy."""
    with shared_directory() as home:
        laid_out = _laid_out(parts, home / "cells", owner, part_of([*parts.cells()], part, every=11))
        compares = owner == ANOTHER_UID or not is_other_user
        copies = {cell: home / "copies" / str(number) for number, cell in enumerate(laid_out)} if compares else {}
        for cell, copy in copies.items():
            shutil.copytree(laid_out[cell].parent, copy)
            for path in (copy, *copy.iterdir()):
                os.chown(path, owner, owner)
        before = {cell: tree(database.parent) for cell, database in laid_out.items()}
        asked = [(database, copies[cell] / "app.db" if compares else None) for cell, database in laid_out.items()]
        answers = dict(zip(laid_out, _answers(other_user if is_other_user else PLAIN, asked), strict=True))
        for cell, answer in answers.items():
            _reject_changes(cell, laid_out[cell], before[cell], owner)
            if cell.is_lost:
                assert answer["refusal"] in {"NotADatabaseError", "SourceUnusableError"}, (cell, answer)
                assert answer["plan"] in {"NotADatabaseError", "SourceUnusableError"}, (cell, answer)
            elif compares and isinstance(answer["sqlite"], int):
                is_in_log = cell.main in {"short", "foreign"}  # a restore keeps such a file, and the log, as they are
                assert answer["refusal"] is None, (cell, answer)
                assert answer["plan"] == ("NotADatabaseError" if is_in_log else None), (cell, answer)
                assert answer["image_bytes"] == answer["sqlite"], (cell, answer)


_CAPTURED = [
    Cell("sound", "none", "finished"),
    Cell("sound", "of-another", "none"),
    Cell("sound", "no-log", "empty"),
    Cell("read-only", "none", "none"),
    Cell("short", "sound", "none"),
    Cell("foreign", "sound", "none"),
    Cell("sound-with-log", "torn", "none"),
    Cell("sound-with-log", "other-byte-order", "finished"),
    Cell("sound-with-log", "other-page-size", "none"),
]


@pytest.mark.parametrize("cell", _CAPTURED, ids=str)
def test_what_sqlite_reads_is_captured(parts: Parts, tmp_path: Path, cell: Cell) -> None:
    """The image has the pages that SQLite's backup gives."""
    database = parts.lay_out(cell, tmp_path / "app")
    before = tree(database.parent)
    image = capture(database, tmp_path / "spool").image()
    _reject_changes(cell, database, before, os.geteuid())
    with (
        closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(tmp_path / "copy.db")) as copy,
    ):
        source.backup(copy)
    assert _without_counters(image) == _without_counters((tmp_path / "copy.db").read_bytes())


def _without_counters(image: bytes) -> bytes:
    blank = bytearray(image)
    for start, end in ((24, 32), (40, 44), (92, 100)):
        blank[start:end] = bytes(end - start)
    return bytes(blank)


def test_log_beside_an_empty_file_is_named_with_the_way_to_save_it(parts: Parts, tmp_path: Path) -> None:
    """A log or journal beside an empty file is named with its size, and the hint says how to save it."""
    for main in ("missing", "empty"):
        database = parts.lay_out(Cell(main, "sound", "hot"), tmp_path / main)
        with pytest.raises(SourceUnusableError) as caught:
            capture(database, tmp_path / f"{main}-spool")
        sizes = [database.with_name(f"app.db{suffix}").stat().st_size for suffix in ("-wal", "-journal")]
        assert f"app.db-wal ({sizes[0]} bytes) and app.db-journal ({sizes[1]} bytes)" in caught.value.message
        assert f"copy {database}-wal and {database}-journal to a safe place" in str(caught.value.hint)


def test_database_whose_first_transaction_runs_is_busy(tmp_path: Path) -> None:
    """An empty file with a hot journal beside it is a database that is being created: the capture may be retried."""
    database = tmp_path / "app.db"
    with connected(database, "BEGIN IMMEDIATE", "CREATE TABLE t (a)", "PRAGMA cache_spill = 1"):
        journal = database.with_name("app.db-journal")
        assert database.stat().st_size == 0
        assert journal.stat().st_size > 0
        with pytest.raises(BusyError, match="is being created"):
            capture(database, tmp_path / "spool")


def test_database_whose_journal_would_have_too_long_a_name_is_captured(tmp_path: Path) -> None:
    """SQLite reads a database whose journal would have too long a name; so does a capture."""
    database = tmp_path / f"{'n' * 250}.db"
    create_database(tmp_path / "app.db", rows=5)
    (tmp_path / "app.db").rename(database)
    assert capture(database, tmp_path / "spool").facts.tables == ("report",)


def _socket(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(path))


_ODD_FILES: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a socket": _socket,
    "a directory": Path.mkdir,
    "a symbolic link": lambda path: path.symlink_to("elsewhere"),
    "a device": lambda path: os.mknod(path, 0o020600, os.makedev(1, 5)),
}


@pytest.mark.parametrize(("suffix", "journal_mode"), [("-journal", "delete"), ("-wal", "delete"), ("-shm", "wal")])
@pytest.mark.parametrize("kind", _ODD_FILES)
def test_irregular_file_beside_a_database_is_refused_at_once(
    tmp_path: Path, kind: str, suffix: str, journal_mode: str
) -> None:
    """Opening a FIFO would wait for ever, and a device does what it does."""
    if kind == "a device" and os.geteuid() != 0:
        pytest.skip("only root can make a device")
    database = tmp_path / "app/app.db"
    database.parent.mkdir()
    create_database(database, rows=5, journal_mode=journal_mode)
    _ODD_FILES[kind](database.with_name(f"app.db{suffix}"))
    before = sorted(database.parent.iterdir())
    with pytest.raises(SourceUnusableError, match=f"app.db{suffix} is {kind}"):
        capture(database, tmp_path / "spool", deadline=20)
    assert sorted(database.parent.iterdir()) == before


@pytest.mark.parametrize("versions", _HEADER_VERSIONS, ids=str)
def test_versions_in_the_header_that_sqlite_reads_are_captured(tmp_path: Path, versions: tuple[int, int]) -> None:
    """The image has them as they are."""
    database = tmp_path / "app.db"
    create_database(database, rows=5)
    _patch(database, 18, bytes(versions))
    captured = capture(database, tmp_path / "spool")
    assert captured.image()[18:20] == bytes(versions)
    assert captured.facts.journal_mode == ("wal" if versions[1] == 2 else "delete")


def _patch(database: Path, offset: int, content: bytes) -> None:
    with database.open("r+b") as file:
        file.seek(offset)
        file.write(content)


@pytest.mark.parametrize(("number", "journal_mode"), [(0xFFFFFFFF, "delete"), (0x80000000, "wal")])
@pytest.mark.parametrize("offset", [24, 28, 36, 48, 52, 60, 64, 68, 72, 96])
def test_database_with_wrong_counters_is_captured_where_sqlite_reads_it(
    tmp_path: Path, offset: int, number: int, journal_mode: str
) -> None:
    """The header may claim any change counter, size, free pages, cache, root page, versions and reserved bytes."""
    database = tmp_path / "app.db"
    create_database(database, rows=5, journal_mode=journal_mode)
    _patch(database, offset, struct.pack(">I", number))
    try:
        captured = capture(database, tmp_path / "spool")
    except NotADatabaseError:
        with pytest.raises(sqlite3.DatabaseError), closing(sqlite3.connect(database)) as connection:
            connection.execute("SELECT count(*) FROM report").fetchall()
        return
    assert 0 <= captured.facts.free_pages <= captured.page_count
    assert captured.image()[offset : offset + 4] == struct.pack(">I", number) or offset in {24, 28}


@slow
@pytest.mark.parametrize("files", sampled([40, 150]))
def test_malformed_files_are_captured_where_sqlite_reads_them(tmp_path: Path, files: int) -> None:
    """Bytes of page 1 and of others are changed at random: nothing ends in another error than a refusal."""
    database = tmp_path / "app.db"
    create_database(database, rows=30, row_bytes=100)
    sound, chosen = database.read_bytes(), random.Random(5)
    asked: list[tuple[Path, Path | None]] = []
    for number in range(files):
        content = bytearray(sound)
        for _ in range(chosen.randint(1, 4)):
            content[chosen.choice([chosen.randrange(100), chosen.randrange(4096), chosen.randrange(len(content))])] = (
                chosen.choice([0, 1, 2, 255, chosen.randrange(256)])
            )
        paths = [tmp_path / str(number) / name for name in ("app.db", "copy.db")]
        paths[0].parent.mkdir()
        for path in paths:
            path.write_bytes(content)
        asked.append((paths[0], paths[1]))
    read = 0
    for (path, _), answer in zip(asked, _answers(PLAIN, asked), strict=True):
        if isinstance(answer["sqlite"], int):
            read += 1
            assert (answer["refusal"], answer["plan"], answer["image_bytes"]) == (None, None, answer["sqlite"]), path
    assert files / 6 < read < files * 0.97


@pytest.mark.parametrize("torn", [0, 1])
def test_sqlite_version_is_that_of_page_1_in_the_log(tmp_path: Path, torn: int) -> None:
    """An older SQLite wrote the file, and a newer one the log; a page 1 that was never committed does not count."""
    database = tmp_path / "app.db"
    create_database(database, rows=5, journal_mode="wal")
    _patch(database, 96, struct.pack(">I", 3_020_069))
    killed(database, "PRAGMA wal_autocheckpoint = 0", "CREATE TABLE u (a)", "CREATE TABLE v (a)")
    log = database.with_name("app.db-wal")
    content = bytearray(log.read_bytes())
    if torn:
        last = content.rindex(b"SQLite format 3\0")
        content[last + 96 : last + 100] = struct.pack(">I", 3_099_000)  # its checksum is wrong now
        log.write_bytes(content)
    captured = capture(database, tmp_path / "spool")
    assert captured.facts.tables == (("report", "u") if torn else ("report", "u", "v"))
    assert captured.facts.sqlite_version == sqlite3.sqlite_version
    assert int.from_bytes(captured.image()[96:100], "big") == sqlite3.sqlite_version_info[0] * 1_000_000 + (
        sqlite3.sqlite_version_info[1] * 1000 + sqlite3.sqlite_version_info[2]
    )


_OPEN_EMPTIED = """
import sys
from backupd.capture import side_files, source
from backupd.errors import SourceUnusableError
side_files.keep_sqlite_from_deleting()
try:
    with source.pinned(sys.argv[1], lock_timeout=1):
        pass
except SourceUnusableError as error:
    print(error.message)
"""


def test_log_stays_when_the_file_is_emptied_after_the_look(parts: Parts, tmp_path: Path) -> None:
    """The processes that look cannot delete it: SQLite asks for that, and is refused."""
    database = parts.lay_out(Cell("empty", "sound", "none"), tmp_path / "app")
    before = tree(database.parent)
    reported = subprocess.run(
        [sys.executable, "-c", _OPEN_EMPTIED, database], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert "was emptied while it was opened" in reported
    assert tree(database.parent) == before


_EMPTY_WHEN_OPENED = """
import apsw, os, sys
connect = apsw.Connection
def connect_to_emptied(*arguments, **options):
    os.truncate(sys.argv[1], 0)
    return connect(*arguments, **options)
apsw.Connection = connect_to_emptied
from {module} import main
main()
"""


@pytest.mark.parametrize(
    ("module", "more"),
    [("backupd.live.contents", ["1"]), ("backupd.doctor.database_child", ["1", "1"])],
    ids=["plan", "doctor"],
)
def test_no_process_that_reads_lets_sqlite_delete_the_log(
    parts: Parts, tmp_path: Path, module: str, more: list[str]
) -> None:
    """A process that reads keeps the log when the file is emptied between its own check and SQLite's open."""
    database = parts.lay_out(Cell("sound", "sound", "none"), tmp_path / "app")
    log = database.with_name(f"{database.name}-wal")
    content = log.read_bytes()
    program = _EMPTY_WHEN_OPENED.format(module=module)
    reported = subprocess.run(
        [sys.executable, "-c", program, database, *more], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert "was emptied while it was opened" in reported
    assert log.read_bytes() == content
