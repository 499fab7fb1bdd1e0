"""The requests that docs/operations.md counts are those that are made: each call of a store is one."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from harness.faults import FaultyStore
from harness.pages import DOCS, rows, section

from backupd.backup import Wish
from backupd.catalog import list_snapshots
from backupd.config import Database, RetentionSettings, ScheduleSettings, Settings
from backupd.daemon.asking import Questions
from backupd.drill import drill
from backupd.health import StatusFile
from backupd.proofs import read_proofs
from backupd.repository import Repository
from backupd.repository.manifests import read_history
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from backupd.upkeep.configured import Configured
from backupd.upkeep.rotation import rotate_after
from backupd.upkeep.snapshots import take_snapshot
from backupd.upkeep.stores import RotatedStore
from backupd.verify import Level, VerifyWish, verify

if TYPE_CHECKING:
    from pathlib import Path

_SETTINGS = Settings()
_COLUMNS = ("get", "list", "put")


class Place:
    """A database with a history, and a store that counts."""

    def __init__(self, root: Path, policy: RetentionSettings) -> None:
        self._path = root / "app.db"
        self.state = StateDirectory(root / "state")
        self.status = StatusFile(self.state)
        self.store = FaultyStore(DirectoryStore(root / "store"))
        self.repository = Repository(self.store, self.state)
        self.rotated = RotatedStore(self.repository, {"app": policy}, policy.grace)
        self.configured = Configured(Database("app", self._path), ScheduleSettings())
        with closing(sqlite3.connect(self._path)) as connection, connection:
            connection.execute("CREATE TABLE t (a)")
        for _ in range(3):
            self.change_and_look_after()

    def change_and_look_after(self) -> None:
        """One change, one snapshot, and the look at which may go."""
        with closing(sqlite3.connect(self._path)) as connection, connection:
            connection.execute("INSERT INTO t VALUES (randomblob(100))")
        (result,) = take_snapshot(
            self.configured,
            [self.rotated],
            _SETTINGS,
            self.state,
            self.status,
            wish=Wish(),
            on_progress=lambda _: None,
        )
        assert result.error is None
        rotate_after(result, self.rotated, self.state, self.status)

    def counted(self) -> Counter[str]:
        """Requests since this was asked last, by their names on the page; deletions are free."""
        calls, self.store.calls = self.store.calls, []
        return Counter("get" if call == "get_range" else call for call in calls if call != "delete")


@pytest.fixture
def costs() -> dict[str, Counter[str]]:
    """The first table of the page, by the beginning of each line; of a span, its lower end."""
    text = section(DOCS / "operations.md", "## What it costs").split("\n\nA LIST")[0]
    return {
        what: Counter(
            {
                name: int(cell.split(" to ")[0].split(" + ")[0])
                for name, cell in zip(_COLUMNS, cells, strict=True)
                if cell
            }
        )
        for what, *cells in rows(text)
        if what != "what"
    }


def _line(costs: dict[str, Counter[str]], beginning: str) -> Counter[str]:
    (found,) = (counted for what, counted in costs.items() if what.startswith(beginning))
    return found


def test_round_in_which_nothing_changed(tmp_path: Path, costs: dict[str, Counter[str]]) -> None:
    """One request, whatever number of databases there is."""
    place = Place(tmp_path, RetentionSettings())
    place.counted()
    Questions().ask([place.rotated])
    assert place.counted() == _line(costs, "a round in which nothing changed")


def test_look_for_the_newest_manifest(tmp_path: Path, costs: dict[str, Counter[str]]) -> None:
    """What a round does besides for a database whose manifest it has not seen for an hour."""
    place = Place(tmp_path, RetentionSettings())
    newest = place.status.read().databases["app"].stores[place.rotated.url].snapshot_id
    assert newest is not None
    place.counted()
    assert place.repository.shows("app", newest)
    assert place.counted() == _line(costs, "besides, once an hour")


def test_snapshot_of_a_changed_database(tmp_path: Path, costs: dict[str, Counter[str]]) -> None:
    """What each snapshot costs where nothing has to go."""
    place = Place(tmp_path, RetentionSettings())
    place.counted()
    place.change_and_look_after()
    assert place.counted() == _line(costs, "besides, a snapshot")


def test_first_snapshot_of_a_version(tmp_path: Path, costs: dict[str, Counter[str]]) -> None:
    """The way to restore without backupd is put once, and again when a new version brings another."""
    place = Place(tmp_path, RetentionSettings())
    for note in (tmp_path / "state/notes").iterdir():
        note.write_text("of another version")
    again = Repository(place.store, place.state)
    place.rotated = RotatedStore(again, {"app": RetentionSettings()}, RetentionSettings().grace)
    place.counted()
    place.change_and_look_after()
    usual = _line(costs, "besides, a snapshot") + _line(costs, "besides, once for each version")
    assert place.counted() == usual


def test_snapshot_for_which_another_goes(tmp_path: Path, costs: dict[str, Counter[str]]) -> None:
    """What the removal of one adds."""
    policy = RetentionSettings(keep_last=2, daily=0, weekly=0, monthly=0)
    place = Place(tmp_path, policy)
    place.change_and_look_after()
    place.counted()
    place.change_and_look_after()
    assert place.counted() == _line(costs, "besides, a snapshot") + _line(costs, "besides, the removal")


def test_list(tmp_path: Path, costs: dict[str, Counter[str]]) -> None:
    """Of one database by its name; what was read before is not read again."""
    place = Place(tmp_path, RetentionSettings())
    result = drill(place.repository, "app", place.state, _SETTINGS, now=datetime.now(UTC), should_stop=lambda: None)
    assert result.error is None
    read_proofs(place.repository, "app")
    place.counted()
    list_snapshots([place.repository], "app")
    read_proofs(place.repository, "app")
    assert place.counted() == _line(costs, "`backupd list")


def test_drill(tmp_path: Path, costs: dict[str, Counter[str]]) -> None:
    """Some requests, and one for each pack."""
    place = Place(tmp_path, RetentionSettings())
    newest = read_history(place.repository, "app").newest
    assert newest is not None
    place.counted()
    result = drill(place.repository, "app", place.state, _SETTINGS, now=datetime.now(UTC), should_stop=lambda: None)
    assert result.error is None
    assert place.counted() == _line(costs, "a test restore") + Counter(get=len(newest.packs))


@pytest.mark.parametrize(("level", "line"), [(Level.PACKS, "`backupd verify --all`"), (Level.RECEIPT, "the same with")])
def test_verification(tmp_path: Path, costs: dict[str, Counter[str]], level: Level, line: str) -> None:
    """Each manifest, and each pack once, however many snapshots need it; asking for a checksum counts as reading."""
    place = Place(tmp_path, RetentionSettings())
    manifests = read_history(place.repository, "app").manifests
    packs = {pack.sha256 for manifest in manifests for pack in manifest.packs}
    place.counted()
    wish = VerifyWish(wants_all=True, level=level)
    verify([place.repository], place.state, _SETTINGS, wish, now=datetime.now(UTC))
    counted = place.counted()
    counted["get"] += counted.pop("head", 0)
    assert counted == _line(costs, line) + Counter(get=len(manifests) + len(packs))
