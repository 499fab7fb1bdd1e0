from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from backupd.cli import output


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (3_240_000, "3.2 MB"),
        (99_900_000, "99.9 MB"),
        (99_960_000, "100 MB"),
        (999_400_000, "999 MB"),
        (999_600_000, "1.0 GB"),
        (1_004_322_816, "1.0 GB"),
        (5 * 10**18, "5000 PB"),
    ],
)
def test_sizes_are_decimal(size_bytes: int, text: str) -> None:
    """Three digits or two, and never a thousand of a unit that has a next one."""
    assert output.size(size_bytes) == text


@pytest.mark.parametrize(
    ("elapsed", "text"),
    [
        (timedelta(0), "0 s ago"),
        (timedelta(milliseconds=-400), "0 s ago"),
        (timedelta(seconds=59.9), "59 s ago"),
        (timedelta(minutes=1), "1 min ago"),
        (timedelta(minutes=59, seconds=59), "59 min ago"),
        (timedelta(hours=3), "3 h ago"),
        (timedelta(hours=47, minutes=59), "47 h ago"),
        (timedelta(hours=48), "2 d ago"),
        (timedelta(days=1500), "1,500 d ago"),
        (timedelta(minutes=-5), "in the future"),
    ],
)
def test_age_has_the_largest_unit_that_is_not_misleading(elapsed: timedelta, text: str) -> None:
    """Seconds, minutes, hours and days."""
    now = datetime(2026, 11, 22, 8, tzinfo=UTC)
    assert output.age(now - elapsed, now) == text


def test_count_has_separators_and_its_noun() -> None:
    """Thousands are separated, and one is not several."""
    assert output.count(245_196) == "245,196"
    assert output.count(1, "page") == "1 page"
    assert output.count(0, "page") == "0 pages"


@pytest.mark.parametrize(("duration", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (75, "75 s"), (180, "3 min")])
def test_duration_has_tenths_while_they_matter(duration: float, text: str) -> None:
    """Below ten seconds."""
    assert output.seconds(duration) == text


@pytest.mark.parametrize(
    ("zone", "moment", "text"),
    [
        ("America/New_York", datetime(1, 1, 1, tzinfo=UTC), "0001-01-01 00:00:00+00:00"),
        ("Pacific/Auckland", datetime(9999, 12, 31, 23, tzinfo=UTC), "9999-12-31 23:00:00+00:00"),
    ],
)
def test_the_ends_of_the_calendar_have_a_time(
    monkeypatch: pytest.MonkeyPatch, zone: str, moment: datetime, text: str
) -> None:
    """Foreign objects may name any time: one that does not exist in the zone of this machine is shown in UTC."""
    with monkeypatch.context() as changed:
        changed.setenv("TZ", zone)
        time.tzset()
        shown = output.local_time(moment)
    time.tzset()
    assert shown == text
