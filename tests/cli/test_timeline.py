from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.cli.timeline import Past, Span, Symbol, Timeline, draw, legend, past_of
from backupd.format import SnapshotId
from backupd.format.records import CheckOutcome
from backupd.repository.moments import Gap, WindowSpan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backupd.repository.windows import RecoveryWindow

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
PROVEN, DAMAGED, INTACT = CheckOutcome.PROVEN, CheckOutcome.DAMAGED_STORE, CheckOutcome.INTACT


def ago(hours: float) -> datetime:
    """A time before now."""
    return NOW - timedelta(hours=hours)


def taken(hours: float, outcome: CheckOutcome | None = None) -> tuple[SnapshotId, CheckOutcome | None]:
    """A snapshot of that age, and what was found of it."""
    return SnapshotId.new(ago(hours), 7), outcome


def drawn(past: Past, columns: int = 60, *, is_unicode: bool = True) -> str:
    """The line of what is known at noon."""
    return draw(past, now=NOW, columns=columns, is_unicode=is_unicode).text


def cells(past: Past) -> str:
    """Ten cells of an hour each: what is drawn between the labels of a snapshot ten hours old."""
    line = drawn(past, 40)
    start, end = "10 h ago ", " now"
    assert line.startswith(start)
    assert line.endswith(end)
    return line.removeprefix(start).removesuffix(end).replace(" 1 h ", "")


def every(minutes: float, hours: float) -> list[tuple[SnapshotId, CheckOutcome | None]]:
    """Snapshots at this interval, and the oldest of this age."""
    return [taken(hours - count * minutes / 60) for count in range(int(hours * 60 / minutes))]


def test_a_long_history_is_denser_near_now() -> None:
    """Labels divide the line, and of each part between two of them there are as many cells."""
    past = Past([taken(90 * 24, PROVEN), *every(12 * 60, 30 * 24), *every(60, 24), *every(5, 1)])
    assert drawn(past, 80) == "90 d ago ●········ 30 d ○○○○○○○○○ 7 d ○○○○○○○○○ 24 h ○○○○○○○○○ 1 h ○○○○○○○○○ now"


@pytest.mark.parametrize(
    ("columns", "labels"),
    [
        (40, ["24 h"]),
        (60, ["7 d", "24 h", "1 h"]),
        (70, ["30 d", "7 d", "24 h", "1 h"]),
        (80, ["365 d", "30 d", "7 d", "24 h", "1 h"]),
        (200, ["365 d", "30 d", "7 d", "24 h", "1 h"]),
    ],
)
def test_a_narrow_line_has_fewer_labels(columns: int, labels: list[str]) -> None:
    """Each label takes room from the cells, and what happened since yesterday is needed most."""
    words = drawn(Past(every(24 * 60, 900 * 24)), columns).split()
    assert words[:3] == ["900", "d", "ago"]
    units = [f"{number} {unit}" for number, unit in pairwise(words[3:]) if unit in {"h", "d"}]
    assert units == labels


def test_one_snapshot_has_a_line() -> None:
    """A single snapshot is the begin of the line, even when it was taken just now."""
    assert drawn(Past([taken(0.05)]), 40) == "3 min ago ○························· now"
    assert drawn(Past([taken(0)]), 40) == "0 s ago ···························○ now"


def test_what_is_dated_in_the_future_is_counted_behind_now() -> None:
    """A snapshot from a wrong clock has no place on the line, and does not stretch it."""
    assert drawn(Past([taken(0.05), taken(-9e4), taken(-1)]), 40) == "3 min ago ○··············· now (2 later)"
    assert drawn(Past([taken(-1)]), 40) == "·························· now (1 later)"
    future = Span(ago(-2), ago(-1))
    assert "━" not in drawn(Past([taken(1)], moments=[future], failed=[ago(-1)], unreadable=[ago(-1)]))


def test_the_oldest_snapshot_may_be_from_1970() -> None:
    """A clock that had no time yet makes the first part long, and leaves the others as they are."""
    oldest = (SnapshotId.new(datetime(1970, 1, 1, tzinfo=UTC), 7), None)
    line = drawn(Past([oldest, taken(0.5)]), 80)
    assert line.startswith("20,779 d ago ○······· 30 d ········ 7 d ")
    assert " 1 h " in line


@pytest.mark.parametrize(
    ("outcomes", "symbol"),
    [
        ([None], "○"),
        ([None, INTACT], "◐"),
        ([INTACT, PROVEN, None], "●"),
        ([DAMAGED], "✗"),
        ([CheckOutcome.DAMAGED_SOURCE], "✗"),
        ([PROVEN, DAMAGED], "⊗"),
        ([None, DAMAGED], "⊗"),
    ],
)
def test_a_cell_shows_the_best_snapshot_and_hides_no_damage(outcomes: list[CheckOutcome | None], symbol: str) -> None:
    """Several snapshots may lie in a cell; with a damaged one among them it is not like a sound one."""
    line = cells(Past([taken(10), *(taken(5, outcome) for outcome in outcomes)]))
    assert set(line[1:]) == {"·", symbol}


def test_a_manifest_that_cannot_be_read_is_damage() -> None:
    """Nothing is known of such a snapshot but its time, and that it cannot be restored."""
    line = cells(Past([taken(10)], unreadable=[ago(5)]))
    assert line.count("✗") == 1


def test_failed_attempts_explain_where_nothing_is() -> None:
    """An attempt that failed is shown only where nothing can be restored from."""
    line = cells(Past([taken(10), taken(5)], failed=[ago(5), ago(3)], moments=[Span(ago(1), ago(0.1))]))
    assert line.count("!") == 1
    assert line.count("○") == 2
    assert line.index("!") > line.rindex("○")


def test_windows_gaps_and_snapshots_are_told_apart() -> None:
    """A gap is shown in the midst of moments, however short it is, and a snapshot in them is a diamond."""
    past = Past(
        [taken(10), taken(6, PROVEN), taken(2), taken(1.5, INTACT)],
        moments=[Span(ago(7), ago(4)), Span(ago(3.99), ago(0))],
        minutes=[Span(ago(9.9), ago(7))],
        gaps=[Span(ago(4), ago(3.99))],
    )
    assert cells(past) == "◇──━◆━━░━◇◈━━━━━━━━━━━"


def test_a_gap_takes_the_moments_from_the_snapshots_in_it() -> None:
    """Where nothing was followed, snapshots are circles again; where a cell has both, the gap is shown."""
    past = Past(
        every(10, 10), moments=[Span(ago(9), ago(6.5)), Span(ago(2.5), ago(0))], gaps=[Span(ago(6.5), ago(2.5))]
    )
    line = cells(past)
    assert line.startswith("○")
    assert re.fullmatch("○+░?◇+░○+░◇*[◇━]+", line)
    assert cells(Past([taken(10)], gaps=[Span(ago(6), ago(2))])).count("░") > 5


def test_every_symbol_differs_without_unicode_and_without_colour() -> None:
    """No two symbols have one character, in either set, and those of the second are ASCII."""
    for is_unicode in (True, False):
        characters = [symbol.character(is_unicode=is_unicode) for symbol in Symbol]
        assert len(set(characters)) == len(Symbol)
        assert all(len(character) == 1 for character in characters)
        assert is_unicode or "".join(characters).isascii()
    line = drawn(Past([taken(10), taken(5, PROVEN)], moments=[Span(ago(3), NOW)]), is_unicode=False)
    assert line.isascii()
    assert set("o.*=") <= set(line)


def test_the_legend_explains_what_is_shown_and_no_more() -> None:
    """One line has each symbol of all timelines once; a narrow terminal gets fewer words."""
    lines = [
        draw(past, now=NOW, columns=80, is_unicode=True)
        for past in (Past([taken(10), taken(5, PROVEN)]), Past([taken(10)], moments=[Span(ago(11), NOW)]))
    ]
    assert legend(lines, columns=80, is_unicode=True) == (
        "· no snapshot  ○ snapshot  ● proven  ━ any moment  ◇ snapshot and moments"
    )
    assert legend(lines, columns=70, is_unicode=True) == "· none ○ snapshot ● proven ━ any moment ◇ with moments"
    everything = Timeline("", frozenset(Symbol))
    for is_unicode in (True, False):
        explained = legend([everything], columns=400, is_unicode=is_unicode)
        assert all(f"{symbol.character(is_unicode=is_unicode)} {symbol.value[2]}" in explained for symbol in Symbol)


_ages = st.floats(-1e5, 1e6)
_outcomes = st.sampled_from([None, *CheckOutcome])


@given(
    snapshots=st.lists(st.builds(taken, _ages, _outcomes), min_size=1, max_size=30),
    times=st.lists(_ages.map(ago), max_size=6),
    columns=st.integers(1, 300),
)
def test_a_line_is_as_wide_as_the_terminal(
    snapshots: list[tuple[SnapshotId, CheckOutcome | None]], times: list[datetime], columns: int
) -> None:
    """Whatever is known, the line has the width of the terminal, or 40 columns, and ends with now."""
    spans = [Span(*sorted(pair)) for pair in pairwise(times)]
    past = Past(snapshots, times, times, spans, spans[1:], spans[:1])
    timeline = draw(past, now=NOW, columns=columns, is_unicode=True)
    assert len(timeline.text) == max(columns, 40)
    assert " now" in timeline.text
    shown = {symbol for symbol in Symbol if symbol.character(is_unicode=True) in timeline.text}
    assert shown == timeline.symbols
    if all(snapshot_id.taken_at <= NOW for snapshot_id, _ in snapshots):
        oldest = min(snapshot_id.taken_at for snapshot_id, _ in snapshots)
        assert " ago " in timeline.text or oldest > NOW
        assert shown - {Symbol.NOTHING}


def test_ten_thousand_snapshots_take_no_time() -> None:
    """A line of 10,000 snapshots with 500 failed attempts takes less than 20 ms of CPU, at the best of five."""
    snapshots = [taken(count / 4, PROVEN if count % 90 == 5 else None) for count in range(10_000, 0, -1)]
    past = Past(snapshots, failed=[ago(count / 4) for count in range(500)], moments=[Span(ago(24), NOW)])
    taken_seconds = []
    for _ in range(5):
        began = time.process_time()
        drawn(past, 200)
        taken_seconds.append(time.process_time() - began)
    assert min(taken_seconds) < 0.02


def window(began_hours: float, ended_hours: float) -> RecoveryWindow:
    """A recovery window between two ages."""
    found: Any = SimpleNamespace(began_at=ago(began_hours), ended_at=ago(ended_hours), segments=())
    return found


def gathered(spans: Iterable[WindowSpan]) -> Past:
    """What a timeline shows of some recovery windows."""
    return past_of([taken(10)], spans, unreadable=(), failed=())


def test_recovery_windows_are_moments_minutes_and_gaps() -> None:
    """What is thinned is minutes, what lies between two windows is a gap, and so is a window of no use."""
    gap = Gap(ago(5), ago(4), "the log was cut")
    spans = [
        WindowSpan(window(12, 11), None, None),
        WindowSpan(window(10, 5), ago(9), None, minutes_until=ago(7)),
        WindowSpan(window(4, 0), ago(4), gap),
    ]
    past = gathered(spans)
    assert past.minutes == [Span(ago(9), ago(7))]
    assert past.moments == [Span(ago(7), ago(5)), Span(ago(4), ago(0))]
    assert past.gaps == [Span(ago(12), ago(11)), Span(ago(5), ago(4))]


def test_a_window_that_was_found_wrong_is_a_gap_from_there_on() -> None:
    """Moments before the snapshot that a check began with stay, and nothing after it counts."""
    past = gathered([WindowSpan(window(10, 0), ago(10), None, broken=Gap(ago(6), ago(0), "commits are wrong"))])
    assert (past.moments, past.gaps) == ([Span(ago(10), ago(6))], [Span(ago(6), ago(0))])
    past = gathered([WindowSpan(window(10, 0), ago(3), None, broken=Gap(ago(6), ago(0), "commits are wrong"))])
    assert (past.moments, past.gaps) == ([], [Span(ago(6), ago(0))])


def test_a_window_that_was_thinned_to_its_end_has_minutes_only() -> None:
    """The limit may lie behind the last commit, or before the first one that can be restored."""
    past = gathered([WindowSpan(window(10, 5), ago(9), None, minutes_until=ago(4))])
    assert (past.minutes, past.moments) == ([Span(ago(9), ago(5))], [])
    past = gathered([WindowSpan(window(10, 5), ago(9), None, minutes_until=ago(9.5))])
    assert (past.minutes, past.moments) == ([], [Span(ago(9), ago(5))])
