"""One prune of one database in one store, from the decisions to the sweep."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backupd.errors import BackupdError, NoSuchObjectError
from backupd.prune.naming import read_holdings, require_readable_manifests, require_readable_trash
from backupd.prune.notes import failure_hold
from backupd.prune.results import PruneResult
from backupd.prune.store_clock import StoreClock
from backupd.prune.sweep import Sweep
from backupd.prune.trash import delete_entry, move_to_trash, not_deleted
from backupd.prune.verdicts import newest_proven, read_verdicts, write_verdicts
from backupd.retention import Decision, Hold, decide, newest_regular, why_held
from backupd.store.keys import RecordKey, RecordKind

if TYPE_CHECKING:
    from datetime import datetime

    from backupd.config import RetentionSettings
    from backupd.format.ids import SnapshotId
    from backupd.format.records import Verdicts
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
) -> PruneResult:
    """Remove what `policy` does not keep, purge the trash, and sweep. None as a policy removes and deletes nothing.

    Expected failures are in the result, never exceptions. Repeatable, after a failure too. A dry run writes nothing to
    the store. `accepts_shrink` records in the store that the newest snapshot is right, however small. `now` is aware.
    """
    pruning = _Pruning(repository, database, state, now, is_dry_run=is_dry_run)
    error: BackupdError | None = None
    try:
        with state.lock(f"{database} in {repository.url}", timeout=lock_seconds):
            pruning.run(policy, accepts_shrink=accepts_shrink)
    except BackupdError as caught:
        error = caught
    return pruning.result(error)


class _Pruning:
    """What a prune has done so far, so that an error in the middle hides nothing of it."""

    def __init__(
        self, repository: Repository, database: str, state: StateDirectory, now: datetime, *, is_dry_run: bool
    ) -> None:
        self._repository = repository
        self._database = database
        self._state = state
        self._now = now
        self._is_dry_run = is_dry_run
        self._clock = StoreClock(repository.store, database, now=now, is_dry_run=is_dry_run)
        self._decisions: list[Decision] = []
        self._hold: Hold | None = None
        self._removed: list[SnapshotId] = []
        self._purged: list[SnapshotId] = []
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
            removed=tuple(self._removed),
            purged=tuple(self._purged),
            deleted_packs=len(deleted),
            freed_bytes=sum(stored.size_bytes for stored in deleted.values()),
            waiting_packs=len(waiting),
            waiting_bytes=sum(stored.size_bytes for stored in waiting.values()),
            strangers=(*self._strangers, *(self._sweep.unreadable if self._sweep else ())),
            error=error,
        )

    def run(self, policy: RetentionSettings | None, *, accepts_shrink: bool) -> None:
        if not self._repository.exists():
            raise NoSuchObjectError(f"{self._repository.url} holds no backups", hint="make one with: backupd now")
        holdings = read_holdings(self._repository, self._database)
        self._strangers = holdings.survey.strangers
        verdicts = read_verdicts(self._repository, self._database, holdings)
        self._decisions = self._decided(holdings, policy, verdicts)
        require_readable_manifests(self._repository, self._database, holdings)
        if accepts_shrink:
            verdicts = self._accept_shrink(holdings, verdicts)
        if policy is None:
            return
        failure = failure_hold(self._state, self._database, self._repository.url)
        doubt = why_held(holdings.history.manifests, now=self._now, accepted=verdicts.accepted_shrink)
        self._hold = failure or doubt
        if self._hold is None:
            self._remove()
        require_readable_trash(self._repository, self._database, holdings)
        # After a failed snapshot space may be what is missing, and what is in the trash was removed before that. But
        # a newest snapshot that is in doubt may make somebody want back what lies there.
        if doubt is None:
            self._purge(holdings, policy)
        self._forget_drills(holdings)
        self._sweep = Sweep(self._repository, self._database, self._clock, grace=policy.grace, now=self._now)
        self._sweep.run(holdings, is_dry_run=self._is_dry_run)
        self._repository.forget_records(self._database, holdings.survey)

    def _decided(self, holdings: Holdings, policy: RetentionSettings | None, verdicts: Verdicts) -> list[Decision]:
        proven, unknown = newest_proven(self._repository, self._database, holdings)
        decisions = decide(
            holdings.history.manifests,
            policy,
            now=self._now,
            proven=() if proven is None else (proven,),
            undeleted=verdicts.undeleted,
        )
        return [_kept_all_the_same(decision) if decision.manifest.id in unknown else decision for decision in decisions]

    def _accept_shrink(self, holdings: Holdings, verdicts: Verdicts) -> Verdicts:
        newest = newest_regular(holdings.history.manifests)
        if newest is None or newest.id == verdicts.accepted_shrink:
            return verdicts
        verdicts = replace(verdicts, accepted_shrink=newest.id)
        if not self._is_dry_run:
            write_verdicts(self._repository, self._database, verdicts)
        return verdicts

    def _remove(self) -> None:
        reasons = {each.manifest.id: ", ".join(each.reasons) for each in self._decisions if not each.is_kept}
        if self._is_dry_run:
            self._removed = [*reasons]
        else:
            move_to_trash(self._repository, self._database, reasons, self._removed, now=self._now)

    def _purge(self, holdings: Holdings, policy: RetentionSettings) -> None:
        """Delete trash entries whose grace is over; beside a manifest they are left from an older removal.

        Packs that they name still count as named in this sweep: the listing that showed them stands.
        """
        for snapshot_id, stored in holdings.survey.trash.items():
            if snapshot_id in self._removed or not self._clock.is_older(stored, policy.grace):
                continue
            if not self._is_dry_run:
                delete_entry(self._repository, self._database, snapshot_id)
            if snapshot_id not in holdings.survey.manifests:
                self._purged.append(snapshot_id)
        if self._purged and not self._is_dry_run:
            self._require_purged(holdings)

    def _require_purged(self, holdings: Holdings) -> None:
        """Raise when a listing still shows what the store has acknowledged as deleted."""
        listed = self._repository.survey(self._database).trash
        remaining = [each for each in self._purged if listed.get(each) == holdings.survey.trash[each]]
        self._purged = [each for each in self._purged if each not in remaining]
        for snapshot_id in remaining:
            raise not_deleted(self._repository.url, holdings.survey.trash[snapshot_id].key)

    def _forget_drills(self, holdings: Holdings) -> None:
        known = holdings.survey.manifests.keys() | (holdings.survey.trash.keys() - self._purged)
        for snapshot_id in holdings.survey.drills.keys() - known:
            if not self._is_dry_run:
                self._repository.store.delete(str(RecordKey(RecordKind.DRILL, self._database, str(snapshot_id))))


def _kept_all_the_same(decision: Decision) -> Decision:
    reasons = decision.reasons if decision.is_kept else ()
    return Decision(decision.manifest, is_kept=True, reasons=(*reasons, "perhaps proven, the record is damaged"))
