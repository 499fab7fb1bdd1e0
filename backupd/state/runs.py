"""The runs of the last 90 days: when each snapshot was tried, how long that took, and what came of it.

Older runs are thinned. Of each outcome, the last of an hour is kept after two days, and the last of a day after two
weeks: a failure at night stays visible, and a thousand databases do not fill the disk.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from backupd.errors import masked

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from backupd.state import StateDirectory

_KEPT = timedelta(days=90)
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
_THINNED_AFTER = {_HOUR: timedelta(days=2), _DAY: timedelta(days=14)}
"""From what age on one run of each outcome is enough for a period of this length."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_COLUMNS = "database, store, started_at, duration, outcome, changed_pages, page_count, page_size, stored_bytes, message"
_FORGET = "DELETE FROM runs WHERE (database, store) = (?1, ?2) AND started_at < ?3"
_THIN = f"""{_FORGET} AND EXISTS (
    SELECT 1 FROM runs AS later
    WHERE (later.database, later.store, later.outcome) = (runs.database, runs.store, runs.outcome)
    AND later.started_at > runs.started_at AND later.started_at < (runs.started_at / ?4 + 1) * ?4
)"""  # noqa: S608


class Run(NamedTuple):
    """One attempt at a snapshot of a database in a store (a URL)."""

    database: str
    store: str
    started_at: datetime
    """Aware; kept to the millisecond."""
    duration_seconds: float
    outcome: str
    """The outcome in a BackupResult: "created", "unchanged" or "failed"."""
    changed_pages: int | None
    page_count: int | None
    page_size: int | None
    stored_bytes: int
    message: str | None
    """Why it failed."""


def record_runs(state: StateDirectory, runs: Iterable[Run]) -> None:
    """Remember `runs`. Raises the errors in `UNUSABLE_STATE`."""

    def write(connection: sqlite3.Connection) -> None:
        for run in runs:
            started_at = _milliseconds(run.started_at)
            _thin_hourly(connection, run, started_at)
            values = run._replace(
                duration_seconds=round(run.duration_seconds, 3),
                message=None if run.message is None else masked(run.message),
            )
            row = (*values[:2], started_at, *values[3:])
            connection.execute(f"INSERT OR REPLACE INTO runs ({_COLUMNS}) VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608

    state.database.write(write)


def read_runs(state: StateDirectory, *, latest: int | None = None) -> list[Run]:
    """Return the remembered runs by database, store and time, the newest last; of each only the `latest` ones if given.

    Raises the errors in `UNUSABLE_STATE`.
    """
    # A negative number is no limit.
    statement = (
        f"SELECT {_COLUMNS} FROM (SELECT *, row_number() OVER newest_first AS place FROM runs"  # noqa: S608
        " WINDOW newest_first AS (PARTITION BY database, store ORDER BY started_at DESC))"
        " WHERE place <= ?1 OR ?1 < 0 ORDER BY database, store, started_at"
    )
    rows = state.database.read(
        lambda connection: connection.execute(statement, (-1 if latest is None else latest,)).fetchall()
    )
    return [Run(*row)._replace(started_at=_EPOCH + row[2] * _MILLISECOND) for row in rows]


def _thin_hourly(connection: sqlite3.Connection, run: Run, started_at: int) -> None:
    """Thin the runs of a database in a store when the first of an hour is about to be added."""
    place, hour = (run.database, run.store), _HOUR // _MILLISECOND
    (last,) = connection.execute("SELECT max(started_at) FROM runs WHERE (database, store) = (?, ?)", place).fetchone()
    if last is None or last // hour == started_at // hour:
        return
    connection.execute(_FORGET, (*place, started_at - _KEPT // _MILLISECOND))
    for period, age in _THINNED_AFTER.items():
        connection.execute(_THIN, (*place, started_at - age // _MILLISECOND, period // _MILLISECOND))


def _milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MILLISECOND
