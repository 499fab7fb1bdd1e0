"""A drill: restore one snapshot in full to scratch, check it, and record in the store what was found.

SQLite examines the image in a process of its own, which can be ended at any moment: an image can be made so that it
never comes to its end, or crashes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC
from shlex import quote
from typing import TYPE_CHECKING

from backupd.errors import (
    BackupdError,
    BusyError,
    DamageError,
    IdentityNeededError,
    LimitReachedError,
    NoSuchObjectError,
    NoSuchSnapshotError,
    TargetUnwritableError,
)
from backupd.format.records import MAX_RECORD_PACKS, CheckOutcome, Drill
from backupd.live.soundness import MOST_FINDINGS, Soundness
from backupd.logs import log
from backupd.store import canonical_url
from backupd.system.files import free_bytes
from backupd.system.processes import NOT_LOADED, child_environment, command_of, end, not_loaded, start
from backupd.verify.packs import DamagedPacksError, fetch_proven, reject_damaged_packs
from backupd.verify.recording import put_record, reject_vanished_store
from backupd.verify.results import CheckResult, source_found_damaged_before

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from backupd.format import SnapshotId
    from backupd.format.manifest import AnyManifest, Manifest
    from backupd.repository.archive import Archive
    from backupd.state import StateDirectory
    from backupd.verify.results import CheckContext

_LEFT_FREE_BYTES = 256 << 20
_ROOM_HINT = "free some space, or set state_dir (or BACKUPD_STATE_DIR) to a directory on a larger disk"
_TICK_SECONDS = 0.1
_FOUND_BY_RESTORING = frozenset((CheckOutcome.PROVEN, CheckOutcome.DAMAGED_SOURCE))
_LEAST_EXAMINATION_SECONDS = 300.0
_EXAMINED_BYTES_PER_SECOND = 1e6
"""Much slower than any disk: SQLite checks 50 MB/s and more on two cores."""


def drill(archive: Archive, context: CheckContext, *, snapshot: SnapshotId | None = None) -> CheckResult:
    """Restore `snapshot`, or the newest one, to scratch in the state directory, check it, and record the outcome.

    Everything is read from the store each time: an earlier success proves nothing about today. Checked are each pack's
    SHA-256 and zstd checksum, each page's hash, the image digest, and the database by SQLite, at most for as long as
    `context.examination_limit`. Of what is encrypted and cannot be decrypted here, every stored byte is read, and
    nothing is restored: then the finding of an earlier drill that could restore the same snapshot stands. Expected
    failures are in the result, never exceptions; a `BackupdError` that `context.should_stop` raises makes the drill
    inconclusive. Nothing stays in scratch. Repeatable; one drill of a database in a store at a time, on one machine.
    """
    drilling = _Drill(archive, context)
    began = time.monotonic()
    blank = CheckResult(
        database=archive.database,
        store=archive.url,
        id=snapshot,
        outcome=CheckOutcome.INCONCLUSIVE,
        started_at=context.now.astimezone(UTC),
    )
    try:
        with archive.repository.state.lock(
            f"the drill of {archive.database} in {canonical_url(archive.url)}", timeout=0
        ):
            result = drilling.record(drilling.run(blank))
    except BackupdError as error:
        result = replace(blank, error=error)
    return replace(result, duration_seconds=time.monotonic() - began)


class _Drill:
    """One drill of one archive."""

    def __init__(self, archive: Archive, context: CheckContext) -> None:
        self._archive = archive
        self._database = archive.database
        self._context = context

    def run(self, blank: CheckResult) -> CheckResult:
        """Check the snapshot; returns `blank` completed by what was found, or by why the drill was inconclusive."""
        result, should_stop = blank, self._context.should_stop
        try:
            if not self._archive.repository.exists():
                raise NoSuchObjectError(f"{self._archive.url} holds no backups", hint="make one with: backupd now")
            snapshot_id = blank.id or self._newest()
            result = replace(result, id=snapshot_id)
            found = self._manifest(snapshot_id)
            result = replace(result, image_bytes=found.image_bytes)
            if self._archive.repository.encryption.can_decrypt or not any(pack.encryption for pack in found.packs):
                try:
                    return self._restored(result, self._archive.opened(found))
                except IdentityNeededError:
                    pass  # there are keys here, but none for this snapshot
            reject_damaged_packs(self._archive, found, should_stop)
            result = replace(result, fetched_bytes=sum(pack.stored_bytes for pack in found.packs))
            return self._unopened(result, found)
        except DamageError as error:
            return self._damaged(result, error)
        except BackupdError as error:
            return replace(result, error=error)

    def record(self, result: CheckResult) -> CheckResult:
        """Put the result into the store as a record. A proof that could not be recorded counts as none.

        An inconclusive drill leaves the record of an earlier one.
        """
        if result.id is None or result.outcome is CheckOutcome.INCONCLUSIVE or result.is_recorded:
            return result
        earlier = result.earlier
        record = Drill(
            snapshot=result.id,
            database=self._database,
            outcome=result.outcome if earlier is None else earlier.outcome,
            at=result.started_at if earlier is None else earlier.at,
            damaged_packs=result.damaged_packs[:MAX_RECORD_PACKS],
        )
        try:
            self._reject_vanished_store()
            put_record(self._archive, record)
        except BackupdError as error:
            if result.error is None:
                return replace(result, outcome=CheckOutcome.INCONCLUSIVE, error=error)
            log.warning(
                "the result of a drill could not be recorded",
                database=self._database,
                store=self._archive.url,
                id=str(result.id),
                reason=error.message,
            )
        return result

    def _newest(self) -> SnapshotId:
        """Give the id of the newest snapshot, also when its manifest is damaged."""
        newest = self._archive.history().newest_id
        if newest is None:
            raise NoSuchSnapshotError(
                f"{self._archive.url} holds no snapshot of {self._database}",
                hint=f"make one with: backupd now {self._database}",
            )
        return newest

    def _manifest(self, snapshot_id: SnapshotId) -> AnyManifest:
        try:
            return self._archive.manifest(snapshot_id)
        except NoSuchObjectError as error:
            raise NoSuchSnapshotError(
                f"{self._archive.url} holds no snapshot {snapshot_id} of {self._database}",
                hint=f"it may have been removed just now; backupd list {self._database} shows what there is",
            ) from error

    def _restored(self, result: CheckResult, manifest: Manifest) -> CheckResult:
        should_stop = self._context.should_stop
        with _scratch_file(self._archive.repository.state, manifest.image_bytes) as (file, descriptor):
            fetched_bytes = fetch_proven(self._archive, manifest, descriptor, should_stop)
            result = replace(result, fetched_bytes=fetched_bytes)
            # An image can be made so that SQLite never comes to its end, and other drills wait for this one.
            enough = _LEAST_EXAMINATION_SECONDS + manifest.image_bytes / _EXAMINED_BYTES_PER_SECOND
            deadline = min(self._context.examination_limit.total_seconds(), enough)
            soundness = _examine(file, deadline=deadline, should_stop=should_stop)
        return self._judged(result, manifest, soundness)

    def _judged(self, result: CheckResult, manifest: Manifest, soundness: Soundness) -> CheckResult:
        """Complete `result` for an image of which every byte is proven."""
        damage = list(soundness.findings)
        if soundness.page_count not in {None, manifest.page_count}:
            damage.insert(0, f"SQLite sees {soundness.page_count} pages instead of {manifest.page_count}")
        findings = (*damage, *soundness.unchecked, *soundness.odd_values, *soundness.orphans)[:MOST_FINDINGS]
        result = replace(result, findings=findings, odd_values=tuple(soundness.odd_values), rows=soundness.rows)
        if damage:
            more = f" (and {len(damage) - 1} more findings)" if len(damage) > 1 else ""
            error = DamageError(
                f"snapshot {manifest.id} of {self._database} in {self._archive.url} is as it was captured, "
                f"and SQLite finds that database damaged: {damage[0]}{more}",
                hint=f"check the live one with: sqlite3 {quote(manifest.writer.path)} 'PRAGMA integrity_check'; if it "
                f"is damaged too, restore a snapshot from before that: backupd list {self._database}",
            )
            return replace(result, outcome=CheckOutcome.DAMAGED_SOURCE, error=error, manifest=manifest)
        return replace(result, outcome=CheckOutcome.NOT_CHECKABLE if soundness.unchecked else CheckOutcome.PROVEN)

    def _unopened(self, result: CheckResult, found: AnyManifest) -> CheckResult:
        """Complete `result` for stored bytes that are all right, and that could not be decrypted.

        A drill that could restore them has seen more: its finding stands until the snapshot is restored again.
        """
        proofs = self._archive.proofs()
        own = proofs.own(found.id)
        if own is None or own.outcome not in _FOUND_BY_RESTORING:
            return replace(result, outcome=CheckOutcome.INTACT)
        result = replace(result, earlier=own, is_recorded=proofs.known(found) == own)
        if own.outcome is CheckOutcome.PROVEN:
            return replace(result, outcome=CheckOutcome.INTACT)
        error = source_found_damaged_before(self._database, self._archive.url, found.id, own)
        return replace(result, outcome=CheckOutcome.DAMAGED_SOURCE, error=error, manifest=found)

    def _damaged(self, result: CheckResult, error: DamageError) -> CheckResult:
        """Complete `result` for a damaged store; the drill is inconclusive when the store has gone away meanwhile."""
        try:
            self._reject_vanished_store()
        except DamageError:
            pass  # It is there, and more is wrong with it.
        except BackupdError as gone:
            return replace(result, error=gone)
        packs = error.packs if isinstance(error, DamagedPacksError) else ()
        return replace(
            result,
            outcome=CheckOutcome.DAMAGED_STORE,
            error=error if result.id is None else self._not_restorable(result.id, error),
            damaged_packs=packs,
            damaged_snapshots=self._touched(result.id, packs),
        )

    def _touched(self, snapshot_id: SnapshotId | None, packs: Collection[str]) -> tuple[SnapshotId, ...]:
        """Find the snapshots that need one of the damaged `packs`, as far as the store can be read."""
        touched = set() if snapshot_id is None else {snapshot_id}
        try:
            manifests = self._archive.history().manifests if packs else ()
        except BackupdError:
            manifests = ()  # the damage must be reported anyway
        touched |= {each.id for each in manifests if any(pack.sha256 in packs for pack in each.packs)}
        return tuple(sorted(touched))

    def _not_restorable(self, snapshot_id: SnapshotId, error: DamageError) -> DamageError:
        """Explain `error` to a reader who did not ask for a restore."""
        url = self._archive.url
        return DamageError(
            f"snapshot {snapshot_id} of {self._database} cannot be restored from {url}: {error.message}",
            hint=f"store the damaged pages again with: backupd now {self._database} --store {url}; "
            f"backupd list {self._database} shows the other snapshots",
        )

    def _reject_vanished_store(self) -> None:
        reject_vanished_store(self._archive, f"a drill of {self._database}", "the next drill tries again")


@contextmanager
def _scratch_file(state: StateDirectory, image_bytes: int) -> Iterator[tuple[Path, int]]:
    """Make an empty private file with room for an image; yields its path and descriptor, and removes it at the end.

    A file that a killed process left is removed by the next run. Some space stays free on the disk. Raises
    `TargetUnwritableError`, also for an OSError of the block.
    """
    with state.spool() as directory:
        free = free_bytes(directory)
        if free is not None and free < image_bytes + _LEFT_FREE_BYTES:
            needed = image_bytes + _LEFT_FREE_BYTES
            raise TargetUnwritableError(
                f"the state directory {state.root} has {free >> 20} MiB free, a test restore needs {needed >> 20} MiB",
                hint=_ROOM_HINT,
            )
        try:
            file = directory / "image.db"
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                yield file, descriptor
            finally:
                os.close(descriptor)
        except OSError as error:
            raise TargetUnwritableError(
                f"a test restore cannot be written to the state directory {state.root}: {error.strerror}",
                hint=_ROOM_HINT,
            ) from error


def _examine(file: Path, *, deadline: float, should_stop: Callable[[], None]) -> Soundness:
    """Let SQLite look through the image `file`, beside which scratch may be written; `deadline` is in seconds.

    Raises `BusyError` after the deadline, `TargetUnwritableError` when the image cannot be read for reasons of this
    machine, `BackupdError` when the process ends unasked, and what `should_stop` raises.
    """
    answer = file.with_name("soundness.json")
    command = command_of("backupd.live.soundness", str(file))
    give_up_at = time.monotonic() + deadline
    with answer.open("wb") as output:
        # In a process group of its own: Ctrl-C goes to the whole group, and this process decides what becomes of it.
        process = start(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            env=child_environment(SQLITE_TMPDIR=str(file.parent)),
            process_group=0,
        )
    try:
        while process.poll() is None:
            should_stop()
            if time.monotonic() > give_up_at:
                raise BusyError(
                    f"SQLite did not finish checking the restored database within {deadline:.0f} s",
                    hint="raise capture.deadline, or find out what slows down the disk of the state directory",
                )
            with suppress(subprocess.TimeoutExpired):
                process.wait(min(_TICK_SECONDS, deadline))
    finally:
        end(process)
    return _soundness_in(answer, process.returncode)


def _soundness_in(answer: Path, status: int) -> Soundness:
    if status == NOT_LOADED:
        raise not_loaded("the process in which SQLite checks the restored database")
    if status:
        kind = LimitReachedError if -status in {signal.SIGKILL, signal.SIGABRT} else BackupdError
        raise kind(
            f"the process in which SQLite checked the restored database ended with status {status}",
            hint="memory may have run out, or the database made SQLite crash; drill an older snapshot to compare",
        )
    values = json.loads(answer.read_text(encoding="utf-8"))
    if "failure" in values:
        raise TargetUnwritableError(
            f"the restored database cannot be read from the state directory: {values['failure']}",
            hint="look at the memory and the disk of this machine; nothing is known about the database",
        )
    return Soundness(**values)
