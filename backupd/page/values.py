"""What this machine knows of its databases and of what the stores hold: the values that the pages show.

All times are aware and in UTC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from backupd.health.recovery import recovery_point
from backupd.health.summary import state_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from backupd.config import RetentionSettings
    from backupd.format import SnapshotId
    from backupd.format.manifest import AnySummary
    from backupd.health.alarms import Alarm
    from backupd.health.values import DatabaseHealth, Status, StoreHealth
    from backupd.repository.proofs import KnownOutcome
    from backupd.repository.windows import NotedWindow
    from backupd.state.runs import Run

_ORDER = (
    "damaged",
    "source damaged",
    "missing",
    "late",
    "failing",
    "drill failed",
    "unproven",
    "vanished",
    "retrying",
    "waiting",
    "running",
    "current",
)
"""The states of a database, the worst first."""
_UNKNOWN = "waiting"


class KnownSnapshot(NamedTuple):
    """A snapshot that a store had when it was last listed."""

    summary: AnySummary
    check: KnownOutcome | None
    kept_because: tuple[str, ...] | None
    """The reasons why the policy keeps it: empty when the next prune removes it, None when there is no policy."""


class RemovedSnapshot(NamedTuple):
    """A snapshot in the trash of a store."""

    id: SnapshotId
    removed_at: datetime
    reason: str


@dataclass(frozen=True)
class KnownStore:
    """What is known of one database in one store, from when its snapshots were last listed."""

    url: str
    health: StoreHealth
    snapshots: tuple[KnownSnapshot, ...] = ()
    """Oldest first."""
    removed: tuple[RemovedSnapshot, ...] = ()
    windows: tuple[NotedWindow, ...] = ()
    """Oldest first, as the last prune saw them."""
    broken: Mapping[str, datetime] = field(default_factory=dict)
    """The ids of recovery windows that a check found broken, and up to when their commits are right."""
    runs: tuple[Run, ...] = ()
    """Oldest first."""
    policy: RetentionSettings | None = None

    @cached_property
    def by_id(self) -> Mapping[str, KnownSnapshot]:
        """The snapshots by their ids."""
        return {str(each.summary.id): each for each in self.snapshots}

    @cached_property
    def taken_at(self) -> tuple[datetime, ...]:
        """When each of the snapshots was taken: reading the times in ten thousand ids takes its time."""
        return tuple(each.summary.id.taken_at for each in self.snapshots)

    @cached_property
    def stored(self) -> tuple[tuple[datetime, int], ...]:
        """How many bytes the packs of all snapshots up to a time take up, of those that are still there."""
        seen: dict[str, int] = {}
        total, growth = 0, []
        for each, taken_at in zip(self.snapshots, self.taken_at, strict=True):
            for pack in each.summary.packs:
                if pack.sha256 not in seen:
                    seen[pack.sha256] = pack.stored_bytes
                    total += pack.stored_bytes
            growth.append((taken_at, total))
        return tuple(growth)


@dataclass(frozen=True)
class KnownDatabase:
    """What is known of one database."""

    name: str
    health: DatabaseHealth
    stores: tuple[KnownStore, ...]


@dataclass(frozen=True)
class Situation:
    """The status at one moment, and what is wrong. `alive_at` is the daemon's last sign of life."""

    status: Status
    alarms: tuple[Alarm, ...]
    now: datetime
    alive_at: datetime | None

    @cached_property
    def alarms_of(self) -> Mapping[str, tuple[Alarm, ...]]:
        """The alarms about each database that has any, by its name."""
        found: dict[str, list[Alarm]] = {}
        for alarm in self.alarms:
            if alarm.database is not None:
                found.setdefault(alarm.database, []).append(alarm)
        return {name: tuple(alarms) for name, alarms in found.items()}

    def state_in(self, name: str, url: str) -> str:
        """Return the state of a database in a store in one word."""
        database = self.status.databases[name]
        kinds = {alarm.kind for alarm in self.alarms_of.get(name, ()) if alarm.store in {None, url}}
        return state_of(database, database.stores[url], self.status.daemon, kinds)

    def state(self, name: str) -> str:
        """Return the worst of the states of a database in its stores."""
        states = [self.state_in(name, url) for url in self.status.databases[name].stores]
        return min(states, key=_ORDER.index, default=_UNKNOWN)

    def severity(self, name: str) -> tuple[int, int]:
        """Return a sort key: the worst database first; red alarms before others."""
        alarms = self.alarms_of.get(name, ())
        is_red = any(alarm.is_red for alarm in alarms)
        return (0 if is_red else 1 if alarms else 2, _ORDER.index(self.state(name)))

    def restorable_in(self, name: str, url: str) -> datetime | None:
        """Return up to when a database can be restored from a store: its recovery point, or when it was last current.

        None when no snapshot is there.
        """
        database = self.status.databases[name]
        health = database.stores[url]
        alive_at = min(self.alive_at or self.now, self.now)
        point = recovery_point(database, health, self.status.daemon, alive_at=alive_at)
        times = [at for at in (point, health.current_at) if at is not None]
        return min(max(times), self.now) if times else None

    def restorable(self, name: str) -> datetime | None:
        """Return up to when a database can be restored from the store that knows most of it."""
        points = [self.restorable_in(name, url) for url in self.status.databases[name].stores]
        return max((at for at in points if at is not None), default=None)
