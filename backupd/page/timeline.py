"""A timeline of one database in one store: snapshots, test restores, recovery windows and gaps, removals, holds, runs.

Positions are shares of the width, so that it fits a phone without small letters. Marks that would cover each other
become one, and shapes differ as well as colours.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from backupd.format.manifest import SnapshotKind
from backupd.format.records import CheckOutcome
from backupd.health.recovery import recovery_stop
from backupd.page.html import Markup, joined, tag
from backupd.page.words import local
from backupd.quantities import count

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from backupd.health.values import FollowHealth
    from backupd.page.values import KnownDatabase, KnownSnapshot, KnownStore, Situation

_LANE_HEIGHT = 38
_LABEL_AT, _TRACK_AT = 12, 26
_AXIS_HEIGHT = 18
_PLACES = 160
"""Marks in one lane that differ visibly."""
_PLACES_OF_STRIP = 50
_STEPS = 1000
"""The width in which the lines of runs are drawn, before they are stretched."""
_DAY = timedelta(days=1)
_YEAR = 365
_SHORTEST_GAP = timedelta(seconds=1)


class Span(NamedTuple):
    """How far a timeline goes back."""

    name: str
    length: timedelta


SPANS = (Span("Last day", _DAY), Span("Last week", 7 * _DAY), Span("Last year", _YEAR * _DAY))


class _Mark(NamedTuple):
    at: datetime
    shape: str
    colour: str
    title: str


class _Bar(NamedTuple):
    began_at: datetime
    ended_at: datetime
    colour: str
    title: str


class _Lane(NamedTuple):
    label: str
    marks: Sequence[_Mark] = ()
    bars: Sequence[_Bar] = ()
    ticks: Markup | None = None
    summary: str = ""


class _Windows(NamedTuple):
    """The spans of which any moment can be restored, and the gaps between them, oldest first."""

    spans: Sequence[tuple[datetime, datetime]]
    gaps: Sequence[tuple[datetime, datetime]]
    follow: FollowHealth | None

    @classmethod
    def of(cls, database: KnownDatabase, store: KnownStore, situation: Situation) -> _Windows:
        spans = restorable_spans(database, store, situation)
        return cls(spans, _gaps(database, spans, situation.now), database.health.follow)


_KEY = (
    ("kept", "mark", "snapshot"),
    ("unkept", "mark", "snapshot that no rule keeps"),
    ("tagged", "mark", "tagged"),
    ("safety", "mark", "before a restore"),
    ("removed", "gone", "removed by retention, in the trash"),
    ("passed", "ok", "test restore passed"),
    ("intact", "ok", "stored bytes are right, not restored"),
    ("failed", "no", "failed, or damage"),
)


def timelines(database: KnownDatabase, store: KnownStore, situation: Situation, *, key: str) -> Markup:
    """Return the timelines of all spans; one is shown at a time. `key` makes their ids differ from others'."""
    choices, panels, shapes = [], [], set[str]()
    windows = _Windows.of(database, store, situation)
    for number, span in enumerate(SPANS):
        name = f"{key}-{number}"
        choices.append(tag("input", type="radio", name=key, id=name, checked=number == 1))
        choices.append(tag("label", span.name, for_=name))
        drawn, used = _timeline(store, windows, situation, span)
        shapes |= used
        panels.append(tag("div", drawn))
    return tag(
        "fieldset",
        tag("legend", "Timeline"),
        *choices,
        *panels,
        _key(shapes, has_gaps=bool(windows.gaps)),
        class_="spans",
    )


def strip(store_runs: Iterable[tuple[datetime, str]], now: datetime) -> Markup:
    """Return a small picture of the runs of the last week: made, unchanged and failed ones."""
    began_at = now - 7 * _DAY
    runs = [(at, outcome) for at, outcome in store_runs if at >= began_at]
    outcomes = Counter(outcome for _, outcome in runs)
    label = f"{_summary(outcomes)} in the last 7 days"
    return tag(
        "svg",
        tag("line", x1="0", x2="100%", y1="10", y2="10", class_="rail"),
        _ticks(runs, began_at, 7 * _DAY, top=3, places=_PLACES_OF_STRIP),
        *(_use(at, "failed", "no", began_at, 7 * _DAY, 10, "failed") for at in _thin(runs, began_at, 7 * _DAY)),
        class_="strip",
        role="img",
        aria_label=label,
    )


def _timeline(store: KnownStore, windows: _Windows, situation: Situation, span: Span) -> tuple[Markup, set[str]]:
    now = situation.now
    began_at = now - span.length
    lanes = [lane for lane in _lanes(store, windows, situation, span) if lane is not None]
    height = len(lanes) * _LANE_HEIGHT + _AXIS_HEIGHT
    content: list[Markup] = [*_axis(began_at, span, height)]
    shapes: set[str] = set()
    for number, lane in enumerate(lanes):
        top = number * _LANE_HEIGHT
        marks = _merged(lane.marks, began_at, span.length)
        shapes |= {mark.shape for mark in marks}
        content += _drawn(lane, marks, began_at, span.length, top)
    summary = "; ".join(lane.summary for lane in lanes if lane.summary)
    drawn = tag(
        "svg",
        tag("title", f"{span.name}: {summary or 'nothing is known of it'}"),
        *content,
        height=height,
        role="img",
    )
    return joined(drawn, tag("p", f"{span.name}: {summary}." if summary else "", class_="small quiet")), shapes


def _lanes(store: KnownStore, windows: _Windows, situation: Situation, span: Span) -> Iterator[_Lane | None]:
    began_at = situation.now - span.length
    dated = zip(store.taken_at, store.snapshots, strict=True)
    snapshots = [_snapshot_mark(each, at) for at, each in dated if at >= began_at]
    yield _Lane("Snapshots", snapshots, summary=count(len(snapshots), "snapshot"))
    removed = [each for each in store.removed if each.id.taken_at >= began_at]
    if store.removed:
        marks = [_Mark(each.id.taken_at, "removed", "gone", f"{each.id}: {each.reason}") for each in removed]
        yield _Lane("Removed by retention", marks, summary=f"{count(len(removed))} removed" if removed else "")
    drills = [mark for mark in _drill_marks(store) if mark.at >= began_at]
    outcomes = Counter("passed" if mark.shape != "failed" else "failed" for mark in drills)
    tested = f"test restores: {', '.join(f'{number:,} {what}' for what, number in sorted(outcomes.items()))}"
    yield _Lane("Test restores", drills, summary=tested if drills else "no test restore")
    yield _windows_lane(store, windows, situation, began_at)
    hold = store.health.hold
    if hold is not None:
        bar = _Bar(hold.since, situation.now, "hold", f"nothing is removed: {hold.message}")
        yield _Lane("Hold", bars=[bar], summary="retention is on hold")
    runs = [(run.started_at, run.outcome) for run in store.runs if run.started_at >= began_at]
    found = Counter(outcome for _, outcome in runs)
    failed = [
        _Mark(run.started_at, "failed", "no", f"failed: {run.message or 'the reason is not known'}")
        for run in store.runs
        if run.outcome == "failed" and run.started_at >= began_at
    ]
    yield _Lane("Runs", failed, ticks=_ticks(runs, began_at, span.length, top=0), summary=_summary(found))


def _summary(outcomes: Counter[str]) -> str:
    words = {"created": "with a new snapshot", "unchanged": "found no change", "failed": "failed"}
    parts = [f"{count(outcomes[outcome])} {words[outcome]}" for outcome in words if outcomes[outcome]]
    return f"runs: {', '.join(parts)}" if parts else "no run"


def _snapshot_mark(snapshot: KnownSnapshot, taken_at: datetime) -> _Mark:
    summary = snapshot.summary
    if summary.kind is not SnapshotKind.REGULAR:
        shape, what = "safety", "before a restore"
    elif summary.tags:
        shape, what = "tagged", ", ".join(summary.tags)
    elif snapshot.kept_because == ():
        shape, what = "unkept", "no rule keeps it"
    else:
        shape, what = "kept", ", ".join(snapshot.kept_because or ())
    return _Mark(taken_at, shape, "mark", f"{summary.id}{': ' if what else ''}{what}")


def _drill_marks(store: KnownStore) -> Iterator[_Mark]:
    looks = {
        CheckOutcome.PROVEN: ("passed", "ok", "passed"),
        CheckOutcome.INTACT: ("intact", "ok", "every stored byte is right"),
        CheckOutcome.DAMAGED_STORE: ("failed", "no", "damaged in the store"),
        CheckOutcome.DAMAGED_SOURCE: ("failed", "no", "was a damaged database"),
    }
    seen = set()
    for snapshot in store.snapshots:
        check = snapshot.check
        if check is not None and check.outcome in looks:
            shape, colour, what = looks[check.outcome]
            seen.add(check.at)
            yield _Mark(check.at, shape, colour, f"{snapshot.summary.id}: {what}")
    health = store.health
    if health.proven_at is not None and health.proven_at not in seen:
        yield _Mark(health.proven_at, "passed", "ok", f"{health.proven_id}: passed")
    failure = health.drill_failure
    if failure is not None and failure.last_at not in seen:
        yield _Mark(failure.last_at, "failed", "no", f"failed: {failure.message}")


def restorable_spans(
    database: KnownDatabase, store: KnownStore, situation: Situation
) -> list[tuple[datetime, datetime]]:
    """Return the spans of which any moment can be restored, as far as is known here, oldest first.

    The open window reaches to the recovery point. Each begins at the first snapshot that lies in it, or before it.
    """
    spans = [(each.began_at, min(each.ended_at, store.broken.get(each.id, each.ended_at))) for each in store.windows]
    follow = database.health.follow
    if follow is not None and follow.window_since is not None:
        stop = recovery_stop(database.health, store.health, situation.status.daemon)
        point = situation.restorable_in(database.name, store.url)
        until = point if stop is None or point is None else min(stop.at, point)
        if until is not None and follow.window is not None:
            until = min(until, store.broken.get(follow.window, until))
        if until is not None and until > follow.window_since:
            # The window is open since then; what is stored of it may begin later, because older commits were removed.
            stored = [began for began, _ in spans if began >= follow.window_since]
            spans = [(began, ended) for began, ended in spans if began < follow.window_since and ended <= until]
            spans.append((min(stored, default=follow.window_since), until))
    taken = sorted(store.taken_at)
    found = []
    for began, ended in ((began, ended) for began, ended in spans if began < ended):
        place = bisect_left(taken, began)
        first = taken[place] if place < len(taken) and taken[place] <= ended else None
        if first is not None or place:
            found.append((first or began, ended))
    return sorted(found)


def _gaps(
    database: KnownDatabase, spans: Sequence[tuple[datetime, datetime]], now: datetime
) -> list[tuple[datetime, datetime]]:
    gaps = [(ended, began) for (_, ended), (began, _) in pairwise(spans) if began - ended > _SHORTEST_GAP]
    follow = database.health.follow
    if follow is not None and follow.window_since is None and follow.last_gap is not None:
        gaps.append((follow.last_gap.at, now))
    return gaps


def _windows_lane(store: KnownStore, windows: _Windows, situation: Situation, began_at: datetime) -> _Lane | None:
    spans, follow = windows.spans, windows.follow
    if not spans and follow is None:
        return None
    whole_since = situation.now - store.policy.commits if store.policy is not None else None
    bars = []
    for began, ended in spans:
        if ended < began_at:
            continue
        whole = began if whole_since is None else min(max(began, whole_since), ended)
        if began < whole:
            bars.append(_Bar(began, whole, "band", f"the last commit of each minute, up to {local(whole):%m-%d %H:%M}"))
        if whole < ended:
            title = f"every commit from {local(whole):%m-%d %H:%M:%S} to {local(ended):%m-%d %H:%M:%S}"
            bars.append(_Bar(whole, ended, "mark", title))
    gaps = [each for each in windows.gaps if each[1] >= began_at]
    for began, ended in gaps:
        why = follow.last_gap.reason if follow and follow.last_gap and abs(follow.last_gap.at - began) < _DAY else ""
        title = f"gap from {local(began):%m-%d %H:%M:%S} to {local(ended):%m-%d %H:%M:%S}{': ' if why else ''}{why}"
        bars.append(_Bar(began, ended, "gap", title))
    covered = sum(
        (min(ended, situation.now) - max(began, began_at) for began, ended in spans if ended > began_at), _NONE
    )
    share = covered / (situation.now - began_at)
    summary = f"any moment of {share:.0%} of it, with {count(len(gaps), 'gap')}" if spans else "no recovery window"
    return _Lane("Any moment", bars=bars, summary=summary)


_NONE = timedelta(0)


def _merged(marks: Sequence[_Mark], began_at: datetime, length: timedelta) -> list[_Mark]:
    """Make one mark of those of one shape that would cover each other."""
    places: dict[tuple[int, str, str], list[_Mark]] = {}
    for mark in marks:
        place = round((mark.at - began_at) / length * _PLACES)
        places.setdefault((place, mark.shape, mark.colour), []).append(mark)
    merged = []
    for group in places.values():
        last = group[-1]
        title = last.title if len(group) == 1 else f"{len(group):,} from {group[0].title} to {last.title}"
        merged.append(last._replace(title=title))
    return merged


def _drawn(lane: _Lane, marks: Sequence[_Mark], began_at: datetime, length: timedelta, top: int) -> Iterator[Markup]:
    middle = top + _TRACK_AT
    yield tag("text", lane.label, x="0", y=top + _LABEL_AT, class_="lane")
    yield tag("line", x1="0", x2="100%", y1=middle, y2=middle, class_="rail")
    for bar in lane.bars:
        left = max(0.0, _share(bar.began_at, began_at, length))
        width = max(0.25, _share(bar.ended_at, began_at, length) - left)
        yield tag(
            "rect",
            tag("title", bar.title),
            x=f"{left:.2f}%",
            width=f"{width:.2f}%",
            y=middle - 5,
            height=10,
            class_=bar.colour,
        )
    if lane.ticks is not None:
        yield tag("svg", lane.ticks, y=middle - 7, height=14, class_="runs", overflow="visible")
    for mark in marks:
        yield _use(mark.at, mark.shape, mark.colour, began_at, length, middle, mark.title)


def _use(at: datetime, shape: str, colour: str, began_at: datetime, length: timedelta, y: int, title: str) -> Markup:
    place = f"{_share(at, began_at, length):.2f}%"
    return tag("use", tag("title", title), href=f"#{shape}", x=place, y=y, class_=colour)


def _share(at: datetime, began_at: datetime, length: timedelta) -> float:
    return min(100.0, 100 * ((at - began_at) / length))


def _ticks(
    runs: Iterable[tuple[datetime, str]], began_at: datetime, length: timedelta, *, top: int, places: int = _STEPS // 2
) -> Markup:
    """Return a small line for each run, in paths that are stretched to the width."""
    width = _STEPS // places
    found: dict[str, set[int]] = {"unchanged": set(), "created": set()}
    for at, outcome in runs:
        if outcome in found:
            found[outcome].add(min(places, int((at - began_at) / length * places)) * width)
    paths = [
        tag("path", d="".join(f"M{place} {low}V{high}" for place in sorted(found[outcome])), class_=class_)
        for outcome, class_, low, high in (("unchanged", None, 5, 9), ("created", "made", 1, 13))
        if found[outcome]
    ]
    return tag(
        "svg",
        *paths,
        y=top,
        height=14,
        viewBox=f"0 0 {_STEPS} 14",
        preserveAspectRatio="none",
        class_="runs",
    )


def _thin(runs: Iterable[tuple[datetime, str]], began_at: datetime, length: timedelta) -> list[datetime]:
    places = {round((at - began_at) / length * _PLACES / 4): at for at, outcome in runs if outcome == "failed"}
    return [*places.values()]


def _axis(began_at: datetime, span: Span, height: int) -> Iterator[Markup]:
    for at, label in _labels(began_at, span):
        place = f"{_share(at, began_at, span.length):.2f}%"
        yield tag("line", x1=place, x2=place, y1=0, y2=height - _AXIS_HEIGHT, class_="tick")
        yield tag("text", label, x=place, y=height - 3, text_anchor="middle")


def _labels(began_at: datetime, span: Span) -> Iterator[tuple[datetime, str]]:
    """Yield round times in local time, few enough for a phone, and none at the very ends."""
    start, end = local(began_at), local(began_at + span.length)
    margin = span.length * 0.04
    if span.length <= _DAY:
        times = (start.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(hours=6 * n) for n in range(12))
        form = "%H:%M"
    elif span.length <= 7 * _DAY:
        times = (start.replace(hour=0, minute=0, second=0, microsecond=0) + n * _DAY for n in range(10))
        form = "%a %d"
    else:
        first = start.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        times = (_months_after(first, n) for n in range(0, 14, 2))
        form = "%b"
    yield from ((at, f"{at:{form}}") for at in times if start + margin <= at <= end - margin)


def _months_after(first: datetime, months: int) -> datetime:
    year, month = divmod(first.month - 1 + months, 12)
    return first.replace(year=first.year + year, month=month + 1)


def _key(shapes: set[str], *, has_gaps: bool) -> Markup:
    items = [
        tag("li", tag("svg", tag("use", href=f"#{shape}", x=7, y=7, class_=colour), aria_hidden="true"), what)
        for shape, colour, what in _KEY
        if shape in shapes
    ]
    if has_gaps:
        box = tag("rect", width=14, height=10, y=2, class_="gap")
        items.append(tag("li", tag("svg", box, aria_hidden="true"), "gap: not every moment can be restored"))
    return tag("ul", *items, class_="key")
