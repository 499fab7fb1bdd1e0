"""What doctor says of databases that are to be followed, and of those that could be."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from harness.statuses import MINUTE, NOON

from backupd.config import Database, FollowSettings
from backupd.doctor.databases import DatabaseFacts, FileFacts
from backupd.doctor.findings import Finding, Verdict
from backupd.doctor.following import check_following
from backupd.health import DatabaseHealth
from backupd.health.values import FollowHealth, Gap

_LOG = FileFacts(0, 0, 0o644, 4 * 10**6)
_WAL = DatabaseFacts(real_path="/data/app.db", journal_mode="wal", wal=_LOG)
_ROLLBACK = DatabaseFacts(real_path="/data/app.db", journal_mode="delete")
_ON = FollowSettings(enabled=True)


def _found(facts: DatabaseFacts, follow: FollowSettings = _ON, known: DatabaseHealth | None = None) -> Finding | None:
    return check_following(Database("app", Path("/data/app.db")), facts, follow, known, NOON)


def test_a_database_in_rollback_mode_cannot_be_followed_and_can_be_switched() -> None:
    """The remedy can be copied into a shell, and names the page with the lines for SQLAlchemy."""
    found = _found(_ROLLBACK)
    assert found is not None
    assert found.verdict is Verdict.WARNING
    assert "rollback-journal mode" in found.message
    assert "sqlite3 /data/app.db 'PRAGMA journal_mode=WAL'" in str(found.remedy)
    assert "SQLAlchemy" in str(found.remedy)


def test_a_log_that_is_open_is_followed() -> None:
    """Nothing is to be done."""
    found = _found(_WAL)
    assert found is not None
    assert (found.verdict, found.check) == (Verdict.OK, "following")
    assert "4.0 MB" in found.message


@pytest.mark.parametrize("log", [None, FileFacts(0, 0, 0o644, 0)])
def test_a_log_that_is_not_there_is_a_note_about_the_last_connection(log: FileFacts | None) -> None:
    """One look cannot tell an application that is idle from one that closes its connections."""
    found = _found(DatabaseFacts(real_path="/data/app.db", journal_mode="wal", wal=log))
    assert found is not None
    assert found.verdict is Verdict.NOTE
    assert "keep one connection open" in str(found.remedy)


def test_windows_that_end_again_and_again_are_a_warning() -> None:
    """The status has the evidence, even while the log is open."""
    ended = tuple(NOON - number * MINUTE for number in range(7))
    gap = Gap(at=NOON, reason="the log was removed")
    follow = FollowHealth(max_age_seconds=300, lag_seconds=4, last_gap=gap, gaps=ended)
    found = _found(_WAL, known=DatabaseHealth(path="/data/app.db", follow=follow))
    assert found is not None
    assert found.verdict is Verdict.WARNING
    assert found.message.startswith("7 recovery windows have ended in 24 h")
    assert found.message.endswith("the log was removed")
    long_ago = FollowHealth(
        max_age_seconds=300, lag_seconds=4, last_gap=gap, gaps=tuple(at - timedelta(days=2) for at in ended)
    )
    found = _found(_WAL, known=DatabaseHealth(path="/data/app.db", follow=long_ago))
    assert found is not None
    assert found.verdict is Verdict.OK


def test_what_could_be_followed_is_mentioned_and_no_warning() -> None:
    """Following is a choice; in rollback-journal mode it would be none."""
    found = _found(_WAL, FollowSettings())
    assert found is not None
    assert found.verdict is Verdict.OK
    assert "[follow] enabled = true" in found.message
    assert _found(_ROLLBACK, FollowSettings()) is None
    assert _found(DatabaseFacts(real_path="/data/app.db")) is None
