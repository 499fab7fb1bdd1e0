"""The timeline of a database in a store: one line from its oldest snapshot to now, denser near now.

    90 d ago ·●○●○ 30 d ●○●○●○ 7 d ●░░○◇◆ 24 h ◇◇━━◆◇ 1 h ━━◇━━━ now

Each cell shows what lies in its span of time. All cells between two ages are equally long. What a person who has lost
data must not miss wins: damage over proofs, a gap over the moments around it, and anything that restores over a
failed attempt.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from datetime import timedelta
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from backupd.cli import output
from backupd.format import SnapshotId
from backupd.format.records import CheckOutcome

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import datetime

    from backupd.repository.moments import WindowSpan

FEWEST_COLUMNS = 40
"""A line is never shorter, even if the terminal is."""

_HOUR, _DAY = 3600, 86400
_AGES = {_DAY: "24 h", 7 * _DAY: "7 d", _HOUR: "1 h", 30 * _DAY: "30 d", 365 * _DAY: "365 d"}
"""The ages that are labelled, in seconds; the ones that a narrow line can spare come last."""
_FEWEST_CELLS = 6
"""An age is labelled only if so many cells are left on each of its sides."""
_SHORTEST_BAND = 1.5
"""An age is labelled only if the oldest snapshot is older by this factor: a sliver of time would look like a lot."""
_FUTURE = timedelta(seconds=1)
"""What is dated later than this after now is in the future, as in the column of ages."""


class Symbol(Enum):
    """What a cell shows: its character, the one for a terminal without Unicode, its meaning, and that in few words."""

    NOTHING = ("·", ".", "no snapshot", "none")
    SNAPSHOT = ("○", "o", "snapshot", "snapshot")
    INTACT = ("◐", "i", "intact", "intact")
    PROVEN = ("●", "*", "proven", "proven")
    MOMENTS = ("━", "=", "any moment", "any moment")
    MINUTES = ("─", "-", "each minute", "minutes")
    SNAPSHOT_AND_MOMENTS = ("◇", "+", "snapshot and moments", "with moments")
    INTACT_AND_MOMENTS = ("◈", "I", "intact and moments", "with moments")
    PROVEN_AND_MOMENTS = ("◆", "#", "proven and moments", "with moments")
    GAP = ("░", "~", "gap: not every moment", "gap")
    DAMAGED = ("✗", "x", "damaged", "damaged")
    SOME_DAMAGED = ("⊗", "%", "some damaged", "some damaged")
    FAILED = ("!", "!", "attempt failed", "failed")

    def character(self, *, is_unicode: bool) -> str:
        """Return the character that stands for it."""
        return self.value[0 if is_unicode else 1]


COLOURS = {
    "green": (Symbol.PROVEN, Symbol.PROVEN_AND_MOMENTS),
    "yellow": (Symbol.GAP,),
    "red": (Symbol.DAMAGED, Symbol.SOME_DAMAGED, Symbol.FAILED),
}
"""Colours repeat what the characters say."""


class Span(NamedTuple):
    """A span of time, both ends aware."""

    began_at: datetime
    ended_at: datetime


class Past(NamedTuple):
    """What is known of a database in a store. All times are aware."""

    snapshots: Sequence[tuple[SnapshotId, CheckOutcome | None]]
    """Each, and what was found last of it. At least one, in any order."""
    unreadable: Sequence[datetime] = ()
    """When snapshots were taken whose manifests cannot be read."""
    failed: Sequence[datetime] = ()
    """When attempts at a snapshot were made that failed."""
    moments: Sequence[Span] = ()
    """Any moment of these can be restored."""
    minutes: Sequence[Span] = ()
    """The last commit of each minute of these can be restored."""
    gaps: Sequence[Span] = ()
    """Not every moment of these can be restored, although the log was followed before and after."""


class Timeline(NamedTuple):
    """A line, and the symbols in it, which the legend explains."""

    text: str
    symbols: frozenset[Symbol]


# What lies in a cell, as bits.
_SOUND = 1
_INTACT = 2 | _SOUND
_PROVEN = 4 | _SOUND
_DAMAGED = 8
_FOLLOWED = 16
_MOMENTS = 32 | _FOLLOWED
_MINUTES = 64 | _FOLLOWED
_GAP = 128
_WHOLE = 256
"""Followed, and without a gap."""
_FAILED = 512
_OUTCOMES = {
    None: _SOUND,
    CheckOutcome.INCONCLUSIVE: _SOUND,
    CheckOutcome.PRESENT: _SOUND,
    CheckOutcome.INTACT: _INTACT,
    CheckOutcome.NOT_CHECKABLE: _PROVEN,
    CheckOutcome.PROVEN: _PROVEN,
    CheckOutcome.DAMAGED_STORE: _DAMAGED,
    CheckOutcome.DAMAGED_SOURCE: _DAMAGED,
}
_RULES = (
    (_DAMAGED | _SOUND, Symbol.SOME_DAMAGED),
    (_DAMAGED, Symbol.DAMAGED),
    (_PROVEN | _WHOLE, Symbol.PROVEN_AND_MOMENTS),
    (_PROVEN, Symbol.PROVEN),
    (_INTACT | _WHOLE, Symbol.INTACT_AND_MOMENTS),
    (_INTACT, Symbol.INTACT),
    (_FOLLOWED | _GAP, Symbol.GAP),
    (_SOUND | _WHOLE, Symbol.SNAPSHOT_AND_MOMENTS),
    (_SOUND, Symbol.SNAPSHOT),
    (_MOMENTS, Symbol.MOMENTS),
    (_MINUTES, Symbol.MINUTES),
    (_GAP, Symbol.GAP),
    (_FAILED, Symbol.FAILED),
)
"""The first rule whose bits are all in a cell says what it shows."""


def past_of(
    snapshots: Sequence[tuple[SnapshotId, CheckOutcome | None]],
    spans: Iterable[WindowSpan],
    *,
    unreadable: Sequence[datetime],
    failed: Sequence[datetime],
) -> Past:
    """Gather what a timeline shows; `spans` are the recovery windows of the database in that store."""
    moments, minutes, gaps = [], [], []
    for span in spans:
        last_at = span.window.ended_at
        restorable = span.restorable
        if restorable is None:
            if span.broken is None:
                gaps.append(Span(span.window.began_at or span.window.segments[0].key.seen_at, last_at))
        else:
            began_at, ended_at = restorable
            until = span.minutes_until
            thinned = began_at if until is None else min(max(until, began_at), ended_at)
            if thinned > began_at:
                minutes.append(Span(began_at, thinned))
            if thinned < ended_at or thinned == began_at:
                moments.append(Span(thinned, ended_at))
        gaps += [
            Span(gap.began_at or gap.ended_at or last_at, gap.ended_at or last_at)
            for gap in (span.gap, span.broken)
            if gap is not None
        ]
    return Past(snapshots, unreadable, failed, moments, minutes, gaps)


def draw(past: Past, *, now: datetime, columns: int, is_unicode: bool) -> Timeline:
    """Draw what is known of a database in a store as one line of `columns`, or of `FEWEST_COLUMNS` if that is more.

    It reaches from the oldest snapshot to `now` (aware). What is dated later is counted behind that.
    """
    scale = _Scale(past, now, max(columns, FEWEST_COLUMNS))
    scale.mark_snapshots(past.snapshots)
    for at in past.unreadable:
        scale.mark(at, _DAMAGED)
    for at in past.failed:
        scale.mark(at, _FAILED)
    for spans, what in ((past.moments, _MOMENTS), (past.minutes, _MINUTES), (past.gaps, _GAP)):
        for span in spans:
            scale.mark_span(span, what)
    symbols = [_symbol(cell) for cell in scale.cells]
    return Timeline(scale.labelled([each.character(is_unicode=is_unicode) for each in symbols]), frozenset(symbols))


def legend(timelines: Iterable[Timeline], *, columns: int, is_unicode: bool) -> str:
    """Explain the symbols of some timelines in one line, in few words if it would be longer than `columns`."""
    shown = frozenset().union(*(timeline.symbols for timeline in timelines))
    long, short = (
        separator.join(f"{characters} {words}" for words, characters in _explained(shown, is_unicode, place).items())
        for separator, place in (("  ", 2), (" ", 3))
    )
    return long if len(long) <= columns else short


def _explained(shown: Collection[Symbol], is_unicode: bool, place: int) -> dict[str, str]:  # noqa: FBT001
    """The characters by their meaning, which is at that place of a symbol's value; in the order of the symbols."""
    found: dict[str, str] = {}
    for symbol in Symbol:
        if symbol in shown:
            words = symbol.value[place]
            found[words] = found.get(words, "") + symbol.character(is_unicode=is_unicode)
    return found


def _symbol(cell: int) -> Symbol:
    """Return what a cell shows of all that lies in it."""
    if cell & _FOLLOWED and not cell & _GAP:
        cell |= _WHOLE
    return next((symbol for bits, symbol in _RULES if cell & bits == bits), Symbol.NOTHING)


class _Scale:
    """The cells of a line, and the span of time of each."""

    def __init__(self, past: Past, now: datetime, columns: int) -> None:
        ids = [snapshot_id for snapshot_id, _ in past.snapshots]
        self._future_at = now + _FUTURE
        self._end_id = SnapshotId.new(self._future_at, 0)
        later = sum(each >= self._end_id for each in ids)
        oldest_at = min(ids).taken_at
        self._end = f" now ({output.count(later)} later)" if later else " now"
        self._start = "" if later == len(ids) else f"{output.age(oldest_at, now)} "
        oldest = max(0.0, (now - oldest_at).total_seconds())
        room = columns - len(self._start) - len(self._end)
        self._ages = _labelled_ages(oldest, room)
        room -= sum(len(_AGES[age]) + 2 for age in self._ages)
        bands = len(self._ages) + 1
        # What cannot be divided goes to the newest ones.
        self._counts = [(room + place) // bands for place in range(bands)]
        ages = (oldest, *self._ages, 0.0)
        self._edges = [
            now - timedelta(seconds=began - (began - ended) * cell / count)
            for began, ended, count in zip(ages, ages[1:], self._counts, strict=False)
            for cell in range(count)
        ]
        self.cells = [0] * room

    def mark_snapshots(self, snapshots: Iterable[tuple[SnapshotId, CheckOutcome | None]]) -> None:
        """Add what was found of each snapshot to its cell.

        Ids sort by time, and so the cells are looked up in the ids and not the other way round: there may be 10,000.
        """
        by_outcome: dict[CheckOutcome | None, list[SnapshotId]] = {}
        for snapshot_id, outcome in snapshots:
            by_outcome.setdefault(outcome, []).append(snapshot_id)
        limits = [*(SnapshotId.new(edge, 0) for edge in self._edges), self._end_id]
        for outcome, ids in by_outcome.items():
            ids.sort()
            ends = [bisect_left(ids, limit) for limit in limits]
            for place, (first, end) in enumerate(pairwise(ends)):
                if first < end:
                    self.cells[place] |= _OUTCOMES[outcome]

    def mark(self, at: datetime, what: int) -> None:
        """Add `what` to the cell of a time; to none for one before the oldest snapshot, or in the future."""
        place = bisect_right(self._edges, at) - 1
        if place >= 0 and at < self._future_at:
            self.cells[place] |= what

    def mark_span(self, span: Span, what: int) -> None:
        """Add `what` to each cell that has a part of a span."""
        if span.began_at < self._future_at:
            first, last = (bisect_right(self._edges, moment) - 1 for moment in span)
            for place in range(max(0, first), last + 1):
                self.cells[place] |= what

    def labelled(self, characters: Sequence[str]) -> str:
        """Put the labels between the characters of the cells."""
        parts, start = [], 0
        for count in self._counts:
            parts.append("".join(characters[start : start + count]))
            start += count
        labels = [*(f" {_AGES[age]} " for age in self._ages), ""]
        return self._start + "".join(map("".join, zip(parts, labels, strict=True))) + self._end


def _labelled_ages(oldest: float, room: int) -> list[int]:
    """Return the ages that get a label, the oldest first, when `room` columns are left for cells and labels."""
    chosen: list[int] = []
    for age, label in _AGES.items():
        if oldest < age * _SHORTEST_BAND:
            continue
        room -= len(label) + 2
        if room < _FEWEST_CELLS * (len(chosen) + 2):
            break
        chosen.append(age)
    return sorted(chosen, reverse=True)
