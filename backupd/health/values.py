"""What is remembered of how each database is doing in each store: plain values, all times aware and in UTC.

The names are public: the status file and `backupd status --json` have them as keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

VERSION = 1
"""Of the status file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Attempts that failed, one after the other, without a success in between. The words are those of the last one."""

    since: datetime
    count: int
    last_at: datetime
    message: str
    hint: str | None = None
    exit_code: int
    is_transient: bool = False
    """Another attempt may succeed although nobody does anything."""
    is_refusal: bool = False
    """The store understood and said no: some are meant to, such as a bucket that refuses deletions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that holds until somebody, or the next run, puts it right."""

    since: datetime
    message: str
    hint: str | None = None
    ends_by_itself: bool = False
    """With the next drill that succeeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastRun:
    """The last attempt at a snapshot, however it ended. Sizes are None when it failed before they were known."""

    started_at: datetime
    duration_seconds: float
    outcome: str
    """As in a BackupResult: "created", "unchanged" or "failed"."""
    stored_bytes: int = 0
    changed_pages: int | None = None
    page_count: int | None = None
    page_size: int | None = None

    @property
    def image_bytes(self) -> int | None:
        """Size of the database; None when it is not known."""
        return None if self.page_count is None or self.page_size is None else self.page_count * self.page_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counted since the status file was begun."""

    snapshots: int = 0
    failures: int = 0
    stored_bytes: int = 0


NOTHING_YET = Totals()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHealth:
    """One database in one store."""

    current_at: datetime | None = None
    """The store has the state of this moment: a capture succeeded, or proved that nothing had changed."""
    due_by: datetime | None = None
    """When it has to be current again, the grace included; None when nothing is scheduled."""
    planned_since: datetime | None = None
    """When the daemon began to maintain it here; None when only `backupd now` has."""
    fingerprint: str | None = None
    """What `stat` said of the file in the state that the store has; None when that proves nothing, or one failed."""
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
    """When the last drill was begun that found every stored byte right, and could restore nothing: no identity."""
    remark: str | None = None
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
    """The newest capture was of a database whose tables SQLite cannot tell."""
    is_source_damaged: bool = False
    """A drill, in this store or another, found what was captured damaged, and none has found a sound one since."""
    damaged_source_id: str | None = None
    """The snapshot in which that was found."""
    hold: Problem | None = None
    """Pruning would remove something and does not."""
    prune_failure: Failure | None = None
    passed_over: Problem | None = None
    """The last snapshot found manifests that it does not build on: damaged or impossible ones."""

    @property
    def proofs_at(self) -> tuple[datetime, ...]:
        """When drills last found every byte right, with and without a restore."""
        return tuple(moment for moment in (self.proven_at, self.intact_at) if moment is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseHealth:
    """One database, by its stores' URLs."""

    path: str
    is_scheduled: bool = False
    """The daemon looks after it. Otherwise it is known because somebody, or cron, ran `backupd now`."""
    next_run_at: datetime | None = None
    next_drill_at: datetime | None = None
    proof_due_by: datetime | None = None
    """When a drill has to have succeeded again, in whatever store, the grace included; None when none is scheduled."""
    running_since: datetime | None = None
    read_problem: Problem | None = None
    """Reading the file gave something else than SQLite reads."""
    vanished_at: datetime | None = None
    """When a pattern no longer found the file; None while it does, and for a path without wildcards."""
    stores: Mapping[str, StoreHealth] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonHealth:
    """The daemon that runs, or ran last."""

    pid: int
    version: str
    started_at: datetime
    stopped_at: datetime | None = None
    """When it ended as it should; None while it runs, and after it was killed."""
    config_problem: Problem | None = None
    """Why a changed configuration was refused: the one before is in force."""
    entry_problems: Mapping[str, Failure] = field(default_factory=dict)
    """By the pattern of a [[databases]] entry: why it gives no databases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one target of notifications was told of one alarm."""

    at: datetime
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmState:
    """An alarm that is on, or is over and not everybody who heard of it knows that yet."""

    raised_at: datetime
    title: str
    """What it is about in a few words, for when it is over."""
    database: str | None = None
    ended_at: datetime | None = None
    told: Mapping[str, Told] = field(default_factory=dict)
    """By the key of a target. Who is not in here knows nothing of it."""

    @property
    def told_at(self) -> datetime | None:
        """When anybody was told last."""
        return max((told.at for told in self.told.values()), default=None)

    @property
    def times_told(self) -> int:
        """How often the best informed target was told."""
        return max((told.times for told in self.told.values()), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Everything that is remembered, of one moment."""

    version: int = VERSION
    written_at: datetime | None = None
    """None: nothing was ever written."""
    daemon: DaemonHealth | None = None
    databases: Mapping[str, DatabaseHealth] = field(default_factory=dict)
    alarms: Mapping[str, AlarmState] = field(default_factory=dict)

    @property
    def paths(self) -> dict[str, str]:
        """The path of each database by its name."""
        return {name: database.path for name, database in self.databases.items()}
