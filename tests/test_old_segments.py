from __future__ import annotations

from datetime import UTC, datetime, timedelta
from os import utime
from typing import TYPE_CHECKING

import pytest
from harness.faults import FaultyStore
from harness.rotation import LAST_ONE, Rotation

from backupd.errors import StoreUnavailableError
from backupd.format import SnapshotId
from backupd.format.segment import Anchor, Commit, SegmentHead, encode_segment
from backupd.prune.segments import merge
from backupd.repository.moments import window_spans

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.repository.archive import Archive

_WINDOW = SnapshotId("20261129T120000000Z-0badcafe")
_OTHER_WINDOW = SnapshotId("20261129T130000000Z-0badcafe")
_NOON_MS = 1795953600000
KEPT_FOREVER = LAST_ONE.replaced(commits=timedelta(days=36500))
_SPAN = timedelta(minutes=15)
_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)


@pytest.fixture
def rotation(tmp_path: Path) -> Rotation:
    """A store with one snapshot."""
    rotation = Rotation(tmp_path)
    rotation.snapshot("base")
    return rotation


def put(
    rotation: Rotation,
    first: int,
    last: int,
    *,
    window: SnapshotId = _WINDOW,
    seen_at_ms: int = _NOON_MS,
    put_ago: timedelta = _HOUR,
    anchors: tuple[Anchor, ...] = (),
    pages: int = 1,
) -> None:
    """Put a segment whose commits write other pages each, as it was some time ago."""
    archive = archive_of(rotation)
    commits = [
        Commit(seen_at_ms, 500, tuple(range(number, number + pages)), number.to_bytes(8) * 64 * pages)
        for number in range(first, last + 1)
    ]
    head = SegmentHead(database="app", window=window, first=first, page_size=512, anchors=anchors)
    key = archive.put_segment(encode_segment(head, commits, level=1))
    put_at = (datetime.now(UTC) - put_ago).timestamp()
    utime(rotation.root / str(key), (put_at, put_at))


def archive_of(rotation: Rotation) -> Archive:
    """The archive of the database."""
    return rotation.repository().archive("app")


def spans(rotation: Rotation, window: SnapshotId = _WINDOW) -> list[tuple[int, int]]:
    """First and last commit of each segment of a window."""
    segments = archive_of(rotation).listing().segments.get(window, [])
    return [(stored.key.first, stored.key.last) for stored in segments]


def commits(rotation: Rotation) -> list[Commit]:
    """All commits of the window, in their order."""
    archive = archive_of(rotation)
    segments = [archive.segment(stored) for stored in archive.listing().segments[_WINDOW]]
    return [commit for segment in segments for commit in segment.with_images()]


def test_small_segments_become_one_with_every_commit(rotation: Rotation):
    """A merged segment has all commits, images and anchors of those that it stands for."""
    snapshot = rotation.ids()[0]
    put(rotation, 1, 3)
    put(rotation, 4, 4, anchors=(Anchor(snapshot=snapshot, after=2, by=3),), pages=3)
    put(rotation, 5, 9)
    before = commits(rotation)
    assert rotation.prune().error is None
    assert spans(rotation) == [(1, 9)]
    assert commits(rotation) == before
    (merged,) = archive_of(rotation).listing().segments[_WINDOW]
    assert archive_of(rotation).segment(merged).head.anchors == (Anchor(snapshot=snapshot, after=2, by=3),)
    assert rotation.prune().error is None
    assert spans(rotation) == [(1, 9)]


def test_only_segments_of_one_span_that_continue_each_other_are_merged(rotation: Rotation):
    """A hole, another window and another quarter of an hour keep them apart."""
    put(rotation, 1, 1)
    put(rotation, 2, 2)
    put(rotation, 4, 4)
    put(rotation, 5, 5, seen_at_ms=_NOON_MS + int(_SPAN.total_seconds()) * 1000)
    put(rotation, 6, 6, window=_OTHER_WINDOW)
    assert rotation.prune().error is None
    assert spans(rotation) == [(1, 2), (4, 4), (5, 5)]
    assert spans(rotation, _OTHER_WINDOW) == [(6, 6)]


def test_what_may_still_get_a_neighbour_is_not_merged(rotation: Rotation):
    """A span that is not over may get more segments."""
    put(rotation, 1, 1)
    put(rotation, 2, 2, put_ago=timedelta(minutes=5))
    assert rotation.prune().error is None
    assert spans(rotation) == [(1, 1), (2, 2)]


def test_a_damaged_segment_stays_with_its_neighbours(rotation: Rotation):
    """Nothing is deleted that the merged one would not have."""
    put(rotation, 1, 1)
    put(rotation, 2, 2)
    stored = archive_of(rotation).listing().segments[_WINDOW][1]
    file = rotation.root / str(stored.key)
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(b"x" * stored.size_bytes)
    utime(file, ns=times)
    assert rotation.prune().error is None
    assert spans(rotation) == [(1, 1), (2, 2)]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_no_commit_is_lost_by_a_call_that_fails(
    rotation: Rotation, tmp_path_factory: pytest.TempPathFactory, *, after: bool
):
    """Whatever call of a merge fails, all commits are there, and the next prune finishes the work."""
    put(rotation, 1, 1)
    put(rotation, 2, 3)
    before = commits(rotation)
    has_failed, number = True, 0
    while has_failed:
        again = rotation.copy(tmp_path_factory.mktemp("failing") / "home")
        archive = again.repository(store=FaultyStore(again.store, fail_at=number, after=after)).archive("app")
        try:
            merge(archive, archive_of(again).listing().segments[_WINDOW])
            has_failed = False
        except StoreUnavailableError:
            number += 1
        assert {commit for first, last in spans(again) for commit in range(first, last + 1)} == {1, 2, 3}
        for file in (again.root / "app/segments").rglob("*.zst"):
            utime(file, (0, 0))
        assert again.prune(policy=KEPT_FOREVER).error is None
        assert spans(again) == [(1, 3)]
        assert commits(again) == before
    assert number >= 6


def test_a_segment_that_no_other_fits_to_stays(rotation: Rotation, monkeypatch: pytest.MonkeyPatch):
    """One alone would be put again with the same bytes, so with the same name: it must not be deleted after that."""
    monkeypatch.setattr("backupd.prune.segments._MOST_IMAGE_BYTES", 3 * 512)
    put(rotation, 1, 2)
    put(rotation, 3, 3)
    put(rotation, 4, 4)
    before = commits(rotation)
    assert rotation.prune().error is None
    assert spans(rotation) == [(1, 3), (4, 4)]
    assert commits(rotation) == before


def test_a_snapshot_keeps_both_of_its_places(rotation: Rotation):
    """The state may be the same again: either place may be the only base of some commits."""
    snapshot = rotation.ids()[0]
    anchors = Anchor(snapshot=snapshot, after=0, by=1), Anchor(snapshot=snapshot, after=2, by=3)
    put(rotation, 1, 1, anchors=anchors[:1])
    put(rotation, 2, 3, anchors=anchors[1:])
    put(rotation, 1, 3, pages=2)
    assert rotation.prune().error is None
    assert spans(rotation) == [(1, 1), (1, 3), (2, 3)]
    stored = archive_of(rotation).listing().segments[_WINDOW]
    archive_of(rotation).delete_segment(next(each for each in stored if each.key.last - each.key.first == 2))
    assert rotation.prune().error is None
    (merged,) = archive_of(rotation).listing().segments[_WINDOW]
    assert archive_of(rotation).segment(merged).head.anchors == anchors


def test_a_damaged_segment_is_no_cover(rotation: Rotation):
    """Those that it has the commits of stay."""
    put(rotation, 1, 3)
    put(rotation, 2, 3)
    file = next((rotation.root / "app/segments").rglob("*-000000000003-*"))
    first = next(each for each in file.parent.iterdir() if each.name.startswith("000000000001"))
    first.write_bytes(b"x")
    utime(first, (datetime.now(UTC).timestamp() - 3600,) * 2)
    assert rotation.prune().error is None
    assert spans(rotation) == [(1, 3), (2, 3)]


def test_segments_are_removed_when_commits_are_kept_no_longer(rotation: Rotation):
    """By the time when the store got them, whatever their names say."""
    put(rotation, 1, 1, put_ago=_DAY + _HOUR)
    put(rotation, 2, 2, put_ago=_DAY - _HOUR, seen_at_ms=_NOON_MS - 10**9)
    policy = LAST_ONE.replaced(minutes=_DAY)
    dry = rotation.prune(policy=policy, is_dry_run=True)
    assert dry.removed_segments == 1
    assert spans(rotation) == [(1, 1), (2, 2)]
    result = rotation.prune(policy=policy)
    assert (result.error, result.removed_segments) == (None, 1)
    assert spans(rotation) == [(2, 2)]
    assert rotation.prune(policy=policy.replaced(commits=_HOUR * 2, minutes=_HOUR)).removed_segments == 1
    assert spans(rotation) == []


def put_hours(rotation: Rotation, *, put_ago: timedelta, hours: int = 7) -> None:
    """Put a window with a segment every ten minutes, each with four commits, two of them in the same minute."""
    archive, newest_put_at = archive_of(rotation), datetime.now(UTC) - put_ago
    begin = newest_put_at - _HOUR * hours
    begin = begin.replace(hour=begin.hour // 6 * 6, minute=0, second=0, microsecond=0)  # when six hours begin
    (snapshot, *_) = rotation.ids()
    for index in range(hours * 6):
        at = begin + timedelta(minutes=10 * index)
        first = 1 + 4 * index
        at_ms = int(at.timestamp() * 1000)
        commits = [
            Commit(at_ms + seconds * 1000, 500, (number, 400), bytes([number % 251]) * 1024)
            for number, seconds in enumerate((0, 61, 119, 300), first)
        ]
        anchors = (Anchor(snapshot=snapshot, after=0, by=1),) if index == 0 else ()
        head = SegmentHead(database="app", window=SnapshotId.new(begin, 7), first=first, page_size=512, anchors=anchors)
        key = archive.put_segment(encode_segment(head, commits, level=1))
        put_at = (newest_put_at - timedelta(minutes=10) * (hours * 6 - 1 - index)).timestamp()
        utime(rotation.root / str(key), (put_at, put_at))


def numbers(rotation: Rotation) -> list[int]:
    """The numbers of all commits of all windows that can be restored."""
    archive = archive_of(rotation)
    windows = archive.listing().segments.values()
    return [number for window in windows for stored in window for number in archive.segment(stored).numbers]


def changes(rotation: Rotation, until: int) -> dict[int, bytes]:
    """The pages that the commits up to that one have changed, in all segments."""
    archive, pages = archive_of(rotation), {}
    for window in archive.listing().segments.values():
        for stored in window:
            found = archive.segment(stored).changes(0, until)
            pages |= {page: found.images[i * 512 : (i + 1) * 512] for i, page in enumerate(found.pages)}
    return pages


def test_after_a_day_the_last_commit_of_each_minute_stays(rotation: Rotation):
    """Segments of six hours become one with the last commit of each minute, the same states, and all anchors."""
    put_hours(rotation, put_ago=_DAY + _HOUR * 6, hours=12)
    every = numbers(rotation)
    last_of_minutes = [number for number in every if number % 4 != 2]
    before = {number: changes(rotation, number) for number in last_of_minutes[::20]}
    (snapshot, *_) = rotation.ids()
    assert rotation.prune(is_dry_run=True).error is None
    assert numbers(rotation) == every
    result = rotation.prune()
    assert (result.error, result.removed_segments, result.unfinished) == (None, 0, 0)
    assert numbers(rotation) == last_of_minutes
    assert {number: changes(rotation, number) for number in before} == before
    (window,) = archive_of(rotation).listing().segments.values()
    assert len(window) == 2
    assert archive_of(rotation).segment(window[0]).head.anchors == (Anchor(snapshot=snapshot, after=0, by=1),)
    times = [stored.stored.modified_at for stored in window]
    assert rotation.prune().error is None
    (window,) = archive_of(rotation).listing().segments.values()
    assert [stored.stored.modified_at for stored in window] == times  # nothing is read or put again
    for file in (rotation.root / "app/segments").rglob("*.zst"):
        utime(file, (times[0].timestamp() - _DAY.total_seconds() * 9,) * 2)
    assert rotation.prune().removed_segments == 0
    assert numbers(rotation) == last_of_minutes


def test_a_window_that_became_one_object_stays_as_long(rotation: Rotation):
    """How long a window lasts is counted from its beginning, and its first snapshots stay with it."""
    put_hours(rotation, put_ago=_DAY * 2, hours=2)
    assert rotation.prune().error is None
    ((stored,),) = archive_of(rotation).listing().segments.values()
    kept = numbers(rotation)
    put_at = (datetime.now(UTC) - _DAY * 3).timestamp()
    utime(rotation.root / str(stored.key), (put_at, put_at))
    assert rotation.prune().removed_segments == 0
    assert numbers(rotation) == kept


def test_a_minute_in_two_segments_has_one_commit(rotation: Rotation):
    """The last commit of a minute is kept, in whichever segment it is, with the pages of all."""
    begin = datetime.now(UTC) - _DAY * 3
    begin = begin.replace(hour=begin.hour // 6 * 6, minute=0, second=0, microsecond=0)
    window, at_ms = SnapshotId.new(begin, 7), int(begin.timestamp() * 1000)
    for number in range(1, 9):
        commit = Commit(at_ms + 3_600_000 + number * 20_000, 500, (number,), bytes([number]) * 512)
        head = SegmentHead(database="app", window=window, first=number, page_size=512)
        key = archive_of(rotation).put_segment(encode_segment(head, [commit], level=1))
        put_at = begin.timestamp() + 3600
        utime(rotation.root / str(key), (put_at, put_at))
    before = changes(rotation, 8)
    assert rotation.prune().error is None
    assert numbers(rotation) == [2, 5, 8]
    assert changes(rotation, 8) == before


def test_a_forged_cover_removes_no_minute(rotation: Rotation):
    """One commit that claims to stand for all others is no thinned segment: it lacks the last of each minute."""
    put_hours(rotation, put_ago=_DAY * 2, hours=2)
    wanted = {number for number in numbers(rotation) if number % 4 != 2}
    ((window, (first, *_)),) = archive_of(rotation).listing().segments.items()
    head = SegmentHead(database="app", window=window, first=1, page_size=512)
    forged = Commit(int(first.key.seen_at.timestamp() * 1000), 500, (1,), bytes(512), 4_000_000_000)
    key = archive_of(rotation).put_segment(encode_segment(head, [forged], level=1))
    utime(rotation.root / str(key), (datetime.now(UTC).timestamp() - 3600,) * 2)
    for _ in range(2):
        assert rotation.prune().error is None
        assert wanted <= {*numbers(rotation)}


def test_segments_that_fit_into_no_one_stay(rotation: Rotation):
    """What was forged keeps no prune from its end."""
    put(rotation, 1, 1)
    put(rotation, 2, 2, seen_at_ms=_NOON_MS - 1)
    assert rotation.prune().error is None
    assert spans(rotation) == [(1, 1), (2, 2)]


def test_what_is_not_old_enough_is_not_thinned(rotation: Rotation):
    """Six hours wait until the last of their segments is a day old; without `minutes`, segments expire instead."""
    put_hours(rotation, put_ago=_DAY - _HOUR * 3, hours=6)
    every = numbers(rotation)
    assert rotation.prune().error is None
    assert numbers(rotation) == every
    assert rotation.prune(policy=LAST_ONE.replaced(minutes=_DAY)).removed_segments > 0
    assert len(numbers(rotation)) < len(every)


def test_thinned_segments_are_removed_when_minutes_are_kept_no_longer(rotation: Rotation):
    """By the time when the store got them. A window of less than an hour is not thinned, and goes after a day."""
    put_hours(rotation, put_ago=_DAY * 31, hours=6)
    put(rotation, 1, 1, put_ago=_DAY + _HOUR)
    assert rotation.prune().removed_segments == 37
    assert numbers(rotation) == []


def test_a_hold_thins_nothing(rotation: Rotation):
    """What is in doubt may be wanted back."""
    put_hours(rotation, put_ago=_DAY * 2, hours=6)
    every = numbers(rotation)
    rotation.prune(policy=None)
    assert numbers(rotation) == every


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_no_minute_is_lost_by_a_call_that_fails(
    rotation: Rotation, tmp_path_factory: pytest.TempPathFactory, *, after: bool
):
    """Whatever call of the thinning fails, each minute is there, and the next prune finishes the work."""
    put_hours(rotation, put_ago=_DAY * 2, hours=2)
    wanted = [number for number in numbers(rotation) if number % 4 != 2]
    has_failed, failing = True, 0
    while has_failed:
        again = rotation.copy(tmp_path_factory.mktemp("failing") / "home")
        archive = again.repository(store=FaultyStore(again.store, fail_at=failing, after=after)).archive("app")
        try:
            ((_, segments),) = archive_of(again).listing().segments.items()
            merge(archive, segments, thins=True)
            has_failed = False
        except StoreUnavailableError:
            failing += 2
        assert {*numbers(again)} >= {*wanted}
        assert again.prune().error is None
        assert again.prune().error is None
        assert sorted({*numbers(again)}) == wanted
    assert failing >= 6


def test_the_snapshots_that_begin_a_window_stay(rotation: Rotation, monkeypatch: pytest.MonkeyPatch):
    """Minutes can be restored only from a snapshot in their window: the first ones stay as long as it does."""
    rotation.snapshot("in the window")
    rotation.snapshot("later")
    rotation.snapshot("newest")
    begin = rotation.ids()[0].taken_at + timedelta(milliseconds=1)
    archive = archive_of(rotation)
    for index in range(2):
        at = int((begin + _HOUR * index).timestamp() * 1000)
        head = SegmentHead(database="app", window=SnapshotId.new(begin, 7), first=1 + index, page_size=512)
        key = archive.put_segment(encode_segment(head, [Commit(at, 500, (1,), bytes(512))], level=1))
        put_at = (datetime.now(UTC) - _DAY * 2).timestamp()
        utime(rotation.root / str(key), (put_at, put_at))
    monkeypatch.setattr("backupd.prune.pruning._BEFORE_FIRST_COMMIT", timedelta(0))
    before, *others = rotation.ids()
    decisions = rotation.prune(policy=LAST_ONE.replaced(commits=timedelta(0))).decisions
    kept = {each.manifest.id: each.reasons for each in decisions if each.is_kept}
    assert [*kept] == others
    assert [kept[each] for each in others[:2]] == [("minutes of a recovery window begin with it",)] * 2
    assert before not in rotation.ids()


def test_a_hold_keeps_old_segments(rotation: Rotation):
    """What is in doubt may be wanted back."""
    put(rotation, 1, 1, put_ago=_DAY * 9)
    rotation.prune(policy=None)
    assert spans(rotation) == [(1, 1)]


def test_snapshots_stay_as_long_as_commits_need_them(rotation: Rotation):
    """Commits are restored from the snapshot before them: the policy that keeps one keeps all of a day."""
    rotation.snapshot("other")
    assert len(rotation.ids()) == 2
    put(rotation, 1, 1)
    assert rotation.prune().removed == ()
    for file in (rotation.root / "app/segments").rglob("*.zst"):
        file.unlink()
    assert len(rotation.prune().removed) == 1


def put_late(rotation: Rotation, kinds: str) -> None:
    """Put a segment of each kind, one a quarter of an hour, two hours after its commits; a snapshot is before them.

    "t" was thinned, "w" is whole, "q" has one commit and tells neither, and "d" is damaged.
    """
    for place, kind in enumerate(kinds):
        seen_at_ms = _NOON_MS + place * int(_SPAN.total_seconds()) * 1000
        pages = [(1, 1)] if kind == "t" else [(1, 0)] if kind == "q" else [(1, 0), (2, 0)]
        commits = [Commit(seen_at_ms, 500, (page,), place.to_bytes(8) * 64, others) for page, others in pages]
        first = 1 + sum(1 if each == "q" else 2 for each in kinds[:place])
        anchors = (Anchor(snapshot=_WINDOW, after=0, by=0),) if place == 0 else ()
        head = SegmentHead(database="app", window=_WINDOW, first=first, page_size=512, anchors=anchors)
        key = archive_of(rotation).put_segment(encode_segment(head, commits, level=1))
        put_at = seen_at_ms / 1000 + 2 * _HOUR.total_seconds()
        if kind == "d":
            (rotation.root / str(key)).write_bytes(b"damaged")
        utime(rotation.root / str(key), (put_at, put_at))


@pytest.mark.parametrize(
    ("kinds", "last", "most_reads"),
    [
        ("w" * 24, None, 5),
        ("t" * 24, 23, 1),
        ("t" + "w" * 200, 0, 16),
        ("t" * 190 + "w" * 11, 189, 10),
        ("t" * 9 + "d" + "w" * 14, 8, 10),
        ("t" * 9 + "w" * 6 + "d" + "w" * 8, 8, 9),
        ("t" * 5 + "d" + "t" * 3 + "w" * 15, 8, 9),
        ("t" * 9 + "w" * 14 + "d", 8, 9),
        ("tqqtwqqw", 3, 8),
        ("qqqq", None, 4),
        ("t" + "d" * 23, 0, 24),
        ("q" * 200 + "w", 185, 24),  # it is not known of these, each of which has one commit in its minute
    ],
)
def test_few_segments_are_read_to_find_the_last_thinned_one(
    rotation: Rotation, kinds: str, last: int | None, most_reads: int
):
    """With many that a prune merged late, or that came late, as with a damaged one in the middle."""
    put_late(rotation, kinds)
    store = FaultyStore(rotation.store)
    archive = rotation.repository(store=store).archive("app")
    listing = archive.listing()
    store.calls.clear()
    (span,) = window_spans(archive, listing, {_WINDOW}, {})
    reads = store.calls.count("get") - 2  # of the first one, which names the snapshot and has the first commit
    minutes_until = None if last is None else datetime.fromtimestamp(_NOON_MS / 1000, UTC) + last * _SPAN
    assert (span.minutes_until, span.problem) == (minutes_until, None)
    assert reads <= most_reads
