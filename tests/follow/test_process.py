"""The following process and its parent: neither ever waits for the other to take what it says."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from backupd.concurrency import has_ended, start_call
from backupd.config import Database
from backupd.follow.process import FollowerProcess

if TYPE_CHECKING:
    from pathlib import Path

_REQUESTS = 3000


def test_a_parent_that_answers_reports_while_it_sends_requests_waits_for_nothing(tmp_path: Path) -> None:
    """Requests fill the pipe to the process, its reports the one from it, and each report is followed by a request."""
    process = FollowerProcess()
    reported: list[str] = []

    def read() -> None:
        for event in process.events():
            if event is not None:
                reported.append(event.name)
                process.mark(event.name)  # as the daemon does

    def send() -> None:
        for number in range(_REQUESTS):
            database = Database(f"app-{number % 10}", tmp_path / "app.db")  # known already: followed from now on again
            process.follow(database, tmp_path / database.name, interval=1, most_bytes=1 << 20)

    with closing(sqlite3.connect(tmp_path / "app.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY)")
        reading, sending = start_call(read, name="reading"), start_call(send, name="sending")
        try:
            assert has_ended(sending, within_seconds=30)
            assert has_ended(process.mark("app-0"), within_seconds=30)
            process.stop()
            assert has_ended(reading, within_seconds=30)
            reading.result()
        finally:
            process.end()
    assert len(reported) >= _REQUESTS
