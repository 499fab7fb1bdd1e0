"""The runs of the last 90 days that came to an end: when a snapshot was begun, how long it took, what came of it.

Older runs are thinned. Of each outcome, the last of an hour is kept after two days, and the last of a day after two
weeks: a failure at night stays visible, and a thousand databases do not fill the disk.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, cast

from backupd.errors import masked

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable

    from backupd.state import StateDirectory

_KEPT = timedelta(days=90)
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
_THINNED_AFTER = {_HOUR: timedelta(days=2), _DAY: timedelta(days=14)}
"""From what age on one run of each outcome is enough for a period of this length."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_MOST_MILLISECONDS = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MILLISECOND
_FORGET = "DELETE FROM runs WHERE place = ?1 AND started_at < ?2"
_THIN = f"""{_FORGET} AND EXISTS (
    SELECT 1 FROM runs AS later
    WHERE (later.place, later.outcome) = (runs.place, runs.outcome)
    AND later.started_at > runs.started_at AND later.started_at < (runs.started_at / ?3 + 1) * ?3
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
            place, started_at = json.dumps([run.database, run.store]), _milliseconds(run.started_at)
            message = None if run.message is None else masked(run.message)
            values = run._replace(duration_seconds=round(run.duration_seconds, 3), message=message)
            _thin_hourly(connection, place, started_at)
            # In ASCII: a path or a message may have bytes that are no text.
            row = (place, started_at, run.outcome, json.dumps([*values[:2], started_at, *values[3:]]))
            connection.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", row)

    state.database.write(write)


def read_runs(
    state: StateDirectory, *, latest: int | None = None, places: Collection[tuple[str, str]] | None = None
) -> list[Run]:
    """Return the remembered runs by database, store and time, the newest last; of each only the `latest` ones if given.

    With `places`, only those of these databases and stores. What is damaged counts as absent. Raises the errors in
    `UNUSABLE_STATE`.
    """
    # A negative number is no limit.
    statement = """
        SELECT record FROM (SELECT *, row_number() OVER newest_first AS number FROM runs
        WHERE ?2 IS NULL OR place IN (SELECT value FROM json_each(?2))
        WINDOW newest_first AS (PARTITION BY place ORDER BY started_at DESC))
        WHERE number <= ?1 OR ?1 < 0 ORDER BY place, started_at
    """
    limit = -1 if latest is None else latest
    wanted = None if places is None else json.dumps([json.dumps(place) for place in places])
    rows = state.database.read(lambda connection: connection.execute(statement, (limit, wanted)).fetchall())
    return [run for (record,) in rows if (run := _decoded(record)) is not None]


def failed_runs(state: StateDirectory, database: str, store: str) -> list[datetime]:
    """Return when the remembered runs of a database in a store (a URL) began that failed, the newest last.

    Raises the errors in `UNUSABLE_STATE`.
    """
    statement = "SELECT started_at FROM runs WHERE place = ? AND outcome = 'failed' ORDER BY started_at"
    place = (json.dumps([database, store]),)
    rows = state.database.read(lambda connection: connection.execute(statement, place).fetchall())
    # Columns have no types: a damaged one may hold anything.
    return [_EPOCH + at * _MILLISECOND for (at,) in rows if isinstance(at, int) and 0 <= at < _MOST_MILLISECONDS]


def _decoded(record: str) -> Run | None:
    try:
        run = Run(*json.loads(record))
        return run._replace(started_at=_EPOCH + cast("int", run.started_at) * _MILLISECOND)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def _thin_hourly(connection: sqlite3.Connection, place: str, started_at: int) -> None:
    """Thin the runs of a database in a store when the first of an hour is about to be added."""
    hour = _HOUR // _MILLISECOND
    last_of_place = "SELECT CAST(coalesce(max(started_at), 0) AS INTEGER) FROM runs WHERE place = ?"
    (last,) = connection.execute(last_of_place, (place,)).fetchone()
    if last // hour == started_at // hour:
        return
    connection.execute(_FORGET, (place, started_at - _KEPT // _MILLISECOND))
    for period, age in _THINNED_AFTER.items():
        connection.execute(_THIN, (place, started_at - age // _MILLISECOND, period // _MILLISECOND))


def _milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MILLISECOND
