"""One prune of one database in one store, from the decisions to the sweep."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, timedelta
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING

import msgspec

from backupd.concurrency import Pace
from backupd.errors import BackupdError, DamageError, IdentityNeededError, NoSuchObjectError, UnsupportedFormatError
from backupd.format import FormatError, NewerFormatError
from backupd.format.records import EMPTY_RETENTION_RECORD, MAX_RECORD_BYTES, Accepted, CheckOutcome, RetentionRecord
from backupd.prune.segments import covered, expired, lasting_windows, merge, mergeable, remove_covered, thinnable
from backupd.prune.sweep import StoreClock, Sweep
from backupd.prune.trash import LOCK_SECONDS, bring_back, move_to_trash, purge, unmark_undeleted
from backupd.repository.proofs import Proofs
from backupd.repository.windows import note_windows
from backupd.retention import Decision, decide, newest_regular
from backupd.retention.holds import Hold, find_shrink, why_distrusted, why_held
from backupd.state import failed_snapshot
from backupd.store.keys import RecordKind, retention_key

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from datetime import datetime

    from backupd.config import RetentionSettings
    from backupd.format import SnapshotId
    from backupd.repository.archive import Archive
    from backupd.repository.history import Holdings, StoredSegment


class PruneOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one prune beside the policy."""

    is_dry_run: bool = False
    """Write nothing to the store, and report what would be done."""
    accepts_shrink: bool = False
    """End the hold of a snapshot that lost much, for every host: the newest one is right."""
    damaged_sources: Collection[str] = ()
    """Ids of snapshots that were found damaged as they were captured, perhaps in another store.

    They count where this store does not know better.
    """


class PruneResult(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a prune of one database in one store; of a dry run, what would be done, by this host's clock."""

    database: str
    store: str
    decisions: tuple[Decision, ...] = ()
    """A decision about every snapshot, oldest first."""
    hold: Hold | None = None
    """Why nothing was removed although the policy would."""
    removed: tuple[SnapshotId, ...] = ()
    """Snapshots that were moved to the trash."""
    accepted: SnapshotId | None = None
    """The snapshot whose shrinking was accepted; None when nothing was held for that."""
    purged: tuple[SnapshotId, ...] = ()
    """Snapshots that were purged from the trash, because their grace was over."""
    deleted_packs: int = 0
    freed_bytes: int = 0
    """Size of the deleted packs."""
    waiting_packs: int = 0
    """Packs that nothing names, within their grace."""
    waiting_bytes: int = 0
    removed_segments: int = 0
    """Segments that were deleted because they were older than commits are kept."""
    unfinished: int = 0
    """How many snapshots, packs and segments are left for the next prune, because the time was up."""
    foreign: tuple[str, ...] = ()
    """Keys of objects that are not of this format, or cannot be read: they are left alone."""
    error: BackupdError | None = None
    """The error that ended the prune early; what is counted above was done before."""

    @property
    def has_changed_anything(self) -> bool:
        """Whether something was moved to the trash, purged from it, or deleted."""
        return bool(self.removed or self.purged or self.deleted_packs or self.removed_segments)

    def values(self) -> dict[str, object]:
        """The result without its decisions, as JSON documents and logs show it."""
        return {
            "database": self.database,
            "store": self.store,
            "hold": None if self.hold is None else {"message": self.hold.message, "hint": self.hold.hint},
            "accepted": None if self.accepted is None else str(self.accepted),
            "removed": [str(snapshot_id) for snapshot_id in self.removed],
            "purged": [str(snapshot_id) for snapshot_id in self.purged],
            "deleted_packs": self.deleted_packs,
            "freed_bytes": self.freed_bytes,
            "waiting_packs": self.waiting_packs,
            "waiting_bytes": self.waiting_bytes,
            "removed_segments": self.removed_segments,
            "unfinished": self.unfinished,
            "strangers": list(self.foreign),
            "error": None if self.error is None else self.error.values(),
        }


_NO_OPTIONS = PruneOptions()
_BEFORE_FIRST_COMMIT = timedelta(hours=1)
"""How much longer than commits snapshots are kept, so that the first commits have one before them."""
_FIRST_OF_DAY = 2
_DAY = timedelta(days=1)


def prune(
    archive: Archive,
    policy: RetentionSettings | None,
    *,
    now: datetime,
    options: PruneOptions = _NO_OPTIONS,
    lock_seconds: float = LOCK_SECONDS,
    pace: Pace | None = None,
) -> PruneResult:
    """Remove what `policy` does not keep, purge the trash, and sweep. None as a policy removes and deletes nothing.

    Expected failures are in the result, never exceptions. Repeatable, after a failure too. `now` is aware. What takes
    longer than `pace` allows is left to the next prune.
    """
    try:
        with archive.lock(timeout=lock_seconds):
            return _Pruning(archive, policy, pace or Pace(), options, now).run()
    except BackupdError as error:
        return PruneResult(database=archive.database, store=archive.url, error=error)


class _Pruning:
    """A prune in progress, with what it has done so far: an error in the middle must hide none of it."""

    def __init__(
        self, archive: Archive, policy: RetentionSettings | None, pace: Pace, options: PruneOptions, now: datetime
    ) -> None:
        self._archive = archive
        self._policy = policy
        self._pace = pace
        self._options = options
        self._now = now
        self._clock = StoreClock(archive, now=now, is_dry_run=options.is_dry_run)
        self._decisions: list[Decision] = []
        self._proofs = Proofs()
        self._known: dict[SnapshotId, CheckOutcome] = {}
        self._hold: Hold | None = None
        self._removed: list[SnapshotId] = []
        self._purged: list[SnapshotId] = []
        self._accepted: SnapshotId | None = None
        self._left = 0
        self._expired: list[StoredSegment] = []
        self._foreign: list[str] = []
        self._sweep: Sweep | None = None

    def run(self) -> PruneResult:
        try:
            self._prune()
        except BackupdError as error:
            return self._result(error)
        return self._result(None)

    def _result(self, error: BackupdError | None) -> PruneResult:
        removed = {*self._removed}
        deleted = self._sweep.deleted if self._sweep else {}
        waiting = self._sweep.waiting if self._sweep else {}
        return PruneResult(
            database=self._archive.database,
            store=self._archive.url,
            decisions=tuple(self._decisions),
            hold=self._hold,
            removed=tuple(each.manifest.id for each in self._decisions if each.manifest.id in removed),
            accepted=self._accepted,
            purged=tuple(sorted(self._purged)),
            deleted_packs=len(deleted),
            freed_bytes=sum(stored.size_bytes for stored in deleted.values()),
            waiting_packs=len(waiting),
            waiting_bytes=sum(stored.size_bytes for stored in waiting.values()),
            removed_segments=len(self._expired),
            unfinished=self._left + (self._sweep.unfinished if self._sweep else 0),
            foreign=(*self._foreign, *(self._sweep.unreadable if self._sweep else ())),
            error=error,
        )

    def _prune(self) -> None:
        policy = self._policy
        if not self._archive.repository.exists():
            raise NoSuchObjectError(f"{self._archive.url} holds no backups", hint="make one with: backupd now")
        holdings = self._archive.holdings(self._archive.repository.take_seen(self._archive.database))
        self._foreign = holdings.listing.foreign
        record = _read_record(holdings)
        self._decisions = self._decided(holdings)
        holdings.require_readable_manifests()
        if not self._options.is_dry_run and bring_back(holdings):
            holdings = self._archive.holdings()
            holdings.require_readable_manifests()
            self._decisions = self._decided(holdings)
        record = self._with_shrink(holdings, record)
        if policy is None:
            return
        failure = _failure_hold(self._archive)
        doubt = why_distrusted(holdings.history.manifests, self._known) or why_held(
            holdings.history.manifests,
            now=self._now,
            accepted=record.accepted_order,
            held=record.held,
            trashed=[entry.manifest for entry in holdings.trash.entries],
        )
        self._hold = failure or doubt
        if self._hold is None:
            self._remove()
            self._remove_segments(holdings, policy)
        holdings.require_readable_trash()
        # After a failed snapshot space may be what is missing, and what is in the trash was removed before that. But
        # while the newest snapshot is in doubt, what lies in the trash may be wanted back.
        if doubt is None:
            self._purge(holdings, policy.grace)
        self._remove_orphaned_records(holdings, policy.grace)
        self._sweep = Sweep(self._archive, self._clock, self._pace, grace=policy.grace, now=self._now)
        self._sweep.run(holdings, is_dry_run=self._options.is_dry_run)
        self._archive.forget_records(holdings.listing)
        note_windows(self._archive, holdings.listing, now=self._now)
        has_minutes = self._hold is None and policy.minutes > policy.commits
        self._merge_segments(holdings, policy.commits if has_minutes else None)

    def _decided(self, holdings: Holdings) -> list[Decision]:
        manifests = holdings.history.manifests
        self._proofs = self._archive.proofs(holdings.listing)
        self._known = self._proofs.known_outcomes(manifests)
        damaged_sources = self._options.damaged_sources
        for snapshot_id in [each.id for each in manifests if each.id in damaged_sources] if damaged_sources else ():
            if self._known.get(snapshot_id) in {None, CheckOutcome.INTACT}:
                self._known[snapshot_id] = CheckOutcome.DAMAGED_SOURCE
        unknown = self._proofs.perhaps_proven(manifests)
        policy = self._policy
        if policy is not None and not policy.is_empty and holdings.listing.segments:
            # Commits that are kept can be restored only from a snapshot before them.
            policy = policy.replaced(within=max(policy.within or timedelta(0), policy.commits + _BEFORE_FIRST_COMMIT))
        decisions = decide(
            manifests, policy, now=self._now, known=self._known, undeleted=holdings.listing.undeleted.keys()
        )
        anyway = dict.fromkeys(unknown, "perhaps proven, the record is damaged")
        if policy is not None and not policy.is_empty and policy.minutes > policy.commits:
            anyway |= dict.fromkeys(_beginnings(holdings), "minutes of a recovery window begin with it")
        return [_kept_anyway(each, reason) if (reason := anyway.get(each.manifest.id)) else each for each in decisions]

    def _with_shrink(self, holdings: Holdings, record: RetentionRecord) -> RetentionRecord:
        """Add to `record` that the database has shrunk, which holds until it is accepted, or the acceptance."""
        manifests = holdings.history.manifests
        newest = newest_regular(manifests)
        shrink = record.held or find_shrink(manifests, accepted=record.accepted_order)
        updated = msgspec.structs.replace(record, held=shrink)
        if self._options.accepts_shrink and shrink is not None and newest is not None:
            self._accepted = newest.id
            updated = RetentionRecord(accepted_shrink=Accepted(snapshot=newest.id, sequence=newest.sequence), held=None)
        if updated != record and not self._options.is_dry_run and (self._policy is not None or self._accepted):
            key = retention_key(self._archive.database)
            self._archive.repository.put_object(key, updated.encode())
        return updated

    def _remove(self) -> None:
        reasons = {each.manifest.id: ", ".join(each.reasons) for each in self._decisions if not each.is_kept}
        if self._options.is_dry_run:
            self._removed = [*reasons]
        else:
            self._left += move_to_trash(self._archive, reasons, self._removed, self._pace, now=self._now)

    def _remove_segments(self, holdings: Holdings, policy: RetentionSettings) -> None:
        """Delete segments that are too old. Nothing depends on them, so that they need no trash."""
        due = expired(holdings.listing.segments, self._clock, commits=policy.commits, minutes=policy.minutes)
        if self._options.is_dry_run:
            self._expired = due
        else:
            self._left += self._pace.each(self._remove_segment, due)

    def _remove_segment(self, segment: StoredSegment) -> None:
        self._archive.delete_segment(segment)
        self._expired.append(segment)

    def _merge_segments(self, holdings: Holdings, thinned_after: timedelta | None) -> None:
        """Merge small segments, and thin those that were stored so long ago; None thins nothing.

        One that is damaged or cannot be decrypted stays, with its neighbours.
        """
        if self._options.is_dry_run:
            return
        left = _without(holdings.listing.segments, self._expired)
        doubles = [*covered(left, self._clock)]

        def may_thin(segment: StoredSegment) -> bool:
            return thinned_after is not None and self._clock.is_older(segment.stored, thinned_after)

        self._left += self._pace.each(partial(self._remove_covered, may_thin=may_thin), doubles, at_once=1)
        left = _without(left, [segment for _, segments in doubles for segment in segments])
        if thinned_after is not None:
            old = [*thinnable(left, self._clock, thinned_after)]
            self._left += self._pace.each(partial(self._merge, thins=True), old, at_once=1)
            left = _without(left, [segment for group in old for segment in group])
        self._left += self._pace.each(self._merge, mergeable(left, self._clock), at_once=1)

    def _remove_covered(
        self, double: tuple[StoredSegment, list[StoredSegment]], *, may_thin: Callable[[StoredSegment], bool]
    ) -> None:
        with suppress(DamageError, IdentityNeededError):
            remove_covered(self._archive, *double, may_thin)

    def _merge(self, group: Sequence[StoredSegment], *, thins: bool = False) -> None:
        # Segments that were forged may not fit into one.
        with suppress(DamageError, IdentityNeededError, FormatError):
            merge(self._archive, group, thins=thins)

    def _purge(self, holdings: Holdings, grace: timedelta) -> None:
        """Delete trash entries whose grace is over, except those of snapshots that are there or are coming back.

        Packs that they name still count as named in this sweep, because the listing has shown the entries.
        """
        spared = holdings.listing.manifests.keys() | holdings.listing.undeleted.keys()
        due = {
            snapshot_id: stored
            for snapshot_id, stored in holdings.listing.trash.items()
            if snapshot_id not in spared and self._clock.is_older(stored, grace)
        }
        if self._options.is_dry_run:
            self._purged = [*due]
        else:
            self._left += purge(self._archive, due, self._purged, self._pace)

    def _remove_orphaned_records(self, holdings: Holdings, grace: timedelta) -> None:
        """Delete records about snapshots that are neither there nor in the trash, if they say nothing of others.

        Those about recovery windows go after the last of their segments.
        """
        if self._options.is_dry_run:
            return
        known = holdings.listing.manifests.keys() | (holdings.listing.trash.keys() - self._purged)
        left = [each.manifest for each in holdings.trash.entries if each.manifest.id in known]
        needed = self._proofs.reporting_damage([*holdings.history.manifests, *left])
        drills = [each for each in holdings.listing.drills if each not in known and each not in needed]
        self._pace.each(lambda each: self._archive.delete_record(RecordKind.DRILL, each), drills)
        windows = [each for each in holdings.listing.continuity if each not in holdings.listing.segments]
        self._pace.each(lambda each: self._archive.delete_record(RecordKind.CONTINUITY, each), windows)
        for snapshot_id, stored in holdings.listing.undeleted.items():
            # A young mark may belong to a host that is about to put the manifest back.
            if snapshot_id not in known and self._clock.is_older(stored, grace):
                unmark_undeleted(self._archive, snapshot_id)


def _without(
    windows: Mapping[SnapshotId, Sequence[StoredSegment]], gone: Collection[StoredSegment]
) -> dict[SnapshotId, list[StoredSegment]]:
    removed = {*gone}
    return {window: [each for each in segments if each not in removed] for window, segments in windows.items()}


def _beginnings(holdings: Holdings) -> Iterator[SnapshotId]:
    """Yield the first snapshots of each day in each recovery window that lasts: commits are restored from one of them.

    The first one in a window is the one that the daemon takes when it begins; one by hand, which has no place in the
    window, may come before it. Another one of each day is there when the segments before it have been removed.
    """
    ids = sorted(each.id for each in holdings.history.manifests)
    for window in lasting_windows(holdings.listing.segments):
        seen = [segment.key.seen_at for segment in holdings.listing.segments[window]]
        within = (each for each in ids if max(window.taken_at, min(seen) - _DAY) <= each.taken_at <= max(seen))
        for _, of_day in groupby(within, key=lambda each: each.taken_at.date()):
            yield from islice(of_day, _FIRST_OF_DAY)


def _kept_anyway(decision: Decision, reason: str) -> Decision:
    reasons = decision.reasons if decision.is_kept else ()
    return Decision(decision.manifest, is_kept=True, reasons=(*reasons, reason))


def _read_record(holdings: Holdings) -> RetentionRecord:
    """Read what the store has recorded of shrinking. Raises `DamageError` and `UnsupportedFormatError`."""
    repository, key = holdings.archive.repository, retention_key(holdings.archive.database)
    if key not in holdings.listing.single:
        return EMPTY_RETENTION_RECORD
    try:
        return RetentionRecord.decode(repository.store.get(key, limit_bytes=MAX_RECORD_BYTES))
    except NewerFormatError as error:
        raise UnsupportedFormatError(
            f"{key} in {repository.url} was written by a newer backupd: {error}",
            hint="install the newer version; nothing was changed",
        ) from error
    except FormatError as error:
        raise DamageError(
            f"{key} in {repository.url} cannot be read: {error}",
            hint="it says whether the database has shrunk, and if that was accepted; when you know, delete it by hand",
        ) from error


def _failure_hold(archive: Archive) -> Hold | None:
    """The hold on an archive whose last snapshot failed."""
    database = archive.database
    failure = failed_snapshot(archive.repository.state, database, archive.url).read()
    if failure is None:
        return None
    at = f"{failure.failed_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return Hold(
        f"the last snapshot of {database} in {archive.url} failed at {at}: {failure.message}",
        hint=f"solve that problem, then: backupd now {database}",
    )
