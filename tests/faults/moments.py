"""The judge of following: the commits in a store are states of the ledger, each the next one after that before it.

Commits are put together by the rules of FORMAT.md, without the code that restores them. They have to go up through the
ledger without leaving a state out, so that what was acknowledged is in a window, or between two of them: in a gap.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from harness.windows import base_image

from backupd.errors import BackupdError, DamagedSegmentError
from backupd.repository.windows import recovery_windows
from faults.images import NotAStateError, read_commit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from random import Random

    from backupd.format import SnapshotId
    from backupd.format.segment import Anchor, Commit, Segment
    from backupd.repository.archive import Archive
    from backupd.repository.windows import RecoveryWindow
    from faults.images import Seen
    from faults.ledger import Ledger, State

_SEEN_WITHIN_SECONDS = 15.0
"""What the page about following calls a second, on a machine that has much else to do."""
_GAP_SECONDS = 5.0
"""How much older than the moment what is restored may be where nothing is in a window."""
_CLOCK_SECONDS = 0.1
_AROUND_A_JUMP_SECONDS = 70.0
"""A commit may keep the time of the one before it for so long after the clock was set back."""
_STATUS_SECONDS = 30.0
"""How much later than the truth the status may know that a store lacks something."""
_MOMENTS = 2
_TRIES = 3


class Disturbance(NamedTuple):
    """From when to when (monotonic) times of commits are not what they seem: nothing was seen, or by a wrong clock."""

    began: float
    ended: float
    ahead_seconds: float = 0.0

    def concerns(self, began: float, ended: float) -> bool:
        """Whether it has to do with what happened between two times (monotonic), or seems to have happened then."""
        if self.ahead_seconds == 0:
            return self.began <= ended and self.ended >= began
        starts = min(self.began, self.began + self.ahead_seconds) - _AROUND_A_JUMP_SECONDS
        return starts <= ended and max(self.ended, self.ended + self.ahead_seconds) + _AROUND_A_JUMP_SECONDS >= began


class StoredCommit(NamedTuple):
    """A commit in a store: when it was seen (monotonic, by the clock of now), and the state after it."""

    seen_at: float
    state: State


class Restored(NamedTuple):
    """What a restore of a moment gave: the state, or why there is none."""

    seen: Seen | None
    has_commit: bool = False
    """Whether commits were added to a snapshot."""
    gap: str | None = None
    """Why it is not the moment that was asked for, as the plan says."""
    problem: str | None = None


class Span(NamedTuple):
    """From when to when any moment can be restored, as `backupd list` says: from None where no snapshot is left."""

    began_at: datetime | None
    ended_at: datetime
    broken: str | None = None
    """Why no moment can be restored: its commits were found wrong."""

    @property
    def is_restorable(self) -> bool:
        """Whether the moments in it can be restored."""
        return self.began_at is not None and self.broken is None


def is_followed(spans: Iterable[Span], after: datetime) -> bool:
    """Whether moments after that one can be restored."""
    return any(span.is_restorable and span.ended_at > after for span in spans)


class MomentReader(Protocol):
    """Looks into the stores for the judge."""

    def archive(self, store: str, database: str) -> Archive:
        """Everything that a store has of a database."""

    def spans(self, store: str, database: str) -> Sequence[Span]:
        """The recovery windows."""

    def restore_moment(self, store: str, database: str, at: datetime) -> Restored:
        """Restore the state at a time."""


@dataclass(slots=True)
class _Reached:
    """How far the commits of a window were put together: the database after commit `at`."""

    image: bytearray
    at: int


@dataclass(slots=True)
class Commits:
    """The commits of one database in one store."""

    ledger: Ledger
    known: dict[SnapshotId, dict[int, StoredCommit]] = field(default_factory=dict)
    """Those that are in the store, by window and number."""
    checked: int = 0
    slowest: float = 0.0
    """The longest time (seconds) until a commit was seen, while nothing kept it from being seen."""
    _reached: dict[SnapshotId, _Reached] = field(default_factory=dict)

    def read(self, archive: Archive, disturbances: Sequence[Disturbance], *, may_lose: bool) -> Iterator[str]:
        """Read what is new in the store, and yield what is wrong with it. `may_lose` after an older copy came back."""
        listing = archive.segments()
        self.ledger.read()  # what is stored has begun by now
        windows = recovery_windows(listing)
        yield from self._forget_what_is_gone(windows, may_lose=may_lose)
        for window in windows:
            yield from self._read_window(archive, window, disturbances)

    def _forget_what_is_gone(self, windows: Iterable[RecoveryWindow], *, may_lose: bool) -> Iterator[str]:
        there: dict[SnapshotId, list[range]] = {}
        for window in windows:
            there.setdefault(window.id, []).append(range(window.first, window.last + 1))
        for window_id, commits in self.known.items():
            gone = [number for number in commits if not any(number in each for each in there.get(window_id, ()))]
            for number in gone:
                del commits[number]
            if gone and not may_lose:
                yield f"commits {gone[0]} to {gone[-1]} of {window_id} were stored, and are not any more"

    def _read_window(
        self, archive: Archive, window: RecoveryWindow, disturbances: Sequence[Disturbance]
    ) -> Iterator[str]:
        known = self.known.setdefault(window.id, {})
        offset = time.time() - time.monotonic()
        before = None
        for number, commit, image in self._images(archive, window):
            self.checked += 1
            name = f"commit {number} of {window.id}"
            try:
                seen = read_commit(image)
            except NotAStateError as error:
                yield f"{name}: {error}"
                return
            stored = StoredCommit(commit.seen_at_ms / 1000 - offset, seen.state)
            before = before or known.get(number - 1)
            if not any(entry.digest == seen.digest for entry in self.ledger.entries_of(seen.state)):
                yield f"{name} gives {seen.state}, which was never committed"
            elif before is not None and not _follows(seen.state, before.state, commit.others + 1):
                yield f"{name} gives {seen.state}, and the one before it {before.state}"
            else:
                yield from self._judge_time(name, stored, disturbances)
            known[number] = before = stored

    def _judge_time(self, name: str, stored: StoredCommit, disturbances: Sequence[Disturbance]) -> Iterator[str]:
        entries = self.ledger.entries_of(stored.state)
        begun_at, ended_at = entries[0].begun_at, entries[-1].ended_at
        if any(each.concerns(begun_at, max(begun_at, stored.seen_at)) for each in disturbances):
            return
        if stored.seen_at < begun_at - _CLOCK_SECONDS:
            yield f"{name} was seen {begun_at - stored.seen_at:.1f} s before {stored.state} was committed"
        # A statement that changes no state may have come at any time before its end.
        late = 0.0 if ended_at is None else max(0.0, stored.seen_at - ended_at)
        self.slowest = max(self.slowest, late)
        if late > _SEEN_WITHIN_SECONDS:
            yield f"{name} was seen {late:.1f} s after {stored.state} was over"

    def _images(self, archive: Archive, window: RecoveryWindow) -> Iterator[tuple[int, Commit, bytes]]:
        """Yield each commit that is new and that some snapshot comes before, with the database after it."""
        reached = self._reached.get(window.id)
        waiting: list[Segment] = []
        for stored in window.segments:
            if reached is not None and stored.key.last <= reached.at:
                continue
            segment = archive.segment(stored)
            if reached is not None and segment.first <= reached.at + 1:
                yield from _added(reached, [segment], after=reached.at)
                continue
            waiting.append(segment)
            found = self._base(archive, waiting)
            if found is not None:
                anchor, image = found
                reached = self._reached[window.id] = _Reached(bytearray(image), min(anchor.after, anchor.by - 1))
                yield from _added(reached, waiting, after=anchor.by - 1)
                waiting = []

    def _base(self, archive: Archive, segments: Sequence[Segment]) -> tuple[Anchor, bytes] | None:
        """A snapshot in the last of these segments that all commits after it are in these segments."""
        for anchor in segments[-1].head.anchors:
            if anchor.after + 1 >= segments[0].first:
                try:
                    return anchor, base_image(archive, anchor.snapshot)
                except BackupdError:  # it was removed, or is damaged: another one will do
                    continue
        return None

    def last_by(self, at: float) -> StoredCommit | None:
        """The last commit that was seen by then (monotonic)."""
        ordered = sorted(
            (commit.seen_at, window, number, commit)
            for window, commits in self.known.items()
            for number, commit in commits.items()
        )
        place = bisect_right(ordered, at, key=lambda each: each[0])
        return ordered[place - 1][3] if place else None

    def reach(self, after: float) -> bool:
        """Whether one that was seen after that time (monotonic) was put together."""
        return any(commit.seen_at > after for commits in self.known.values() for commit in commits.values())

    def states(self) -> set[State]:
        """The states that are in a window."""
        return {commit.state for commits in self.known.values() for commit in commits.values()}


def _added(reached: _Reached, segments: Iterable[Segment], *, after: int) -> Iterator[tuple[int, Commit, bytes]]:
    """Add the commits of segments; yield those above `after`."""
    for segment in segments:
        size, number = segment.head.page_size, segment.first - 1
        for commit in segment.with_images():
            number += commit.others + 1
            if number <= reached.at:
                continue
            image = reached.image
            for place, page in enumerate(commit.pages):
                image.extend(bytes(max(0, page * size - len(image))))
                image[(page - 1) * size : page * size] = commit.images[place * size :][:size]
            del image[commit.page_count * size :]
            image.extend(bytes(commit.page_count * size - len(image)))
            reached.at = number
            if number > after:
                yield number, commit, bytes(image)


def _follows(state: State, before: State, commits: int) -> bool:
    """Whether so many commits may lead from one state to the other: some statements do not change it."""
    return state.generation == before.generation and 0 <= state.number - before.number <= commits


@dataclass(slots=True)
class Moments:
    """Judges what stands in the stores of databases that are followed, and what the status says of it."""

    ledgers: Mapping[str, Ledger]
    stores: Sequence[str]
    disturbances: Sequence[Disturbance]
    seen_within_seconds: float = _SEEN_WITHIN_SECONDS
    counts: Counter[str] = field(default_factory=Counter)
    slowest_point: float = 0.0
    """How much later than the newest state in a store its recovery point was, at most (seconds)."""
    _commits: dict[tuple[str, str], Commits] = field(default_factory=dict)

    def judge(
        self,
        reader: MomentReader,
        chosen: Random,
        *,
        points: Mapping[tuple[str, str], datetime],
        snapshots: Mapping[tuple[str, str], set[State]],
        followed: Mapping[tuple[str, str], datetime] | None = None,
        may_lose: Sequence[str] = (),
    ) -> list[str]:
        """Read all that is new, restore some moments, and return what is wrong.

        `points` are the recovery points that the status showed before, and `snapshots` the states that these hold, both
        by store and database. `followed` says beyond which times commits have to be there, and can be restored. A store
        in `may_lose` may have got an older content.
        """
        found = []
        for database, ledger in self.ledgers.items():
            for store in self.stores:
                where, place = f"{database} in {store}", (store, database)
                commits = self._commits.setdefault(place, Commits(ledger))
                try:
                    spans = reader.spans(store, database)  # before the commits are read: more may come meanwhile
                    wrong = self._read(commits, reader.archive(store, database), may_lose=store in may_lose)
                    wrong += self._judge_spans(commits, spans, (followed or {}).get(place))
                    wrong += self._judge_moments(
                        commits, spans, partial(reader.restore_moment, store, database), chosen
                    )
                except BackupdError as error:
                    wrong = [f"its segments cannot be read: {error.message}"]
                point = points.get(place)
                if point is not None:
                    wrong += self._judge_point(commits, point, snapshots.get(place, set()))
                found += [f"{where}: {each}" for each in wrong]
        each_of = [*self._commits.values()]
        self.counts["commits checked"] = sum(each.checked for each in each_of)
        self.counts["commits in windows"] = sum(len(each.states()) for each in each_of)
        self.counts["commits in gaps"] = sum(len(_missing(each)) for each in each_of)
        return found

    @property
    def slowest(self) -> float:
        """The longest time (seconds) until a commit was seen."""
        return max((each.slowest for each in self._commits.values()), default=0.0)

    def _read(self, commits: Commits, archive: Archive, *, may_lose: bool) -> list[str]:
        for number in range(_TRIES):
            try:
                return [*commits.read(archive, self.disturbances, may_lose=may_lose)]
            except DamagedSegmentError:  # a prune has merged segments since they were listed
                if number == _TRIES - 1:
                    raise
        return []

    def _judge_spans(self, commits: Commits, spans: Sequence[Span], after: datetime | None) -> Iterator[str]:
        """Whether every window is sound, and what came `after` was followed and put together."""
        for span in spans:
            if span.broken is not None:
                yield f"the window until {span.ended_at} is broken: {span.broken}"
        if after is None:
            return
        if not is_followed(spans, after):
            yield f"no moment after {after} can be restored, as is listed"
        if not commits.reach(after.timestamp() - (time.time() - time.monotonic()) - _CLOCK_SECONDS):
            yield f"no commit that was seen after {after} could be put together"

    def _judge_moments(
        self, commits: Commits, spans: Sequence[Span], restore: Callable[[datetime], Restored], chosen: Random
    ) -> Iterator[str]:
        """Restore some moments that can be restored, and some in gaps, of commits that are in no window."""
        possible = [(span.began_at, span.ended_at) for span in spans if span.began_at and not span.broken]
        for began_at, ended_at in chosen.sample(possible, min(_MOMENTS, len(possible))) + [*possible[-1:]] * _MOMENTS:
            at = began_at + (ended_at - began_at) * chosen.random()
            restored = restore(at)
            self.counts["moments restored"] += 1
            problem = restored.problem or (restored.gap and f"there is a gap, {restored.gap}")
            if problem is not None:
                yield f"{at} can be restored, as is listed, from {began_at} to {ended_at}; and then {problem}"
            else:
                yield from self._judge_restored(commits, restored, at)
        missing = _missing(commits)
        for last_at in chosen.sample(missing, min(_MOMENTS, len(missing))):
            at = datetime.fromtimestamp(last_at + time.time() - time.monotonic(), UTC)
            restored = restore(at)
            self.counts["moments in gaps"] += 1
            if restored.problem is not None:
                yield f"{at}, in a gap, cannot be restored: {restored.problem}"
            elif restored.gap is None:
                yield from self._judge_restored(commits, restored, at, within=_GAP_SECONDS)

    def _judge_restored(
        self, commits: Commits, restored: Restored, at: datetime, *, within: float = _SEEN_WITHIN_SECONDS
    ) -> Iterator[str]:
        """Whether a restored state was the current one, `within` so many seconds before a moment at the earliest."""
        assert restored.seen is not None
        within = min(within, self.seen_within_seconds)
        state = restored.seen.state
        moment = at.timestamp() - (time.time() - time.monotonic())
        if any(each.concerns(moment - within, moment) for each in self.disturbances):
            self.counts["moments of a wrong clock"] += 1
            if not commits.ledger.entries_of(state):
                yield f"{at} gives {state}, which was never committed"
            return
        known = commits.last_by(moment)
        if restored.has_commit and known is not None and known.state != state:
            yield f"{at} gives {state}, and the last commit that was seen by then {known.state}"
        if not commits.ledger.was_current(state, after=moment - within, before=moment + _CLOCK_SECONDS):
            yield f"{at} gives {state}, which was not the state at that time, and no gap is named"

    def _judge_point(self, commits: Commits, point: datetime, snapshots: set[State]) -> Iterator[str]:
        """Whether everything that was acknowledged by a recovery point is stored."""
        at = point.timestamp() - (time.time() - time.monotonic())
        if any(each.concerns(at, at) for each in self.disturbances):
            return
        ledger = commits.ledger
        newest = max(map(ledger.place, commits.states() | snapshots), default=-1)
        self.counts["recovery points"] += 1
        since = ledger.lacks_since(newest)
        ahead = 0.0 if since is None else max(0.0, at - since)
        self.slowest_point = max(self.slowest_point, ahead)
        if ahead > _STATUS_SECONDS:
            yield f"the recovery point is {point}, and the newest state that is stored is {ahead:.1f} s older"


def _missing(commits: Commits) -> list[float]:
    """The last moments of what was acknowledged between the first and the last state in a window, and is in none."""
    states = commits.states()
    places = [commits.ledger.place(state) for state in states]
    if not places:
        return []
    between = commits.ledger.entries[min(places) : max(places)]
    return [
        entry.ended_at
        for entry in between
        if entry.ended_at is not None and entry.done_at is not None and entry.state not in states
    ]
