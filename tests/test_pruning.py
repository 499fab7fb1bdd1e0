from __future__ import annotations

import hashlib
import shutil
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from harness.extent import in_parts, part_of
from harness.faults import DeadlyStore, FaultyStore, HookedStore, Killed, PretendingStore, RefusingStore
from harness.rotation import GRACE, LAST_ONE, Ripe, Rotation, make_ripe
from msgspec.structs import replace

from backupd.backup import Outcome
from backupd.backup.baseline import find_baseline
from backupd.concurrency import Pace
from backupd.config import RetentionSettings
from backupd.errors import (
    BusyError,
    DamageError,
    NoSuchObjectError,
    StoreRefusedError,
    StoreUnavailableError,
    UnsupportedFormatError,
    UsageError,
)
from backupd.format import SnapshotId
from backupd.format.manifest import encode_manifest
from backupd.format.records import CheckOutcome, Drill, TrashEntry
from backupd.jobs.prunes import is_worth_reporting
from backupd.prune import PruneResult, prune, undelete
from backupd.repository.history import NOTHING_SEEN
from backupd.state import FailedSnapshot, failed_snapshot
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.errors import BackupdError

_FEWEST_CALLS = 20
_KEEP_ALL = LAST_ONE.replaced(keep_last=100)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Ripe:
    """The original of `ripe`."""
    return make_ripe(tmp_path_factory.mktemp("prune") / "ripe")


@pytest.fixture
def ripe(made: Ripe, tmp_path: Path) -> Ripe:
    """A store in which a prune has something to do at every step."""
    return made.copy(tmp_path / "ripe")


@pytest.fixture
def rotation(tmp_path: Path) -> Rotation:
    """A place without snapshots."""
    (tmp_path / "rotation").mkdir()
    return Rotation(tmp_path / "rotation")


def _damage(rotation: Rotation, key: str) -> None:
    file = rotation.root / key
    file.write_bytes(file.read_bytes().replace(b'"format": 1', b'"format": 3'))


def test_a_prune_removes_purges_deletes_and_finds(ripe: Ripe) -> None:
    """What it reports is what it did, and the newest snapshot restores."""
    rotation = ripe.rotation
    size = (rotation.root / f"app/packs/{next(iter(ripe.swept))}.zst").stat().st_size
    result = rotation.prune()
    assert result.error is None
    assert result.hold is None
    assert [*result.removed] == ripe.removed
    assert [each.manifest.id for each in result.decisions if not each.is_kept] == ripe.removed
    assert result.purged == (ripe.purged,)
    assert (result.deleted_packs, result.freed_bytes) == (1, size)
    assert (result.waiting_packs, result.waiting_bytes) == (1, len(b"orphan"))
    assert rotation.names("trash") == {str(each) for each in ripe.removed}
    assert not ripe.swept & rotation.names("packs")
    assert rotation.assert_every_snapshot_restores() == [ripe.newest]
    rotation.assert_no_leftovers()
    assert ripe.orphan not in rotation.names("packs")
    assert rotation.assert_every_snapshot_restores() == [ripe.newest]


def test_pruning_twice_removes_nothing_more(ripe: Ripe) -> None:
    """A second prune at the same time removes nothing more."""
    ripe.rotation.prune()
    before = ripe.rotation.objects()
    again = ripe.rotation.prune()
    assert (again.removed, again.purged, again.deleted_packs, again.error) == ((), (), 0, None)
    assert ripe.rotation.objects() == before


def test_a_dry_run_reports_what_a_prune_does_and_writes_nothing(ripe: Ripe) -> None:
    """A dry run reports what a prune does and writes nothing, not even to learn the store's time."""
    before = ripe.rotation.objects()
    store = FaultyStore(ripe.rotation.store)
    planned = ripe.rotation.prune(store=store, is_dry_run=True)
    assert {"put", "delete"}.isdisjoint(store.calls)
    assert ripe.rotation.objects() == before
    done = ripe.rotation.prune()
    assert planned == done


def test_removed_packs_are_freed_after_two_graces_and_not_before(rotation: Rotation) -> None:
    """Packs are freed after one grace in the trash, and one after a sweep found that nothing needs them."""
    rotation.snapshot("base")
    old = rotation.snapshot("x")
    rotation.snapshot("y")
    packs = rotation.names("packs")
    almost = GRACE - timedelta(hours=1)
    assert old in rotation.prune().removed
    for purged in (0, 2):
        rotation.age(almost)
        result = rotation.prune()
        assert (len(result.purged), rotation.names("packs")) == (0, packs)
        rotation.age(timedelta(hours=2))
        result = rotation.prune()
        assert result.error is None
        if purged:
            break
        assert len(result.purged) == 2
        assert rotation.prune().waiting_packs == 1  # found, by the prune after the one that purged
    assert (result.deleted_packs, result.waiting_packs) == (1, 0)
    assert len(rotation.names("packs")) == len(packs) - 1
    rotation.assert_every_snapshot_restores()


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("kind", [FaultyStore, DeadlyStore])
@in_parts
def test_a_prune_that_breaks_off_at_any_call_loses_nothing(
    made: Ripe, tmp_path: Path, kind: type[FaultyStore], part: int, *, is_after: bool
) -> None:
    """The next ones finish the work: no trash beside a manifest, no record, no pack without a name is left over."""
    counting = made.copy(tmp_path / "count").rotation
    counted = FaultyStore(counting.store)
    assert counting.prune(store=counted).error is None
    assert len(counted.calls) >= _FEWEST_CALLS
    for number in part_of(range(len(counted.calls) + 1), part):
        ripe = made.copy(tmp_path / str(number))
        rotation = ripe.rotation
        store = kind(rotation.store, fail_at=number, after=is_after)
        try:
            broke_off = isinstance(rotation.prune(store=store).error, StoreUnavailableError)
        except Killed:
            broke_off = True
        assert broke_off == (len(store.calls) > number) == (number < len(counted.calls))
        assert rotation.ids()[-1] == ripe.newest
        trashed = {SnapshotId(name) for name in rotation.names("trash")}
        assert {*ripe.removed} <= trashed | {*rotation.ids()}
        rotation.assert_every_snapshot_restores()
        rotation.assert_no_leftovers()
        assert rotation.assert_every_snapshot_restores() == [ripe.newest]


def test_refused_deletions_are_an_error_and_lose_nothing(ripe: Ripe) -> None:
    """A prune stops at the first refused deletion and loses nothing; later prunes complete it."""
    store = RefusingStore(ripe.rotation.store)
    result = ripe.rotation.prune(store=store)
    assert isinstance(result.error, StoreRefusedError)
    assert store.calls.count("delete") == 1
    assert (result.removed, result.purged, result.deleted_packs) == ((), (), 0)
    assert len(result.decisions) == 3
    assert ripe.rotation.assert_every_snapshot_restores() == [*ripe.removed, ripe.newest]
    ripe.rotation.assert_no_leftovers()
    assert ripe.rotation.ids() == [ripe.newest]


def test_a_refused_deletion_is_reported_once(ripe: Ripe) -> None:
    """A refused deletion is reported once, until a prune works again or another store refuses."""
    state, refused = ripe.rotation.host("a"), StoreRefusedError("cannot delete")

    def is_reported(store: str, error: BackupdError | None, purged: tuple[SnapshotId, ...] = ()) -> bool:
        return is_worth_reporting(PruneResult(database="app", store=store, purged=purged, error=error), state)

    assert [is_reported("s3://one", refused) for _ in range(3)] == [True, False, False]
    assert is_reported("s3://two", refused)
    assert is_reported("s3://one", StoreUnavailableError("down"))
    assert not is_reported("s3://one", refused)
    assert not is_reported("s3://one", None)
    assert not is_reported("s3://one", refused)
    assert is_reported("s3://one", None, purged=(ripe.purged,))
    assert is_reported("s3://one", refused)


@pytest.mark.parametrize(
    ("part", "done"), [("snapshots", "removed"), ("packs", "deleted_packs"), ("trash", "purged")], ids=str
)
def test_deletions_that_did_not_happen_are_noticed(ripe: Ripe, part: str, done: str) -> None:
    """A store that acknowledges deletions and does nothing is detected."""
    result = ripe.rotation.prune(store=PretendingStore(ripe.rotation.store, part=f"/{part}/"))
    assert isinstance(result.error, StoreRefusedError)  # reported once by a backup, like any refusal
    assert "acknowledged" in result.error.message
    assert not getattr(result, done)
    ripe.rotation.assert_every_snapshot_restores()
    ripe.rotation.assert_no_leftovers()
    assert ripe.rotation.assert_every_snapshot_restores() == [ripe.newest]


def test_foreign_objects_are_left_alone_and_named(ripe: Ripe) -> None:
    """Objects that are not spelled as the format says, even ids without a date, are named and left alone."""
    foreign_objects = (
        "app/notes.txt",
        "app/packs/0000.zst",
        f"app/packs/{'0' * 64}.zst.bak",
        "app/snapshots/20261399T000000000Z-00000000.json",
        "app/sweeps/20261399T000000000Z-00000000.json",
        "app/trash/x.json",
    )
    for key in foreign_objects:
        ripe.rotation.put(key, b"precious")
    ripe.rotation.put("application/notes.txt", b"of another database")
    ripe.rotation.age()
    result = ripe.rotation.prune()
    assert result.error is None
    assert result.foreign == foreign_objects
    for _ in range(3):
        ripe.rotation.age()
        assert ripe.rotation.prune().foreign == foreign_objects
    assert all((ripe.rotation.root / key).read_bytes() == b"precious" for key in foreign_objects)
    assert (ripe.rotation.root / "application/notes.txt").exists()


def test_a_damaged_manifest_stops_everything(ripe: Ripe) -> None:
    """A damaged manifest stops a prune, because it may need any pack."""
    _damage(ripe.rotation, f"app/snapshots/{ripe.removed[0]}.json")
    before = ripe.rotation.objects()
    result = ripe.rotation.prune()
    assert isinstance(result.error, DamageError)
    assert str(ripe.removed[0]) in result.error.message
    assert ripe.rotation.objects() == before


def test_a_damaged_trash_entry_keeps_all_space(ripe: Ripe) -> None:
    """Snapshots still move to the trash, and nothing leaves it."""
    _damage(ripe.rotation, f"app/trash/{ripe.purged}.json")
    ripe.rotation.age()
    packs = ripe.rotation.names("packs")
    result = ripe.rotation.prune()
    assert isinstance(result.error, DamageError)
    assert str(ripe.purged) in result.error.message
    assert [*result.removed] == ripe.removed
    assert ripe.rotation.names("packs") == packs
    assert ripe.rotation.names("trash") == {str(each) for each in (*ripe.removed, ripe.purged)}


@pytest.mark.parametrize("directory", ["snapshots", "trash"])
def test_what_goes_while_it_is_read_stops_everything(ripe: Ripe, directory: str) -> None:
    """An object that another host removes while it is read stops a prune, because it may be elsewhere, unseen."""
    rotation = ripe.rotation
    (gone,) = [key for key in rotation.objects() if f"/{directory}/" in key and str(ripe.newest) not in key][:1]
    before = rotation.objects()
    counted = HookedStore(rotation.store)
    assert rotation.prune("reader", counted, is_dry_run=True).error is None
    first_read = counted.steps.index("list app/trash") + 1
    hooked = HookedStore(rotation.store, at=first_read, hook=lambda: rotation.store.delete(gone))
    result = rotation.prune("b", hooked)
    assert isinstance(result.error, BusyError)
    assert (result.purged, result.deleted_packs) == ((), 0)
    if directory == "snapshots":
        del before[gone]
        assert rotation.objects() == before


def test_a_newer_format_stops_everything(ripe: Ripe) -> None:
    """What a newer version wrote is not understood, so nothing of it is known to be unneeded."""
    key = f"app/trash/{ripe.purged}.json"
    entry = (ripe.rotation.root / key).read_bytes()
    body = entry[entry.index(b'"trash":') + 8 : -2].replace(b'"format": 1', b'"format": 2')
    ripe.rotation.put(key, b'{"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'","trash":' + body + b"}\n")
    before = ripe.rotation.objects()
    assert isinstance(ripe.rotation.prune().error, UnsupportedFormatError)
    assert ripe.rotation.objects() == before


def test_without_a_policy_nothing_is_removed(ripe: Ripe) -> None:
    """A configuration that got lost deletes nothing, not even what is due in the trash."""
    before = ripe.rotation.objects()
    result = ripe.rotation.prune(policy=None)
    assert result.error is None
    assert all(decision.is_kept for decision in result.decisions)
    assert len(result.decisions) == 3
    assert ripe.rotation.objects() == before


def test_empty_policy_only_completes_forgotten_snapshots(ripe: Ripe) -> None:
    """An empty policy removes no snapshot, and frees what was forgotten by hand after its grace."""
    empty = LAST_ONE.replaced(keep_last=0)
    result = ripe.rotation.prune(policy=empty)
    assert (result.removed, result.purged, result.deleted_packs) == ((), (ripe.purged,), 1)
    assert ripe.rotation.assert_every_snapshot_restores() == [*ripe.removed, ripe.newest]


def test_a_prune_of_a_store_without_backups_is_an_error(rotation: Rotation) -> None:
    """The prune does not make it a repository."""
    assert isinstance(rotation.prune().error, NoSuchObjectError)
    assert not rotation.root.exists()


def test_a_prune_waits_for_a_snapshot_on_the_same_host(ripe: Ripe) -> None:
    """A prune is refused while a snapshot on the same host holds the lock of the database in the store."""
    with ripe.rotation.host("a").lock(f"app in {ripe.rotation.store.url}", timeout=0):
        result = prune(
            ripe.rotation.repository().archive("app"),
            LAST_ONE,
            now=datetime.now(UTC),
            lock_seconds=0,
        )
    assert isinstance(result.error, BusyError)


def test_a_lock_is_one_for_all_names_of_a_directory(ripe: Ripe) -> None:
    """A store has one lock by all names of its directory, such as a symbolic link."""
    rotation = ripe.rotation
    (rotation.home / "link").symlink_to(rotation.root)
    linked = rotation.repository(store=DirectoryStore(rotation.home / "link"))
    with (
        linked.archive("app").lock(timeout=0),
        pytest.raises(BusyError),
        rotation.repository().archive("app").lock(timeout=0),
    ):
        pass
    with linked.archive("app").lock(timeout=0), rotation.repository().archive("other").lock(timeout=0):
        pass


def test_an_interrupted_removal_starts_again(ripe: Ripe) -> None:
    """What is in the trash and still there has its whole grace before it when it goes."""
    first = ripe.removed[0]
    ripe.rotation.forget(first)
    trashed = ripe.rotation.root / f"app/trash/{first}.json"
    (ripe.rotation.root / f"app/snapshots/{first}.json").write_bytes(TrashEntry.decode(trashed.read_bytes()).content)
    ripe.rotation.age()
    result = ripe.rotation.prune()
    assert [*result.removed] == ripe.removed
    assert result.purged == (ripe.purged,)
    assert TrashEntry.decode(trashed.read_bytes()).reason == "no rule keeps it"
    assert ripe.rotation.prune().purged == ()


def test_stale_trash_beside_a_snapshot_stays(ripe: Ripe) -> None:
    """A trash entry beside its snapshot stays, because another host may be about to delete the manifest."""
    first, keep_all = ripe.removed[0], LAST_ONE.replaced(keep_last=100)
    ripe.rotation.forget(first)
    trashed = ripe.rotation.root / f"app/trash/{first}.json"
    ripe.rotation.put(f"app/snapshots/{first}.json", TrashEntry.decode(trashed.read_bytes()).content)
    assert first not in ripe.rotation.prune(policy=keep_all).purged
    assert trashed.exists()
    ripe.rotation.age()
    assert ripe.rotation.prune(policy=keep_all).purged == ()
    assert trashed.exists()
    assert first in ripe.rotation.assert_every_snapshot_restores()


def test_a_removed_snapshot_that_another_host_took_out_of_the_trash_is_put_back(ripe: Ripe, tmp_path: Path) -> None:
    """A trash entry that another host deletes right before the manifest goes is put again."""
    counting = ripe.rotation.copy(tmp_path / "count")
    counted = HookedStore(counting.store)
    counting.prune(store=counted)
    key = f"app/trash/{ripe.removed[0]}.json"
    hooked = HookedStore(
        ripe.rotation.store, at=counted.steps.index("delete"), hook=lambda: ripe.rotation.store.delete(key)
    )
    assert ripe.rotation.prune(store=hooked).error is None
    assert TrashEntry.decode((ripe.rotation.root / key).read_bytes()).manifest.id == ripe.removed[0]


def test_an_interrupted_removal_beside_an_undelete_is_healed(ripe: Ripe, tmp_path: Path) -> None:
    """The snapshot came back between its trash entry and the end of its manifest, and then the network failed."""
    rotation, first = ripe.rotation, ripe.removed[0]
    counted = HookedStore(ripe.copy(tmp_path / "count").rotation.store)
    assert Rotation(tmp_path / "count").prune(store=counted).error is None
    delete = counted.calls.index("delete")
    at = counted.steps.index("delete")

    hooked = HookedStore(
        FaultyStore(rotation.store, fail_at=delete + 1),
        at=at,
        hook=lambda: undelete(rotation.repository("b").archive("app"), first),
    )
    assert isinstance(rotation.prune(store=hooked).error, StoreUnavailableError)
    assert rotation.prune("b", policy=None).error is None
    assert first in rotation.ids()
    assert rotation.prune().error is None
    assert first in rotation.assert_every_snapshot_restores()


def test_what_was_undeleted_is_never_purged(ripe: Ripe) -> None:
    """A snapshot that was undeleted is never purged, even if it cannot be put back because its packs are gone."""
    rotation = ripe.rotation
    rotation.put(f"app/undeleted/{ripe.purged}.json", b"{}\n")
    file = rotation.root / f"app/trash/{ripe.purged}.json"
    pack = TrashEntry.decode(file.read_bytes()).manifest.packs[-1].sha256
    (rotation.root / f"app/packs/{pack}.zst").rename(rotation.home / "elsewhere")
    result = rotation.prune()
    assert (result.error, result.purged) == (None, ())
    assert file.exists()
    (rotation.home / "elsewhere").rename(rotation.root / f"app/packs/{pack}.zst")
    assert rotation.prune().error is None
    assert ripe.purged in rotation.assert_every_snapshot_restores()


def test_marks_of_what_is_gone_go_after_a_grace(ripe: Ripe) -> None:
    """The mark of a snapshot that is gone stays for a grace, because another host may put the manifest back."""
    rotation, key = ripe.rotation, "app/undeleted/20200101T000000000Z-00000000.json"
    rotation.put(key, b"{}\n")
    assert rotation.prune().error is None
    assert (rotation.root / key).exists()
    rotation.age()
    assert rotation.prune().error is None
    assert not (rotation.root / key).exists()


# How long it takes


def test_slow_work_is_left_to_the_next_prune(ripe: Ripe) -> None:
    """Each prune of a slow store gets a step further, until nothing is left."""
    rotation = ripe.rotation
    unfinished = []
    for number in range(1, 10):
        rotation.put(f"app/packs/{hashlib.sha256(bytes([number])).hexdigest()}.zst", b"more")
    rotation.prune(policy=_KEEP_ALL)
    rotation.age()
    for _ in range(20):
        result = prune(
            rotation.repository().archive("app"),
            LAST_ONE,
            now=datetime.now(UTC),
            pace=Pace(seconds=0),
        )
        assert result.error is None
        assert len(result.removed) <= 1
        assert result.deleted_packs <= 1
        unfinished.append(result.unfinished)
        if not result.unfinished:
            break
    assert unfinished == sorted(unfinished, reverse=True)
    assert unfinished[0] == 1 + 9
    assert rotation.ids() == [ripe.newest]
    rotation.assert_no_leftovers()
    assert rotation.assert_every_snapshot_restores() == [ripe.newest]


def test_many_things_are_done_at_once() -> None:
    """Several tasks run at once, but the first runs alone, and none begins after an error."""
    done: list[int] = []
    together = threading.Barrier(4, timeout=60)

    def do(number: int) -> None:
        if number:
            together.wait()
        done.append(number)

    assert Pace().each(do, range(9)) == 0
    assert done[0] == 0
    assert sorted(done) == [*range(9)]

    def refuse(number: int) -> None:
        done.append(number)
        raise StoreRefusedError("no")

    done.clear()
    with pytest.raises(StoreRefusedError):
        Pace().each(refuse, range(9))
    assert done == [0]
    assert Pace().each(refuse, ()) == 0


def test_the_rest_is_left_when_the_time_is_up() -> None:
    """The tasks that are left when the time is up are counted and not begun."""
    times = iter([0.0, 1.0, 19.9, 20.0, 21.0, 22.0])
    done: list[int] = []
    assert Pace(clock=lambda: next(times)).each(done.append, range(6)) == 3
    assert len(done) == 3
    assert done[0] == 0


# What holds a prune


def _shrink(rotation: Rotation, *statements: str) -> SnapshotId:
    with closing(sqlite3.connect(rotation.home / "app.db", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    result = rotation.back_up()
    assert result.outcome is Outcome.CREATED
    assert result.id is not None
    return result.id


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (["DELETE FROM report", "VACUUM"], "in use"),
        (["DELETE FROM report"], "in use"),
        (["ALTER TABLE report RENAME TO moved"], "lost tables"),
    ],
    ids=["emptied and vacuumed", "emptied", "table gone"],
)
def test_a_newest_snapshot_that_lost_much_holds_everything(ripe: Ripe, statements: list[str], said: str) -> None:
    """A newest snapshot that lost much holds every prune, on every host, until the loss is accepted."""
    rotation = ripe.rotation
    newest = _shrink(rotation, *statements)
    before = rotation.names("snapshots"), rotation.names("trash")
    held = rotation.prune()
    assert held.error is None
    assert held.hold is not None
    assert said in held.hold.message
    assert (held.removed, held.purged) == ((), ())
    assert (rotation.names("snapshots"), rotation.names("trash")) == before
    planned = rotation.prune(is_dry_run=True, accepts_shrink=True)
    assert (planned.hold, planned.accepted) == (None, newest)
    assert rotation.prune("b").hold is not None
    accepted = rotation.prune(accepts_shrink=True)
    assert (accepted.hold, accepted.error, accepted.accepted) == (None, None, newest)
    assert len(accepted.removed) == 3
    assert rotation.prune("b").hold is None
    assert rotation.ids() == [newest]


def test_a_second_loss_holds_again(ripe: Ripe) -> None:
    """What was accepted is one snapshot, not every loss to come."""
    rotation = ripe.rotation
    keep_two = LAST_ONE.replaced(keep_last=2)
    _shrink(rotation, "DELETE FROM report WHERE id > 10", "VACUUM")
    assert rotation.prune(policy=keep_two, accepts_shrink=True).hold is None
    _shrink(rotation, "DELETE FROM report", "VACUUM")
    assert rotation.prune(policy=keep_two).hold is not None


def test_a_hold_lasts_until_it_is_accepted(ripe: Ripe) -> None:
    """An application that fills an emptied database again does not end it: what was there is still only in old ones."""
    rotation = ripe.rotation
    emptied = _shrink(rotation, "DELETE FROM report")
    assert rotation.prune(is_dry_run=True).hold is not None
    assert "app/retention.json" not in rotation.objects()
    first = rotation.prune()
    assert first.hold is not None
    rotation.become("base")
    again = rotation.back_up()
    held = rotation.prune("b")
    assert held.hold is not None
    assert held.hold.message.startswith(f"{emptied} was the newest snapshot and has ")
    assert held.removed == ()
    accepted = rotation.prune("b", accepts_shrink=True)
    assert (accepted.hold, accepted.accepted) == (None, again.id)
    assert emptied in accepted.removed
    assert rotation.prune().hold is None


def test_there_is_nothing_to_accept_without_a_hold(ripe: Ripe) -> None:
    """The next loss still holds."""
    rotation = ripe.rotation
    assert rotation.prune(policy=_KEEP_ALL, accepts_shrink=True).accepted is None
    assert "app/retention.json" not in rotation.objects()
    _shrink(rotation, "DELETE FROM report")
    assert rotation.prune().hold is not None


def test_a_clock_behind_the_newest_snapshot_holds(ripe: Ripe) -> None:
    """Ages would be wrong."""
    before = ripe.rotation.names("snapshots"), ripe.rotation.names("trash")
    early = datetime.now(UTC) - timedelta(days=2)
    result = prune(ripe.rotation.repository().archive("app"), LAST_ONE, now=early)
    assert result.hold is not None
    assert "clock" in result.hold.message
    assert (ripe.rotation.names("snapshots"), ripe.rotation.names("trash")) == before


def test_a_failed_snapshot_holds_removal_and_lets_space_be_freed(ripe: Ripe) -> None:
    """Space may be what was missing. The next success ends it."""
    rotation = ripe.rotation
    state, url, at = rotation.host("a"), rotation.store.url, datetime(2026, 11, 22, 8, tzinfo=UTC)
    failed_snapshot(state, "app", url).write(FailedSnapshot(at, "the disk is gone"))
    held = rotation.prune()
    assert held.hold is not None
    assert "failed at 2026-11-22T08:00:00Z: the disk is gone" in held.hold.message
    assert (held.removed, held.purged, held.deleted_packs) == ((), (ripe.purged,), 1)
    failed_snapshot(state, "app", url).remove()
    assert [*rotation.prune().removed] == ripe.removed


def test_a_snapshot_that_was_killed_is_a_failed_one(ripe: Ripe) -> None:
    """The note of a snapshot that was killed is a failure that holds, by any name of the store's directory."""
    rotation, at = ripe.rotation, datetime(2026, 11, 22, 8, tzinfo=UTC)
    (rotation.home / "link").symlink_to(rotation.root)
    failure = failed_snapshot(rotation.host("a"), "app", str(rotation.home / "link"))
    failure.write(FailedSnapshot(at, "it was interrupted"))
    held = rotation.prune()
    assert held.hold is not None
    assert "failed at 2026-11-22T08:00:00Z: it was interrupted" in held.hold.message
    assert held.removed == ()


# What always stays


def _drill(rotation: Rotation, snapshot_id: SnapshotId, outcome: CheckOutcome) -> None:
    drill = Drill(snapshot=snapshot_id, database="app", outcome=outcome, at=datetime.now(UTC))
    rotation.put(f"app/drills/{snapshot_id}.json", drill.encode())


def test_the_newest_proven_snapshot_stays(ripe: Ripe) -> None:
    """The newest proven snapshot stays; a drill that found damage before it holds nothing."""
    first, third = ripe.removed
    _drill(ripe.rotation, first, CheckOutcome.DAMAGED_STORE)
    _drill(ripe.rotation, third, CheckOutcome.PROVEN)
    assert ripe.rotation.prune().removed == (first,)
    _drill(ripe.rotation, ripe.newest, CheckOutcome.PROVEN)
    assert ripe.rotation.prune().removed == (third,)


def test_the_newest_intact_snapshot_stays_beside_the_proven_one(ripe: Ripe) -> None:
    """The newest intact snapshot stays beside the newest proven one, if that one is older."""
    first, third = ripe.removed
    _drill(ripe.rotation, first, CheckOutcome.PROVEN)
    _drill(ripe.rotation, third, CheckOutcome.INTACT)
    assert ripe.rotation.prune().removed == ()
    with pytest.raises(UsageError, match="the newest snapshot that was read and found intact"):
        ripe.rotation.forget(third)
    _drill(ripe.rotation, third, CheckOutcome.PROVEN)
    assert ripe.rotation.prune().removed == (first,)


@pytest.mark.parametrize("outcome", [CheckOutcome.DAMAGED_STORE, CheckOutcome.DAMAGED_SOURCE])
def test_damage_of_the_newest_snapshot_that_was_tested_holds(ripe: Ripe, outcome: CheckOutcome) -> None:
    """Damage of the newest tested snapshot holds, whatever is accepted, until a newer one is proven."""
    third = ripe.removed[1]
    _drill(ripe.rotation, third, outcome)
    held = ripe.rotation.prune()
    assert held.hold is not None
    assert str(third) in held.hold.message
    assert (held.removed, held.purged) == ((), ())
    assert ripe.rotation.prune(accepts_shrink=True).hold == held.hold
    _drill(ripe.rotation, ripe.newest, CheckOutcome.PROVEN)
    after = ripe.rotation.prune()
    assert (after.hold, [*after.removed]) == (None, ripe.removed)


def test_an_unreadable_drill_counts_as_proof_besides_the_newest_one(ripe: Ripe) -> None:
    """An unreadable drill keeps its snapshot as a proof, and the newest proven one stays, too."""
    first, third = ripe.removed
    _drill(ripe.rotation, first, CheckOutcome.PROVEN)
    _drill(ripe.rotation, third, CheckOutcome.DAMAGED_STORE)
    _damage(ripe.rotation, f"app/drills/{third}.json")
    assert ripe.rotation.prune().removed == ()


# What it costs


def test_nothing_to_do_costs_one_listing_and_two_small_reads(rotation: Rotation) -> None:
    """A prune with nothing to do costs three requests with a hundred snapshots and as many removed ones."""
    rotation.snapshot("base")
    (first,) = rotation.manifests()
    for number in range(2, 201):
        manifest = replace(
            first,
            id=SnapshotId(f"20261101T{number // 60:02}{number % 60:02}00000Z-00000000"),
            sequence=number,
        )
        rotation.put(f"app/snapshots/{manifest.id}.json", encode_manifest(manifest))
    keep = RetentionSettings(keep_last=100, daily=0, weekly=0, monthly=0)
    assert len(rotation.prune(policy=keep).removed) == 100
    assert rotation.prune(policy=keep).error is None
    store = FaultyStore(rotation.store)
    assert rotation.prune(policy=keep, store=store).error is None
    assert store.calls == ["get", "list", "get"]


def test_a_prune_sees_what_changed_since_its_snapshot_read_the_history(rotation: Rotation) -> None:
    """What a snapshot has seen is used once; what another host put, removed or damaged afterwards is not missed."""
    ids = [rotation.snapshot(content) for content in ("base", "one", "two")]
    repository = rotation.repository()
    archive = repository.archive("app")
    find_baseline(archive, is_full=False)
    seen = repository.take_seen("app")
    assert [*seen.summaries] == ids
    assert repository.take_seen("app") is NOTHING_SEEN  # once
    rotation.become("three")
    added = rotation.back_up("b").id
    archive.delete_manifest(ids[0])
    assert [each.id for each in archive.holdings(seen).history.manifests] == [*ids[1:], added]
    assert archive.holdings(seen).history == archive.holdings().history
    find_baseline(archive, is_full=False)
    assert repository.take_seen("other") is NOTHING_SEEN
    _damage(rotation, f"app/snapshots/{ids[1]}.json")
    assert isinstance(prune(archive, LAST_ONE, now=datetime.now(UTC)).error, DamageError)


def test_the_cache_may_be_lost_or_damaged(ripe: Ripe) -> None:
    """A lost or damaged cache is read again, and does not change what a prune does."""
    ripe.rotation.prune()
    expected = ripe.rotation.prune(is_dry_run=True)
    with closing(sqlite3.connect(ripe.rotation.home / "state-a/.state.db", isolation_level=None)) as connection:
        assert connection.execute("UPDATE records SET content = zeroblob(length(content))").rowcount > 0
        assert connection.execute("UPDATE packs SET content = zeroblob(length(content))").rowcount > 0
    assert ripe.rotation.prune(is_dry_run=True) == expected
    with closing(sqlite3.connect(ripe.rotation.home / "state-a/.state.db", isolation_level=None)) as connection:
        assert connection.execute("UPDATE manifests SET content = zeroblob(length(content))").rowcount > 0
    assert ripe.rotation.prune(is_dry_run=True) == expected
    shutil.rmtree(ripe.rotation.home / "state-a")
    assert ripe.rotation.prune(is_dry_run=True) == expected


def test_trash_entries_hold_the_manifest_as_it_was(ripe: Ripe) -> None:
    """A trash entry has the manifest byte for byte, with the time and the reason of its removal."""
    before = {each: (ripe.rotation.root / f"app/snapshots/{each}.json").read_bytes() for each in ripe.removed}
    ripe.rotation.prune()
    for snapshot_id, content in before.items():
        entry = TrashEntry.decode((ripe.rotation.root / f"app/trash/{snapshot_id}.json").read_bytes())
        assert entry.content == content
        assert entry.reason == "no rule keeps it"
        assert datetime.now(UTC) - entry.removed_at < timedelta(minutes=5)
