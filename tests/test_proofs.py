"""What test restores leave in the store, and what the next snapshot, of whatever machine, makes of it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from harness.checks import check_context
from harness.damage import flip
from harness.extent import sampled
from harness.faults import FaultyStore
from harness.kept_workers import kept_workers

from backupd.backup import BackupResult, SnapshotRequest, back_up
from backupd.backup.results import Outcome
from backupd.config import Database, Settings
from backupd.errors import StoreRefusedError
from backupd.format.records import CheckOutcome, Drill
from backupd.repository import Repository
from backupd.repository.moments import RestorePoint
from backupd.restore import restore_to_file
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from backupd.verify import CheckResult, drill

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.format import SnapshotId
    from backupd.format.manifest import AnyManifest, Manifest
    from backupd.store import Store

_ROWS = 400


class Place:
    """A database `app` of a few hundred pages, stores in `root`, and machines that have nothing else in common."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "app.db"
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a)")
            values = ((os.urandom(1000),) for _ in range(_ROWS))
            connection.executemany("INSERT INTO t (a) VALUES (?)", values)

    def change(self, first: int, rows: int = 20) -> None:
        """Other content in so many rows."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            for number in range(first, first + rows):
                connection.execute("UPDATE t SET a = ? WHERE id = ?", (os.urandom(1000), number))

    def store(self, name: str = "store") -> DirectoryStore:
        return DirectoryStore(self.root / name)

    def repository(self, *, machine: str = "a", store: Store | None = None) -> Repository:
        return Repository(store or self.store(), StateDirectory(self.root / f"state-{machine}"))

    def now(self, *stores: Store, machine: str = "a", request: SnapshotRequest | None = None) -> list[BackupResult]:
        results = back_up(
            Database(name="app", path=self.path),
            [Repository(store, StateDirectory(self.root / f"state-{machine}")) for store in stores or [self.store()]],
            Settings(),
            request=request or SnapshotRequest(),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
        assert [result.error for result in results] == [None] * len(results)
        return results

    def snapshot(self, *, machine: str = "a") -> SnapshotId:
        (result,) = self.now(machine=machine)
        assert result.outcome is Outcome.CREATED
        assert result.id is not None
        return result.id

    def drill(
        self, *, store: Store | None = None, machine: str = "a", snapshot: SnapshotId | None = None
    ) -> CheckResult:
        archive = self.repository(machine=machine, store=store).archive("app")
        return drill(archive, check_context(), snapshot=snapshot)

    def manifests(self) -> tuple[AnyManifest, ...]:
        return self.repository(machine="reader").archive("app").history().manifests

    def newest(self) -> Manifest:
        return self.repository(machine="reader").archive("app").opened(self.manifests()[-1])

    def pack(self, sha256: str, name: str = "store") -> Path:
        return self.root / name / "app/packs" / f"{sha256}.zst"

    def record(self, snapshot: SnapshotId, outcome: CheckOutcome, *packs: str, at: datetime | None = None) -> None:
        """What a drill would have left; `at` is also when the store got it."""
        at = at or datetime.now(UTC)
        record = Drill(snapshot=snapshot, database="app", outcome=outcome, at=at, damaged_packs=packs)
        key = f"app/drills/{snapshot}.json"
        self.repository().put_object(key, record.encode())
        os.utime(self.root / "store" / key, ns=(int(at.timestamp() * 10**9),) * 2)

    def known(self) -> list[CheckOutcome | None]:
        """What is known of each snapshot, oldest first, by a machine that has read nothing before."""
        repository = self.repository(machine="reader")
        proofs = repository.archive("app").proofs(repository.archive("app").listing())
        verdicts = [proofs.known(manifest) for manifest in self.manifests()]
        assert [repository.archive("app").proofs().known(manifest) for manifest in self.manifests()] == verdicts
        return [None if verdict is None else verdict.outcome for verdict in verdicts]

    def assert_restores(self) -> None:
        """The newest snapshot is the database as it is, and passes SQLite's check."""
        target = self.root / "restored.db"
        restore_to_file(
            RestorePoint(self.repository(machine="reader").archive("app"), self.newest()),
            target,
            force=False,
            as_source=False,
            on_progress=lambda _: None,
        )
        with closing(sqlite3.connect(target)) as restored, closing(sqlite3.connect(self.path)) as live:
            query = "SELECT id, a FROM t ORDER BY id"
            assert restored.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert restored.execute(query).fetchall() == live.execute(query).fetchall()


def live_pages(manifest: Manifest, sha256: str) -> int:
    """The number of pages of the image that are in one pack."""
    position = [pack.sha256 for pack in manifest.packs].index(sha256) + 1
    return manifest.decode_map().tolist().count(position)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Three snapshots, of which the newest needs three packs."""
    place = Place(tmp_path)
    place.snapshot()
    for first in (1, 101):
        place.change(first)
        place.snapshot()
    assert len(place.newest().packs) == 3
    return place


@pytest.mark.parametrize("machine", sampled(["a", "b"]))
@pytest.mark.parametrize("damage", ["flipped", "missing", "both packs"])
def test_damaged_pages_are_stored_again_and_no_others(place: Place, machine: str, damage: str) -> None:
    """The next snapshot, of any machine, stores the damaged pages again and no others, and is proven."""
    before = place.newest()
    victims = [pack.sha256 for pack in before.packs[1 : 3 if damage == "both packs" else 2]]
    for victim in victims:
        place.pack(victim).unlink() if damage == "missing" else flip(place.pack(victim))
    found = place.drill()
    assert (found.outcome, set(found.damaged_packs)) == (CheckOutcome.DAMAGED_STORE, set(victims))
    needed = sum(live_pages(before, victim) for victim in victims)
    (result,) = place.now(machine=machine)
    assert (result.outcome, result.replaced_packs, result.changed_pages or 0) in {
        (Outcome.CREATED, len(victims), 0),
        (Outcome.CREATED, len(victims), needed),  # without a cache, damaged pages have nothing to be compared with
    }
    after = place.newest()
    new = {pack.sha256: pack for pack in after.packs}.keys() - {pack.sha256 for pack in before.packs}
    assert sum(pack.pages for pack in after.packs if pack.sha256 in new or pack.sha256 in victims) == needed
    assert result.stored_bytes < sum(pack.stored_bytes for pack in before.packs) / 3
    assert place.drill(machine=machine).outcome is CheckOutcome.PROVEN
    place.assert_restores()
    (again,) = place.now(machine=machine)
    assert (again.outcome, again.replaced_packs) == (Outcome.UNCHANGED, 0)


def test_a_pack_that_is_stored_again_as_it_was_heals_every_snapshot_that_needs_it(tmp_path: Path) -> None:
    """A pack that is stored again with the same bytes repairs every snapshot that needs it."""
    place = Place(tmp_path)
    first = place.snapshot()
    (pack,) = place.newest().packs
    flip(place.pack(pack.sha256))
    assert place.drill().outcome is CheckOutcome.DAMAGED_STORE
    assert place.known() == [CheckOutcome.DAMAGED_STORE]
    (healed,) = place.now()
    assert (healed.outcome, healed.replaced_packs, place.newest().packs) == (Outcome.CREATED, 1, (pack,))
    assert place.known() == [CheckOutcome.DAMAGED_STORE, None]
    assert place.now()[0].outcome is Outcome.UNCHANGED
    assert place.drill(snapshot=first).outcome is CheckOutcome.PROVEN
    assert place.drill().outcome is CheckOutcome.PROVEN
    assert place.known() == [CheckOutcome.PROVEN, CheckOutcome.PROVEN]


def test_a_pack_that_was_right_all_along_does_not_stay_known_damaged(place: Place) -> None:
    """A drill that reads it right takes back what another one said of the snapshot."""
    pack = place.newest().packs[0].sha256
    place.record(place.newest().id, CheckOutcome.DAMAGED_STORE, pack)
    assert place.known() == [CheckOutcome.DAMAGED_STORE] * 3
    assert place.drill().outcome is CheckOutcome.PROVEN
    assert place.known() == [None, None, CheckOutcome.PROVEN]
    assert place.now()[0].outcome is Outcome.UNCHANGED


def test_only_the_store_that_is_damaged_gets_pages_again(tmp_path: Path) -> None:
    """Only the damaged store gets pages again, in one run and from one capture."""
    place = Place(tmp_path)
    stores = [place.store("disk"), place.store("share")]
    for first in (1, 51):
        place.change(first)
        place.now(*stores)
    pack = min((tmp_path / "disk/app/packs").iterdir(), key=lambda file: file.stat().st_size)
    flip(pack)
    assert place.drill(store=stores[0]).outcome is CheckOutcome.DAMAGED_STORE
    assert place.drill(store=stores[1]).outcome is CheckOutcome.PROVEN
    disk, share = place.now(*stores)
    assert (disk.outcome, disk.replaced_packs) == (Outcome.CREATED, 1)
    assert (share.outcome, share.stored_bytes, share.replaced_packs) == (Outcome.UNCHANGED, 0, 0)
    assert place.drill(store=stores[0]).outcome is CheckOutcome.PROVEN


def test_damage_that_no_pack_is_to_blame_for_makes_a_full_snapshot(place: Place) -> None:
    """Damage without a damaged pack makes the next snapshot a full one, because no pack is trusted."""
    place.record(place.newest().id, CheckOutcome.DAMAGED_STORE)
    before = place.newest()
    (result,) = place.now()
    assert (result.outcome, result.replaced_packs) == (Outcome.CREATED, 3)
    (whole,) = place.newest().packs
    assert whole.pages == before.packs[0].pages
    assert not {pack.sha256 for pack in place.newest().packs} & {pack.sha256 for pack in before.packs}
    assert place.drill().outcome is CheckOutcome.PROVEN


def test_a_damaged_source_is_no_reason_to_store_anything_again(place: Place) -> None:
    """A snapshot of a damaged source is not stored again, because its bytes are right."""
    place.record(place.newest().id, CheckOutcome.DAMAGED_SOURCE)
    assert place.known() == [None, None, CheckOutcome.DAMAGED_SOURCE]
    assert place.now()[0].outcome is Outcome.UNCHANGED


def test_a_damaged_newest_manifest_makes_a_new_one(place: Place) -> None:
    """Although the one before says the same: what was the newest cannot be restored, and is what drills look at."""
    newest = place.newest()
    place.now(request=SnapshotRequest(tags=("again",)))
    flip(place.root / f"store/app/snapshots/{place.newest().id}.json")
    assert place.drill().outcome is CheckOutcome.DAMAGED_STORE
    assert place.newest().id == newest.id
    (result,) = place.now()
    assert (result.outcome, result.stored_bytes) == (Outcome.CREATED, 0)
    assert place.drill().outcome is CheckOutcome.PROVEN
    assert place.now()[0].outcome is Outcome.UNCHANGED


def test_a_verdict_is_that_of_the_last_drill_that_had_to_do_with_the_snapshot(place: Place) -> None:
    """A verdict is the snapshot's own damage, or the later of its own drill and one that found its pack damaged."""
    first, second, third = (manifest.id for manifest in place.manifests())
    shared = place.newest().packs[0].sha256
    noon = datetime.now(UTC) + timedelta(minutes=1)  # later than the packs
    place.record(first, CheckOutcome.PROVEN, at=noon)
    place.record(second, CheckOutcome.DAMAGED_STORE, shared, at=noon + timedelta(hours=1))
    assert place.known() == [CheckOutcome.DAMAGED_STORE] * 3
    place.record(first, CheckOutcome.INTACT, at=noon + timedelta(hours=2))
    place.record(third, CheckOutcome.DAMAGED_SOURCE, at=noon)
    assert place.known() == [CheckOutcome.INTACT, CheckOutcome.DAMAGED_STORE, CheckOutcome.DAMAGED_SOURCE]
    file = place.pack(shared)
    os.utime(file, ns=(int((noon + timedelta(hours=3)).timestamp() * 10**9),) * 2)
    assert place.known() == [CheckOutcome.INTACT, CheckOutcome.DAMAGED_STORE, CheckOutcome.DAMAGED_SOURCE]
    place.record(second, CheckOutcome.PROVEN, at=noon + timedelta(hours=4))
    assert place.known()[:2] == [CheckOutcome.INTACT, CheckOutcome.PROVEN]


def test_what_drills_found_is_read_once(place: Place) -> None:
    """A snapshot asks for each record one time, and for nothing else besides what it asks for anyway."""

    def requests() -> list[str]:
        store = FaultyStore(place.store())
        place.now(store)
        return sorted(store.calls)

    without = requests()
    assert place.drill().outcome is CheckOutcome.PROVEN
    assert requests() == sorted([*without, "get"])
    assert requests() == without


class Sealed(FaultyStore):
    """A store whose keys may read no record of a drill."""

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        if "/drills/" in key:
            raise StoreRefusedError(f"{self.url} refuses {key}")
        return super().get(key, limit_bytes=limit_bytes)


def test_keys_that_may_not_read_what_drills_found_are_enough_for_a_snapshot(place: Place) -> None:
    """Keys that may not read drills take a snapshot, with a warning that damage is not repaired."""
    place.record(place.newest().id, CheckOutcome.DAMAGED_STORE, place.newest().packs[0].sha256)
    place.change(1)
    (result,) = place.now(Sealed(place.store()))
    assert (result.outcome, result.replaced_packs) == (Outcome.CREATED, 0)
    (warning,) = result.warnings
    assert "damaged packs are not stored again by themselves" in warning
