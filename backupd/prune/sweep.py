"""Sweeps: delete the packs that nothing has named for a grace period, while other hosts may continue writing.

FORMAT.md, "Deleting packs", has the protocol and the argument why it is safe.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd.errors import NoSuchObjectError
from backupd.format import FormatError, SnapshotId
from backupd.format.records import (
    DELETION_COUNTS_FOR,
    DELETION_ENDS_AFTER,
    MAX_RECORD_PACKS,
    DeletionRecord,
    FoundPack,
    Moment,
    SweepRecord,
)
from backupd.prune.trash import not_deleted
from backupd.store.keys import RecordKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime, timedelta

    from backupd.concurrency import Pace
    from backupd.repository.archive import Archive
    from backupd.repository.history import Holdings
    from backupd.store import StoredObject

_FINDINGS_IN_A_GRACE = 8


class StoreClock:
    """Ages of objects of one database by the store's clock, whatever the clocks of the hosts say.

    The store is asked once, and only when there may be something to do.
    It is asked by putting an object and listing it. (The newest time that a listing shows would be no substitute: one
    object from a day when the clock was wrong, or a copied one, and everything would seem old.) With
    `is_dry_run` nothing is put, and this host's own time, `now`, stands in.
    """

    def __init__(self, archive: Archive, *, now: datetime, is_dry_run: bool = False) -> None:
        self._archive = archive
        self._local_now = now
        self._now = now if is_dry_run else None

    def is_older(self, stored: StoredObject, age: timedelta) -> bool:
        """Whether `stored` was put `age` ago or more, by both clocks. Raises the errors of `Store`."""
        if self._local_now - stored.modified_at < age:
            return False
        if self._now is None:
            self._now = self._archive.store_time()
        return self._now - stored.modified_at >= age


def _seconds_awake_or_asleep() -> float:
    """Seconds of a clock that cannot be set, and that continues while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A finding of an earlier sweep, with those of its packs that are still there unchanged and that nothing names."""

    stored: StoredObject
    packs: tuple[FoundPack, ...]
    is_contradicted: bool
    """Whether something names one of its packs now."""


class Sweep:
    """One sweep of one database in one store. `run` may end early with an error; what was done is counted."""

    def __init__(
        self,
        archive: Archive,
        clock: StoreClock,
        pace: Pace,
        *,
        grace: timedelta,
        now: datetime,
        seconds: Callable[[], float] = _seconds_awake_or_asleep,
    ) -> None:
        self.deleted: dict[str, StoredObject] = {}
        """Packs that were deleted, by SHA-256 (hex)."""
        self.waiting: dict[str, StoredObject] = {}
        """Packs that nothing names and that stay for now, by SHA-256 (hex)."""
        self.unreadable: list[str] = []
        self.unfinished = 0
        """How many packs would have been deleted with more time."""
        self._archive = archive
        self._clock = clock
        self._pace = pace
        self._grace = grace
        self._now = now
        self._seconds = seconds

    def run(self, holdings: Holdings, *, is_dry_run: bool = False) -> None:
        """Record what nothing names, and delete what was recorded a grace ago. A dry run only counts.

        `holdings` were read in full. Raises the errors of `Store`, `DamageError` and `BusyError`.
        """
        named, packs = holdings.named_packs, holdings.listing.packs
        # All are looked at now, so that the next listing shows which of them were put again since.
        unnamed = {each: stored for each in packs if each not in named and (stored := packs.get(each)) is not None}
        self.waiting = dict(unnamed)
        recorded = self._recorded(holdings, unnamed, named)
        due = {
            pack.sha256
            for each in recorded
            if not each.is_contradicted and each.packs and self._clock.is_older(each.stored, self._grace)
            for pack in each.packs
        }
        if is_dry_run:
            for sha256 in sorted(due):
                self._count(sha256)
            return
        self._remove_stale_deletions(holdings)
        self._record(unnamed, recorded)
        if due:
            chosen = sorted(due)[:MAX_RECORD_PACKS]
            self.unfinished = len(due) - len(chosen)
            self._delete({sha256: unnamed[sha256] for sha256 in chosen})
        for each in recorded:
            if each.is_contradicted or all(pack.sha256 in self.deleted for pack in each.packs):
                self._archive.delete_listed(each.stored)

    def _recorded(
        self, holdings: Holdings, unnamed: dict[str, StoredObject], named: Collection[str]
    ) -> list[_Recorded]:
        recorded = []
        for stored in holdings.listing.findings.values():
            try:
                finding = self._archive.record(stored, SweepRecord.decode)
            except NoSuchObjectError:
                continue  # another host's sweep is done with it
            except FormatError:
                self.unreadable.append(stored.key)  # its packs are found again
                continue
            packs = tuple(pack for pack in finding.packs if _is_as_found(unnamed.get(pack.sha256), pack))
            is_contradicted = any(pack.sha256 in named for pack in finding.packs)
            recorded.append(_Recorded(stored, packs, is_contradicted))
        return recorded

    def _remove_stale_deletions(self, holdings: Holdings) -> None:
        for stored in holdings.listing.deletions.values():
            if self._clock.is_older(stored, DELETION_COUNTS_FOR):
                self._archive.delete_listed(stored)

    def _record(self, unnamed: dict[str, StoredObject], recorded: Sequence[_Recorded]) -> None:
        """Record what is not recorded yet, but rarely: otherwise each prune would leave a record of a few packs.

        Packs of a contradicted record are recorded again: between its sweep and this one something may have needed one.
        """
        trusted = [each for each in recorded if not each.is_contradicted]
        known = {pack.sha256 for each in trusted for pack in each.packs}
        newest = max((each.stored.modified_at for each in trusted), default=None)
        is_too_soon = newest is not None and self._now - newest < self._grace / _FINDINGS_IN_A_GRACE
        new = sorted(unnamed.keys() - known)[:MAX_RECORD_PACKS]
        if new and not is_too_soon:
            packs = tuple(
                FoundPack(sha256=sha256, modified_at=Moment.of(unnamed[sha256].modified_at)) for sha256 in new
            )
            self._archive.put_record(RecordKind.SWEEP, self._new_id(), SweepRecord(packs=packs).encode())

    def _delete(self, victims: dict[str, StoredObject]) -> None:
        """Announce the deletion of `victims`, list again, delete those that are still unused, and end the announcement.

        After an error the record stays: a deletion that the store did not acknowledge may still come.
        """
        record_id = self._new_id()
        ends_at = self._seconds() + DELETION_ENDS_AFTER.total_seconds()
        self._archive.put_record(RecordKind.DELETION, record_id, DeletionRecord(packs=tuple(victims)).encode())
        holdings = self._archive.holdings()
        holdings.require_readable_manifests()
        holdings.require_readable_trash()
        named = holdings.named_packs
        unused = [
            each for each, found in victims.items() if each not in named and holdings.listing.packs.get(each) == found
        ]

        def delete(sha256: str) -> None:
            if self._seconds() <= ends_at:  # after that, writers may assume that the sweep was killed
                self._archive.delete_listed(victims[sha256])
                self._count(sha256)

        self._pace.each(delete, unused)
        self.unfinished += sum(sha256 not in self.deleted for sha256 in unused)
        self._require_gone()
        self._archive.delete_record(RecordKind.DELETION, record_id)

    def _count(self, sha256: str) -> None:
        self.deleted[sha256] = self.waiting.pop(sha256)

    def _require_gone(self) -> None:
        """Raise when a listing still shows what the store has acknowledged as deleted."""
        packs = self._archive.listing().packs
        remaining = {sha256: stored for sha256, stored in self.deleted.items() if packs.get(sha256) == stored}
        for sha256 in remaining:
            self.waiting[sha256] = self.deleted.pop(sha256)
        for stored in remaining.values():
            raise not_deleted(self._archive.url, stored.key)

    def _new_id(self) -> SnapshotId:
        return SnapshotId.new(self._now, secrets.randbits(32))


def _is_as_found(stored: StoredObject | None, found: FoundPack) -> bool:
    return stored is not None and stored.modified_at == found.modified_at.time
