"""What checks leave: records in the store, which every later run on any host reads, and the report to the caller."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.concurrency import worker_threads
from backupd.errors import BackupdError, DamageError, NoSuchObjectError, StoreUnavailableError
from backupd.format import FormatError
from backupd.format.records import MAX_RECORD_PACKS, CheckOutcome, Drill
from backupd.store.keys import RecordKind
from backupd.verify.results import CheckResult, Depth, Finding, Kind, Verification, source_found_damaged_before

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from backupd.format import SnapshotId
    from backupd.repository.archive import Archive
    from backupd.repository.proofs import KnownOutcome
    from backupd.verify.inspection import Inspection
    from backupd.verify.metering import Tally
    from backupd.verify.results import ContinuityResult, VerifiedSnapshot
    from backupd.verify.selection import ListedArchive

_WORKERS = 8
_SECONDS_BETWEEN_RECORDS = 60.0
_DAMAGED = CheckOutcome.DAMAGED_STORE


class VanishedStoreError(StoreUnavailableError):
    """A store held backups when a check began, and holds none any more."""


def reject_vanished_store(archive: Archive, during: str, remedy: str) -> None:
    """Raise `VanishedStoreError` for a store that has gone away: everything in it looks missing then.

    A record must not be put either: it would make another store in the place of a directory that is not mounted.
    """
    if not archive.repository.exists():
        raise VanishedStoreError(
            f"{archive.url} has gone away in the middle of {during}: it holds no backups any more",
            hint=f"see that it is mounted, and was not moved; {remedy}",
        )


def put_record(archive: Archive, record: Drill) -> None:
    """Put the record of a check. Raises the errors of `Store`."""
    archive.put_record(RecordKind.DRILL, record.snapshot, record.encode())


class Recorder:
    """Keeps the records of one archive up to date with what a verification finds in it."""

    def __init__(self, listed: ListedArchive, *, at: datetime) -> None:
        self._listed = listed
        self._archive = listed.archive
        self._at = at
        self._known_damaged: frozenset[SnapshotId] | None = None
        self._recorded_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last record is so old that a run that is interrupted now should not lose what was found since."""
        return time.monotonic() - self._recorded_at > _SECONDS_BETWEEN_RECORDS

    @property
    def known_damaged(self) -> frozenset[SnapshotId]:
        """The snapshots that an earlier run recorded as damaged; empty before `read_known_damaged`."""
        return self._known_damaged or frozenset()

    def read_known_damaged(self) -> None:
        """Read `known_damaged`, once: as it is before this run's own records. Raises the errors of `Store`."""
        if self._known_damaged is None:
            drills = self._listed.listing.drills
            with worker_threads(_WORKERS, name="records") as threads:
                records = zip(drills, threads.map(self._recorded, drills), strict=True)
                self._known_damaged = frozenset(
                    snapshot for snapshot, record in records if record is not None and record.outcome is _DAMAGED
                )

    def record_damage(
        self, damage: Sequence[Finding], *, right: Collection[str] = (), already: Collection[SnapshotId] = ()
    ) -> str | None:
        """Record every listed snapshot that stored bytes are missing or wrong for as damaged, with its damaged packs.

        Packs that were recorded as damaged before stay so, unless they were put again since, or are among `right`,
        which were read now and are right. Snapshots of `already` have a record of this run. Returns why something could
        not be recorded, or None. Raises `VanishedStoreError`, and the errors of `Store` as `read_known_damaged`.
        """
        self._recorded_at = time.monotonic()
        if not damage:
            return None
        reject_vanished_store(self._archive, "a verification", "then verify again")
        self.read_known_damaged()
        packs: dict[SnapshotId, set[str]] = {}
        for finding in damage:
            for snapshot in finding.snapshots if finding.kind.is_of_store else ():
                if snapshot in self._listed.listing.manifests and snapshot not in already:
                    packs.setdefault(snapshot, set()).update([finding.pack] if finding.pack else [])

        def record(snapshot: SnapshotId) -> str | None:
            before = self._recorded(snapshot)
            earlier = self._still_damaged(snapshot, before) - set(right) if before else set()
            return self._put(snapshot, _DAMAGED, sorted(packs[snapshot] | earlier))

        with worker_threads(_WORKERS, name="record") as threads:
            return next((reason for reason in threads.map(record, sorted(packs)) if reason), None)

    def record_healed(self, snapshots: Iterable[SnapshotId]) -> str | None:
        """Record those of `snapshots` as intact whose record says they are damaged: every byte is right now.

        A proof stays, and a snapshot without a record gets none. Neither does one that another check has recorded since
        the listing, which was later. Returns why it did not work, or None.
        """
        damaged = [each for each in snapshots if (before := self._recorded(each)) and before.outcome is _DAMAGED]
        if not damaged:
            return None
        try:
            shown = self._archive.listing().drills
        except BackupdError as error:
            return error.message
        same = (each for each in damaged if shown.get(each) == self._listed.listing.drills[each])
        return next((reason for each in same if (reason := self._put(each, CheckOutcome.INTACT))), None)

    def _still_damaged(self, snapshot: SnapshotId, before: Drill) -> set[str]:
        """List the damaged packs in the record `before`, without those that were put again after it."""
        recorded_at = self._listed.listing.drills[snapshot].modified_at
        put = self._listed.listing.packs
        return {
            each
            for each in before.damaged_packs
            if (stored := put.get(each)) is None or stored.modified_at <= recorded_at
        }

    def _recorded(self, snapshot: SnapshotId) -> Drill | None:
        """Read the record of a snapshot; None when there is none, or an unreadable one, which is written again."""
        stored = self._listed.listing.drills.get(snapshot)
        if stored is None:
            return None
        try:
            return self._archive.record(stored, Drill.decode)
        except (FormatError, NoSuchObjectError):
            return None

    def _put(self, snapshot: SnapshotId, outcome: CheckOutcome, packs: Sequence[str] = ()) -> str | None:
        record = Drill(
            snapshot=snapshot,
            database=self._archive.database,
            outcome=outcome,
            at=self._at,
            damaged_packs=tuple(packs[:MAX_RECORD_PACKS]),
        )
        try:
            put_record(self._archive, record)
        except BackupdError as error:
            return error.message
        return None


class Report:
    """Collects what one verification finds in all archives."""

    def __init__(self) -> None:
        self._snapshots: list[VerifiedSnapshot] = []
        self._findings: list[Finding] = []
        self._problems: list[BackupdError] = []
        self._warnings: list[str] = []
        self._status_results: list[CheckResult] = []
        self._continuity: list[ContinuityResult] = []
        self._damaged_sources: list[CheckResult] = []

    def add_problem(self, error: BackupdError) -> None:
        """Add why something could not be checked, once."""
        if error not in self._problems:
            self._problems.append(error)

    def add_warning(self, text: str) -> None:
        """Add a warning, once."""
        if text not in self._warnings:
            self._warnings.append(text)

    def add_note(self, url: str, reason: str) -> None:
        """Add information about a whole store, once."""
        finding = Finding(kind=Kind.NOT_CHECKABLE, store=url, database=None, key="", reason=reason)
        if finding not in self._findings:
            self._findings.append(finding)

    def add_continuity(self, result: ContinuityResult) -> None:
        """Add the check of a recovery window."""
        self._continuity.append(result)
        if result.error is not None:
            self.add_problem(result.error)
        if result.warning is not None:
            self.add_warning(f"the check of {result.database} could not be recorded in the store: {result.warning}")

    def add_archive(
        self,
        inspection: Inspection,
        snapshots: Iterable[VerifiedSnapshot],
        status_result: CheckResult | None,
    ) -> None:
        """Add what was found in one archive."""
        self._findings += inspection.findings.found
        self._snapshots += snapshots
        self._damaged_sources += [
            each for each in inspection.drills.values() if each.outcome is CheckOutcome.DAMAGED_SOURCE
        ]
        if status_result is not None:
            self._status_results.append(status_result)

    def finished(self, tally: Tally, duration_seconds: float) -> Verification:
        """Give the result of the whole verification."""
        return Verification(
            snapshots=tuple(self._snapshots),
            findings=tuple(self._findings),
            problems=tuple(self._problems),
            warnings=tuple(self._warnings),
            status_results=tuple(self._status_results),
            continuity=tuple(self._continuity),
            damaged_sources=tuple(self._damaged_sources),
            packs_read=tally.packs_read,
            packs_known=tally.packs_known,
            read_bytes=tally.meter.read_bytes,
            duration_seconds=duration_seconds,
        )


def status_result(
    inspection: Inspection,
    *,
    known_damaged: frozenset[SnapshotId],
    earlier: KnownOutcome | None,
    began_at: datetime,
    is_complete: bool,
) -> CheckResult | None:
    """Decide what the status must record of one archive: damage, the drill of the newest snapshot, or its bytes right.

    `earlier` is what the last drill of the newest snapshot found, when this run did not drill it: bytes that are right
    do not revoke that. Damage of older snapshots that an earlier run has recorded (`known_damaged`) is no news: a
    nightly verification must not raise an alarm every night about what cannot be repaired. None when there is nothing
    to record.
    """
    newest = inspection.listed.history.newest_id
    damaged = inspection.findings.damaged_snapshots()
    drilled = None if newest is None else inspection.drills.get(newest)
    news = [
        each
        for each in inspection.findings.damage
        if each.kind.is_of_store and (newest in each.snapshots or not known_damaged.issuperset(each.snapshots))
    ]
    if news and (drilled is None or drilled.outcome is not CheckOutcome.DAMAGED_STORE):
        found = _result(inspection, CheckOutcome.DAMAGED_STORE, datetime.now(UTC), _damage(inspection, news))
        return replace(found, damaged_snapshots=tuple(sorted(damaged)))
    if drilled is not None:
        return drilled
    if newest is None or not is_complete or newest in damaged:
        return None
    if inspection.depths.get(newest) not in {Depth.PAGES, Depth.CIPHERTEXT}:
        return None
    if earlier is None or earlier.outcome is not CheckOutcome.DAMAGED_SOURCE:
        return _result(inspection, CheckOutcome.INTACT, began_at, None)
    error = source_found_damaged_before(inspection.archive.database, inspection.archive.url, newest, earlier)
    result = _result(inspection, CheckOutcome.DAMAGED_SOURCE, began_at, error)
    return replace(result, earlier=earlier, manifest=inspection.manifests[newest])


def _damage(inspection: Inspection, news: list[Finding]) -> DamageError:
    touched = len({snapshot for each in news for snapshot in each.snapshots})
    first, more = news[0], f" (and {len(news) - 1} more findings)" if len(news) > 1 else ""
    what = first.reason if first.key in first.reason else f"{first.key}: {first.reason}"
    name = inspection.archive.database
    return DamageError(
        f"a verification found damage that affects {touched} snapshot{'' if touched == 1 else 's'}: {what}{more}",
        hint=f"store the damaged pages again: backupd now {name}; then check the new snapshot: "
        f"backupd verify {name}@latest --level drill",
    )


def _result(inspection: Inspection, outcome: CheckOutcome, at: datetime, error: DamageError | None) -> CheckResult:
    return CheckResult(
        database=inspection.archive.database,
        store=inspection.archive.url,
        id=inspection.listed.history.newest_id,
        outcome=outcome,
        started_at=at.astimezone(UTC),
        error=error,
    )
