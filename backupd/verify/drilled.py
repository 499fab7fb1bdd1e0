"""Snapshots looked at by test restores, and what those found in the words of a verification."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.drill import Outcome as Verdict
from backupd.drill import drill
from backupd.drill.packs import DamagedPackError, read_proven
from backupd.errors import InterruptedByUserError, StoreUnavailableError
from backupd.store.keys import SnapshotKey
from backupd.verify.findings import Kind
from backupd.verify.results import Looked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from backupd.config import Settings
    from backupd.drill import DrillResult
    from backupd.errors import BackupdError
    from backupd.format.ids import SnapshotId
    from backupd.state import StateDirectory
    from backupd.verify.inspection import Inspection


def drill_each(
    inspection: Inspection,
    state: StateDirectory,
    settings: Settings,
    *,
    now: datetime,
    should_stop: Callable[[], None],
    recorded: set[SnapshotId],
) -> Iterator[BackupdError]:
    """Drill every readable snapshot of `inspection`, and add those to `recorded` that have a record of it now.

    Gives the errors of drills that could not be done; raises that of a store that cannot be reached any more, and that
    of `should_stop`.
    """
    for snapshot in inspection.manifests:
        result = drill(
            inspection.repository,
            inspection.database,
            state,
            settings,
            now=now,
            snapshot=snapshot,
            should_stop=should_stop,
        )
        if snapshot == inspection.holding.history.newest_id:
            inspection.newest_drill = result
        if result.outcome is not Verdict.FAILED or result.error is None:
            recorded.add(snapshot)
            _take(inspection, snapshot, result)
        elif isinstance(result.error, StoreUnavailableError | InterruptedByUserError):
            raise result.error
        else:
            inspection.looked.pop(snapshot, None)  # that it has all its packs is not what was asked
            yield result.error


def _take(inspection: Inspection, snapshot: SnapshotId, result: DrillResult) -> None:
    """Turn what one drill found into findings."""
    key = str(SnapshotKey(inspection.database, str(snapshot)))
    reason = "it does not restore" if result.error is None else result.error.message
    looked = Looked.RESTORED
    inspection.rows[snapshot] = result.rows
    if result.earlier is not None:
        looked = Looked.CIPHERTEXT  # every stored byte is right, and what is known of the rest is of an earlier drill
    others = [finding for finding in result.findings if finding not in result.odd_values]
    if result.remark is not None:
        inspection.findings.add(Kind.ODD_VALUES, key, result.remark, [snapshot])
    match result.outcome:
        case Verdict.PROVEN:
            if others:
                inspection.findings.add(Kind.ORPHANED_ROWS, key, "; ".join(others), [snapshot])
        case Verdict.NOT_CHECKABLE:
            inspection.findings.add(Kind.NOT_CHECKABLE, key, "; ".join(others), [snapshot])
        case Verdict.DAMAGED_SOURCE:
            inspection.findings.add(Kind.SOURCE_DAMAGED, key, reason, [snapshot])
            inspection.damaged_sources.append(result)
        case Verdict.DAMAGED_STORE:
            looked = inspection.looked[snapshot]
            _blame(inspection, snapshot, result, reason)
        case _:
            looked = Looked.CIPHERTEXT  # every stored byte is right, and nothing was decrypted
    inspection.looked[snapshot] = looked


def _blame(inspection: Inspection, snapshot: SnapshotId, result: DrillResult, reason: str) -> None:
    """A finding for each damaged pack that says what is wrong with it; else one about the whole image."""
    known = inspection.findings.packs()
    blamed = [pack for pack in inspection.manifests[snapshot].packs if pack.sha256 in result.damaged_packs]
    for pack in blamed:
        if pack.sha256 in known:
            continue
        try:
            read_proven(inspection.repository, inspection.database, pack)
        except DamagedPackError as error:
            inspection.add_fault(pack, Kind(error.fault.value), error.message)
        else:
            inspection.add_fault(pack, Kind.PACK_DOES_NOT_FIT, reason)
    if not blamed and snapshot not in inspection.findings.touched():
        key = str(SnapshotKey(inspection.database, str(snapshot)))
        inspection.findings.add(Kind.IMAGE_DIGEST_WRONG, key, reason, [snapshot])
