"""The values that the status holds, about each database in each store, and small changes of them.

All times are aware and in UTC. The names are public: the status file and `backupd status --json` have them as keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec.structs import replace

from backupd.errors import StoreRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from backupd.errors import BackupdError

VERSION = 1
"""The version of the status file."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Attempts that failed in a row. The message and the hint are those of the last one."""

    since: datetime
    count: int
    last_at: datetime
    message: str
    hint: str | None = None
    exit_code: int
    is_transient: bool = False
    """Another attempt may succeed although nothing is changed."""
    is_refusal: bool = False
    """The store refused, which may be intended: a bucket may refuse deletions."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is wrong until a person, or the next run, corrects it."""

    since: datetime
    message: str
    hint: str | None = None
    ends_by_itself: bool = False
    """It ends with the next drill that succeeds."""


class LastRun(msgspec.Struct, frozen=True, kw_only=True):
    """The last attempt at a snapshot, however it ended. Sizes are None when it failed before they were known."""

    started_at: datetime
    duration_seconds: float
    outcome: str
    """The outcome in a BackupResult: "created", "unchanged" or "failed"."""
    stored_bytes: int = 0
    changed_pages: int | None = None
    page_count: int | None = None
    page_size: int | None = None

    @property
    def image_bytes(self) -> int | None:
        """The size of the database; None when it is not known."""
        return None if self.page_count is None or self.page_size is None else self.page_count * self.page_size


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the status file was created."""

    snapshots: int = 0
    failures: int = 0
    stored_bytes: int = 0


NOTHING_YET = Totals()


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a recovery window: commits may have been missed here."""

    at: datetime
    reason: str
    is_blind: bool = False
    """No commit is seen after it, because the log cannot be read, or the spool takes no more."""


class FollowHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How the write-ahead log of a database is followed."""

    max_age_seconds: float
    """How old the recovery point of a store may be, as configured."""
    lag_seconds: float
    """What was committed this long ago is in the store, or is counted as waiting there."""
    window: str | None = None
    """The id of the recovery window that is open."""
    window_since: datetime | None = None
    last_gap: Gap | None = None
    gaps: tuple[datetime, ...] = ()
    """When windows ended, in the last 24 hours; the last 50 of them at most."""
    gaps_total: int = 0
    """How many windows have ended since the status file was created."""


class SegmentsHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What one store lacks of the segments of a followed database."""

    waiting_since: datetime | None = None
    """When the oldest commit was seen that waits for the store; None while none waits for longer than usual."""
    waiting_bytes: int = 0
    problem: Problem | None = None
    """Why the store takes no segments."""
    lost_since: datetime | None = None
    """When the oldest commit was seen that the store will never have: its segment was given up."""
    lost_until: datetime | None = None
    """When the newest such commit was seen. A snapshot that was begun later closes the gap."""


class StoreHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The health of one database in one store."""

    current_at: datetime | None = None
    """The store has the database as it was at this moment: it was captured, or nothing had changed."""
    due_by: datetime | None = None
    """When it has to be current again, the grace included; None when nothing is scheduled."""
    planned_since: datetime | None = None
    """When the daemon began to maintain it here; None when only `backupd now` has."""
    fingerprint: str | None = None
    """What `stat` said of the file in the state that the store has; None when that proves nothing, or a run failed."""
    snapshot_id: str | None = None
    snapshot_at: datetime | None = None
    """When the newest snapshot was taken."""
    seen_at: datetime | None = None
    """When the newest manifest was last seen in the store."""
    proven_id: str | None = None
    proven_at: datetime | None = None
    """When the last drill that succeeded was begun."""
    intact_id: str | None = None
    intact_at: datetime | None = None
    """When the last drill was begun that found every stored byte right, and had no identity to restore with."""
    odd_values: str | None = None
    """What the last drill found that is no damage: values that do not fit their columns."""
    last_run: LastRun | None = None
    totals: Totals = NOTHING_YET
    failure: Failure | None = None
    drill_failure: Failure | None = None
    is_put_only: bool = False
    """The keys of this machine neither delete nor read packs: nothing is pruned from here, and no drill is due."""
    is_damaged: bool = False
    """A drill found stored bytes that are not the ones that were written, and none has read them right since."""
    is_schema_unreadable: bool = False
    """The newest capture was of a database whose schema SQLite cannot read."""
    is_source_damaged: bool = False
    """A drill, in this store or another, found that a damaged database was captured, and none has proven one since."""
    damaged_source_id: str | None = None
    """The snapshot of the damaged database."""
    hold: Problem | None = None
    """Pruning would remove something and does not."""
    prune_failure: Failure | None = None
    pruned_at: datetime | None = None
    """When the last prune was made that followed no new snapshot for a day."""
    passed_over: Problem | None = None
    """The last snapshot found manifests that it does not build on: damaged or impossible ones."""
    segments: SegmentsHealth | None = None
    """None when the database is not followed, or the store lacks nothing of it."""
    continuity_at: datetime | None = None
    """When the snapshot was taken that the last check found to be what commits of its recovery window give."""
    continuity_problem: Problem | None = None
    """A check found a recovery window broken or its segments damaged, and none has proven that one or a later one."""
    continuity_window: str | None = None
    """The id of that window."""
    is_window_broken: bool = False
    """Whether its commits are not what was committed: it has to end."""

    @property
    def proofs_at(self) -> tuple[datetime, ...]:
        """When drills last found every byte right, with and without a restore."""
        return tuple(moment for moment in (self.proven_at, self.intact_at) if moment is not None)

    @property
    def last_drill_at(self) -> datetime | None:
        """When the last drill was tried, with whatever result."""
        failed_at = (self.drill_failure.last_at,) if self.drill_failure else ()
        return max((*self.proofs_at, *failed_at), default=None)


class DatabaseHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The health of one database, by the URLs of its stores."""

    path: str
    is_scheduled: bool = False
    """The daemon backs it up. Otherwise it is known because `backupd now` was run for it."""
    next_run_at: datetime | None = None
    next_drill_at: datetime | None = None
    proof_due_by: datetime | None = None
    """When a drill has to have succeeded again, in whatever store, the grace included; None when none is scheduled."""
    running_since: datetime | None = None
    read_problem: Problem | None = None
    """Reading the file without SQLite gave other bytes than SQLite reads."""
    vanished_at: datetime | None = None
    """When a pattern no longer found the file; None while it does, and for a path without wildcards."""
    journal_mode: str | None = None
    """SQLite's word for it at the newest snapshot; None when that is not known."""
    follow: FollowHealth | None = None
    """None when it is not to be followed."""
    stores: Mapping[str, StoreHealth] = msgspec.field(default_factory=dict)


class DaemonHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon that runs, or ran last."""

    pid: int
    version: str
    started_at: datetime
    stopped_at: datetime | None = None
    """When it ended regularly; None while it runs, and after it was killed."""
    config_problem: Problem | None = None
    """Why a changed configuration was refused: the one before is in force."""
    entry_problems: Mapping[str, Failure] = msgspec.field(default_factory=dict)
    """By the pattern of a [[databases]] entry: why it gives no databases."""
    blind_since: datetime | None = None
    """Since when the process that follows databases has ended, or does not answer; None while it reads their logs."""


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """The notifications of one alarm that reached one target."""

    at: datetime
    times: int


class AlarmState(msgspec.Struct, frozen=True, kw_only=True):
    """An alarm that is on, or that is over while a target has not been notified of its end yet."""

    raised_at: datetime
    title: str
    """What it is about in a few words, for when it is over."""
    database: str | None = None
    ended_at: datetime | None = None
    deliveries: Mapping[str, Delivery] = msgspec.field(default_factory=dict)
    """By the key of a target. A target that is missing here knows nothing of the alarm."""

    @property
    def notified_at(self) -> datetime | None:
        """When a target was notified last."""
        return max((delivery.at for delivery in self.deliveries.values()), default=None)

    @property
    def times_notified(self) -> int:
        """How often the target with the most notifications was notified."""
        return max((delivery.times for delivery in self.deliveries.values()), default=0)


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known at one moment."""

    version: int = VERSION
    written_at: datetime | None = None
    """None: nothing was ever written."""
    daemon: DaemonHealth | None = None
    databases: Mapping[str, DatabaseHealth] = msgspec.field(default_factory=dict)
    alarms: Mapping[str, AlarmState] = msgspec.field(default_factory=dict)

    @property
    def paths(self) -> dict[str, str]:
        """The path of each database by its name."""
        return {name: database.path for name, database in self.databases.items()}


class _Finding(Protocol):
    @property
    def message(self) -> str: ...

    @property
    def hint(self) -> str | None: ...


class _Hold(_Finding, Protocol):
    @property
    def ends_by_itself(self) -> bool: ...


def with_database(status: Status, name: str, change: Callable[[DatabaseHealth], DatabaseHealth]) -> Status:
    """Return `status` with one database changed, if it is known there.

    It is `status` itself when the change makes no difference.
    """
    database = status.databases.get(name)
    after = None if database is None else change(database)
    return status if after is None or after == database else with_databases(status, {name: after})


def with_databases(status: Status, changed: Mapping[str, DatabaseHealth]) -> Status:
    """Return `status` with these databases added, or in the place of those with the same name."""
    return replace(status, databases={**status.databases, **changed}) if changed else status


def with_stores(status: Status, urls: Mapping[str, str], change: Callable[[StoreHealth], StoreHealth]) -> Status:
    """Return `status` with one store's health changed for each database in `urls` that is known there.

    It is `status` itself when the change makes no difference, as after most prunes: then no file is written.
    """
    changed = {}
    for name, url in urls.items():
        database = status.databases.get(name)
        before = database.stores.get(url) if database else None
        if database is not None and before is not None and (after := change(before)) != before:
            changed[name] = replace(database, stores={**database.stores, url: after})
    return with_databases(status, changed)


def next_failure(earlier: Failure | None, error: BackupdError | None, at: datetime) -> Failure | None:
    """Return the failure after one more attempt, which failed with `error`, or succeeded (None)."""
    if error is None:
        return None
    return Failure(
        since=earlier.since if earlier else at,
        count=earlier.count + 1 if earlier else 1,
        last_at=at,
        message=error.message,
        hint=error.hint,
        exit_code=int(error.exit_code),
        is_transient=error.retry_can_help,
        is_refusal=isinstance(error, StoreRefusedError),
    )


def next_problem(earlier: Problem | None, found: _Finding, at: datetime) -> Problem:
    """Return `found` as a problem, dated to when it, or another one before it, was found first."""
    return Problem(since=earlier.since if earlier else at, message=found.message, hint=found.hint)


def next_hold(earlier: Problem | None, found: _Hold, at: datetime) -> Problem:
    """Return what holds pruning as a problem, dated as in `next_problem`."""
    return replace(next_problem(earlier, found, at), ends_by_itself=found.ends_by_itself)
