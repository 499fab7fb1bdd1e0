"""What a verification is asked for, what checks need to run, and what they give for one snapshot and in all."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from random import Random, SystemRandom
from typing import TYPE_CHECKING

from backupd.errors import DamagedSegmentError, DamageError, ExitCode
from backupd.format.records import CheckOutcome
from backupd.repository.packs import PackFault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime, timedelta

    from backupd.errors import BackupdError
    from backupd.format import SnapshotId
    from backupd.format.manifest import AnyManifest
    from backupd.format.records import Continuity
    from backupd.repository.proofs import KnownOutcome
    from backupd.repository.references import Reference


class Level(StrEnum):
    """How thoroughly a verification has to check."""

    UPLOAD_CHECK = "receipt"
    """No pack is read: every object is there, with the right size, and the right checksum where the store keeps one."""
    PACKS = "packs"
    """Every byte is read: SHA-256 of each pack, checksum of its content, hash of each page, digest of each image."""
    DRILL = "drill"
    """Each snapshot is restored to scratch and checked by SQLite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest:
    """A request to verify snapshots. Without references, it means the newest of each database in each store.

    `database` narrows everything down to one. `sample` is the share (above 0, at most 1) of packs or, in a drill, of
    snapshots to check, chosen at random; None is all. `restart` forgets what an interrupted run has read.
    `most_bytes_per_second` limits how fast the stores are read.
    """

    references: tuple[Reference, ...] = ()
    wants_all: bool = False
    database: str | None = None
    level: Level = Level.PACKS
    sample: float | None = None
    restart: bool = False
    most_bytes_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a verification: bytes of packs and packs, read and in total, and bytes of the pages in them."""

    read_bytes: int
    whole_bytes: int
    page_bytes: int
    packs: int
    all_packs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckContext:
    """The context of every check: the time, a limit, and callbacks to the caller.

    `now` is aware. `examination_limit` is how long SQLite may look through a restored database. `should_stop` is called
    often, from several threads; what it raises ends the check. `on_progress` is called from several threads, one at a
    time. `on_note` gets lines for people.
    """

    now: datetime
    examination_limit: timedelta
    should_stop: Callable[[], None] = lambda: None
    on_progress: Callable[[Progress], None] = lambda _: None
    on_note: Callable[[str], None] = lambda _: None
    random: Random = field(default_factory=SystemRandom)


class Depth(StrEnum):
    """How thoroughly a verification has checked a snapshot."""

    SIZES = "sizes"
    CHECKSUMS = "checksums"
    """The checksums that the store keeps."""
    SAMPLE = "sample"
    """Some packs were read."""
    CIPHERTEXT = "ciphertext"
    """Packs have the SHA-256 that names them; no key here decrypts all of them."""
    PAGES = "pages"
    RESTORED = "restored"

    @property
    def outcome(self) -> CheckOutcome:
        """The outcome for a snapshot in which nothing wrong was found at this depth, without a drill."""
        return CheckOutcome.INTACT if self in {Depth.CIPHERTEXT, Depth.PAGES} else CheckOutcome.PRESENT


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The result of a check of one snapshot in one store; `id` is None when there was none to check.

    Drills give it, and a verification gives one for the status of each archive.
    """

    database: str
    store: str
    id: SnapshotId | None
    outcome: CheckOutcome
    started_at: datetime
    """Aware, UTC."""
    duration_seconds: float = 0.0
    image_bytes: int = 0
    fetched_bytes: int = 0
    error: BackupdError | None = None
    """None when the snapshot is proven, not checkable, or intact."""
    findings: tuple[str, ...] = ()
    """What SQLite found, the first hundred lines: damage, what it could not check, odd values, orphans."""
    odd_values: tuple[str, ...] = ()
    """Which values do not fit the type or constraint of their column. They are as they were written: no damage."""
    damaged_packs: tuple[str, ...] = ()
    """SHA-256 of each pack of the snapshot that is damaged or missing."""
    damaged_snapshots: tuple[SnapshotId, ...] = ()
    """Every snapshot in that store that the damage affects: others may need the same packs."""
    manifest: AnyManifest | None = None
    """The manifest of a snapshot whose source was damaged: the same snapshot in another store is no better."""
    earlier: KnownOutcome | None = None
    """What an earlier drill found that could restore the snapshot, when this check could not."""
    is_recorded: bool = False
    """The store has a record already that says at least as much."""
    rows: Mapping[str, int | None] = field(default_factory=dict)
    """Rows by table; None where they cannot be counted."""

    @property
    def proven_at(self) -> datetime | None:
        """When an earlier drill proved a snapshot that this check found intact (aware, UTC)."""
        return None if self.outcome is not CheckOutcome.INTACT or self.earlier is None else self.earlier.at

    @property
    def odd_values_summary(self) -> str | None:
        """The odd values in a few words."""
        if not self.odd_values:
            return None
        more = f" and {len(self.odd_values) - 1} more" if len(self.odd_values) > 1 else ""
        return f"values that do not fit their columns, which is no damage: {self.odd_values[0]}{more}"

    @property
    def note(self) -> str | None:
        """Why an intact snapshot is not proven, for people."""
        if self.outcome is not CheckOutcome.INTACT:
            return None
        why = "not restored: this machine has no identity that decrypts it; every stored byte is what was written"
        return why if self.proven_at is None else f"{why}, and it was proven {self.proven_at:%Y-%m-%d %H:%M:%SZ}"

    def values(self) -> dict[str, object]:
        """The result as JSON documents and logs show it."""
        return {
            "id": None if self.id is None else str(self.id),
            "database": self.database,
            "store": self.store,
            "outcome": str(self.outcome),
            "image_bytes": self.image_bytes,
            "fetched_bytes": self.fetched_bytes,
            "duration_seconds": round(self.duration_seconds, 3),
            "error": None if self.error is None else self.error.values(),
            "note": self.note,
            "remark": self.odd_values_summary,
            "findings": list(self.findings),
            "damaged_packs": list(self.damaged_packs),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuityResult:
    """The result of the check of one recovery window in one store.

    `found` is what was found; None when the check has not come to its end, because of `error`. That is a `DamageError`
    when the window is broken, too. `warning` is why the outcome could not be recorded in the store, if so.
    """

    database: str
    store: str
    window: SnapshotId | None
    """None when none could be chosen, because of `error`."""
    started_at: datetime
    """Aware, UTC."""
    found: Continuity | None = None
    error: BackupdError | None = None
    warning: str | None = None
    segments_bytes: int = 0
    """Stored bytes of the segments whose commits were replayed."""
    duration_seconds: float = 0.0

    @property
    def is_broken(self) -> bool:
        """Whether commits are not what was committed."""
        return self.found is not None and self.found.is_broken

    @property
    def is_damage(self) -> bool:
        """Whether commits are not what was committed, or segments not what was stored."""
        return self.is_broken or isinstance(self.error, DamagedSegmentError)

    def values(self) -> dict[str, object]:
        """The result as JSON documents and logs show it."""
        found = self.found
        return {
            "database": self.database,
            "store": self.store,
            "window": self.window and str(self.window),
            "outcome": "failed" if found is None else found.outcome.value,
            "base": found and str(found.base),
            "snapshot": found and str(found.snapshot),
            "first_commit": found and found.after + 1,
            "last_commit": found and found.by,
            "segments_bytes": self.segments_bytes,
            "duration_seconds": round(self.duration_seconds, 3),
            "error": None if self.error is None else self.error.values(),
            "warning": self.warning,
        }


def source_found_damaged_before(database: str, store: str, snapshot: SnapshotId, found: KnownOutcome) -> DamageError:
    """The error for a damaged source that an earlier drill found, when this check cannot restore the snapshot."""
    return DamageError(
        f"every stored byte of snapshot {snapshot} of {database} in {store} is right, but a test restore found "
        f"{found.at:%Y-%m-%d %H:%M:%SZ} that it is a damaged database as it was captured; it has not been restored "
        "again since: this machine has no key, or was not asked to",
        hint=f"check the live one with PRAGMA integrity_check; when it is repaired: backupd now {database}, then where "
        f"the key is: backupd verify {database}@latest --level drill --identity FILE",
    )


class Kind(StrEnum):
    """A kind of finding. The kinds for packs are the values of `PackFault`."""

    MANIFEST_DAMAGED = "manifest-damaged"
    """The snapshot cannot be restored from this store."""
    PAGE_MAP_DAMAGED = "page-map-damaged"
    """The snapshot cannot be restored from this store: its manifest was written with a page map that makes no sense."""
    PACK_MISSING = PackFault.MISSING.value
    PACK_WRONG_SIZE = PackFault.WRONG_SIZE.value
    PACK_WRONG_CHECKSUM = PackFault.WRONG_CHECKSUM.value
    PACK_UNREADABLE = PackFault.UNREADABLE.value
    PAGE_WRONG = PackFault.PAGE_WRONG.value
    PACK_DOES_NOT_FIT = PackFault.DOES_NOT_FIT.value
    IMAGE_DIGEST_WRONG = "image-digest-wrong"
    """Every pack is right, and together they are not the image that was captured."""
    SOURCE_DAMAGED = "source-damaged"
    """Every byte is what was captured, and SQLite found that database damaged."""
    NOT_CHECKABLE = "not-checkable"
    """Information: something could not be checked here, or only in part."""
    ODD_VALUES = "odd-values"
    """Information: values that do not fit the type or constraint of their column, as they were written."""
    ORPHANED_ROWS = "orphaned-rows"
    """Information: rows whose foreign key refers to a row that does not exist. The application may live with it."""
    ORPHAN = "orphan"
    """Information: packs that no snapshot needs."""

    @property
    def is_damage(self) -> bool:
        """Whether a snapshot does not restore to a sound database."""
        return self not in {Kind.NOT_CHECKABLE, Kind.ODD_VALUES, Kind.ORPHANED_ROWS, Kind.ORPHAN}

    @property
    def is_of_store(self) -> bool:
        """Whether stored bytes differ from those that were written."""
        return self.is_damage and self is not Kind.SOURCE_DAMAGED


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was found in one store. `key` is that of the object; empty for a finding about the whole store.

    `snapshots` are all that it affects, the oldest first, also those outside the selection; for a pack, all that name
    it. `pack` is the SHA-256 (hex) of the pack to blame, None when none is.
    """

    kind: Kind
    store: str
    database: str | None
    key: str
    reason: str
    snapshots: tuple[SnapshotId, ...] = ()
    pack: str | None = None

    @property
    def is_damage(self) -> bool:
        """Whether a snapshot does not restore to a sound database."""
        return self.kind.is_damage

    def values(self) -> dict[str, object]:
        """The finding as JSON documents show it."""
        return {
            "kind": str(self.kind),
            "is_damage": self.is_damage,
            "store": self.store,
            "database": self.database,
            "key": self.key,
            "reason": self.reason,
            "snapshots": [str(each) for each in self.snapshots],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSnapshot:
    """One snapshot in one store after a verification; `depth` is None when the check did not come to its end."""

    id: SnapshotId
    database: str
    store: str
    level: Level
    outcome: CheckOutcome
    depth: Depth | None
    packs: int
    """How many packs the snapshot has."""
    rows: Mapping[str, int | None] = field(default_factory=dict)
    """Rows by table, after a restore; None where they cannot be counted."""

    @property
    def summary(self) -> str:
        """The outcome in a word, as JSON documents have it: right, damaged or unknown."""
        if self.outcome.is_damage:
            return "damaged"
        return "unknown" if self.outcome is CheckOutcome.INCONCLUSIVE else "right"

    def values(self) -> dict[str, object]:
        """The snapshot as JSON documents show it."""
        return {
            "id": str(self.id),
            "database": self.database,
            "store": self.store,
            "level": str(self.level),
            "outcome": self.summary,
            "looked_at": None if self.depth is None else str(self.depth),
            "packs": self.packs,
            "rows": dict(self.rows),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Everything that one run found, in all stores."""

    snapshots: tuple[VerifiedSnapshot, ...] = ()
    findings: tuple[Finding, ...] = ()
    problems: tuple[BackupdError, ...] = ()
    """Why stores, or parts of them, could not be checked."""
    warnings: tuple[str, ...] = ()
    status_results: tuple[CheckResult, ...] = ()
    """What the status of this machine must record, at most one result of each database in each store."""
    continuity: tuple[ContinuityResult, ...] = ()
    """Checks of recovery windows, at most one in each archive."""
    damaged_sources: tuple[CheckResult, ...] = ()
    """Drills, of any snapshots, that found a database damaged as it was captured."""
    packs_read: int = 0
    """Packs that this run read."""
    packs_known: int = 0
    """Packs that the interrupted run before this one read, and this one did not read again."""
    read_bytes: int = 0
    duration_seconds: float = 0.0

    @property
    def exit_code(self) -> ExitCode:
        """Damage first; then the code of the first problem, or "partly done" where anything could be checked."""
        codes = [problem.exit_code for problem in self.problems]
        if ExitCode.DAMAGE_FOUND in codes or any(finding.is_damage for finding in self.findings):
            return ExitCode.DAMAGE_FOUND
        if not codes:
            return ExitCode.DONE
        is_any_checked = any(each.outcome is not CheckOutcome.INCONCLUSIVE for each in self.snapshots)
        return ExitCode.PARTLY_DONE if is_any_checked else codes[0]
