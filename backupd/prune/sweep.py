"""Sweeps: delete the packs that nothing has named for a grace period, beside writers that nobody can stop.

FORMAT.md, "Deleting packs", has the protocol and the argument why it is safe.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd.errors import NoSuchObjectError
from backupd.format import FormatError
from backupd.format.ids import SnapshotId
from backupd.format.records import (
    DELETION_COUNTS_FOR,
    DELETION_ENDS_AFTER,
    MAX_RECORD_PACKS,
    Deletion,
    Finding,
    FoundPack,
    decode_finding,
    encode_deletion,
    encode_finding,
)
from backupd.prune.naming import read_holdings, require_readable_manifests, require_readable_trash
from backupd.prune.trash import not_deleted
from backupd.repository.records import read_record
from backupd.store.keys import RecordKey, RecordKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime, timedelta

    from backupd.prune.naming import Holdings
    from backupd.prune.pace import Pace
    from backupd.prune.store_clock import StoreClock
    from backupd.repository import Repository
    from backupd.store import StoredObject

_FINDINGS_IN_A_GRACE = 8


def _seconds_awake_or_asleep() -> float:
    """A clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A finding of an earlier sweep, and which of its packs are still there, as they were, and named by nothing."""

    stored: StoredObject
    packs: tuple[FoundPack, ...]
    is_contradicted: bool
    """Whether something names one of its packs now."""


class Sweep:
    """One sweep of one database in one store. `run` may end early with an error; what was done is counted."""

    def __init__(
        self,
        repository: Repository,
        database: str,
        clock: StoreClock,
        pace: Pace,
        *,
        grace: timedelta,
        now: datetime,
        seconds: Callable[[], float] = _seconds_awake_or_asleep,
    ) -> None:
        self.deleted: dict[str, StoredObject] = {}
        """By SHA-256 (hex)."""
        self.waiting: dict[str, StoredObject] = {}
        """The same for packs that nothing names and that stay for now."""
        self.unreadable: list[str] = []
        self.unfinished = 0
        """How many packs would have been deleted with more time."""
        self._repository = repository
        self._database = database
        self._clock = clock
        self._pace = pace
        self._grace = grace
        self._now = now
        self._seconds = seconds

    def run(self, holdings: Holdings, *, is_dry_run: bool = False) -> None:
        """Record what nothing names, and delete what was recorded a grace ago. A dry run only counts.

        `holdings` were read in full. Raises the errors of `Store`, `DamageError` and `BusyError`.
        """
        named = holdings.named_packs
        unnamed = {sha256: stored for sha256, stored in holdings.survey.packs.items() if sha256 not in named}
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
                self._repository.store.delete(each.stored.key)

    def _recorded(
        self, holdings: Holdings, unnamed: dict[str, StoredObject], named: Collection[str]
    ) -> list[_Recorded]:
        recorded = []
        for stored in holdings.survey.findings.values():
            try:
                finding = read_record(self._repository, self._database, stored, decode_finding)
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
        for stored in holdings.survey.deletions.values():
            if self._clock.is_older(stored, DELETION_COUNTS_FOR):
                self._repository.store.delete(stored.key)

    def _record(self, unnamed: dict[str, StoredObject], recorded: Sequence[_Recorded]) -> None:
        """Record what is not recorded yet, but rarely: else each prune would leave a record of a few packs.

        What stood in a contradicted record is found anew: between its sweep and this one something may have needed it.
        """
        trusted = [each for each in recorded if not each.is_contradicted]
        known = {pack.sha256 for each in trusted for pack in each.packs}
        newest = max((each.stored.modified_at for each in trusted), default=None)
        is_too_soon = newest is not None and self._now - newest < self._grace / _FINDINGS_IN_A_GRACE
        new = sorted(unnamed.keys() - known)[:MAX_RECORD_PACKS]
        if new and not is_too_soon:
            packs = tuple(FoundPack(sha256=sha256, modified_at=unnamed[sha256].modified_at) for sha256 in new)
            self._repository.put_object(self._new_key(RecordKind.SWEEP), encode_finding(Finding(packs=packs)))

    def _delete(self, victims: dict[str, StoredObject]) -> None:
        """Announce the deletion of `victims`, look again, delete those that are still unused, and take it back.

        After an error the record stays: a deletion that the store did not acknowledge may still come.
        """
        store, record = self._repository.store, self._new_key(RecordKind.DELETION)
        ends_at = self._seconds() + DELETION_ENDS_AFTER.total_seconds()
        self._repository.put_object(record, encode_deletion(Deletion(packs=tuple(victims))))
        holdings = read_holdings(self._repository, self._database)
        require_readable_manifests(self._repository, self._database, holdings)
        require_readable_trash(self._repository, self._database, holdings)
        named = holdings.named_packs
        unused = [
            each for each, found in victims.items() if each not in named and holdings.survey.packs.get(each) == found
        ]

        def delete(sha256: str) -> None:
            if self._seconds() <= ends_at:  # after that, writers may take the record for that of a killed sweep
                store.delete(victims[sha256].key)
                self._count(sha256)

        self._pace.each(delete, unused)
        self.unfinished += sum(sha256 not in self.deleted for sha256 in unused)
        self._require_gone()
        store.delete(record)

    def _count(self, sha256: str) -> None:
        self.deleted[sha256] = self.waiting.pop(sha256)

    def _require_gone(self) -> None:
        """Raise when a listing still shows what the store has acknowledged as deleted."""
        packs = self._repository.survey(self._database).packs
        remaining = {sha256: stored for sha256, stored in self.deleted.items() if packs.get(sha256) == stored}
        for sha256 in remaining:
            self.waiting[sha256] = self.deleted.pop(sha256)
        for stored in remaining.values():
            raise not_deleted(self._repository.url, stored.key)

    def _new_key(self, kind: RecordKind) -> str:
        return str(RecordKey(kind, self._database, str(SnapshotId.new(self._now, secrets.randbits(32)))))


def _is_as_found(stored: StoredObject | None, found: FoundPack) -> bool:
    return stored is not None and stored.modified_at == found.modified_at
