"""A drill: restore one snapshot in full to scratch, check it, and record in the store what was found."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC
from shlex import quote
from typing import TYPE_CHECKING

from backupd.drill.examination import examine
from backupd.drill.image import fetch_proven
from backupd.drill.packs import DamagedPacksError, reject_damaged_packs
from backupd.drill.results import DrillResult, Outcome, found_before
from backupd.drill.scratch import scratch_file
from backupd.errors import (
    BackupdError,
    DamageError,
    IdentityNeededError,
    NoSuchObjectError,
    NoSuchSnapshotError,
    StoreUnavailableError,
)
from backupd.format.records import MAX_RECORD_PACKS, Drill, DrillOutcome, encode_drill
from backupd.live.soundness import MOST_FINDINGS
from backupd.logs import log
from backupd.proofs import read_proofs
from backupd.repository.manifests import opened, read_history, read_manifest
from backupd.store import canonical_url
from backupd.store.keys import RecordKey, RecordKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime

    from backupd.config import Settings
    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import AnyManifest, Manifest
    from backupd.live.soundness import Soundness
    from backupd.repository import Repository
    from backupd.state import StateDirectory

_RECORDED = {
    Outcome.PROVEN: DrillOutcome.PROVEN,
    Outcome.NOT_CHECKABLE: DrillOutcome.PROVEN,
    Outcome.INTACT: DrillOutcome.INTACT,
    Outcome.DAMAGED_STORE: DrillOutcome.FAILED,
    Outcome.DAMAGED_SOURCE: DrillOutcome.DAMAGED_SOURCE,
}
"""What the store is told; a drill without a verdict leaves what an earlier one said."""
_RESTORED = frozenset((DrillOutcome.PROVEN, DrillOutcome.DAMAGED_SOURCE))

_LEAST_CHECKING_SECONDS = 300.0
_CHECKED_BYTES_PER_SECOND = 1e6
"""Much slower than any disk: SQLite checks 50 MB/s and more on two cores."""


def drill(
    repository: Repository,
    database: str,
    state: StateDirectory,
    settings: Settings,
    *,
    now: datetime,
    snapshot: SnapshotId | None = None,
    should_stop: Callable[[], None],
) -> DrillResult:
    """Restore `snapshot`, or the newest one, to scratch in the state directory, check it, and record the verdict.

    Everything is read from the store, each time: that it was right yesterday proves nothing. Checked are each pack's
    SHA-256 and zstd checksum, each page's hash, the image digest, and the database by SQLite, which gets as long as a
    capture (`capture.deadline`). Of what is encrypted and cannot be decrypted here, every stored byte is read, and
    nothing is restored: then what an earlier drill found that could restore the same snapshot stands. Expected failures
    are in the result, never exceptions. `now` is aware. `should_stop` is called often, from several threads; a
    `BackupdError` that it raises ends the drill without a verdict. Nothing stays in scratch. Repeatable; one drill of a
    database in a store at a time, on one machine.
    """
    drilling = _Drilling(repository, database, state, settings.capture.deadline.total_seconds(), should_stop)
    began = time.monotonic()
    blank = DrillResult(
        database=database,
        store=repository.url,
        id=snapshot,
        outcome=Outcome.FAILED,
        started_at=now.astimezone(UTC),
        duration_seconds=0,
    )
    try:
        with state.lock(f"the drill of {database} in {canonical_url(repository.url)}", timeout=0):
            result = drilling.recorded(drilling.drilled(blank))
    except BackupdError as error:
        result = replace(blank, error=error)
    return replace(result, duration_seconds=time.monotonic() - began)


class _Drilling:
    def __init__(
        self,
        repository: Repository,
        database: str,
        state: StateDirectory,
        deadline: float,
        should_stop: Callable[[], None],
    ) -> None:
        self._repository = repository
        self._database = database
        self._state = state
        self._deadline = deadline
        self._should_stop = should_stop
        self._is_known = False  # the store says already what there is to record

    def drilled(self, blank: DrillResult) -> DrillResult:
        """`blank` with what was found, or with why nothing was."""
        result = blank
        try:
            if not self._repository.exists():
                raise NoSuchObjectError(f"{self._repository.url} holds no backups", hint="make one with: backupd now")
            snapshot_id = blank.id or self._newest()
            result = replace(result, id=snapshot_id)
            found = self._look_up(snapshot_id)
            result = replace(result, image_bytes=found.image_bytes)
            if self._repository.encryption.can_decrypt or not any(pack.encryption for pack in found.packs):
                try:
                    return self._restored(result, opened(self._repository, found))
                except IdentityNeededError:
                    pass  # there are keys here, and they are those of others
            reject_damaged_packs(self._repository, found, self._should_stop)
            result = replace(result, fetched_bytes=sum(pack.stored_bytes for pack in found.packs))
            return self._unopened(result, found)
        except DamageError as error:
            return self._damaged(result, error)
        except BackupdError as error:
            return replace(result, error=error)

    def _restored(self, result: DrillResult, manifest: Manifest) -> DrillResult:
        with scratch_file(self._state, manifest.image_bytes) as (file, descriptor):
            fetched_bytes = fetch_proven(self._repository, manifest, descriptor, self._should_stop)
            result = replace(result, fetched_bytes=fetched_bytes)
            # An image can be made so that SQLite never comes to its end: the drills of others are next in the queue.
            enough = _LEAST_CHECKING_SECONDS + manifest.image_bytes / _CHECKED_BYTES_PER_SECOND
            soundness = examine(file, deadline=min(self._deadline, enough), should_stop=self._should_stop)
        return self._judged(result, manifest, soundness)

    def _unopened(self, result: DrillResult, found: AnyManifest) -> DrillResult:
        """`result` with the verdict on stored bytes that are all right: with what is known of the same bytes by others.

        Who could restore them has seen more, and that stands until somebody restores them again.
        """
        proofs = read_proofs(self._repository, self._database)
        own = proofs.own(found.id)
        if own is None or own.outcome not in _RESTORED:
            return replace(result, outcome=Outcome.INTACT)
        self._is_known = proofs.verdict(found) == own
        if own.outcome is DrillOutcome.PROVEN:
            return replace(result, outcome=Outcome.INTACT, earlier=own)
        error = found_before(self._database, self._repository.url, found.id, own)
        return replace(result, outcome=Outcome.DAMAGED_SOURCE, earlier=own, error=error, manifest=found)

    def _newest(self) -> SnapshotId:
        """The newest snapshot, also when its manifest is what is damaged."""
        newest = read_history(self._repository, self._database).newest_id
        if newest is None:
            raise NoSuchSnapshotError(
                f"{self._repository.url} holds no snapshot of {self._database}",
                hint=f"make one with: backupd now {self._database}",
            )
        return newest

    def _look_up(self, snapshot_id: SnapshotId) -> AnyManifest:
        try:
            return read_manifest(self._repository, self._database, snapshot_id)
        except NoSuchObjectError as error:
            raise NoSuchSnapshotError(
                f"{self._repository.url} holds no snapshot {snapshot_id} of {self._database}",
                hint=f"it may have been removed just now; backupd list {self._database} shows what there is",
            ) from error

    def _judged(self, result: DrillResult, manifest: Manifest, soundness: Soundness) -> DrillResult:
        """`result` with the verdict on an image of which every byte is proven."""
        damage = list(soundness.findings)
        if soundness.page_count not in {None, manifest.page_count}:
            damage.insert(0, f"SQLite sees {soundness.page_count} pages instead of {manifest.page_count}")
        findings = (*damage, *soundness.unchecked, *soundness.odd_values, *soundness.orphans)[:MOST_FINDINGS]
        result = replace(result, findings=findings, odd_values=tuple(soundness.odd_values), rows=soundness.rows)
        if damage:
            more = f" (and {len(damage) - 1} more findings)" if len(damage) > 1 else ""
            error = DamageError(
                f"snapshot {manifest.id} of {self._database} in {self._repository.url} is as it was captured, "
                f"and SQLite finds that database damaged: {damage[0]}{more}",
                hint=f"check the live one with: sqlite3 {quote(manifest.writer.path)} 'PRAGMA integrity_check'; if it "
                f"is damaged too, restore a snapshot from before that: backupd list {self._database}",
            )
            return replace(result, outcome=Outcome.DAMAGED_SOURCE, error=error, manifest=manifest)
        return replace(result, outcome=Outcome.NOT_CHECKABLE if soundness.unchecked else Outcome.PROVEN)

    def _damaged(self, result: DrillResult, error: DamageError) -> DrillResult:
        """`result` with the verdict that the store is damaged; without one when it has gone away meanwhile."""
        try:
            self._reject_vanished_store()
        except DamageError:
            pass  # It is there, and more is wrong with it.
        except BackupdError as gone:
            return replace(result, error=gone)
        packs = error.packs if isinstance(error, DamagedPacksError) else ()
        return replace(
            result,
            outcome=Outcome.DAMAGED_STORE,
            error=self._told(result.id, error),
            damaged_packs=packs,
            damaged_snapshots=self._touched(result.id, packs),
        )

    def _touched(self, snapshot_id: SnapshotId | None, packs: Collection[str]) -> tuple[SnapshotId, ...]:
        """The snapshot, and every other one that needs one of its damaged `packs`, as far as that can be told."""
        touched = set() if snapshot_id is None else {snapshot_id}
        try:
            manifests = read_history(self._repository, self._database).manifests if packs else ()
        except BackupdError:
            manifests = ()  # what was found is to be told all the same
        touched |= {each.id for each in manifests if any(pack.sha256 in packs for pack in each.packs)}
        return tuple(sorted(touched))

    def _reject_vanished_store(self) -> None:
        """Raise `StoreUnavailableError` for a store that has gone: all that it held looks like missing then.

        Also, in the place of a directory that is no longer mounted, no other is to be made.
        """
        if not self._repository.exists():
            url = self._repository.url
            raise StoreUnavailableError(
                f"{url} has gone away in the middle of a drill of {self._database}: it holds no backups any more",
                hint="see that it is mounted, and that nobody has moved it; the next drill tries again",
            )

    def _told(self, snapshot_id: SnapshotId | None, error: DamageError) -> DamageError:
        """`error` for somebody who did not ask for a restore."""
        url = self._repository.url
        if snapshot_id is None:
            return error
        return DamageError(
            f"snapshot {snapshot_id} of {self._database} can not be restored from {url}: {error.message}",
            hint=f"store the damaged pages again with: backupd now {self._database} --store {url}; "
            f"backupd list {self._database} shows the other snapshots",
        )

    def recorded(self, result: DrillResult) -> DrillResult:
        """`result`, of which the store knows when it is a verdict. A proof that could not be recorded is none."""
        if result.id is None or result.outcome not in _RECORDED:
            return result
        if self._is_known:
            return result  # what a machine with a key has found says more than this look
        earlier = result.earlier
        record = Drill(
            snapshot=result.id,
            database=self._database,
            outcome=_RECORDED[result.outcome] if earlier is None else earlier.outcome,
            at=result.started_at if earlier is None else earlier.at,
            damaged_packs=result.damaged_packs[:MAX_RECORD_PACKS],
        )
        key = RecordKey(RecordKind.DRILL, self._database, str(result.id))
        try:
            self._reject_vanished_store()
            self._repository.put_object(str(key), encode_drill(record))
        except BackupdError as error:
            if result.error is None:
                return replace(result, outcome=Outcome.FAILED, error=error)
            log.warning(
                "the verdict of a drill could not be recorded",
                database=self._database,
                store=self._repository.url,
                id=str(result.id),
                reason=error.message,
            )
        return result
