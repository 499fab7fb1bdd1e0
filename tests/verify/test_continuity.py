"""Whether the commits of a recovery window, added to one snapshot, give a later one that was captured independently."""

from __future__ import annotations

import shutil
import tracemalloc
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from harness.checks import check_context
from harness.damage import flip
from harness.following import Followed
from msgspec.structs import replace

from backupd.encryption import NO_ENCRYPTION, Encryption, generate_identity
from backupd.errors import BackupdError, DamagedSegmentError, DamageError, StoreRefusedError
from backupd.format import MAX_IMAGE_PAGES, SnapshotId
from backupd.format.records import Continuity, ContinuityOutcome
from backupd.format.segment import Commit, encode_segment, thinned
from backupd.prune.segments import merge
from backupd.repository import Repository
from backupd.repository.moments import find_restore_point, window_spans
from backupd.repository.windows import read_continuity
from backupd.restore import restore_to_file
from backupd.state import StateDirectory
from backupd.store import StoreWrapper
from backupd.store.directory import DirectoryStore
from backupd.verify import ContinuityResult, prove_continuity
from backupd.verify.continuity import record_broken

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backupd.repository.archive import Archive
    from backupd.store.keys import SegmentKey


class _RefusingStore(StoreWrapper):
    def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:  # noqa: ARG002
        raise StoreRefusedError(f"{self.url} refused {key}")


_FILL = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) "


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[Followed]:
    """A database with a table of 200 rows; nothing of it is stored yet."""
    database = Followed(tmp_path)
    fill(database)
    yield database
    database.close()


def fill(database: Followed) -> None:
    """Make a table of 200 rows."""
    database.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)")
    database.execute(f"{_FILL} INSERT INTO notes SELECT i, printf('note %0100d', i) FROM n")


def insert(number: int) -> str:
    """A statement that changes some pages."""
    return f"INSERT INTO notes (text) VALUES (printf('later %0200d', {number}))"


def between_snapshots(followed: Followed, *statements: str) -> SegmentKey:
    """Two snapshots, and the commits of these statements between them, in one segment with both anchors."""
    followed.snapshot()
    followed.execute(*statements)
    followed.snapshot()
    return followed.cut()


def check(archive: Archive) -> ContinuityResult:
    """The check of an archive in which there is something to check."""
    result = prove_continuity(archive, check_context())
    assert result is not None
    return result


def on_another_machine(followed: Followed, encryption: Encryption = NO_ENCRYPTION) -> Archive:
    """The archive for a machine that has read nothing of it before."""
    state = StateDirectory(followed.path.parent / "another")
    return Repository(followed.repository.store, state, encryption).archive("app")


def proven(result: ContinuityResult) -> Continuity:
    """What was found, if that is what it should be."""
    assert result.error is None
    assert result.found is not None
    assert result.found.outcome is ContinuityOutcome.PROVEN
    return result.found


@pytest.mark.parametrize(
    "statements",
    [
        ["UPDATE notes SET text = 'short' WHERE id = 7"],
        [insert(1), "DELETE FROM notes WHERE id > 40", "VACUUM", f"{_FILL} INSERT INTO notes SELECT 900 + i, i FROM n"],
        ["CREATE TABLE other (a)", "PRAGMA user_version = 7", "DROP TABLE other"],
    ],
    ids=["first page not written", "shrinks and grows", "schema"],
)
def test_commits_give_the_later_snapshot(followed: Followed, statements: list[str]):
    """Any commits between two snapshots, added to the first one, give the second one."""
    between_snapshots(followed, *statements)
    for archive in (followed.archive, on_another_machine(followed)):
        found = proven(check(archive))
        assert [found.base, found.snapshot] == followed.snapshots
        assert (found.after, found.by) == (2, 2 + len(statements))
        assert read_continuity(archive) == {found.window: found}


@pytest.mark.parametrize("page_size", [512, 65536])
def test_other_page_sizes(tmp_path: Path, page_size: int):
    """The smallest and the largest page size."""
    followed = Followed(tmp_path, page_size=page_size)
    fill(followed)
    between_snapshots(followed, insert(1), insert(2))
    proven(check(followed.archive))
    followed.close()


def test_the_place_of_a_snapshot_may_be_wide(followed: Followed):
    """The state of a snapshot is looked for after each commit that it may be that of."""
    followed.snapshot(after=0)
    followed.execute(insert(1), insert(2))
    followed.snapshot(after=2, by=5)
    followed.execute(insert(3))
    followed.cut()
    assert proven(check(followed.archive)).by == 4


def test_a_missed_commit_is_found(followed: Followed):
    """A window that lacks a commit is broken: that is recorded for good, and none of its moments is offered."""
    followed.snapshot()
    before = followed.execute(insert(1))
    followed.miss("UPDATE notes SET text = 'missed' WHERE id = 3")
    after = followed.execute(insert(2))
    followed.snapshot()
    followed.execute(insert(3))
    followed.cut()
    archive = followed.archive
    result = check(archive)
    assert isinstance(result.error, DamageError)
    assert f"added to snapshot {followed.snapshots[0]}" in result.error.message
    assert result.found is not None
    assert (result.found.outcome, result.found.after) == (ContinuityOutcome.BROKEN, 2)
    for state in (before, after):
        point = find_restore_point(
            [followed.repository], state.seen_at.isoformat(), database="app", now=datetime.now(UTC)
        )
        assert (point.replay, point.manifest.id) == (None, followed.snapshots[0])
        assert point.gap is not None
        assert "do not give snapshot" in point.gap.reason
    (span,) = window_spans(archive, archive.listing(), archive.listing().manifests, read_continuity(archive))
    assert span.broken is not None
    assert (span.continuity, span.broken.began_at) == (result.found, followed.snapshots[0].taken_at)
    again = check(on_another_machine(followed))
    assert (again.found, str(again.error)) == (result.found, str(result.error))


def broken_window(followed: Followed) -> datetime:
    """A window that lacks a commit; when the commit after that was seen."""
    followed.snapshot()
    followed.miss("UPDATE notes SET text = 'missed' WHERE id = 3")
    after = followed.execute(insert(1))
    followed.snapshot()
    followed.cut()
    return after.seen_at


def test_a_window_that_is_broken_in_one_store_is_broken_in_all(followed: Followed, tmp_path: Path):
    """Another store with the same segments offers none of the moments that a check elsewhere has found wrong."""
    seen_at = broken_window(followed)
    shutil.copytree(tmp_path / "backups", tmp_path / "others")
    other = Repository(DirectoryStore(tmp_path / "others"), StateDirectory(tmp_path / "state"))
    found = check(followed.archive).found
    assert found is not None
    for repositories in ([followed.repository, other], [other, followed.repository]):
        point = find_restore_point(repositories, seen_at.isoformat(), database="app", now=datetime.now(UTC))
        assert (point.replay, point.gap is None) == (None, False)
    assert record_broken(other.archive("app"), found) is None
    assert read_continuity(other.archive("app")) == {found.window: found}


@pytest.mark.parametrize("is_broken", [False, True])
def test_what_was_found_is_said_when_it_cannot_be_recorded(followed: Followed, *, is_broken: bool):
    """A store that takes no record hides neither a proof nor a broken window."""
    if is_broken:
        broken_window(followed)
    else:
        between_snapshots(followed, insert(1))
    result = check(followed.repository.through(_RefusingStore(followed.repository.store)).archive("app"))
    assert result.is_broken == is_broken
    assert result.warning is not None
    assert "refused" in result.warning
    assert read_continuity(followed.archive) == {}


def test_a_commit_without_pages_changes_nothing(followed: Followed):
    """The format allows it, and a replay takes it."""
    followed.snapshot()
    followed.execute(insert(1))
    followed.cut()
    followed.execute("CREATE TABLE other (a)")
    seen_at_ms, page_count, *_ = followed._pending[-1]
    followed._pending.append(Commit(seen_at_ms, page_count, (), b""))
    followed._count += 1
    followed.snapshot()
    followed.cut()
    proven(check(followed.archive))


@pytest.mark.parametrize("place", [-2, -1])
def test_a_size_that_cannot_be_is_damage_and_takes_no_memory(
    followed: Followed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
):
    """A commit claims as many pages as the format allows, in the middle or at the end: 1 GiB of hashes."""
    followed.snapshot()
    followed.execute(insert(1))
    last = followed.execute(insert(2)).seen_at.isoformat()
    followed._pending[place] = followed._pending[place]._replace(page_count=MAX_IMAGE_PAGES)
    followed.cut()
    followed.snapshot()
    followed.execute(insert(3))
    followed.cut()
    tracemalloc.start()
    result = check(followed.archive)
    point = find_restore_point([followed.repository], last, database="app", now=datetime.now(UTC))
    monkeypatch.setattr("backupd.restore.placing.free_bytes", lambda _: 1 << 50)  # or the disk would be too small
    claim = f"claims {MAX_IMAGE_PAGES} pages"
    # The size of a commit in the middle does not matter to the state after the last one.
    with pytest.raises(BackupdError, match=claim) if place == -1 else nullcontext():
        restore_to_file(point, tmp_path / "restored.db", force=False, as_source=False, on_progress=lambda _: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(result.error, DamagedSegmentError)
    assert f"claims {MAX_IMAGE_PAGES} pages" in result.error.message
    assert peak < 16 << 20


def test_a_window_after_a_broken_one_may_be_proven(followed: Followed):
    """A broken window says nothing of the next one."""
    followed.snapshot()
    followed.execute(insert(1))
    followed.miss(insert(2))
    between_snapshots(followed, insert(3))
    broken = check(followed.archive)
    followed.begin_window("a check found that its commits are not what was committed")
    between_snapshots(followed, insert(4))
    found = proven(check(followed.archive))
    assert read_continuity(followed.archive) == {broken.window: broken.found, found.window: found}


def test_a_wrong_page_is_found(followed: Followed):
    """A page that is not what was committed does not come out as if it were."""
    followed.snapshot()
    followed.execute(insert(1))
    commit = followed._pending[-1]
    assert commit.pages[-1] != 1
    followed._pending[-1] = commit._replace(images=commit.images[:-1] + bytes([commit.images[-1] ^ 1]))
    followed.snapshot()
    followed.cut()
    assert isinstance(check(followed.archive).error, DamageError)


def test_there_may_be_nothing_to_check(followed: Followed):
    """Without segments, or without two snapshots in a window, nothing is checked, and nothing is recorded."""
    assert prove_continuity(followed.archive, check_context()) is None
    followed.snapshot()
    assert prove_continuity(followed.archive, check_context()) is None
    followed.execute(insert(1))
    followed.cut()
    followed.begin_window("a gap")
    followed.snapshot()
    followed.execute(insert(2))
    followed.cut()
    assert prove_continuity(followed.archive, check_context()) is None
    assert read_continuity(followed.archive) == {}


def test_everything_since_the_last_check_is_replayed(followed: Followed):
    """A check begins where the last one has ended, although there are snapshots between."""
    between_snapshots(followed, insert(1))
    first = proven(check(followed.archive))
    for number in range(2, 5):
        followed.execute(insert(number))
        followed.snapshot()
        followed.cut()
    second = proven(check(followed.archive))
    assert (first.base, first.snapshot) == (followed.snapshots[0], followed.snapshots[1])
    assert (second.base, second.snapshot) == (followed.snapshots[1], followed.snapshots[-1])
    assert (second.after, second.by) == (3, 6)


def test_commits_that_were_left_out_break_no_window(followed: Followed):
    """What was thinned is not looked at: the state of a snapshot may be that after a commit that was left out."""
    followed.snapshot()
    followed.execute(insert(1), insert(2))
    followed.snapshot()
    followed.execute(insert(3), insert(4))
    key = followed.cut()
    ((stored,),) = followed.archive.segments().segments.values()
    segment = followed.archive.segment(stored)
    followed.archive.put_segment(encode_segment(segment.head, thinned(segment.with_images(), 3_600_000), level=1))
    followed.repository.store.delete(str(key))
    assert prove_continuity(followed.archive, check_context()) is None
    followed.execute(insert(5))
    followed.snapshot()
    followed.execute(insert(6), insert(7))
    followed.snapshot()
    followed.cut()
    assert proven(check(followed.archive)).base == followed.snapshots[2]


def test_an_anchor_that_means_anything_is_no_later_snapshot(followed: Followed):
    """A snapshot whose place may be anywhere, as a forged segment can say, is not looked for after each commit."""
    followed.snapshot()
    seen_at_ms = followed._pending[-1].seen_at_ms
    for number in range(4100):
        followed._pending.append(Commit(seen_at_ms, 9, (2,), bytes(4096)))
        followed._count += 1
        if number % 1000 == 999:
            followed.cut()
    followed.snapshot(after=2)
    followed.execute(insert(1))
    followed.cut()
    assert prove_continuity(followed.archive, check_context()) is None


def test_a_window_of_the_future_hides_no_other(followed: Followed):
    """A foreign window with the anchors of real snapshots, dated in the future, is not the newest."""
    between_snapshots(followed, insert(1))
    ((stored,),) = followed.archive.segments().segments.values()
    segment = followed.archive.segment(stored)
    future = SnapshotId("99991231T235959999Z-0badcafe")
    forged = encode_segment(replace(segment.head, window=future), segment.with_images(), level=1)
    followed.archive.put_segment(forged)
    assert proven(check(followed.archive)).window == segment.head.window


def test_damage_of_a_segment_is_no_broken_window(followed: Followed):
    """A damaged segment is an error that names it; nothing is recorded, because the window may be right."""
    key = between_snapshots(followed, insert(1))
    flip(followed.path.parent / "backups" / str(key))
    result = check(followed.archive)
    assert isinstance(result.error, DamageError)
    assert str(key) in result.error.message
    assert result.found is None
    assert read_continuity(followed.archive) == {}


def test_segments_may_be_merged_meanwhile(followed: Followed, monkeypatch: pytest.MonkeyPatch):
    """Segments that a prune has merged since they were listed are found in the merged one."""
    archive = followed.archive
    between_snapshots(followed, insert(1))
    between_snapshots(followed, insert(2))
    listings = [archive.segments()]
    merge(archive, *listings[0].segments.values())
    listings.append(archive.segments())
    monkeypatch.setattr(archive, "segments", lambda: listings.pop(0))
    proven(check(archive))
    assert not listings


def test_an_encrypted_window_needs_the_key(tmp_path: Path):
    """With the key, a window is proven; without it, nothing can be said, and nothing is."""
    public, identity = generate_identity(datetime.now(UTC))
    (tmp_path / "identity").write_text(identity)
    encryption = Encryption([public], tmp_path / "identity")
    followed = Followed(tmp_path, encryption=encryption)
    fill(followed)
    between_snapshots(followed, insert(1))
    assert prove_continuity(on_another_machine(followed, Encryption([public])), check_context()) is None
    assert read_continuity(followed.archive) == {}
    proven(check(on_another_machine(followed, encryption)))
    followed.close()


def test_a_record_that_cannot_be_read_proves_nothing(followed: Followed):
    """A damaged record, or one that was put under the name of another window, counts as none."""
    between_snapshots(followed, insert(1))
    found = proven(check(followed.archive))
    other = SnapshotId("20200101T000000000Z-0badcafe")
    records = followed.path.parent / "backups/app/continuity"
    (records / f"{other}.json").write_bytes(found.encode())
    flip(records / f"{found.window}.json")
    assert read_continuity(on_another_machine(followed)) == {}
    assert proven(check(on_another_machine(followed))).window == found.window
