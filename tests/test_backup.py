from __future__ import annotations

import json
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from harness.extent import in_parts, part_of
from harness.faults import FaultyStore, ForgetfulStore
from harness.kept_workers import kept_workers
from msgspec.structs import replace

from backupd.backup import BackupResult, Outcome, Progress, SnapshotRequest, back_up
from backupd.config import CaptureSettings, Database, Settings
from backupd.errors import AnotherRunError, SourceUnusableError, StoreError, StoreRefusedError, StoreUnavailableError
from backupd.format import SnapshotId
from backupd.format.manifest import Manifest, SnapshotKind, encode_manifest
from backupd.repository import Repository
from backupd.repository.moments import RestorePoint
from backupd.repository.references import find_snapshot, list_snapshots
from backupd.restore import restore_to_file
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from backupd.store.keys import RESCUE_KEY, RESTORE_KEY

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.store import Store

_ROWS = 2000


class Place:
    """A database of about 3 MB, a directory store and a state directory, with the use cases bound to them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "app.db"
        self.store = DirectoryStore(root / "store")
        self.state = StateDirectory(root / "state")
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
            connection.executemany("INSERT INTO t (b) VALUES (?)", ((f"{n:01000}",) for n in range(_ROWS)))
        self.restored = 0

    def change(self, value: object, *, row: int = 1) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("UPDATE t SET b = ? WHERE a = ?", (value, row))

    def back_up(
        self,
        *stores: Store,
        request: SnapshotRequest | None = None,
        state: StateDirectory | None = None,
        settings: Settings | None = None,
    ) -> list[BackupResult]:
        return back_up(
            Database(name="app", path=self.path),
            [
                Repository(store, state or self.state, (settings or Settings()).open_encryption())
                for store in stores or (self.store,)
            ],
            settings or Settings(),
            request=request or SnapshotRequest(),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )

    def snapshot(self) -> BackupResult:
        (result,) = self.back_up()
        assert result.error is None
        return result

    def manifests(self, store: Store | None = None) -> tuple[Manifest, ...]:
        archive = Repository(store or self.store, StateDirectory(self.root / "other state")).archive("app")
        return tuple(archive.opened(archive.manifest(each.id)) for each in archive.history().manifests)

    def content(self, manifest: Manifest, store: Store | None = None) -> str:
        """The value of row 1 in a snapshot, restored on a host without a cache."""
        self.restored += 1
        target = self.root / f"restored-{self.restored}.db"
        repository = Repository(store or self.store, StateDirectory(self.root / "another state"))
        restore_to_file(
            RestorePoint(repository.archive(manifest.database), manifest),
            target,
            force=False,
            as_source=False,
            on_progress=lambda _: None,
        )
        with closing(sqlite3.connect(target)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            return str(connection.execute("SELECT b FROM t WHERE a = 1").fetchone()[0])

    def packs(self) -> list[Path]:
        return sorted((self.root / "store" / "app" / "packs").iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A fresh place for each test."""
    return Place(tmp_path)


def test_second_snapshot_stores_only_what_changed(place: Place) -> None:
    """A second snapshot stores a few pages for one changed row, and both states are restored."""
    first = place.snapshot()
    place.change("second")
    second = place.snapshot()
    assert (first.outcome, second.outcome) == (Outcome.CREATED, Outcome.CREATED)
    assert first.changed_pages == first.page_count
    assert second.changed_pages is not None
    assert second.changed_pages <= 3
    assert second.stored_bytes < first.stored_bytes / 10
    manifests = place.manifests()
    assert [place.content(manifest) for manifest in manifests] == [f"{0:01000}", "second"]
    assert [(manifest.sequence, manifest.base) for manifest in manifests] == [(1, None), (2, first.id)]


def test_nothing_changed_means_no_snapshot(place: Place) -> None:
    """The result names the newest snapshot, and the store holds what it held."""
    first = place.snapshot()
    before = sorted(path for path in (place.root / "store").rglob("*"))
    again = place.snapshot()
    assert (again.outcome, again.id, again.changed_pages, again.stored_bytes) == (Outcome.UNCHANGED, first.id, 0, 0)
    assert sorted(path for path in (place.root / "store").rglob("*")) == before


@pytest.mark.parametrize(
    "snapshot_request",
    [
        SnapshotRequest(tags=("release",)),
        SnapshotRequest(is_full=True),
        SnapshotRequest(kind=SnapshotKind.BEFORE_RESTORE),
    ],
    ids=str,
)
def test_request_for_properties_makes_a_snapshot_of_an_unchanged_database(
    place: Place, snapshot_request: SnapshotRequest
) -> None:
    """A tag or a safety snapshot names the same packs; a full one writes all of them again."""
    first = place.snapshot()
    (result,) = place.back_up(request=snapshot_request)
    assert result.outcome is Outcome.CREATED
    assert result.changed_pages == 0
    assert result.stored_bytes == (first.stored_bytes if snapshot_request.is_full else 0)
    newest = place.manifests()[-1]
    assert (newest.tags, newest.kind, newest.sequence) == (snapshot_request.tags, snapshot_request.kind, 2)


def test_one_capture_feeds_every_store_under_one_id(place: Place) -> None:
    """A store that missed snapshots catches up by itself with what it lacks."""
    late = DirectoryStore(place.root / "late")
    place.snapshot()
    place.change("second")
    place.snapshot()
    place.change("third")
    first, second = place.back_up(place.store, late)
    assert first.id == second.id
    assert (first.changed_pages or 0) < 4 < (second.changed_pages or 0)
    assert place.content(place.manifests(late)[-1], late) == place.content(place.manifests()[-1]) == "third"


def test_failing_store_does_not_stop_the_other(place: Place) -> None:
    """The broken one says why; the good one has the snapshot."""
    good, bad = place.back_up(place.store, FaultyStore(DirectoryStore(place.root / "bad"), fail_at=0))
    assert good.outcome is Outcome.CREATED
    assert bad.outcome is Outcome.FAILED
    assert isinstance(bad.error, StoreUnavailableError)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@in_parts
def test_every_store_call_may_fail(place: Place, tmp_path: Path, part: int, *, after: bool) -> None:
    """Whichever call fails: the run says so, all that is listed restores, and the next run needs no help."""
    place.snapshot()
    place.change("second")
    counting = FaultyStore(place.store)
    shutil.copytree(place.root / "store", tmp_path / "kept")
    place.back_up(counting, state=StateDirectory(tmp_path / "counting"))
    # The last two are rescue.py and RESTORE.md: without them a snapshot is one too.
    helpful = [number for number, call in enumerate(counting.calls) if call == "put"][-2:]
    for number, call in part_of([*enumerate(counting.calls)], part, every=5):
        shutil.rmtree(place.root / "store")
        shutil.copytree(tmp_path / "kept", place.root / "store")
        faulty = FaultyStore(place.store, fail_at=number, after=after)
        state = StateDirectory(tmp_path / f"state-{number}")
        (result,) = place.back_up(faulty, state=state)
        assert result.outcome is (Outcome.CREATED if number in helpful else Outcome.FAILED), call
        assert number in helpful or isinstance(result.error, StoreUnavailableError)
        for manifest in place.manifests():
            assert place.content(manifest) in {f"{0:01000}", "second"}
        (result,) = place.back_up(state=state)
        assert result.error is None
        assert place.content(place.manifests()[-1]) == "second"
    assert set(counting.calls) == {"get", "get_range", "list", "put"}


def test_acknowledged_and_lost_pack_is_written_again_at_once(place: Place) -> None:
    """The listing before the manifest finds it, and the second try stores those pages."""
    forgetful = ForgetfulStore(place.store)
    (result,) = place.back_up(forgetful)
    assert forgetful.lost
    assert result.outcome is Outcome.CREATED
    assert place.content(place.manifests()[-1]) == f"{0:01000}"


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_lost_pack_of_the_base_heals_with_the_next_run(place: Place, damage: str) -> None:
    """What a listing shows to be gone counts as changed, even when the database has not changed at all."""
    place.snapshot()
    victim = place.packs()[0]
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-1])
    healed = place.snapshot()
    assert healed.outcome is Outcome.CREATED
    assert healed.changed_pages == 0
    assert healed.stored_bytes > 0
    assert place.content(place.manifests()[-1]) == f"{0:01000}"


def test_lost_base_cache_is_rebuilt_from_pack_indexes(place: Place) -> None:
    """A sidecar without a state volume still uploads only changes."""
    place.snapshot()
    place.change("second")
    counting = FaultyStore(place.store)
    (result,) = place.back_up(counting, state=StateDirectory(place.root / "new state"))
    assert "get_range" in counting.calls
    assert result.changed_pages is not None
    assert result.changed_pages <= 3
    assert place.content(place.manifests()[-1]) == "second"


def test_stale_base_cache_of_a_host_that_was_away_is_not_used(place: Place) -> None:
    """The base is the newest snapshot, of another host, and not the one that this host remembers."""
    place.snapshot()
    away = StateDirectory(place.root / "away")
    place.change("by the other host")
    place.back_up(state=away)
    place.change("second")
    result = place.snapshot()
    assert result.changed_pages is not None
    assert result.changed_pages <= 3
    newest = place.manifests()[-1]
    assert (newest.sequence, place.content(newest)) == (3, "second")


@pytest.mark.parametrize("how", ["flipped", "emptied", "swapped"])
def test_damaged_base_cache_is_noticed(place: Place, how: str) -> None:
    """The image digest proves the cache; a page is never taken for unchanged because of a wrong hash."""
    place.snapshot()
    (cached,) = (place.root / "state").rglob("*.hashes")
    content = bytearray(cached.read_bytes())
    if how == "flipped":
        content[17] ^= 1
    elif how == "emptied":
        content.clear()
    else:
        content[:16], content[16:32] = content[16:32], content[:16]
    cached.unlink()
    cached.write_bytes(content)
    place.change("second")
    assert (place.snapshot().changed_pages or 0) <= 3
    assert place.content(place.manifests()[-1]) == "second"


def test_damaged_pack_index_only_costs_bytes(place: Place) -> None:
    """A snapshot without a cache, over a damaged pack index, stores more and restores."""
    place.snapshot()
    victim = place.packs()[0]
    content = bytearray(victim.read_bytes())
    content[600] ^= 1
    victim.write_bytes(content)
    (result,) = place.back_up(state=StateDirectory(place.root / "new state"))
    assert result.outcome is Outcome.CREATED
    assert place.content(place.manifests()[-1]) == f"{0:01000}"


def test_wiped_bucket_never_looks_current(place: Place) -> None:
    """The caches say unchanged, the store says empty: the store is right."""
    place.snapshot()
    shutil.rmtree(place.root / "store")
    again = place.snapshot()
    assert again.outcome is Outcome.CREATED
    assert place.content(place.manifests()[-1]) == f"{0:01000}"


def test_two_writers_taking_turns_are_reported(place: Place) -> None:
    """Staging and production in one prefix: each run of one after the other warns."""
    other = StateDirectory(place.root / "staging")
    assert place.snapshot().warnings == ()
    place.change("staging")
    assert place.back_up(state=other)[0].warnings == ()  # a new host may take over
    place.change("production")
    (warning,) = place.snapshot().warnings
    assert "two writers take turns" in warning


def test_another_file_under_the_same_name_is_reported(place: Place) -> None:
    """A snapshot of another file with a known name warns, because both would share a history."""
    place.snapshot()
    other = place.root / "other" / "app.db"
    other.parent.mkdir()
    shutil.copy(place.path, other)
    place.path = other
    (warning,) = place.snapshot().warnings
    assert "another database" in warning


def test_runs_of_several_stores_in_another_order_do_not_block_each_other(place: Place) -> None:
    """Locks are taken in one order, whatever the order of the stores."""
    stores = [DirectoryStore(place.root / f"store {number}") for number in range(3)]
    settings = Settings(capture=CaptureSettings(lock_timeout=timedelta(seconds=20)))
    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(place.back_up, *order, settings=settings) for order in (stores, list(reversed(stores)))]
        results = [result for run in runs for result in run.result()]
    assert [result.error for result in results] == [None] * 6


def test_damaged_manifest_is_a_warning_and_no_obstacle(place: Place) -> None:
    """The next snapshot builds on the newest one that can be read."""
    place.snapshot()
    place.change("second")
    damaged = place.root / "store" / "app" / "snapshots" / f"{place.snapshot().id}.json"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    place.change("third")
    (warning,) = place.snapshot().warnings
    assert str(damaged.stem) in warning
    assert place.content(place.manifests()[-1]) == "third"


def test_clock_behind_the_newest_snapshot_is_a_warning(place: Place) -> None:
    """Sequence numbers decide what is newest, whatever the clock said."""
    place.snapshot()
    (manifest,) = place.manifests()
    future = SnapshotId.new(datetime.now(UTC) + timedelta(days=400), 1)
    forged = encode_manifest(replace(manifest, id=future, sequence=2))
    (place.root / "store" / "app" / "snapshots" / f"{future}.json").write_bytes(forged)
    place.change("second")
    (warning,) = place.snapshot().warnings
    assert "clock" in warning
    repositories = [Repository(place.store, place.state)]
    found = find_snapshot(repositories, "latest", database=None, now=datetime.now(UTC))
    assert place.content(found.manifest) == "second"


def test_unusable_source_fails_in_every_store_and_leaves_nothing(place: Place) -> None:
    """An unusable source fails in every store, and leaves no snapshot and no pack in the spool."""
    place.path.write_bytes(b"no database" * 1000)
    results = place.back_up(place.store, DirectoryStore(place.root / "second"))
    assert all(isinstance(result.error, SourceUnusableError) for result in results)
    assert list_snapshots([Repository(place.store, place.state)], None).snapshots == []
    assert list((place.root / "state" / "spool").iterdir()) == []


def test_two_runs_of_one_database_in_one_store_wait_for_each_other(place: Place) -> None:
    """The second gives up in time and says who is at work."""
    settings = Settings(capture=CaptureSettings(lock_timeout=timedelta(milliseconds=100)))
    with place.state.lock(f"app in {place.store.url}", timeout=0):
        (result,) = place.back_up(settings=settings)
    assert isinstance(result.error, AnotherRunError)
    assert "another backupd" in result.error.message


def test_deleting_all_older_snapshots_leaves_the_newest_whole(place: Place) -> None:
    """The newest snapshot restores without the older ones, because its manifest names all that it needs."""
    for number in range(4):
        place.change(f"state {number}")
        place.snapshot()
    manifests = place.manifests()
    for manifest in manifests[:-1]:
        (place.root / "store" / "app" / "snapshots" / f"{manifest.id}.json").unlink()
    assert place.content(place.manifests()[-1]) == "state 3"


def test_progress_ends_at_the_whole_image(place: Place) -> None:
    """The last progress is the size of the whole image, and of all stored packs."""
    seen: list[Progress] = []
    back_up(
        Database(name="app", path=place.path),
        [Repository(place.store, place.state)],
        Settings(),
        request=SnapshotRequest(),
        on_progress=seen.append,
        workers=kept_workers(),
    )
    assert seen[-1].captured_bytes == seen[-1].image_bytes == place.path.stat().st_size
    assert seen[-1].stored_bytes == sum(pack.stat().st_size for pack in place.packs())


def test_repository_object_is_written_once(place: Place) -> None:
    """The id of a repository never changes: caches are bound to it."""
    place.snapshot()
    before = json.loads((place.root / "store" / "backupd.json").read_bytes())
    place.change("second")
    place.snapshot()
    assert json.loads((place.root / "store" / "backupd.json").read_bytes()) == before
    assert before["format"] == 1


class _WithoutRescue(FaultyStore):
    """A store that refuses the objects that restore without backupd, or cannot be reached for them."""

    def __init__(self, store: Store, error: type[StoreError]) -> None:
        super().__init__(store)
        self.tried = 0
        self._error = error

    def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:
        if key in {RESCUE_KEY, RESTORE_KEY}:
            self.tried += 1
            raise self._error(f"{self.url} does not take {key}")
        super().put(key, content, sha256=sha256)


@pytest.mark.parametrize(("error", "tried"), [(StoreRefusedError, 1), (StoreUnavailableError, 3)])
def test_refused_rescue_objects_are_put_once_in_the_life_of_a_process(
    place: Place, error: type[StoreError], tried: int
) -> None:
    """A refusal lasts, so later snapshots do not try again; after an outage, the next one does."""
    store = _WithoutRescue(place.store, error)
    repository = Repository(store, place.state)
    for number in range(3):
        place.change(number)
        (result,) = back_up(
            Database("app", place.path),
            [repository],
            Settings(),
            request=SnapshotRequest(),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
        assert result.outcome is Outcome.CREATED
    assert store.tried == tried


def test_store_that_was_emptied_becomes_a_repository_again(place: Place) -> None:
    """An emptied store becomes a repository with rescue objects again, even for a process that knew it."""
    repository = Repository(place.store, place.state)
    for _ in range(2):
        (result,) = back_up(
            Database("app", place.path),
            [repository],
            Settings(),
            request=SnapshotRequest(),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
        assert result.outcome is Outcome.CREATED
        present = {file.name for file in (place.root / "store").iterdir()}
        assert present >= {"app", "backupd.json", RESCUE_KEY, RESTORE_KEY}
        shutil.rmtree(place.root / "store")
