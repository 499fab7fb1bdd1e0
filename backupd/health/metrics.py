"""The metrics for Prometheus. Times are Unix times in seconds; a value that is not known has no sample.

For each database in each store, with the labels `database` and `store` (its URL):

    backupd_last_current_timestamp_seconds   the store has the state of this time: captured, or unchanged
    backupd_last_success_timestamp_seconds   when the newest snapshot was taken
    backupd_last_proven_timestamp_seconds    when a drill last succeeded
    backupd_last_intact_timestamp_seconds    when a drill last found every byte right, and had no key to restore it
    backupd_due_timestamp_seconds            when it has to be current again, the grace included
    backupd_run_duration_seconds             how long the last attempt at a snapshot took
    backupd_pages_changed                    pages that the last attempt stored
    backupd_image_bytes                      size of the database at the last attempt
    backupd_snapshots_total                  snapshots made
    backupd_failures_total                   attempts that failed
    backupd_stored_bytes_total               bytes of packs written
    backupd_is_current                       1, or 0 when an alarm says that it is not
    backupd_recovery_point_timestamp_seconds every commit up to then is stored; only where it is followed
    backupd_continuity_proven_timestamp_seconds
                                             commits up to then gave a later snapshot; only where that was checked
    backupd_waiting_segments_bytes           segments that wait for the store; only where it is followed

For each database, with the label `database`:

    backupd_next_run_timestamp_seconds       when its next round is due
    backupd_next_drill_timestamp_seconds     when its next drill is due
    backupd_running                          1 while a run of it is in progress
    backupd_recovery_window_open             1, or 0 while no recovery window is open; only where it is to be followed
    backupd_recovery_gaps_total              recovery windows that have ended; only where it is to be followed

For each store, with the label `store`:

    backupd_store_errors_total               attempts that failed, of all databases

In all:

    backupd_healthy                          1, or 0 when `backupd status --check` fails
    backupd_alarm                            alarms that are on: labels kind, database, store
    backupd_databases                        databases that are backed up
    backupd_build_info                       1, with the label version

Counters restart when the status file is lost.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from backupd import __version__
from backupd.health.alarms import is_healthy
from backupd.health.heartbeats import sendable
from backupd.health.recovery import recovery_point

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from datetime import datetime

    from prometheus_client.core import Metric

    from backupd.health.alarms import Alarm
    from backupd.health.values import DatabaseHealth, Status, StoreHealth

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""The content type of `metrics_text`."""


def metrics_text(status: Status, alarms: Collection[Alarm], *, now: datetime) -> bytes:
    """Return the answer to `GET /metrics` for a status and its alarms at `now` (aware)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_HealthCollector(status, alarms, now))
    return generate_latest(registry)


class _PerStore(NamedTuple):
    name: str
    help: str
    value: Callable[[StoreHealth], float | None]
    is_counter: bool = False


class _PerDatabase(NamedTuple):
    name: str
    help: str
    value: Callable[[DatabaseHealth], float | None]
    is_counter: bool = False


_PER_STORE = (
    _PerStore(
        "backupd_last_current_timestamp_seconds",
        "The store has the state of the database of this time.",
        lambda health: _seconds(health.current_at),
    ),
    _PerStore(
        "backupd_last_success_timestamp_seconds",
        "When the newest snapshot was taken.",
        lambda health: _seconds(health.snapshot_at),
    ),
    _PerStore(
        "backupd_last_proven_timestamp_seconds",
        "When a drill (a full restore to scratch) last succeeded.",
        lambda health: _seconds(health.proven_at),
    ),
    _PerStore(
        "backupd_last_intact_timestamp_seconds",
        "When a drill last found every stored byte right, and had no identity to restore the snapshot with.",
        lambda health: _seconds(health.intact_at),
    ),
    _PerStore(
        "backupd_due_timestamp_seconds",
        "When the database has to be current again, the grace included.",
        lambda health: _seconds(health.due_by),
    ),
    _PerStore(
        "backupd_run_duration_seconds",
        "How long the last attempt at a snapshot took.",
        lambda health: health.last_run.duration_seconds if health.last_run else None,
    ),
    _PerStore(
        "backupd_pages_changed",
        "Pages that the last attempt at a snapshot stored.",
        lambda health: health.last_run.changed_pages if health.last_run else None,
    ),
    _PerStore(
        "backupd_image_bytes",
        "Size of the database at the last attempt at a snapshot.",
        lambda health: health.last_run.image_bytes if health.last_run else None,
    ),
    _PerStore("backupd_snapshots", "Snapshots made.", lambda health: health.totals.snapshots, is_counter=True),
    _PerStore(
        "backupd_failures",
        "Attempts at a snapshot that failed.",
        lambda health: health.totals.failures,
        is_counter=True,
    ),
    _PerStore(
        "backupd_stored_bytes", "Bytes of packs written.", lambda health: health.totals.stored_bytes, is_counter=True
    ),
)
_PER_DATABASE = (
    _PerDatabase(
        "backupd_next_run_timestamp_seconds",
        "When the next round of the database is due.",
        lambda database: _seconds(database.next_run_at),
    ),
    _PerDatabase(
        "backupd_next_drill_timestamp_seconds",
        "When the next drill of the database is due.",
        lambda database: _seconds(database.next_drill_at),
    ),
    _PerDatabase(
        "backupd_running",
        "1 while a run of the database is in progress.",
        lambda database: float(database.running_since is not None),
    ),
    _PerDatabase(
        "backupd_recovery_window_open",
        "1, or 0 while no recovery window is open.",
        lambda database: None if database.follow is None else float(database.follow.window is not None),
    ),
    _PerDatabase(
        "backupd_recovery_gaps",
        "Recovery windows that have ended.",
        lambda database: None if database.follow is None else database.follow.gaps_total,
        is_counter=True,
    ),
)


class _HealthCollector(Collector):
    def __init__(self, status: Status, alarms: Collection[Alarm], now: datetime) -> None:
        self._daemon = status.daemon
        self._databases = {
            name: database for name, database in status.databases.items() if database.vanished_at is None
        }
        self._alarms = alarms
        self._now = now
        self._is_healthy = is_healthy(status, alarms)

    def collect(self) -> Iterator[Metric]:
        """Yield every family that is described above."""
        for metric in _PER_STORE:
            family = CounterMetricFamily if metric.is_counter else GaugeMetricFamily
            found: Metric = family(metric.name, metric.help, labels=("database", "store"))
            for name, url, health in self._stores():
                _add(found, (name, url), metric.value(health))
            yield found
        yield self._is_current()
        yield from self._recovery()
        for per_database in _PER_DATABASE:
            family = CounterMetricFamily if per_database.is_counter else GaugeMetricFamily
            found = family(per_database.name, per_database.help, labels=("database",))
            for name, database in self._databases.items():
                _add(found, (name,), per_database.value(database))
            yield found
        yield self._store_errors()
        yield from self._whole()

    def _stores(self) -> Iterator[tuple[str, str, StoreHealth]]:
        for name, database in self._databases.items():
            for url, health in database.stores.items():
                yield name, url, health

    def _is_current(self) -> Metric:
        late = {(alarm.database, alarm.store) for alarm in self._alarms if alarm.kind in {"failing", "stale"}}
        found = GaugeMetricFamily(
            "backupd_is_current",
            "1, or 0 when an alarm says that the database is not current in the store.",
            labels=("database", "store"),
        )
        for name, url, _ in self._stores():
            _add(found, (name, url), float((name, url) not in late))
        return found

    def _recovery(self) -> Iterator[Metric]:
        points = GaugeMetricFamily(
            "backupd_recovery_point_timestamp_seconds",
            "Every commit that was seen up to this time is stored.",
            labels=("database", "store"),
        )
        waiting = GaugeMetricFamily(
            "backupd_waiting_segments_bytes", "Bytes of segments that wait for the store.", labels=("database", "store")
        )
        proven = GaugeMetricFamily(
            "backupd_continuity_proven_timestamp_seconds",
            "Commits up to this time, added to a snapshot, were found to give a later one.",
            labels=("database", "store"),
        )
        for name, url, health in self._stores():
            database = self._databases[name]
            point = recovery_point(database, health, self._daemon, alive_at=self._now)
            _add(points, (name, url), _seconds(point))
            if database.follow is not None:
                _add(waiting, (name, url), health.segments.waiting_bytes if health.segments else 0)
            _add(proven, (name, url), _seconds(health.continuity_at))
        yield points
        yield waiting
        yield proven

    def _store_errors(self) -> Metric:
        errors: Counter[str] = Counter()
        for _, url, health in self._stores():
            errors[url] += health.totals.failures
        found = CounterMetricFamily(
            "backupd_store_errors", "Attempts at a snapshot that failed, of all databases.", labels=("store",)
        )
        for url, count in errors.items():
            _add(found, (url,), count)
        return found

    def _whole(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "backupd_healthy", "1, or 0 when `backupd status --check` fails.", value=float(self._is_healthy)
        )
        found = GaugeMetricFamily("backupd_alarm", "Alarms that are on.", labels=("kind", "database", "store"))
        # Several patterns may have the same labels, and Prometheus takes one sample for each.
        counts = Counter((alarm.kind, alarm.database or "", alarm.store or "") for alarm in self._alarms)
        for labels, count in counts.items():
            _add(found, labels, count)
        yield found
        yield GaugeMetricFamily("backupd_databases", "Databases that are backed up.", value=len(self._databases))
        version = GaugeMetricFamily("backupd_build_info", "The version that runs.", labels=("version",))
        version.add_metric((__version__,), 1.0)
        yield version


def _add(family: Metric, labels: tuple[str, ...], value: float | None) -> None:
    if value is not None:
        family.add_metric([sendable(label) for label in labels], value)  # type: ignore[attr-defined]


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
