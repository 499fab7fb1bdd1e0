"""Moments between snapshots: which commits the segments of an archive hold, and how the state after one is rebuilt.

FORMAT.md, "Segments", is the specification.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from backupd.errors import DamageError, IdentityNeededError, StoreError, UnsupportedFormatError
from backupd.format.manifest import SnapshotKind
from backupd.logs import log
from backupd.repository.references import find_snapshot, parse_reference
from backupd.repository.windows import is_built_wrong, read_all_continuity, recovery_windows, usable_anchors

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from typing import Self

    from backupd.format import SnapshotId
    from backupd.format.manifest import AnyManifest, AnySummary, Manifest
    from backupd.format.records import Continuity
    from backupd.format.segment import Anchor, Segment
    from backupd.repository import Repository
    from backupd.repository.archive import Archive
    from backupd.repository.history import History, Listing, StoredSegment
    from backupd.repository.references import FoundSnapshot
    from backupd.repository.windows import RecoveryWindow

_LATEST = datetime.max.replace(tzinfo=UTC)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHORTEST_KEPT = timedelta(hours=1)
"""Every commit is kept for so long at least."""
_CLOCK_TOLERANCE = timedelta(minutes=1)
_MINUTE_MS = 60_000
_MOST_UNTELLING = 8
"""How many segments in a row are read that do not tell whether they were thinned."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A span in which commits may have been missed, and why. A time that is not known, or has no end, is None."""

    began_at: datetime | None
    ended_at: datetime | None
    reason: str


@dataclass(frozen=True, slots=True)
class CommitFacts:
    """One commit: its number in its window, when it was seen, the size of the database after it, and its pages."""

    number: int
    seen_at: datetime
    page_count: int
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """What turns a snapshot into the state after commit `until` of a window: its commits from `after + 1` on.

    `segments` have all of them. `seen_at` is when the last one was seen, and `page_count` the size after it.
    """

    segments: tuple[StoredSegment, ...]
    after: int
    until: int
    seen_at: datetime
    page_count: int


@dataclass(frozen=True, slots=True)
class Moment:
    """The state at a moment: that of `snapshot`, or with `replay` that after a commit.

    `gap` is why the moment itself cannot be restored: then `snapshot` is the newest regular one before it, if any.
    """

    snapshot: AnySummary | None
    replay: Replay | None = None
    gap: Gap | None = None
    is_newest: bool = False
    """Whether nothing newer is stored: what was committed later, if anything, is not known."""


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """A state that can be restored: a snapshot with its whole manifest, and the commits to replay over it, if any.

    `gap` is why it is not the moment that was asked for.
    """

    archive: Archive
    manifest: Manifest
    replay: Replay | None = None
    gap: Gap | None = None
    is_newest: bool = False
    """Whether it stands for a time after which nothing is stored, so that later commits are not known."""

    @classmethod
    def of(cls, found: FoundSnapshot) -> Self:
        """Return the state of a snapshot, with everything that a restore needs. Raises `IdentityNeededError`."""
        return cls(found.archive, found.archive.opened(found.manifest))

    @property
    def name(self) -> str:
        """What it is, for messages."""
        name = f"snapshot {self.manifest.id}"
        return f"commit {self.replay.until} after {name}" if self.replay else name

    @property
    def at(self) -> datetime:
        """When this was the state of the database: the snapshot was taken, or the last commit was seen."""
        return self.replay.seen_at if self.replay else self.manifest.id.taken_at

    @property
    def page_count(self) -> int:
        """The number of pages of the restored file."""
        return self.replay.page_count if self.replay else self.manifest.page_count

    @property
    def image_bytes(self) -> int:
        """Size of the restored file."""
        return self.page_count * self.manifest.page_size

    @property
    def scratch_bytes(self) -> int:
        """The largest size of the file while it is made."""
        return max(self.image_bytes, self.manifest.image_bytes)


@dataclass(frozen=True, slots=True)
class WindowSpan:
    """A recovery window as users see it: any moment from `began_at` to the end of `window` can be restored.

    `began_at` is when its first commit was seen that can be rebuilt from a snapshot that exists; None when there is
    none, or when that cannot be read here, because of `problem`. `gap` lies between this window and the one before.
    """

    window: RecoveryWindow
    began_at: datetime | None
    gap: Gap | None
    problem: DamageError | IdentityNeededError | None = None
    continuity: Continuity | None = None
    """The last check of its commits."""
    broken: Gap | None = None
    """The end of the window, when the check has found its commits wrong: no moment in it can be restored."""
    minutes_until: datetime | None = None
    """Up to then only the last commit of each minute is kept, as far as is known here; None where all of them are."""

    @property
    def restorable(self) -> tuple[datetime, datetime] | None:
        """From when to when moments can be restored, up to where its commits were found wrong; None for no moment."""
        if self.began_at is None:
            return None
        ended_at = self.window.ended_at if self.broken is None else self.broken.began_at or self.began_at
        return (self.began_at, ended_at) if self.began_at <= ended_at else None


def find_moment(
    archive: Archive,
    listing: Listing,
    history: History,
    at: datetime,
    checked: Mapping[SnapshotId, Continuity],
) -> Moment | None:
    """Find the state that the database had at `at`: after the last commit that was seen by then.

    A regular snapshot between that commit and `at` is that state too. `checked` is what was found of each window, by
    its id: no commit of one that is broken counts. None when the archive has no segments. Reads the segment with that
    commit, and others until one names a snapshot to begin with. Raises `DamageError` and `IdentityNeededError`.
    """
    windows = recovery_windows(listing)
    if not windows:
        return None
    nearest = _newest_before(history, at, checked)
    place, commit = _last_commit(archive, windows, at) or (-1, None)
    if commit is not None and (gap := broken_span(windows[place], checked)) and commit.number > gap.after:
        return Moment(nearest, gap=gap.gap)
    # A window that ended earlier was followed while the clock was behind.
    later = (each for each in windows[place + 1 :] if commit is None or each.ended_at > commit.seen_at)
    following = next(later, None)
    if following and (commit is None or (commit.number == windows[place].last and commit.seen_at < at)):
        is_followed = nearest and following.began_at and following.began_at <= nearest.id.taken_at
        if not is_followed:
            return Moment(nearest, gap=_gap_before(archive, windows[place] if commit else None, following))
    if commit is None or (nearest and _has(nearest, windows[place], commit)):
        return Moment(nearest, is_newest=following is None and nearest is _newest_before(history, _LATEST, checked))
    base = _find_base(archive, windows[place], history, commit)
    if base is None:
        reason = "no snapshot is stored that the commits from then could be added to"
        return Moment(nearest, gap=Gap(None, commit.seen_at, reason))
    snapshot, anchor = base
    is_newest = following is None and commit.number == windows[place].last
    return Moment(snapshot, _replay(windows[place], anchor, commit), is_newest=is_newest)


class BrokenSpan(NamedTuple):
    """The commits of a window that are not what was committed: those above `after`, and the gap that they are."""

    after: int
    gap: Gap


def broken_span(window: RecoveryWindow, checked: Mapping[SnapshotId, Continuity]) -> BrokenSpan | None:
    """Return the commits of `window` that a check has found wrong; None when it has found none."""
    record = checked.get(window.id)
    if record is None or not record.is_broken or window.last <= record.after:
        return None
    reason = (
        f"commits {record.after + 1} to {record.by} of the recovery window, added to snapshot {record.base}, do not "
        f"give snapshot {record.snapshot}"
    )
    return BrokenSpan(record.after, Gap(record.base.taken_at, max(window.ended_at, record.base.taken_at), reason))


def _newest_before(history: History, at: datetime, checked: Mapping[SnapshotId, Continuity]) -> AnySummary | None:
    """Return the newest snapshot from before `at` that was not built from commits which are wrong."""
    regular = [each for each in history.manifests if each.kind is SnapshotKind.REGULAR and each.id.taken_at <= at]
    return next((each for each in reversed(regular) if not is_built_wrong(each, checked)), None)


def _has(snapshot: AnySummary, window: RecoveryWindow, commit: CommitFacts) -> bool:
    """Whether `snapshot` has `commit` of `window`, so that nothing need be replayed over it."""
    replayed = snapshot.replayed
    if replayed is not None and replayed.window == window.id:
        return replayed.commit >= commit.number
    return snapshot.id.taken_at > commit.seen_at


def _last_commit(archive: Archive, windows: Sequence[RecoveryWindow], at: datetime) -> tuple[int, CommitFacts] | None:
    """Find the last commit that was seen by `at`, and the place of its window. None when all were seen later.

    After the clock was set back, windows lie in each other: that commit need not be in the one that began last.
    """
    found: tuple[int, CommitFacts] | None = None
    for place in range(len(windows) - 1, -1, -1):
        window = windows[place]
        if window.id.taken_at - at > _CLOCK_TOLERANCE or (found and window.ended_at <= found[1].seen_at):
            continue
        # The first segment that ended later may have begun before.
        end = bisect_right(window.segments, at, key=lambda stored: stored.key.seen_at)
        for stored in reversed(window.segments[max(0, end - 1) : end + 1]):
            segment = archive.segment(stored)
            count = bisect_right(segment.commits, at, key=lambda commit: _time(commit.seen_at_ms))
            if count:
                commit = _facts(segment, count - 1)
                if found is None or commit.seen_at > found[1].seen_at:
                    found = place, commit
                break
    return found


def _facts(segment: Segment, index: int) -> CommitFacts:
    commit, number = segment.commits[index], segment.first + segment.commits[index].offset
    return CommitFacts(number, _time(commit.seen_at_ms), commit.page_count, segment.pages_of(number))


def _time(milliseconds: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=milliseconds)


def _find_base(
    archive: Archive, window: RecoveryWindow, history: History, commit: CommitFacts
) -> tuple[AnySummary, Anchor] | None:
    """Find the newest snapshot that `commit` can be rebuilt from, and its place in the window."""
    snapshots = {each.id: each for each in history.manifests}
    for place in _places_of_anchors(window, snapshots, commit):
        segment = archive.segment(window.segments[place])
        usable = [
            anchor
            for anchor in usable_anchors(window, segment, snapshots)
            if anchor.by <= commit.number and snapshots[anchor.snapshot].page_size == segment.head.page_size
        ]
        if usable:
            anchor = max(usable, key=lambda anchor: (anchor.by, anchor.after))
            return snapshots[anchor.snapshot], anchor
        if segment.first > commit.number and segment.head.anchors:
            break  # that of a later snapshot
    return None


def _places_of_anchors(window: RecoveryWindow, snapshots: Collection[SnapshotId], commit: CommitFacts) -> Iterator[int]:
    """Yield the places of the segments that may name a snapshot before `commit`, the most likely ones first.

    An anchor is in the first segment that was cut after its snapshot: as a rule the one that ended next. Without that,
    it is looked for backwards; and then forwards, for a snapshot that took long to store.
    """
    end = window.place_of(commit.number) + 1
    newest = max((each.taken_at for each in snapshots if each.taken_at <= commit.seen_at), default=commit.seen_at)
    likely = min(end, bisect_left(window.segments, newest, key=lambda stored: stored.key.seen_at))
    yield from range(likely, end)
    yield from range(likely - 1, -1, -1)
    yield from range(end, len(window.segments))


def _replay(window: RecoveryWindow, anchor: Anchor, commit: CommitFacts) -> Replay:
    first, last = window.place_of(anchor.after + 1), window.place_of(commit.number)
    segments = window.segments[first : last + 1] if anchor.after < commit.number else ()
    return Replay(segments, anchor.after, commit.number, commit.seen_at, commit.page_count)


def _gap_before(archive: Archive, before: RecoveryWindow | None, window: RecoveryWindow) -> Gap:
    """Return the gap between two recovery windows; without `before`, what lies before the first one."""
    began_at = before.ended_at if before else None
    try:
        segment = archive.segment(window.segments[0])
    except (DamageError, IdentityNeededError) as error:
        return Gap(began_at, window.began_at, error.message)
    if window.began_at is not None:
        return Gap(began_at, window.began_at, segment.head.gap or "nothing was followed before")
    last = before.last if before and before.id == window.id else 0
    reason = f"the segments of commits {last + 1} to {window.first - 1} are missing from the store"
    return Gap(began_at, _time(segment.commits[0].seen_at_ms), reason)


def window_spans(
    archive: Archive,
    listing: Listing,
    snapshots: Collection[SnapshotId],
    checked: Mapping[SnapshotId, Continuity],
) -> list[WindowSpan]:
    """Return the recovery windows of an archive as users see them, oldest first; `snapshots` are those that exist.

    `checked` is what was found of each window. Reads the first segments of each, up to one that names a snapshot that
    exists, and some of those that were put late. Raises the errors of `Store`.
    """
    spans = []
    before: RecoveryWindow | None = None
    for window in recovery_windows(listing):
        is_later = before is None or window.ended_at > before.ended_at
        gap = _gap_before(archive, before, window) if before is not None and is_later else None
        spans.append(_span(archive, window, gap, snapshots, checked))
        before = window if is_later else before
    return spans


def _span(
    archive: Archive,
    window: RecoveryWindow,
    gap: Gap | None,
    snapshots: Collection[SnapshotId],
    checked: Mapping[SnapshotId, Continuity],
) -> WindowSpan:
    broken = broken_span(window, checked)
    began_at, minutes_until, problem = None, None, None
    try:
        began_at = _first_restorable(archive, window, snapshots)
        minutes_until = _last_thinned(archive, window)
    except (DamageError, IdentityNeededError) as error:
        problem = error
    record = checked.get(window.id)
    is_of_this = record is not None and window.first <= record.after + 1 and record.by <= window.last
    return WindowSpan(
        window, began_at, gap, problem, record if is_of_this else None, broken and broken.gap, minutes_until
    )


def _first_restorable(archive: Archive, window: RecoveryWindow, snapshots: Collection[SnapshotId]) -> datetime | None:
    """When the first commit of `window` was seen that can be rebuilt from one of `snapshots`.

    It may have been seen before the first of all snapshots was taken: before that, no time means anything.
    """
    began_at = window.began_at or window.segments[0].key.seen_at
    times = (each.taken_at for each in snapshots if began_at - each.taken_at <= _CLOCK_TOLERANCE)
    start = bisect_left(window.segments, min(times, default=began_at), key=lambda stored: stored.key.seen_at)
    for stored in window.segments[start:]:
        if usable := usable_anchors(window, archive.segment(stored), snapshots):
            number = max(window.first, min(anchor.by for anchor in usable))
            holding = archive.segment(window.segments[window.place_of(number)])
            return max(_facts(holding, holding.index_of(number)).seen_at, min(each.taken_at for each in snapshots))
    return None


def _last_thinned(archive: Archive, window: RecoveryWindow) -> datetime | None:
    """When the last commit of `window` was seen before which commits were left out, or may have been.

    Only what was put into the store so late can be thinned. A prune thins the oldest first, so that not all of those
    are read: from the newest on in steps that double, and then by halves. One that was kept whole among older ones,
    because it was damaged then or came late from an outage, can only mislead where the search comes across it.
    """
    late = [each for each in window.segments if each.stored.modified_at - each.key.seen_at >= _SHORTEST_KEPT]
    thinned, whole, step = -1, len(late), 1  # the place of one that is, and that from which on none is
    while whole - thinned > 1:
        middle = max(0, whole - step) if thinned < 0 else (thinned + whole) // 2
        step *= 2
        # One that tells neither way has at most one commit a minute, of which a newer one may tell.
        for place in range(middle, whole):
            if place - middle == _MOST_UNTELLING:
                return late[whole - 1].key.seen_at
            is_thinned = _is_thinned(archive, late[place])
            if is_thinned is not None:
                break
        if is_thinned:
            thinned = place
        else:
            whole = middle
    return None if thinned < 0 else late[thinned].key.seen_at


def _is_thinned(archive: Archive, stored: StoredSegment) -> bool | None:
    """Whether commits were left out of a segment; None when none would be, or it cannot be read here."""
    try:
        segment = archive.segment(stored)
    except (DamageError, IdentityNeededError):
        return None
    if segment.is_thinned:
        return True
    minutes = [commit.seen_at_ms // _MINUTE_MS for commit in segment.commits]
    return False if any(minute == after for minute, after in pairwise(minutes)) else None


class CommitsAround(NamedTuple):
    """Commits of one recovery window, ascending, and those of that window that a check has found wrong, if any."""

    commits: Sequence[CommitFacts]
    broken: BrokenSpan | None = None

    def is_broken(self, commit: CommitFacts) -> bool:
        """Whether that commit is not what was committed, as far as is known: it is not restored."""
        return self.broken is not None and commit.number > self.broken.after


def commits_around(
    archive: Archive, listing: Listing, at: datetime, checked: Mapping[SnapshotId, Continuity], *, most: int
) -> CommitsAround:
    """Return up to `most` commits seen by `at`, and as many seen after it, of the recovery window at that time.

    `checked` is what was found of each window. Empty when nothing had been followed by then. Raises `DamageError` and
    `IdentityNeededError`.
    """
    windows = recovery_windows(listing)
    found = _last_commit(archive, windows, at)
    if found is None:
        return CommitsAround(())
    window, number = windows[found[0]], found[1].number
    place = window.place_of(number)
    before = _some_facts(archive, reversed(window.segments[: place + 1]), range(number, 0, -1), most)
    after = _some_facts(archive, window.segments[place:], range(number + 1, window.last + 1), most)
    return CommitsAround([*reversed(before), *after], broken_span(window, checked))


def _some_facts(archive: Archive, segments: Iterable[StoredSegment], wanted: range, most: int) -> list[CommitFacts]:
    """Return the first `most` commits in the range `wanted`, in its order, which is that of `segments` too."""
    found: dict[int, CommitFacts] = {}
    for stored in segments:
        if len(found) == most:
            break
        segment = archive.segment(stored)
        numbers = [number for number in segment.numbers if number in wanted and number not in found]
        for number in sorted(numbers, reverse=wanted.step < 0)[: most - len(found)]:
            found[number] = _facts(segment, segment.index_of(number))
    return [*found.values()]


def find_restore_point(
    repositories: Sequence[Repository], text: str, *, database: str | None, now: datetime
) -> RestorePoint:
    """Find the state that `text`, a reference, means: a snapshot, or for a time or an age also a commit.

    Of several stores, the one with the latest state before that time counts; of equal ones, the first. Raises what
    `find_snapshot` raises, `IdentityNeededError`, and `DamageError` for segments that no store has undamaged.
    """
    best = RestorePoint.of(find_snapshot(repositories, text, database=database, now=now))
    at = parse_reference(text).moment(now)
    if at is None:
        if best.manifest.replayed is not None:
            archives = [repository.archive(best.manifest.database) for repository in repositories]
            _warn_if_built_wrong(best, read_all_continuity(dict.fromkeys(archives)))
        return best
    failed: DamageError | IdentityNeededError | None = None
    archives = [repository.archive(best.manifest.database) for repository in repositories]
    checked = read_all_continuity(dict.fromkeys(archives))
    if is_built_wrong(best.manifest, checked):
        best = _newest_right(archives, at, checked) or best
        _warn_if_built_wrong(best, checked)
    for archive in archives:
        try:
            point = _point_at(archive, at, best, checked)
        except (DamageError, IdentityNeededError) as error:
            failed = failed or error
            continue
        except StoreError as error:
            log.warning("a store could not be asked for segments", reason=error.message, hint=error.hint)
            continue
        is_better = point is not None and (_is_later(point, best) or (point.gap and not best.replay))
        if point is not None and (is_better or (point.is_newest and point.at == best.at)):
            best = point
    if failed is not None and best.replay is None:
        hint = f"restore the snapshot before that time: {best.manifest.database}@{best.manifest.id}"
        raise type(failed)(failed.message, hint=failed.hint if isinstance(failed, IdentityNeededError) else hint)
    return best


def _is_later(point: RestorePoint, other: RestorePoint) -> bool:
    """Whether the state of `point` came after that of `other`; in one window, the commits say so."""
    replay, replayed = point.replay, other.manifest.replayed
    if replay is not None and other.replay is None and replayed is not None:
        window = replay.segments[-1].key.window if replay.segments else None
        if window == replayed.window:
            return replay.until > replayed.commit
    return point.at > other.at


def _warn_if_built_wrong(point: RestorePoint, checked: Mapping[SnapshotId, Continuity]) -> None:
    manifest = point.manifest
    if is_built_wrong(manifest, checked):
        log.warning(
            f"snapshot {manifest.id} was built from commits that a check has found wrong",
            hint=f"take one that was read from the database: backupd list {manifest.database}",
        )


def _newest_right(
    archives: Sequence[Archive], at: datetime, checked: Mapping[SnapshotId, Continuity]
) -> RestorePoint | None:
    """Return the newest snapshot before `at` in any store that was not built from wrong commits."""
    found: RestorePoint | None = None
    for archive in archives:
        # Another one has answered, and gives what can be restored, if with a warning.
        with suppress(StoreError, DamageError, IdentityNeededError, UnsupportedFormatError):
            nearest = _newest_before(archive.history(), at, checked)
            if nearest is not None and (found is None or nearest.id.taken_at > found.manifest.id.taken_at):
                found = RestorePoint(archive, archive.opened(archive.manifest(nearest.id)))
    return found


def _point_at(
    archive: Archive, at: datetime, nearest: RestorePoint, checked: Mapping[SnapshotId, Continuity]
) -> RestorePoint | None:
    """Return what one store has of the state at `at`; None when it has no segments."""
    listing = archive.segments()
    if not listing.segments:
        return None
    moment = find_moment(archive, listing, archive.history(), at, checked)
    if moment is None or moment.snapshot is None:
        return None
    if moment.gap is not None:
        return RestorePoint(nearest.archive, nearest.manifest, gap=moment.gap)
    manifest: AnyManifest = archive.manifest(moment.snapshot.id)
    return RestorePoint(archive, archive.opened(manifest), moment.replay, is_newest=moment.is_newest)
