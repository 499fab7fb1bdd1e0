from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from harness.extent import slow
from harness.faults import FaultyStore
from harness.rotation import GRACE, LAST_ONE, Ripe, Rotation, make_ripe

from backupd.backup import Outcome
from backupd.concurrency import Pace
from backupd.errors import LostPacksError
from backupd.format.records import DeletionRecord, FoundPack, Moment, SweepRecord
from backupd.prune import prune
from backupd.prune.sweep import StoreClock, Sweep
from backupd.repository import Repository
from backupd.store import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from harness.s3_server import S3Server

_DELETION = "app/deletions/20261122T000000000Z-00000000.json"
_KEEP_ALL = LAST_ONE.replaced(keep_last=100)
_FEWEST_CALLS_OF_A_CAPTURE = 5
_S3_TAKES_SECONDS = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Ripe:
    """The original of `ripe`."""
    return make_ripe(tmp_path_factory.mktemp("sweep") / "ripe")


@pytest.fixture
def ripe(made: Ripe, tmp_path: Path) -> Ripe:
    """A store with packs that are due, and a database about to need them."""
    copied = made.copy(tmp_path / "ripe")
    copied.rotation.become("x")
    return copied


@pytest.fixture
def rotation(tmp_path: Path) -> Rotation:
    """A place for snapshots."""
    (tmp_path / "rotation").mkdir()
    return Rotation(tmp_path / "rotation")


@slow
def test_packs_of_captures_that_failed_are_removed(rotation: Rotation) -> None:
    """The packs of a capture that failed at any call are removed, and no snapshot is harmed."""
    rotation.snapshot("base")
    rotation.become("x")
    call, left = 0, set()
    while (failed := rotation.back_up("b", FaultyStore(rotation.store, fail_at=call))).outcome is Outcome.FAILED:
        call += 1
        left |= rotation.unnamed_packs()
    assert call >= _FEWEST_CALLS_OF_A_CAPTURE
    assert left
    rotation.snapshot("y")
    rotation.forget(failed.id)
    rotation.assert_no_leftovers()
    assert not left & rotation.names("packs")
    rotation.assert_every_snapshot_restores()


@slow
def test_a_writer_waits_for_a_sweep_that_deletes_its_packs(ripe: Ripe) -> None:
    """A writer is refused while a sweep deletes its packs, unless that one began more than an hour ago."""
    rotation = ripe.rotation
    rotation.put(_DELETION, DeletionRecord(packs=("0" * 64,)).encode())
    assert rotation.back_up("b", tags=("one",)).outcome is Outcome.CREATED
    rotation.put(_DELETION, DeletionRecord(packs=tuple(ripe.swept)).encode())
    refused = rotation.back_up("b", tags=("two",))
    assert isinstance(refused.error, LostPacksError)
    assert "being deleted" in refused.error.message
    rotation.age(timedelta(hours=2))
    assert rotation.back_up("b", tags=("three",)).outcome is Outcome.CREATED
    rotation.assert_every_snapshot_restores()


@slow
def test_a_damaged_deletion_holds_a_writer_up_for_an_hour(ripe: Ripe) -> None:
    """A damaged deletion, which may name any pack, holds writers up for an hour; the next prune removes it."""
    rotation = ripe.rotation
    rotation.put(_DELETION, b"{}")
    assert isinstance(rotation.back_up("b").error, LostPacksError)
    rotation.age(timedelta(hours=2))
    assert rotation.back_up("b").outcome is Outcome.CREATED
    assert rotation.prune().error is None
    assert rotation.names("deletions") == set()


def test_a_young_deletion_is_left_to_its_sweep(ripe: Ripe) -> None:
    """A young deletion is left alone, because another host may be at work on it."""
    ripe.rotation.put(_DELETION, DeletionRecord(packs=("0" * 64,)).encode())
    assert ripe.rotation.prune().error is None
    assert (ripe.rotation.root / _DELETION).exists()


def test_a_damaged_sweep_record_counts_for_nothing(ripe: Ripe) -> None:
    """A damaged sweep record is reported and left alone, and its packs are found again."""
    (name,) = [name for name in ripe.rotation.names("sweeps") - {"clock"} if not name.startswith("20200101")]
    key = f"app/sweeps/{name}.json"
    (ripe.rotation.root / key).write_bytes(b"{}")
    ripe.rotation.age()
    result = ripe.rotation.prune()
    assert (result.deleted_packs, result.waiting_packs, result.foreign) == (0, 2, (key,))
    ripe.rotation.age()
    result = ripe.rotation.prune()
    assert (result.error, result.deleted_packs) == (None, 2)
    assert (ripe.rotation.root / key).exists()


def test_a_pack_that_was_put_again_waits_its_whole_grace(ripe: Ripe) -> None:
    """A writer may have put it for a snapshot that is not finished."""
    (swept,) = ripe.swept
    key = f"app/packs/{swept}.zst"
    ripe.rotation.put(key, (ripe.rotation.root / key).read_bytes())
    assert ripe.rotation.prune().deleted_packs == 0
    ripe.rotation.age(GRACE - timedelta(hours=1))
    assert ripe.rotation.prune().deleted_packs == 0
    ripe.rotation.age(timedelta(hours=2))
    assert ripe.rotation.prune().deleted_packs > 0
    assert swept not in ripe.rotation.names("packs")


def test_a_record_that_was_contradicted_counts_for_nothing(rotation: Rotation) -> None:
    """What something needed when a sweep looked waits a whole grace from when it is found again."""
    rotation.snapshot("base")
    of_x = rotation.snapshot("x")
    pack, orphan = rotation.manifests()[-1].packs[-1].sha256, hashlib.sha256(b"orphan").hexdigest()
    rotation.snapshot("y")
    rotation.put(f"app/packs/{orphan}.zst", b"orphan")
    rotation.forget(of_x)
    rotation.age(GRACE * 2 / 3)
    listed = rotation.repository().archive("app").holdings().listing.packs
    packs = tuple(FoundPack(sha256=each, modified_at=Moment.of(listed[each].modified_at)) for each in (pack, orphan))
    old = "app/sweeps/20261101T000000000Z-00000000.json"
    rotation.put(old, SweepRecord(packs=packs).encode())
    assert rotation.prune(policy=_KEEP_ALL).error is None
    assert not (rotation.root / old).exists()
    rotation.age(GRACE * 2 / 3)
    assert rotation.prune(policy=_KEEP_ALL).purged == (of_x,)
    assert rotation.prune(policy=_KEEP_ALL).waiting_packs == 2
    rotation.age(GRACE * 2 / 3)
    assert rotation.prune(policy=_KEEP_ALL).deleted_packs == 1
    assert orphan not in rotation.names("packs")
    assert pack in rotation.names("packs")
    rotation.age(GRACE * 2 / 3)
    assert rotation.prune(policy=_KEEP_ALL).deleted_packs == 1
    assert pack not in rotation.names("packs")


def test_many_prunes_leave_few_records(rotation: Rotation) -> None:
    """A prune after every snapshot does not record each pack for itself."""
    rotation.snapshot("base")
    deleted = 0
    for number in range(40):
        content = str(number).encode()
        rotation.put(f"app/packs/{hashlib.sha256(content).hexdigest()}.zst", content)
        result = rotation.prune()
        deleted += result.deleted_packs
        assert result.waiting_packs + deleted == number + 1
        rotation.age(GRACE / 20)
        if number > 30:
            assert len(rotation.names("sweeps") - {"clock"}) <= 9
    rotation.assert_no_leftovers()


def test_a_sweep_gives_up_in_time(ripe: Ripe) -> None:
    """A sweep gives up after half an hour, while the deletion that it announced still counts."""
    repository = ripe.rotation.repository()
    now = datetime.now(UTC)
    times = iter((0.0, 1801.0))
    clock = StoreClock(repository.archive("app"), now=now)
    sweep = Sweep(repository.archive("app"), clock, Pace(), grace=GRACE, now=now, seconds=lambda: next(times))
    sweep.run(repository.archive("app").holdings())
    assert sweep.deleted == {}
    assert ripe.swept <= sweep.waiting.keys()
    assert ripe.swept <= ripe.rotation.names("packs")
    assert ripe.rotation.prune().deleted_packs == 1


def test_what_was_found_is_recorded_with_its_time(ripe: Ripe) -> None:
    """The record says which packs, as the listing showed them."""
    before = ripe.rotation.names("sweeps")
    ripe.rotation.prune()
    (new,) = ripe.rotation.names("sweeps") - before - {"clock"}
    finding = SweepRecord.decode((ripe.rotation.root / f"app/sweeps/{new}.json").read_bytes())
    (stored,) = [each for each in ripe.rotation.store.list("app/packs/") if ripe.orphan in each.key]
    assert [(each.sha256, each.modified_at) for each in finding.packs] == [(ripe.orphan, Moment.of(stored.modified_at))]


def test_one_object_from_the_future_makes_nothing_old(rotation: Rotation) -> None:
    """The store's time is not the newest that its objects show."""
    first = rotation.snapshot("base")
    rotation.snapshot("x")
    rotation.prune()
    rotation.put("app/copied-from-elsewhere.json", b"")
    rotation.age(timedelta(days=-365))
    for host in ("a", "b"):
        assert rotation.prune(host).purged == ()
    assert rotation.names("trash") == {str(first)}


def test_a_clock_that_is_fast_here_deletes_nothing_early(rotation: Rotation) -> None:
    """The store's clock decides."""
    rotation.snapshot("base")
    rotation.snapshot("x")
    rotation.prune()
    ahead = datetime.now(UTC) + timedelta(days=365)
    result = prune(rotation.repository().archive("app"), LAST_ONE, now=ahead)
    assert (result.error, result.purged) == (None, ())
    assert (rotation.root / "app/sweeps/clock.json").exists()


@slow
def test_a_bucket_is_rotated_to_its_end(rotation: Rotation, seaweed: S3Server) -> None:
    """Snapshots on a real S3 server are removed, purged and swept until their packs are deleted."""
    store = open_store(seaweed.settings(prefix="backups"))
    state = rotation.host("a")
    no_grace = LAST_ONE.replaced(grace=timedelta(milliseconds=1))
    for content in ("base", "x", "y"):
        rotation.become(content)
        assert rotation.back_up(store=store).outcome is Outcome.CREATED
    give_up_at = time.monotonic() + _S3_TAKES_SECONDS
    removed: list[object] = []
    deleted = 0
    while not deleted and time.monotonic() < give_up_at:
        result = prune(Repository(store, state).archive("app"), no_grace, now=datetime.now(UTC))
        assert result.error is None
        removed += result.removed
        deleted += result.deleted_packs
    assert (len(removed), deleted) == (2, 1)
    keys = [stored.key for stored in store.list("app/")]
    assert [key for key in keys if "/trash/" in key or "/deletions/" in key] == []
    (manifest,) = Repository(store, rotation.host("reader")).archive("app").history().manifests
    assert {key for key in keys if "/packs/" in key} == {f"app/packs/{pack.sha256}.zst" for pack in manifest.packs}
    rotation.become("x")
    assert rotation.back_up(store=store).outcome is Outcome.CREATED


def test_a_bucket_shows_another_time_for_what_was_put_again(seaweed: S3Server) -> None:
    """An object that is put again has a later time, which shows a sweep that there is a writer."""
    store = open_store(seaweed.settings())
    content = b"pack"

    def put() -> datetime:
        store.put("app/packs/x", content, sha256=hashlib.sha256(content).digest())
        (stored,) = store.list("app/packs/")
        return stored.modified_at

    first, give_up_at = put(), time.monotonic() + _S3_TAKES_SECONDS
    while put() == first:
        assert time.monotonic() < give_up_at
