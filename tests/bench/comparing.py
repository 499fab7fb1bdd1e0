"""What changed from one result to another: row by row, and only where the two can be compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from bench.measuring import Quantity
from bench.results import FAILURES, RATIO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.results import Figure, Result

TOLERANCE = 0.15
"""How much worse a row may be before that counts."""
_FASTEST, _SLOWEST = 0.5, 2.0
_ROOM_TO_GROW = 1.2
_PAGE_BYTES = 4096
_BYTES_PER_PAGE = 40
# Differences below these are noise, however large they are in relation: a clock tick, a page, a scheduler's turn.
_RESOLUTION: Mapping[str, float] = {
    RATIO: 0.02,
    Quantity.SECONDS: 0.02,
    Quantity.CPU: 0.02,
    Quantity.WAIT: 0.05,
    Quantity.STORED: 4096,
    Quantity.WRITTEN: 4096,
    Quantity.MEMORY: 2e6,
    Quantity.SHARE: 0.05,
    FAILURES: 0.0,
    Quantity.GAPS: 0.0,
}
_TIMES = {quantity.value for quantity in Quantity if quantity.is_time}


class NotComparableError(Exception):
    """Two results that were taken of different amounts."""


class Verdict(StrEnum):
    """What became of a row; the value is what a table shows."""

    WORSE = "**worse**"
    BETTER = "better"
    SAME = "same"
    NOT_JUDGED = "another machine"
    NOT_MEASURED = "not measured"
    NEW = "new"


@dataclass(frozen=True, slots=True)
class Change:
    """One row in both results, or in one of them."""

    name: str
    before: Figure | None
    after: Figure | None
    relative: float | None
    """How much more it is, 0.15 for 15 %, at one speed of the machine; None where that cannot be said."""
    verdict: Verdict


def compare(committed: Result, new: Result) -> list[Change]:
    """Compare `new` with `committed`, in the order of `committed`. Raises `NotComparableError` for another scale.

    Times of another kind of machine are shown, and not judged. On the same kind, they are corrected by how fast it was
    in each run.
    """
    if committed.scale != new.scale:
        raise NotComparableError(f"the results are of different amounts: {committed.scale} and {new.scale}")
    is_same_machine = committed.machine.slug == new.machine.slug
    names = [*committed.rows, *(name for name in new.rows if name not in committed.rows)]
    return [_change(name, committed.rows.get(name), new.rows.get(name), is_same_machine) for name in names]


def _change(name: str, before: Figure | None, after: Figure | None, is_same_machine: bool) -> Change:  # noqa: FBT001
    if after is None:
        return Change(name, before, after, None, Verdict.NOT_MEASURED)
    if before is None or before.unit != after.unit:
        return Change(name, None, after, None, Verdict.NEW)
    expected = before.value * (_pace_ratio(before, after) if is_same_machine else 1.0)
    difference = after.value - expected
    relative = difference / expected if expected else None
    if after.unit in _TIMES and not is_same_machine:
        return Change(name, before, after, relative, Verdict.NOT_JUDGED)
    verdict = Verdict.SAME
    if abs(difference) > max(TOLERANCE * expected, _RESOLUTION[after.unit]):
        verdict = Verdict.WORSE if difference > 0 else Verdict.BETTER
    return Change(name, before, after, relative, verdict)


def _pace_ratio(before: Figure, after: Figure) -> float:
    """How much slower the machine was, within what such a small computation can say."""
    if not before.pace or not after.pace:
        return 1.0
    return min(max(after.pace / before.pace, _FASTEST), _SLOWEST)


def put_together(results: Sequence[Result], order: Sequence[str]) -> Result:
    """Join results that measured parts of the rows, which get the given order; the last one has the last word.

    Raises `NotComparableError` unless they are of one machine and of the same amounts.
    """
    last = results[-1]
    if len({(result.machine.slug, result.scale) for result in results}) > 1:
        raise NotComparableError("the results are of different machines or amounts, and cannot be put together")
    rows = {name: row for result in results for name, row in result.rows.items()}
    return replace(last, rows={name: rows[name] for name in order if name in rows})


@dataclass(frozen=True, slots=True)
class Growth:
    """One row of two databases of different sizes."""

    name: str
    small: Figure
    large: Figure
    at_most: float
    """What it may be for the large one."""

    @property
    def is_reached(self) -> bool:
        """Whether it grew no more than the database, with some room, and memory by its pages alone."""
        return self.large.value <= self.at_most


def growth(small: Result, large: Result, *, group: str) -> list[Growth]:
    """Compare the rows of `group` for a small and a large database; ratios do not grow, and are left out."""
    factor = large.scale.size_bytes / small.scale.size_bytes
    pages = (large.scale.size_bytes - small.scale.size_bytes) // _PAGE_BYTES
    grown = []
    for name, before in small.rows.items():
        after = large.rows.get(name)
        if after is None or before.group != group or before.unit == RATIO:
            continue
        if before.unit == Quantity.MEMORY:
            allowed = before.value * (1 + TOLERANCE) + pages * _BYTES_PER_PAGE
        else:
            allowed = before.value * factor * _ROOM_TO_GROW * _pace_ratio(before, after)
        grown.append(Growth(name, before, after, allowed))
    return grown
