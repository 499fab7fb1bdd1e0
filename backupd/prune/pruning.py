"""One prune of one database in one store, from the decisions to the sweep."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backupd.errors import BackupdError, NoSuchObjectError
from backupd.format.records import Accepted, DrillOutcome, Verdicts
from backupd.holds import Hold, find_shrink, why_distrusted, why_held
from backupd.proofs import Proofs, read_proofs
from backupd.prune.naming import read_holdings, require_readable_manifests, require_readable_trash
from backupd.prune.notes import failure_hold
from backupd.prune.pace import Pace
from backupd.prune.results import PruneResult
from backupd.prune.store_clock import StoreClock
from backupd.prune.sweep import Sweep
from backupd.prune.trash import bring_back, move_to_trash, purge, unmark_undeleted
from backupd.prune.verdicts import read_verdicts, write_verdicts
from backupd.repository.records import forget_records
from backupd.retention import Decision, decide, newest_regular
from backupd.store.keys import RecordKey, RecordKind

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from backupd.config import RetentionSettings
    from backupd.format.ids import SnapshotId
    from backupd.prune.naming import Holdings
    from backupd.repository import Repository
    from backupd.state import StateDirectory

LOCK_SECONDS = 30.0


def prune(
    repository: Repository,
    database: str,
    policy: RetentionSettings | None,
    state: StateDirectory,
    *,
    now: datetime,
    is_dry_run: bool = False,
    accepts_shrink: bool = False,
    lock_seconds: float = LOCK_SECONDS,
    pace: Pace | None = None,
    damaged_sources: Collection[str] = (),
) -> PruneResult:
    """Remove what `policy` does not keep, purge the trash, and sweep. None as a policy removes and deletes nothing.

    Expected failures are in the result, never exceptions. Repeatable, after a failure too. A dry run writes nothing to
    the store. `accepts_shrink` ends the hold of a snapshot that lost much, for every host: the newest is right. `now`
    is aware. What takes longer than `pace` allows is left to the next prune. `damaged_sources` are the ids of snapshots
    that were found damaged as they were captured, in another store maybe: they count where this one knows no better.
    """
    pruning = _Pruning(repository, database, state, now, frozenset(damaged_sources), is_dry_run=is_dry_run)
    error: BackupdError | None = None
    try:
        with repository.lock(database, timeout=lock_seconds):
            pruning.run(policy, pace or Pace(), accepts_shrink=accepts_shrink)
    except BackupdError as caught:
        error = caught
    return pruning.result(error)


class _Pruning:
    """What a prune has done so far, so that an error in the middle hides nothing of it."""

    def __init__(
        self,
        repository: Repository,
        database: str,
        state: StateDirectory,
        now: datetime,
        damaged_sources: frozenset[str],
        *,
        is_dry_run: bool,
    ) -> None:
        self._repository = repository
        self._database = database
        self._state = state
        self._now = now
        self._damaged_sources = damaged_sources
        self._is_dry_run = is_dry_run
        self._pace = Pace()
        self._clock = StoreClock(repository.store, database, now=now, is_dry_run=is_dry_run)
        self._decisions: list[Decision] = []
        self._proofs = Proofs()
        self._known: dict[SnapshotId, DrillOutcome] = {}
        self._hold: Hold | None = None
        self._removed: list[SnapshotId] = []
        self._purged: list[SnapshotId] = []
        self._accepted: SnapshotId | None = None
        self._left = 0
        self._strangers: list[str] = []
        self._sweep: Sweep | None = None

    def result(self, error: BackupdError | None) -> PruneResult:
        deleted = self._sweep.deleted if self._sweep else {}
        waiting = self._sweep.waiting if self._sweep else {}
        return PruneResult(
            database=self._database,
            store=self._repository.url,
            decisions=tuple(self._decisions),
            hold=self._hold,
            removed=tuple(each.manifest.id for each in self._decisions if each.manifest.id in {*self._removed}),
            accepted=self._accepted,
            purged=tuple(sorted(self._purged)),
            deleted_packs=len(deleted),
            freed_bytes=sum(stored.size_bytes for stored in deleted.values()),
            waiting_packs=len(waiting),
            waiting_bytes=sum(stored.size_bytes for stored in waiting.values()),
            unfinished=self._left + (self._sweep.unfinished if self._sweep else 0),
            strangers=(*self._strangers, *(self._sweep.unreadable if self._sweep else ())),
            error=error,
        )

    def run(self, policy: RetentionSettings | None, pace: Pace, *, accepts_shrink: bool) -> None:
        self._pace = pace
        if not self._repository.exists():
            raise NoSuchObjectError(f"{self._repository.url} holds no backups", hint="make one with: backupd now")
        holdings = read_holdings(self._repository, self._database)
        self._strangers = holdings.survey.strangers
        verdicts = read_verdicts(self._repository, self._database, holdings)
        self._decisions = self._decided(holdings, policy)
        require_readable_manifests(self._repository, self._database, holdings)
        if not self._is_dry_run and bring_back(self._repository, self._database, holdings):
            holdings = read_holdings(self._repository, self._database)
            require_readable_manifests(self._repository, self._database, holdings)
            self._decisions = self._decided(holdings, policy)
        verdicts = self._judged(holdings, verdicts, accepts_shrink=accepts_shrink, has_policy=policy is not None)
        if policy is None:
            return
        failure = failure_hold(self._state, self._database, self._repository.url)
        doubt = why_distrusted(holdings.history.manifests, self._known) or why_held(
            holdings.history.manifests,
            now=self._now,
            accepted=verdicts.accepted_order,
            held=verdicts.held,
            trashed=[entry.manifest for entry in holdings.trash.entries],
        )
        self._hold = failure or doubt
        if self._hold is None:
            self._remove()
        require_readable_trash(self._repository, self._database, holdings)
        # After a failed snapshot space may be what is missing, and what is in the trash was removed before that. But
        # a newest snapshot that is in doubt may make somebody want back what lies there.
        if doubt is None:
            self._purge(holdings, policy)
        self._forget_what_is_gone(holdings, policy)
        self._sweep = Sweep(
            self._repository, self._database, self._clock, self._pace, grace=policy.grace, now=self._now
        )
        self._sweep.run(holdings, is_dry_run=self._is_dry_run)
        forget_records(self._repository, self._database, holdings.survey)

    def _decided(self, holdings: Holdings, policy: RetentionSettings | None) -> list[Decision]:
        manifests = holdings.history.manifests
        self._proofs = read_proofs(self._repository, self._database, holdings.survey)
        self._known = self._proofs.verdicts(manifests)
        for snapshot_id in (each.id for each in manifests if str(each.id) in self._damaged_sources):
            if self._known.get(snapshot_id) in {None, DrillOutcome.INTACT}:
                self._known[snapshot_id] = DrillOutcome.DAMAGED_SOURCE
        unknown = self._proofs.perhaps_proven(manifests)
        decisions = decide(
            manifests, policy, now=self._now, known=self._known, undeleted=holdings.survey.undeleted.keys()
        )
        return [_kept_all_the_same(decision) if decision.manifest.id in unknown else decision for decision in decisions]

    def _judged(self, holdings: Holdings, verdicts: Verdicts, *, accepts_shrink: bool, has_policy: bool) -> Verdicts:
        """The verdicts with what has shrunk now, which holds until somebody accepts it, or with that acceptance."""
        manifests = holdings.history.manifests
        newest = newest_regular(manifests)
        shrink = verdicts.held or find_shrink(manifests, accepted=verdicts.accepted_order)
        judged = replace(verdicts, held=shrink)
        if accepts_shrink and shrink is not None and newest is not None:
            self._accepted = newest.id
            judged = Verdicts(accepted_shrink=Accepted(snapshot=newest.id, sequence=newest.sequence), held=None)
        if judged != verdicts and not self._is_dry_run and (has_policy or self._accepted):
            write_verdicts(self._repository, self._database, judged)
        return judged

    def _remove(self) -> None:
        reasons = {each.manifest.id: ", ".join(each.reasons) for each in self._decisions if not each.is_kept}
        if self._is_dry_run:
            self._removed = [*reasons]
        else:
            self._left += move_to_trash(
                self._repository, self._database, reasons, self._removed, self._pace, now=self._now
            )

    def _purge(self, holdings: Holdings, policy: RetentionSettings) -> None:
        """Delete trash entries whose grace is over, but for those of snapshots that are there or are to come back.

        Packs that they name still count as named in this sweep: the listing that showed them stands.
        """
        spared = holdings.survey.manifests.keys() | holdings.survey.undeleted.keys()
        due = {
            snapshot_id: stored
            for snapshot_id, stored in holdings.survey.trash.items()
            if snapshot_id not in spared and self._clock.is_older(stored, policy.grace)
        }
        if self._is_dry_run:
            self._purged = [*due]
        else:
            self._left += purge(self._repository, self._database, due, self._purged, self._pace)

    def _forget_what_is_gone(self, holdings: Holdings, policy: RetentionSettings) -> None:
        """Delete what is kept about snapshots that are neither there nor in the trash, and says nothing of others."""
        if self._is_dry_run:
            return
        known = holdings.survey.manifests.keys() | (holdings.survey.trash.keys() - self._purged)
        left = [each.manifest for each in holdings.trash.entries if each.manifest.id in known]
        condemning = self._proofs.condemning([*holdings.history.manifests, *left])
        drills = [each for each in holdings.survey.drills if each not in known and each not in condemning]
        self._pace.each(
            lambda each: self._repository.store.delete(str(RecordKey(RecordKind.DRILL, self._database, str(each)))),
            drills,
        )
        for snapshot_id, stored in holdings.survey.undeleted.items():
            # A young one may be of somebody who is about to put the manifest back.
            if snapshot_id not in known and self._clock.is_older(stored, policy.grace):
                unmark_undeleted(self._repository, self._database, snapshot_id)


def _kept_all_the_same(decision: Decision) -> Decision:
    reasons = decision.reasons if decision.is_kept else ()
    return Decision(decision.manifest, is_kept=True, reasons=(*reasons, "perhaps proven, the record is damaged"))
