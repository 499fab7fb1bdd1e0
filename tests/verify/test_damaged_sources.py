"""Damaged databases are captured as they are, reported, and never taken for a damaged store."""

from __future__ import annotations

import os
import random
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from harness.checks import check_context
from harness.extent import sampled
from harness.kept_workers import kept_workers

from backupd.backup import BackupResult, SnapshotRequest, back_up
from backupd.backup.results import Outcome
from backupd.config import Database, RetentionSettings, Settings
from backupd.errors import DamageError
from backupd.format.records import CheckOutcome
from backupd.format.records import CheckOutcome as Found
from backupd.prune import prune
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from backupd.verify import CheckResult, drill

if TYPE_CHECKING:
    from pathlib import Path

_PAGE = 4096
_FREELIST_TRUNK_AT = 32


class Place:
    """A sound database with an index, long rows and free pages, and a store."""

    def __init__(self, root: Path) -> None:
        self.path = root / "app.db"
        self.state = StateDirectory(root / "state")
        self.store = DirectoryStore(root / "store")
        self.repository = Repository(self.store, self.state)
        self.archive = self.repository.archive("app")
        chosen = random.Random(5)
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA page_size = {_PAGE}")
            connection.execute("CREATE TABLE report (id INTEGER PRIMARY KEY, title TEXT, body BLOB)")
            connection.execute("CREATE INDEX report_title ON report (title)")
            connection.execute("CREATE TABLE gone (a)")
            rows = [(f"report {number}", chosen.randbytes(300)) for number in range(400)]
            connection.executemany("INSERT INTO report (title, body) VALUES (?, ?)", rows)
            connection.execute("INSERT INTO report (title, body) VALUES ('long', ?)", (b"overflow" * 4000,))
            connection.executemany("INSERT INTO gone VALUES (?)", [(chosen.randbytes(3000),) for _ in range(20)])
            connection.execute("DROP TABLE gone")

    def pages(self, name: str, pagetype: str) -> list[int]:
        """The pages of one kind that a table or an index has, by SQLite's own account."""
        with closing(sqlite3.connect(self.path)) as connection:
            try:
                query = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = ? ORDER BY pageno"
                return [int(number) for (number,) in connection.execute(query, (name, pagetype))]
            except sqlite3.OperationalError:
                pytest.skip("this Python's SQLite has no dbstat")

    def overwrite(self, page: int, *, at: int = 8, content: bytes = b"\xa5" * 200) -> None:
        """What a failing disk or a stray program does."""
        with self.path.open("r+b") as file:
            file.seek((page - 1) * _PAGE + at)
            file.write(content)

    def now(self) -> BackupResult:
        (result,) = back_up(
            Database(name="app", path=self.path),
            [self.repository],
            Settings(),
            request=SnapshotRequest(),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
        return result

    def drill(self) -> CheckResult:
        return drill(self.archive, check_context())

    def known(self) -> list[CheckOutcome | None]:
        proofs = self.archive.proofs()
        known = [proofs.known(manifest) for manifest in self.archive.history().manifests]
        return [None if each is None else each.outcome for each in known]

    def first_free_page(self) -> int:
        with self.path.open("rb") as file:
            file.seek(_FREELIST_TRUNK_AT)
            return int.from_bytes(file.read(4), "big")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A place with one snapshot, which is proven."""
    place = Place(tmp_path)
    assert place.now().outcome is Outcome.CREATED
    assert place.drill().outcome is Found.PROVEN
    return place


def _leaf_in_the_middle(place: Place) -> None:
    leaves = place.pages("report", "leaf")
    place.overwrite(leaves[len(leaves) // 2])


def _interior_page(place: Place) -> None:
    place.overwrite(place.pages("report", "internal")[0], at=0)


def _index(place: Place) -> None:
    leaves = place.pages("report_title", "leaf")
    place.overwrite(leaves[len(leaves) // 2], at=_PAGE - 900, content=b"\x00" * 600)


def _overflow(place: Place) -> None:
    place.overwrite(place.pages("report", "overflow")[1], at=0, content=b"\xff" * 4)


def _freelist(place: Place) -> None:
    place.overwrite(place.first_free_page(), at=0, content=b"\x00\x00\x00\x00\x7f\xff\xff\xff")


def _row_without_its_index_entry(place: Place) -> None:
    with closing(sqlite3.connect(place.path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        (sql,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'report_title'").fetchone()
        connection.execute("UPDATE sqlite_schema SET sql = sql || ' WHERE 0' WHERE name = 'report_title'")
    with closing(sqlite3.connect(place.path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO report (title) VALUES ('not in the index')")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'report_title'", (sql,))


_DAMAGE = {
    "a leaf of the table": _leaf_in_the_middle,
    "an interior page": _interior_page,
    "a leaf of the index": _index,
    "an overflow chain": _overflow,
    "the freelist": _freelist,
    "a row that its index lacks": _row_without_its_index_entry,
}


@pytest.mark.parametrize("what", sampled(_DAMAGE, fast=2))
def test_a_damaged_database_is_captured_and_marked(place: Place, what: str) -> None:
    """The copy is what the file was; the store is not blamed, nothing in it is stored again, and nothing is removed."""
    _DAMAGE[what](place)
    result = place.now()
    assert (result.outcome, result.error, result.is_schema_readable) == (Outcome.CREATED, None, True)
    found = place.drill()
    assert (found.outcome, found.id, found.damaged_packs) == (Found.DAMAGED_SOURCE, result.id, ())
    assert isinstance(found.error, DamageError)
    assert found.findings
    assert place.known() == [CheckOutcome.PROVEN, CheckOutcome.DAMAGED_SOURCE]
    again = place.now()
    assert (again.outcome, again.replaced_packs) == (Outcome.UNCHANGED, 0)
    strictest = RetentionSettings(keep_last=1, daily=0, weekly=0, monthly=0)
    held = prune(place.archive, strictest, now=datetime.now(UTC))
    assert held.hold is not None
    assert (held.error, held.removed) == (None, ())
    assert "PRAGMA integrity_check" in held.hold.hint


def test_a_repaired_database_ends_the_hold(place: Place) -> None:
    """The next proven snapshot ends the hold, and retention keeps the sound one before the damage."""
    sound = place.path.read_bytes()
    _index(place)
    place.now()
    assert place.drill().outcome is Found.DAMAGED_SOURCE
    place.path.write_bytes(sound)
    with closing(sqlite3.connect(place.path)) as connection, connection:
        connection.execute("UPDATE report SET title = 'after' WHERE id = 7")
    place.now()
    assert place.drill().outcome is Found.PROVEN
    two = RetentionSettings(keep_last=2, daily=0, weekly=0, monthly=0)
    result = prune(place.archive, two, now=datetime.now(UTC))
    assert (result.hold, result.removed) == (None, ())
    assert [decision.reasons[-1] for decision in result.decisions] == ["last 2", "last 2 (damaged)", "last 1"]


def test_a_database_with_an_unreadable_schema_is_captured_and_reported_at_once(place: Place) -> None:
    """The snapshot itself warns; the drill says the same."""
    place.overwrite(1, at=100, content=b"\xa5" * (_PAGE - 100))
    result = place.now()
    assert (result.outcome, result.is_schema_readable) == (Outcome.CREATED, False)
    (warning,) = result.warnings
    assert "its schema cannot be read" in warning
    assert str(place.path) in warning
    assert place.drill().outcome is Found.DAMAGED_SOURCE


def test_a_file_that_is_no_database_any_more_makes_no_snapshot(place: Place) -> None:
    """A file that SQLite cannot read any more makes no snapshot, and older ones stay."""
    place.path.write_bytes(os.urandom(8 * _PAGE))
    result = place.now()
    assert result.outcome is Outcome.FAILED
    assert place.known() == [CheckOutcome.PROVEN]
