"""Small charts over time: sizes that grow, and what each run took. Each has its facts in words beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from backupd.page.html import Markup, joined, tag
from backupd.page.words import local

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

_WIDTH, _HEIGHT = 1000, 100
_PLACES = 120
"""Values in one chart that differ visibly."""
_HIGHEST = 94
"""The height of the largest value, so that its line is not cut."""


class Point(NamedTuple):
    """A value at a time."""

    at: datetime
    value: float


def growth(title: str, points: Sequence[Point], show: Callable[[float], str], *, now: datetime) -> Markup | None:
    """Return a chart of a value that stays as it is until the next point; None without two different times.

    Points are the oldest first, and `show` formats a value.
    """
    chart = _Chart.of(points, now)
    if chart is None:
        return None
    steps = [(place, chart.height(value)) for place, value in chart.places(last=True)]
    line = f"M{steps[0][0]} {steps[0][1]}" + "".join(f"H{place}V{height}" for place, height in steps[1:]) + f"H{_WIDTH}"
    first, last = points[0], points[-1]
    share = round(100 * (last.value - first.value) / first.value) if first.value > 0 else 0
    change = f" ({share:+d} %)" if share else ""
    words = f"{show(first.value)} on {local(first.at):%Y-%m-%d}{change}"
    return _figure(
        title,
        show(last.value),
        words,
        tag("path", d=f"{line}V{_HEIGHT}H{steps[0][0]}Z", class_="area"),
        tag("path", d=line),
        since=first.at,
    )


def bars(title: str, points: Sequence[Point], show: Callable[[float], str], *, now: datetime) -> Markup | None:
    """Return a chart of separate values, of which the largest of each small span is shown."""
    chart = _Chart.of(points, now)
    if chart is None:
        return None
    lines = "".join(f"M{place} {_HEIGHT}V{chart.height(value)}" for place, value in chart.places(last=False) if value)
    values = sorted(point.value for point in points)
    middle = values[len(values) // 2]
    words = f"{show(middle)} is usual, {show(values[-1])} the most of {len(values):,}"
    drawn = tag("path", d=lines, class_="bars") if lines else None
    return _figure(title, f"{show(points[-1].value)} last", words, drawn, since=points[0].at)


class _Chart(NamedTuple):
    points: Sequence[Point]
    began_at: datetime
    ended_at: datetime
    most: float

    @classmethod
    def of(cls, points: Sequence[Point], now: datetime) -> _Chart | None:
        if not points or points[0].at >= points[-1].at:
            return None
        return cls(points, points[0].at, max(now, points[-1].at), max(point.value for point in points) or 1)

    def places(self, *, last: bool) -> list[tuple[int, float]]:
        """Return one value for each place that has any: the last one there, or the largest."""
        found: dict[int, float] = {}
        for at, value in self.points:
            place = int((at - self.began_at) / (self.ended_at - self.began_at) * _PLACES) * (_WIDTH // _PLACES)
            found[place] = value if last else max(value, found.get(place, 0))
        return [*found.items()]

    def height(self, value: float) -> int:
        return _HEIGHT - round(value / self.most * _HIGHEST)


def _figure(title: str, now: str, words: str, *drawn: Markup | None, since: datetime) -> Markup:
    picture = tag(
        "svg",
        *drawn,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        preserveAspectRatio="none",
        class_="chart",
        role="img",
        aria_label=f"{title}: {now}; {words}",
    )
    axis = tag("div", tag("span", f"{local(since):%Y-%m-%d}"), tag("span", "now"), class_="axis", aria_hidden="true")
    return tag("figure", tag("figcaption", tag("b", joined(title, ": ", now)), words), picture, axis)
