"""Moments between snapshots: found in an archive, restored byte for byte, and explained where they cannot be."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from harness.following import Followed
from harness.windows import base_image

from backupd.encryption import Encryption, generate_identity
from backupd.errors import DamageError, IdentityNeededError
from backupd.format import SnapshotId
from backupd.format.pack import page_hash
from backupd.format.segment import decode_segment, encode_segment, thinned
from backupd.repository import Repository
from backupd.repository.moments import (
    CommitsAround,
    Moment,
    RestorePoint,
    commits_around,
    find_moment,
    find_restore_point,
    recovery_windows,
    window_spans,
)
from backupd.restore import restore_to_file
from backupd.restore.replay import Replaying
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backupd.store.keys import SegmentKey

_MS = timedelta(milliseconds=1)
_FILL = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) "


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[Followed]:
    """A database with a table of 200 rows; nothing of it is stored yet."""
    database = Followed(tmp_path)
    database.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)")
    database.execute(f"{_FILL} INSERT INTO notes SELECT i, printf('note %0100d', i) FROM n")
    yield database
    database.close()


def insert(number: int) -> str:
    """A statement that changes some pages."""
    return f"INSERT INTO notes (text) VALUES (printf('later %0200d', {number}))"


def found(followed: Followed, at: datetime) -> Moment:
    """The moment that the archive has for a time."""
    archive = followed.archive
    moment = find_moment(archive, archive.listing(), archive.history(), at, {})
    assert moment is not None
    return moment


def restored(followed: Followed, at: datetime, directory: Path) -> bytes:
    """The image that a restore of that time gives."""
    point = find_restore_point([followed.repository], at.isoformat(), database="app", now=datetime.now(UTC))
    target = directory / f"restored-{os.urandom(4).hex()}.db"
    restore_to_file(point, target, force=False, as_source=False, on_progress=lambda _: None)
    return target.read_bytes()


def base_of(moment: Moment) -> SnapshotId | None:
    """The snapshot of a moment."""
    return None if moment.snapshot is None else moment.snapshot.id


def remove(followed: Followed, key: SegmentKey) -> None:
    """Lose a segment."""
    followed.repository.store.delete(str(key))


def test_every_commit_is_restored_byte_for_byte(followed: Followed, tmp_path: Path):
    """Each commit after the first snapshot is restored as a copy of the database was then; the file may shrink."""
    first = followed.snapshot()
    followed.execute(insert(1), "UPDATE notes SET text = 'changed' WHERE id IN (5, 190)")
    followed.cut()
    followed.execute("DELETE FROM notes WHERE id > 40", "VACUUM")
    followed.cut()
    second = followed.snapshot()
    followed.execute(insert(2), "CREATE TABLE other (a)", "PRAGMA user_version = 7")
    followed.cut()
    assert len({len(state.image) for state in followed.states}) > 2
    for state in followed.states[2:]:
        assert restored(followed, state.seen_at, tmp_path) == state.image
    assert [base_of(found(followed, state.seen_at)) for state in followed.states[2:]] == [first] * 4 + [second] * 3


@pytest.mark.parametrize("page_size", [512, 65536])
def test_commits_of_other_page_sizes_are_restored(tmp_path: Path, page_size: int):
    """The smallest and the largest page size."""
    followed = Followed(tmp_path, page_size=page_size)
    followed.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)", insert(1))
    followed.snapshot()
    followed.execute(insert(2), insert(3))
    followed.cut()
    for state in followed.states[2:]:
        assert restored(followed, state.seen_at, tmp_path) == state.image
    followed.close()


def test_the_last_commit_before_a_time_counts(followed: Followed):
    """A time between two commits means the first of them; a time after the last one means the last one."""
    followed.snapshot()
    followed.execute(*map(insert, range(5)))
    followed.cut()
    times = [state.seen_at for state in followed.states]
    for number in range(3, 8):
        for at in (times[number - 1], times[number - 1] + timedelta(microseconds=900)):
            replay = found(followed, at).replay
            assert replay is not None
            assert (replay.until, replay.seen_at) == (number, times[number - 1])
    late = found(followed, times[-1] + timedelta(days=9))
    assert late.is_newest
    assert late.replay is not None
    assert late.replay.until == 7
    assert not found(followed, times[-2]).is_newest


def test_a_snapshot_after_the_last_commit_is_the_state(followed: Followed):
    """A regular snapshot between the last commit and the time needs no replay."""
    followed.snapshot()
    followed.execute(insert(1))
    followed.cut()
    second = followed.snapshot()
    assert found(followed, second.taken_at) == Moment(followed.archive.history().manifests[-1], is_newest=True)
    earlier = found(followed, second.taken_at - _MS)
    assert (base_of(earlier), earlier.replay is None) == (followed.snapshots[0], False)


def test_a_wide_anchor_is_as_good(followed: Followed, tmp_path: Path):
    """A snapshot whose place is known as a span only is replayed from the beginning of the span, from its end on."""
    followed.execute(insert(1), insert(2))
    followed.cut()
    snapshot = followed.snapshot(after=1, by=5)
    followed.execute(insert(3), insert(4), insert(5))
    followed.cut()
    assert found(followed, followed.states[3].seen_at).gap is not None
    for number in (5, 6, 7):
        state = followed.states[number - 1]
        moment = found(followed, state.seen_at)
        assert (base_of(moment), moment.replay is not None and moment.replay.after) == (snapshot, 1)
        assert restored(followed, state.seen_at, tmp_path) == state.image


def test_an_anchor_may_come_after_the_commit(followed: Followed, tmp_path: Path):
    """A snapshot that took long to store is the base of commits in segments before the one that names it."""
    followed.snapshot()
    followed._anchors, late = [], followed._anchors
    followed.execute(insert(1))
    followed.cut()
    followed.execute(insert(2))
    followed.cut()
    followed._anchors = late
    followed.execute(insert(3))
    followed.cut()
    for state in followed.states[2:]:
        assert restored(followed, state.seen_at, tmp_path) == state.image


def test_the_newest_snapshot_that_exists_is_the_base(followed: Followed, tmp_path: Path):
    """Without the second snapshot, the replay begins with the first."""
    first = followed.snapshot()
    followed.execute(insert(1))
    followed.cut()
    second = followed.snapshot()
    followed.execute(insert(2))
    followed.cut()
    assert base_of(found(followed, followed.states[-1].seen_at)) == second
    followed.archive.delete_manifest(second)
    moment = found(followed, followed.states[-1].seen_at)
    assert moment.replay is not None
    assert (base_of(moment), len(moment.replay.segments)) == (first, 2)
    assert restored(followed, followed.states[-1].seen_at, tmp_path) == followed.states[-1].image


def test_a_hole_is_never_replayed_across(followed: Followed):
    """Without one of its segments, a window ends before it, and what follows needs a snapshot of its own."""
    snapshot = followed.snapshot()
    keys = []
    for number in range(4):
        followed.execute(insert(number))
        keys.append(followed.cut())
    remove(followed, keys[1])
    assert [(each.first, each.last) for each in recovery_windows(followed.archive.listing())] == [(1, 3), (5, 6)]
    in_hole = found(followed, followed.states[3].seen_at)
    assert in_hole.gap is not None
    assert (base_of(in_hole), in_hole.gap.began_at) == (snapshot, followed.states[2].seen_at)
    assert in_hole.gap.ended_at == followed.states[4].seen_at
    assert "commits 4 to 4 are missing from the store" in in_hole.gap.reason
    after = found(followed, followed.states[5].seen_at)
    assert after.gap is not None
    assert (base_of(after), after.replay) == (snapshot, None)
    assert "no snapshot is stored" in after.gap.reason


def test_segments_may_overlap(followed: Followed, tmp_path: Path):
    """A segment that was put again with other limits fills a hole, and changes nothing otherwise."""
    followed.snapshot()
    followed.execute(insert(1), insert(2))
    pending, anchors = list(followed._pending), followed._anchors
    first = followed.cut()
    followed.execute(insert(3), insert(4))
    later = list(followed._pending)
    followed.cut()
    followed._first, followed._pending, followed._anchors = 1, [*pending, later[0]], anchors
    followed._count = 5
    followed.cut()
    for _ in range(2):
        (window,) = recovery_windows(followed.archive.listing())
        assert (window.first, window.last) == (1, 6)
        for state in followed.states[2:]:
            assert restored(followed, state.seen_at, tmp_path) == state.image
        remove(followed, first)


def test_a_time_in_a_gap_gives_the_snapshot_before_it_and_the_reason(followed: Followed, tmp_path: Path):
    """Between two windows nothing is guessed; after the snapshot of the new window, each commit is there again."""
    first = followed.snapshot()
    before = followed.execute(insert(1))
    followed.cut()
    followed.miss(insert(2))
    in_gap = datetime.now(UTC)
    followed.begin_window("the log was truncated")
    second = followed.snapshot()
    after = followed.execute(insert(3))
    followed.cut()
    moment = found(followed, in_gap)
    assert moment.gap is not None
    assert (base_of(moment), moment.replay, moment.gap.reason) == (first, None, "the log was truncated")
    assert moment.gap.began_at == before.seen_at < in_gap < moment.gap.ended_at < after.seen_at  # type: ignore[operator]
    assert found(followed, second.taken_at) == Moment(followed.archive.history().manifests[-1])
    assert restored(followed, before.seen_at, tmp_path) == before.image
    assert restored(followed, after.seen_at, tmp_path) == after.image


def test_a_time_before_the_first_commit_gives_the_snapshot(followed: Followed):
    """Times before anything was followed are those of snapshots, or of none."""
    snapshot, archive = followed.snapshot(), followed.archive
    assert find_moment(archive, archive.listing(), archive.history(), datetime.now(UTC), {}) is None
    followed._pending.clear()
    followed.begin_window(None)
    after = followed.execute(insert(1))
    followed._anchors = []
    followed.cut()
    moment = found(followed, snapshot.taken_at)
    assert (base_of(moment), moment.gap and moment.gap.reason) == (snapshot, "nothing was followed before")
    assert base_of(found(followed, snapshot.taken_at - timedelta(days=1))) is None
    assert found(followed, after.seen_at).gap is not None


def test_a_window_of_a_clock_that_was_behind_hides_no_commit(followed: Followed):
    """A window that was followed while the clock was behind lies within an earlier one, whose moments stay."""
    followed.snapshot()
    followed.execute(*map(insert, range(4)))
    followed.cut()
    inner = followed.states[3].seen_at
    followed.begin_window("the clock was set back")
    followed.snapshot()
    followed.execute(insert(5))
    followed._window = SnapshotId.new(inner, 1)
    followed._pending[-1] = followed._pending[-1]._replace(seen_at_ms=round(inner.timestamp() * 1000))
    followed.cut()
    for number, state in enumerate(followed.states[4:6], 5):
        moment = found(followed, state.seen_at)
        assert moment.replay is not None
        assert (moment.replay.until, moment.replay.seen_at) == (number, state.seen_at)
    assert found(followed, followed.states[5].seen_at + timedelta(seconds=1)).gap is None
    spans = window_spans(followed.archive, followed.archive.listing(), set(followed.snapshots), {})
    assert [span.gap for span in spans] == [None, None]


def test_windows_are_described_with_their_gaps(followed: Followed):
    """Each window says from when on its commits can be restored, and what lies before it."""
    followed.snapshot()
    first = followed.execute(insert(1))
    last = followed.execute(insert(2))
    followed.cut()
    followed.begin_window("the log was truncated")
    followed.snapshot()
    second = followed.execute(insert(3))
    followed.cut()
    archive = followed.archive
    spans = window_spans(archive, archive.listing(), archive.listing().manifests, {})
    assert [span.window.ended_at for span in spans] == [last.seen_at, second.seen_at]
    # The first snapshot is the state of commit 2, and nothing is restored to a time before the first snapshot.
    assert [span.began_at for span in spans] == [followed.snapshots[0].taken_at, second.seen_at]
    began_at = followed.snapshots[0].taken_at.isoformat()
    point = find_restore_point([followed.repository], began_at, database="app", now=datetime.now(UTC))
    assert (point.manifest.id, point.gap) == (followed.snapshots[0], None)
    assert spans[0].gap is None
    assert spans[1].gap is not None
    assert (spans[1].gap.began_at, spans[1].gap.reason) == (last.seen_at, "the log was truncated")
    archive.delete_manifest(followed.snapshots[0])
    assert window_spans(archive, archive.listing(), archive.listing().manifests, {})[0].began_at is None
    assert first.seen_at < last.seen_at


def test_commits_that_were_left_out_are_those_before_them(followed: Followed, tmp_path: Path):
    """Of a thinned segment, the state at a time is that after the last commit that is still there."""
    followed.snapshot()
    followed.execute(insert(1))
    followed.cut()
    for number in range(2, 40):
        followed.execute(insert(number))
    followed.snapshot(after=10, by=20)
    key = followed.cut()
    archive = followed.archive
    (_, stored) = next(iter(archive.segments().segments.values()))
    segment = archive.segment(stored)
    short = encode_segment(segment.head, thinned(segment.with_images(), 20), level=1)
    archive.put_segment(short)
    remove(followed, key)
    kept = decode_segment(short).numbers
    assert 3 < len(kept) < 38
    last = followed.states[2]
    for number, state in enumerate(followed.states[3:], 4):
        last = state if number in kept else last
        assert restored(followed, state.seen_at, tmp_path) == last.image
    moments = commits_around(archive, archive.segments(), followed.states[-1].seen_at, {}, most=3).commits
    assert [each.number for each in moments] == kept[-3:]
    moments = commits_around(archive, archive.segments(), followed.states[3].seen_at, {}, most=2).commits
    before = [number for number in (1, 2, 3, *kept) if number <= 4]
    assert [each.number for each in moments] == [*before[-2:], *[number for number in kept if number > 4][:2]]


def test_commits_around_a_time_are_shown(followed: Followed):
    """Numbers, times and pages of the commits before and after a time, across segments."""
    followed.snapshot()
    for number in range(6):
        followed.execute(insert(number))
        if number % 2:
            followed.cut()
    around = commits_around(
        followed.archive, followed.archive.listing(), followed.states[4].seen_at, {}, most=2
    ).commits
    assert [(each.number, each.seen_at) for each in around] == [
        (number, followed.states[number - 1].seen_at) for number in (4, 5, 6, 7)
    ]
    assert all(each.pages and each.page_count for each in around)
    long_ago = datetime(2000, 1, 1, tzinfo=UTC)
    assert commits_around(followed.archive, followed.archive.listing(), long_ago, {}, most=2) == CommitsAround(())


@pytest.mark.parametrize("packs_come", ["before", "after", "both"])
def test_packs_that_come_late_undo_no_commit(followed: Followed, tmp_path: Path, packs_come: str):
    """Pages of the snapshot may be written before, between and after those of the commits: the image is the same."""
    snapshot = followed.snapshot()
    followed.execute(insert(1), "UPDATE notes SET text = 'changed' WHERE id IN (5, 190)")
    followed.cut()
    followed.execute("DELETE FROM notes WHERE id BETWEEN 20 AND 180", "VACUUM", insert(2))
    followed.cut()
    state = followed.states[-1]
    point = find_restore_point([followed.repository], state.seen_at.isoformat(), database="app", now=datetime.now(UTC))
    assert point.replay is not None
    base = base_image(followed.archive, snapshot)
    size = point.manifest.page_size
    hashes = b"".join(page_hash(base[start : start + size]) for start in range(0, len(base), size))
    with (tmp_path / "restored.db").open("w+b") as file:
        replaying = Replaying(point, point.replay, file.fileno())
        if packs_come != "after":
            replaying.write_below(memoryview(base), 1)
        assert replaying.run() == sum(stored.size_bytes for stored in point.replay.segments)
        if packs_come != "before":
            replaying.write_below(memoryview(base), 1)
        replaying.finish(hashes)
    assert (tmp_path / "restored.db").read_bytes() == state.image


def test_a_segment_that_the_replay_lacks_is_damage(followed: Followed, tmp_path: Path):
    """The oldest, one between two, or the newest: what is there does not make up the commits that are wanted."""
    followed.snapshot()
    for number in range(3):
        followed.execute(insert(number))
        followed.cut()
    at = followed.states[-1].seen_at
    point = find_restore_point([followed.repository], at.isoformat(), database="app", now=datetime.now(UTC))
    assert point.replay is not None
    for lacking in range(3):
        segments = tuple(each for place, each in enumerate(point.replay.segments) if place != lacking)
        lame = replace(point, replay=replace(point.replay, segments=segments))
        with pytest.raises(DamageError, match="nothing was written"):
            restore_to_file(lame, tmp_path / "restored.db", force=False, as_source=False, on_progress=lambda _: None)


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_damage_of_any_segment_writes_nothing_and_names_the_snapshot(followed: Followed, tmp_path: Path, damaged: int):
    """A flipped bit in a segment that is needed ends the restore; the hint is the snapshot that does not need it."""
    snapshot = followed.snapshot()
    keys = []
    for number in range(3):
        followed.execute(insert(number))
        keys.append(followed.cut())
    file = tmp_path / "backups" / str(keys[damaged])
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamageError, match="does not have the SHA-256 that names it") as raised:
        restored(followed, followed.states[-1].seen_at, tmp_path)
    assert raised.value.hint is not None
    assert f"app@{snapshot}" in raised.value.hint
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(("restored", ".restored"))]


def test_a_segment_that_vanishes_after_it_was_found_is_damage(followed: Followed, tmp_path: Path):
    """What the plan found and the replay does not is reported, and nothing is written."""
    followed.snapshot()
    followed.execute(insert(1))
    key = followed.cut()
    at = followed.states[-1].seen_at
    point = find_restore_point([followed.repository], at.isoformat(), database="app", now=datetime.now(UTC))
    remove(followed, key)
    with pytest.raises(DamageError, match=r"is missing from .*; nothing was written"):
        restore_to_file(point, tmp_path / "restored.db", force=False, as_source=False, on_progress=lambda _: None)
    assert not (tmp_path / "restored.db").exists()


def test_a_replay_that_is_no_database_is_not_put_in_place(followed: Followed, tmp_path: Path):
    """SQLite checks every page after a replay: a wrong anchor gives a mixture of states, which is refused."""
    followed.snapshot()
    followed.miss(f"{_FILL} INSERT INTO notes (text) SELECT printf('lost %0500d', i) FROM n")
    followed.execute(insert(1))
    followed.cut()
    followed.states[:] = followed.states[-1:]
    with pytest.raises(DamageError, match="SQLite does not open it") as raised:
        restored(followed, followed.states[-1].seen_at, tmp_path)
    assert f"app@{followed.snapshots[0]}" in str(raised.value.hint)


def test_encrypted_commits_are_restored_with_the_key(tmp_path: Path):
    """With the key, each commit is restored; without it, that is what is missing, and not damage."""
    public, identity = generate_identity(datetime.now(UTC))
    (tmp_path / "identity").write_text(identity)
    followed = Followed(tmp_path, encryption=Encryption([public], tmp_path / "identity"))
    followed.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)")
    followed.snapshot()
    state = followed.execute(insert(1))
    assert str(followed.cut()).endswith(".zst.age")
    assert restored(followed, state.seen_at, tmp_path) == state.image
    followed.repository = Repository(followed.repository.store, followed.repository.state)
    with pytest.raises(IdentityNeededError):
        restored(followed, state.seen_at, tmp_path)
    followed.close()


def test_the_store_with_the_latest_commit_counts(followed: Followed, tmp_path: Path):
    """A second store that lacks segments, or has damaged ones, keeps none of the other's from being used."""
    followed.snapshot()
    followed.execute(insert(1))
    followed.cut()
    followed.execute(insert(2))
    last = followed.cut()
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "backups", other)
    (other / str(last)).unlink()
    repositories = [Repository(DirectoryStore(other), followed.repository.state), followed.repository]

    def point() -> RestorePoint:
        return find_restore_point(repositories, "1ms", database="app", now=datetime.now(UTC) + _MS)

    assert point().at == followed.states[-1].seen_at
    for file in other.rglob("*.zst"):
        if "segments" in str(file):
            file.write_bytes(b"damaged")
    assert point().at == followed.states[-1].seen_at


def test_a_window_may_claim_the_first_day_of_the_calendar(followed: Followed):
    """A foreign object ends no list: nothing is before that day."""
    snapshot = followed.snapshot()
    followed._window = SnapshotId("00010101T000000000Z-00000000")
    state = followed.execute(insert(1))
    followed.cut()
    (span,) = window_spans(followed.archive, followed.archive.listing(), {snapshot}, {})
    assert span.gap is None
    assert found(followed, state.seen_at).snapshot is not None
