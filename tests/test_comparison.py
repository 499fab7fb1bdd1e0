"""The comparison of a database with what the backup API gives: when it runs, and what a difference means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from harness.notes import change_notes

from backupd.backup.pipeline import Comparison
from backupd.state import StateDirectory

if TYPE_CHECKING:
    from pathlib import Path

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A file; what is in it does not matter here."""
    path = tmp_path / "app.db"
    path.touch()
    return path


def at(database: Path, now: datetime) -> Comparison:
    """What a run at `now` remembers of `database`."""
    state = StateDirectory(database.with_name("state"))
    return Comparison(state, str(database), max_lock_seconds=3.0, now=now)


def test_without_the_note_only_the_api_is_trusted(database: Path) -> None:
    """A state database that cannot be used hides what was found, and costs no snapshot."""
    (database.with_name("state") / ".state.db").mkdir(parents=True)
    comparison = at(database, NOON)
    assert comparison.differs
    comparison.note(is_same=True)
    assert at(database, NOON).differs


def test_comparison_is_due_the_first_time_and_then_weekly(database: Path) -> None:
    """A comparison is due in the first run and then weekly, as long as it finds no difference."""
    first = at(database, NOON)
    assert (first.most_seconds, first.differs) == (0.5, False)
    first.note(is_same=True)
    assert at(database, NOON + 6 * DAY).most_seconds == 0
    assert at(database, NOON + 7 * DAY).most_seconds == 0.5


def test_comparison_that_takes_long_is_put_off_for_a_day_only(database: Path) -> None:
    """A comparison that takes too long is put off for a day, and may then use all of max_lock."""
    at(database, NOON).note(is_same=None)
    at(database, NOON + 23 * HOUR).note(is_same=None)
    assert at(database, NOON + 23 * HOUR).most_seconds == 0.5
    assert at(database, NOON + DAY).most_seconds == 3.0
    at(database, NOON + DAY).note(is_same=True)
    assert at(database, NOON + 2 * DAY).most_seconds == 0


def test_difference_counts_until_the_device_or_the_version_is_another(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A difference counts until another version is used, which compares again at once."""
    at(database, NOON).note(is_same=False)
    assert at(database, NOON + 30 * DAY).differs
    monkeypatch.setattr("backupd.backup.pipeline.__version__", "99.0")
    later = at(database, NOON + HOUR)
    assert (later.differs, later.most_seconds) == (False, 0.5)
    later.note(is_same=True)
    assert not at(database, NOON + HOUR).differs


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"compared_at": "never"}', '{"due_since": "never"}'])
def test_note_that_cannot_be_read_makes_a_comparison_due(database: Path, text: str) -> None:
    """A comparison too many does no harm."""
    at(database, NOON).note(is_same=True)
    change_notes(database.with_name("state"), lambda _: text)
    assert at(database, NOON).most_seconds == 0.5


def test_clock_that_was_ahead_makes_a_comparison_due(database: Path) -> None:
    """A comparison dated in the future does not count."""
    at(database, NOON + 365 * DAY).note(is_same=True)
    assert at(database, NOON).most_seconds == 0.5
