from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from harness.faults import FaultyStore, RefusingStore
from harness.kept_workers import kept_workers
from harness.rotation import LAST_ONE, Rotation

from backupd.backup import Outcome, SnapshotRequest, back_up
from backupd.config import Database, Settings
from backupd.errors import DamageError, LostPacksError, NoSuchSnapshotError, StoreUnavailableError, UsageError
from backupd.format.manifest import SnapshotKind
from backupd.format.records import CheckOutcome, DeletionRecord, Drill
from backupd.prune import forget, trashed, undelete
from backupd.repository import Repository

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.format import SnapshotId
    from backupd.format.manifest import Manifest
    from backupd.format.records import TrashEntry
    from backupd.store import Store

_KEEP_ALL = LAST_ONE.replaced(keep_last=100)


@pytest.fixture
def rotation(tmp_path: Path) -> Rotation:
    """A place for snapshots."""
    (tmp_path / "rotation").mkdir()
    return Rotation(tmp_path / "rotation")


@pytest.fixture
def ids(rotation: Rotation) -> list[SnapshotId]:
    """Three snapshots of three states."""
    return [rotation.snapshot("base"), rotation.snapshot("x"), rotation.snapshot("y")]


def _undelete(rotation: Rotation, snapshot_id: SnapshotId, *, host: str = "a", store: Store | None = None) -> Manifest:
    return undelete(rotation.repository(host, store).archive("app"), snapshot_id)


def _trashed(rotation: Rotation) -> list[TrashEntry]:
    entries, problems = trashed(rotation.repository().archive("app"))
    assert problems == []
    return entries


def _key(snapshot_id: SnapshotId) -> str:
    return f"app/snapshots/{snapshot_id}.json"


def test_a_forgotten_snapshot_comes_back_byte_for_byte(rotation: Rotation, ids: list[SnapshotId]) -> None:
    """A forgotten snapshot is in the trash, and is undeleted byte for byte."""
    before = rotation.objects()
    rotation.forget(ids[1])
    assert rotation.ids() == [ids[0], ids[2]]
    (entry,) = _trashed(rotation)
    assert (entry.manifest.id, entry.reason) == (ids[1], "forgotten by hand")
    assert _undelete(rotation, ids[1], host="b") == entry.manifest
    after = rotation.objects()
    assert after.pop(f"app/undeleted/{ids[1]}.json")
    assert after.pop(f"app/trash/{ids[1]}.json")  # it means nothing beside a manifest
    assert {key: content for key, (content, _) in after.items()} == {
        key: content for key, (content, _) in before.items()
    }
    assert _trashed(rotation) == []
    assert rotation.assert_every_snapshot_restores() == ids


def test_what_was_undeleted_stays_until_it_is_forgotten(rotation: Rotation, ids: list[SnapshotId]) -> None:
    """A snapshot that was undeleted is kept by every host until it is forgotten again."""
    rotation.forget(ids[0])
    _undelete(rotation, ids[0])
    assert rotation.prune("b").removed == (ids[1],)
    assert rotation.ids() == [ids[0], ids[2]]
    rotation.forget(ids[0])
    rotation.age()
    assert rotation.prune("b").purged == (ids[0], ids[1])
    assert rotation.names("undeleted") == set()


def test_the_newest_snapshots_cannot_be_forgotten(rotation: Rotation, ids: list[SnapshotId]) -> None:
    """The newest snapshot, the newest regular one and the newest proven one cannot be forgotten."""
    drill = Drill(snapshot=ids[0], database="app", outcome=CheckOutcome.PROVEN, at=datetime.now(UTC))
    rotation.put(f"app/drills/{ids[0]}.json", drill.encode())
    (safety,) = back_up(
        Database("app", rotation.home / "app.db"),
        [Repository(rotation.store, rotation.host("a"))],
        Settings(),
        request=SnapshotRequest(kind=SnapshotKind.BEFORE_RESTORE),
        on_progress=lambda _: None,
        workers=kept_workers(),
    )
    assert safety.id is not None
    for snapshot_id, reason in (
        (safety.id, "the newest snapshot"),
        (ids[2], "the newest regular"),
        (ids[0], "test restore"),
    ):
        with pytest.raises(UsageError, match=reason):
            rotation.forget(snapshot_id)
    rotation.forget(ids[1])
    assert rotation.ids() == [ids[0], ids[2], safety.id]


def test_what_is_not_there_is_not_forgotten(rotation: Rotation, ids: list[SnapshotId]) -> None:
    """A snapshot can be forgotten once, and undeleted only if it was removed; undeleting twice is as good as once."""
    rotation.forget(ids[0])
    with pytest.raises(NoSuchSnapshotError, match=str(ids[0])):
        rotation.forget(ids[0])
    with pytest.raises(NoSuchSnapshotError, match=str(ids[1])):
        _undelete(rotation, ids[1])
    for _ in range(2):
        _undelete(rotation, ids[0])
        assert rotation.ids() == ids
        assert _trashed(rotation) == []


def test_what_may_be_proven_cannot_be_forgotten(rotation: Rotation, ids: list[SnapshotId]) -> None:
    """The record of its test restore is damaged: it counts as proven, as for a prune."""
    rotation.put(f"app/drills/{ids[0]}.json", b"{}")
    with pytest.raises(UsageError, match=r"perhaps .* proved"):
        rotation.forget(ids[0])
    assert rotation.ids() == ids


def test_to_forget_what_was_undeleted_may_break_off_anywhere(rotation: Rotation, ids: list[SnapshotId]) -> None:
    """A snapshot whose removal breaks off is there or gone, and no prune brings it back."""
    counted = FaultyStore(rotation.store)
    for call in range(100):
        rotation.forget(ids[0])
        _undelete(rotation, ids[0])
        store = FaultyStore(rotation.store, fail_at=call)
        try:
            forget(rotation.repository(store=store).archive("app"), ids[0], now=datetime.now(UTC))
        except StoreUnavailableError:
            is_there = ids[0] in rotation.ids()
            assert rotation.prune(policy=_KEEP_ALL, store=counted).error is None
            assert (ids[0] in rotation.ids()) == is_there
            if not is_there:
                _undelete(rotation, ids[0])
        else:
            break
    assert len(store.calls) <= call  # what is cached, and need not be asked for, differs from run to run
    assert call > len(ids)
    assert rotation.ids() == ids[1:]


def test_a_damaged_manifest_is_not_forgotten(rotation: Rotation, ids: list[SnapshotId]) -> None:
    """The trash could not give it back."""
    (rotation.root / _key(ids[0])).write_bytes(b"{}")
    with pytest.raises(DamageError, match=str(ids[0])):
        rotation.forget(ids[0])
    assert (rotation.root / _key(ids[0])).read_bytes() == b"{}"


def test_a_snapshot_whose_packs_are_gone_does_not_come_back(rotation: Rotation, ids: list[SnapshotId]) -> None:
    """Half a snapshot is none."""
    rotation.forget(ids[1])
    (entry,) = _trashed(rotation)
    gone = (
        {pack.sha256 for pack in entry.manifest.packs} - {pack.sha256 for pack in rotation.manifests()[0].packs}
    ).pop()
    rotation.store.delete(f"app/packs/{gone}.zst")
    before = rotation.objects()
    with pytest.raises(DamageError, match=gone):
        _undelete(rotation, ids[1])
    assert rotation.objects() == before


def test_a_damaged_trash_entry_does_not_come_back(rotation: Rotation, ids: list[SnapshotId]) -> None:
    """Others do."""
    for snapshot_id in ids[:2]:
        rotation.forget(snapshot_id)
    file = rotation.root / f"app/trash/{ids[0]}.json"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(DamageError, match=str(ids[0])):
        _undelete(rotation, ids[0])
    entries, problems = trashed(rotation.repository().archive("app"))
    assert [entry.manifest.id for entry in entries] == [ids[1]]
    assert [(type(problem), str(ids[0]) in problem.message) for problem in problems] == [(DamageError, True)]
    _undelete(rotation, ids[1])
    assert rotation.assert_every_snapshot_restores() == ids[1:]


def test_a_snapshot_does_not_come_back_while_its_packs_are_deleted(rotation: Rotation, ids: list[SnapshotId]) -> None:
    """A sweep that announced them may not have seen it come."""
    rotation.forget(ids[1])
    (entry,) = _trashed(rotation)
    deletion = DeletionRecord(packs=(entry.manifest.packs[-1].sha256,))
    rotation.put("app/deletions/20261122T000000000Z-00000000.json", deletion.encode())
    with pytest.raises(LostPacksError, match="being deleted"):
        _undelete(rotation, ids[1])
    assert ids[1] not in rotation.ids()


@pytest.mark.parametrize("is_after", [False, True])
def test_undelete_that_broke_off_may_be_repeated(rotation: Rotation, ids: list[SnapshotId], *, is_after: bool) -> None:
    """An undeletion that broke off at any call can be repeated, and a prune then removes nothing."""
    call, has_failed = 0, True
    while has_failed:
        rotation.forget(ids[1])
        broken = FaultyStore(rotation.store, fail_at=call, after=is_after)
        try:
            _undelete(rotation, ids[1], store=broken)
            has_failed = False
        except StoreUnavailableError:
            assert str(ids[1]) in rotation.names("trash")
            call += 1
            _undelete(rotation, ids[1])
        assert _trashed(rotation) == []
        assert rotation.ids() == ids
    assert call > len(ids)
    assert rotation.prune(policy=_KEEP_ALL).removed == ()
    assert rotation.assert_every_snapshot_restores() == ids


def test_undelete_works_where_deletions_are_refused(rotation: Rotation, ids: list[SnapshotId]) -> None:
    """The snapshot is back; what stays in the trash means nothing beside it."""
    rotation.forget(ids[1])
    _undelete(rotation, ids[1], store=RefusingStore(rotation.store))
    assert rotation.ids() == ids
    assert _trashed(rotation) == []
    with pytest.raises(UsageError):
        forget(rotation.repository().archive("app"), ids[2], now=datetime.now(UTC))


def test_a_snapshot_made_of_trash_keeps_its_packs(rotation: Rotation, ids: list[SnapshotId]) -> None:
    """A snapshot of the same content as a removed one keeps its packs when that one is purged."""
    for snapshot_id in ids[:2]:
        rotation.forget(snapshot_id)
    rotation.become("x")
    again = rotation.back_up("b")
    assert again.outcome is Outcome.CREATED
    rotation.assert_no_leftovers()
    assert rotation.assert_every_snapshot_restores() == [again.id]
