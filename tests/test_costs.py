"""The requests that docs/operations.md counts are those that are made: each call of a store is one."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from harness.checks import check_context
from harness.faults import FaultyStore
from harness.notes import change_notes
from harness.pages import DOCS, rows, section

from backupd.backup import SnapshotRequest
from backupd.config import Database, RetentionSettings, ScheduleSettings, Settings
from backupd.daemon.reachability import Reachability
from backupd.health import StatusFile
from backupd.jobs.configured import ConfiguredDatabase, ConfiguredStore
from backupd.jobs.prunes import prune_after
from backupd.jobs.snapshots import take_snapshot
from backupd.repository import Repository
from backupd.repository.references import list_snapshots
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from backupd.verify import Level, VerifyRequest, drill, verify

if TYPE_CHECKING:
    from pathlib import Path

_SETTINGS = Settings()
_COLUMNS = ("get", "list", "put")


class Place:
    """A database with a history, and a store that counts."""

    def __init__(self, root: Path, policy: RetentionSettings) -> None:
        self._path = root / "app.db"
        self.settings = _SETTINGS
        self.state = StateDirectory(root / "state")
        self.status = StatusFile(self.state)
        self.store = FaultyStore(DirectoryStore(root / "store"))
        self.repository = Repository(self.store, self.state)
        self.rotated = ConfiguredStore(self.repository, {"app": policy}, policy.grace)
        self.configured = ConfiguredDatabase(Database("app", self._path), ScheduleSettings())
        with closing(sqlite3.connect(self._path)) as connection, connection:
            connection.execute("CREATE TABLE t (a)")
        for _ in range(3):
            self.change_back_up_and_prune()

    def change_back_up_and_prune(self) -> None:
        """Change one row, take a snapshot, and prune."""
        with closing(sqlite3.connect(self._path)) as connection, connection:
            connection.execute("INSERT INTO t VALUES (randomblob(100))")
        request = SnapshotRequest()
        (result,) = take_snapshot(self.configured, [self.rotated], self, request=request, on_progress=lambda _: None)
        assert result.error is None
        prune_after(result, self.rotated, self.status)

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


def test_round_without_changes_costs_what_the_page_says(tmp_path: Path, costs: dict[str, Counter[str]]) -> None:
    """A round without changes costs one request, as the page says."""
    place = Place(tmp_path, RetentionSettings())
    place.counted()
    Reachability().ask([place.rotated])
    assert place.counted() == _line(costs, "a round in which nothing changed")


def test_request_for_the_newest_manifest_costs_what_the_page_says(
    tmp_path: Path, costs: dict[str, Counter[str]]
) -> None:
    """A round asks for a manifest that it has not seen for an hour, which costs what the page says."""
    place = Place(tmp_path, RetentionSettings())
    newest = place.status.read().databases["app"].stores[place.rotated.url].snapshot_id
    assert newest is not None
    place.counted()
    assert place.repository.archive("app").shows(newest)
    assert place.counted() == _line(costs, "in addition, once an hour")


def test_snapshot_costs_what_the_page_says(tmp_path: Path, costs: dict[str, Counter[str]]) -> None:
    """A snapshot after which nothing has to be removed costs what the page says."""
    place = Place(tmp_path, RetentionSettings())
    place.counted()
    place.change_back_up_and_prune()
    assert place.counted() == _line(costs, "in addition, a snapshot")


def test_first_snapshot_of_a_version_costs_what_the_page_says(tmp_path: Path, costs: dict[str, Counter[str]]) -> None:
    """The way to restore without backupd is put once, and again when a new version brings another."""
    place = Place(tmp_path, RetentionSettings())
    change_notes(tmp_path / "state", lambda _: "of another version")
    again = Repository(place.store, place.state)
    place.rotated = ConfiguredStore(again, {"app": RetentionSettings()}, RetentionSettings().grace)
    place.counted()
    place.change_back_up_and_prune()
    usual = _line(costs, "in addition, a snapshot") + _line(costs, "in addition, once for each version")
    assert place.counted() == usual


def test_snapshot_that_removes_another_costs_what_the_page_says(tmp_path: Path, costs: dict[str, Counter[str]]) -> None:
    """A snapshot that removes another one costs both lines of the page."""
    policy = RetentionSettings(keep_last=2, daily=0, weekly=0, monthly=0)
    place = Place(tmp_path, policy)
    place.change_back_up_and_prune()
    place.counted()
    place.change_back_up_and_prune()
    assert place.counted() == _line(costs, "in addition, a snapshot") + _line(costs, "in addition, the removal")


def test_list_costs_what_the_page_says(tmp_path: Path, costs: dict[str, Counter[str]]) -> None:
    """A list of one database costs what the page says: what was read before is not read again."""
    place = Place(tmp_path, RetentionSettings())
    result = drill(place.repository.archive("app"), check_context())
    assert result.error is None
    place.repository.archive("app").proofs()
    place.counted()
    list_snapshots([place.repository], "app")
    place.repository.archive("app").proofs()
    assert place.counted() == _line(costs, "`backupd list")


def test_drill_costs_what_the_page_says(tmp_path: Path, costs: dict[str, Counter[str]]) -> None:
    """A drill costs the requests that the page says, and one for each pack."""
    place = Place(tmp_path, RetentionSettings())
    newest = place.repository.archive("app").history().newest
    assert newest is not None
    place.counted()
    result = drill(place.repository.archive("app"), check_context())
    assert result.error is None
    assert place.counted() == _line(costs, "a test restore") + Counter(get=len(newest.packs))


@pytest.mark.parametrize(
    ("level", "line"), [(Level.PACKS, "`backupd verify --all`"), (Level.UPLOAD_CHECK, "the same with")]
)
def test_verification_costs_what_the_page_says(
    tmp_path: Path, costs: dict[str, Counter[str]], level: Level, line: str
) -> None:
    """A verification costs one request for each manifest and each pack, however many snapshots need it."""
    place = Place(tmp_path, RetentionSettings())
    manifests = place.repository.archive("app").history().manifests
    packs = {pack.sha256 for manifest in manifests for pack in manifest.packs}
    place.counted()
    request = VerifyRequest(wants_all=True, level=level)
    verify([place.repository], request, check_context())
    counted = place.counted()
    counted["get"] += counted.pop("head", 0)
    assert counted == _line(costs, line) + Counter(get=len(manifests) + len(packs))
