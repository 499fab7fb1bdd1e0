from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from harness.faults import FaultyStore
from harness.kept_workers import kept_workers

from backupd.backup import SnapshotRequest, back_up
from backupd.config import Database, Settings
from backupd.errors import NoSuchSnapshotError, StoreUnavailableError
from backupd.repository import Repository
from backupd.repository.references import find_snapshot, list_snapshots
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.format import SnapshotId


class TwoStores:
    """Two snapshots: both stores have the first, only the second store has the other one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.behind, self.current = DirectoryStore(root / "behind"), DirectoryStore(root / "current")
        self.first = self._back_up("first", [self.behind, self.current])
        self.second = self._back_up("second", [self.current])

    def _back_up(self, tag: str, stores: list[DirectoryStore]) -> SnapshotId:
        path = self.root / "app.db"
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS t (a)")
            connection.execute("INSERT INTO t VALUES (?)", (tag,))
        results = back_up(
            Database(name="app", path=path),
            [Repository(store, StateDirectory(self.root / "state")) for store in stores],
            Settings(),
            request=SnapshotRequest(tags=(tag, "both")),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
        assert results[0].id is not None
        return results[0].id

    def repositories(self, *stores: DirectoryStore | FaultyStore) -> list[Repository]:
        state = StateDirectory(self.root / "other state")
        return [Repository(store, state) for store in stores or (self.behind, self.current)]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> TwoStores:
    """Made once: these tests only read."""
    return TwoStores(tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("reference", ["latest", "both", "0s", "app@latest"])
def test_newest_of_all_stores_is_meant(stores: TwoStores, reference: str) -> None:
    """A disk that was full for days must not hand out old data while a bucket is current."""
    found = find_snapshot(stores.repositories(), reference, database=None, now=datetime.now(UTC))
    assert (found.manifest.id, found.archive.url) == (stores.second, stores.current.url)


def test_id_comes_from_the_first_store_that_has_it(stores: TwoStores) -> None:
    """The order of the configuration is the order of preference."""
    found = find_snapshot(stores.repositories(), str(stores.first), database=None, now=datetime.now(UTC))
    assert found.archive.url == stores.behind.url


def test_store_that_cannot_be_asked_is_reported_and_passed_over(
    stores: TwoStores, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other one has what is wanted; without another one, its error is the answer."""
    broken = FaultyStore(stores.current, fail_at=0)
    repositories = stores.repositories(broken, stores.behind)
    found = find_snapshot(repositories, "latest", database=None, now=datetime.now(UTC))
    assert found.manifest.id == stores.first
    assert "a store could not be asked" in capsys.readouterr().err
    with pytest.raises(StoreUnavailableError):
        find_snapshot(
            stores.repositories(FaultyStore(stores.current, fail_at=0)), "latest", database=None, now=datetime.now(UTC)
        )


def test_snapshot_that_vanishes_while_it_is_listed_hides_no_other(stores: TwoStores) -> None:
    """A snapshot that another host removes during a listing hides no other, and is no problem."""

    class Vanishing(FaultyStore):
        def get(self, key: str, *, limit_bytes: int) -> bytes:
            if str(stores.first) in key:
                return super().get("app/snapshots/gone.json", limit_bytes=limit_bytes)
            return super().get(key, limit_bytes=limit_bytes)

    repository = Repository(Vanishing(stores.current), StateDirectory(stores.root / "new state"))
    listing = list_snapshots([repository], None)
    assert [each.manifest.id for each in listing.snapshots] == [stores.second]
    assert listing.problems == []


def test_unknown_snapshot_says_what_there_is(stores: TwoStores) -> None:
    """A name of another database is the likeliest mistake."""
    with pytest.raises(NoSuchSnapshotError, match="database other") as caught:
        find_snapshot(stores.repositories(), "other@latest", database=None, now=datetime.now(UTC))
    assert "app" in (caught.value.hint or "")


def test_store_without_its_first_object_is_not_called_empty(stores: TwoStores) -> None:
    """A store that lacks backupd.json but has snapshots is reported, instead of as empty."""

    class Headless(FaultyStore):
        def get(self, key: str, *, limit_bytes: int) -> bytes:
            return super().get("gone" if key == "backupd.json" else key, limit_bytes=limit_bytes)

    repositories = [Repository(Headless(stores.current), StateDirectory(stores.root / "headless"))]
    (problem,) = list_snapshots(repositories, None).problems
    assert "backupd.json is missing" in problem.message
