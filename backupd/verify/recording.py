"""What a verification found, as records in the store: there every later run sees it, on whatever host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.errors import BackupdError, NoSuchObjectError
from backupd.format import FormatError
from backupd.format.records import MAX_RECORD_PACKS, Drill, DrillOutcome, decode_drill, encode_drill
from backupd.repository.records import read_record
from backupd.store.keys import RecordKey, RecordKind
from backupd.threads import worker_threads

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime

    from backupd.format.ids import SnapshotId
    from backupd.verify.choosing import Holding
    from backupd.verify.findings import Finding

_WRITERS = 8
_FAILED = DrillOutcome.FAILED


def recorded_damaged(holding: Holding) -> frozenset[SnapshotId]:
    """The snapshots that a record says are damaged. Raises the errors of `Store`."""

    def is_damaged(snapshot: SnapshotId) -> bool:
        before = _recorded(holding, snapshot)
        return before is not None and before.outcome is DrillOutcome.FAILED

    with worker_threads(_WRITERS, name="records") as threads:
        answers = threads.map(is_damaged, holding.survey.drills)
        return frozenset(snapshot for snapshot, answer in zip(holding.survey.drills, answers, strict=True) if answer)


def record_damage(
    holding: Holding,
    findings: Iterable[Finding],
    *,
    at: datetime,
    right: Collection[str],
    already: Collection[SnapshotId],
) -> str | None:
    """Record every listed snapshot that stored bytes are missing or wrong for as failed, with its damaged packs.

    Packs that were recorded as damaged before stay so, unless they were put again since, or are among `right`, those
    that were read and are right. Snapshots of `already` have a record of this run. Gives why something could not be
    recorded, or None.
    """
    packs: dict[SnapshotId, set[str]] = {}
    for finding in findings:
        for snapshot in finding.snapshots if finding.kind.is_of_store else ():
            if snapshot in holding.survey.manifests and snapshot not in already:
                packs.setdefault(snapshot, set()).update([finding.pack] if finding.pack else [])

    def record(snapshot: SnapshotId) -> str | None:
        before = _recorded(holding, snapshot)
        earlier = _still_condemned(holding, snapshot, before) - set(right) if before else set()
        damaged = sorted(packs[snapshot] | earlier)[:MAX_RECORD_PACKS]
        return _put(holding, snapshot, DrillOutcome.FAILED, at, tuple(damaged))

    with worker_threads(_WRITERS, name="record") as threads:
        return next((reason for reason in threads.map(record, sorted(packs)) if reason), None)


def record_healed(holding: Holding, snapshots: Iterable[SnapshotId], *, at: datetime) -> str | None:
    """Record those of `snapshots` as intact that a record says are damaged: every byte of them is right now.

    What is proven stays so, and what nobody has said anything of gets no record. Nor does what somebody has looked at
    since the listing: that was later. Gives why it did not work, or None.
    """
    failed = [each for each in snapshots if (before := _recorded(holding, each)) and before.outcome is _FAILED]
    if not failed:
        return None
    try:
        shown = holding.repository.survey(holding.database).drills
    except BackupdError as error:
        return error.message
    same = (each for each in failed if shown.get(each) == holding.survey.drills[each])
    return next((reason for each in same if (reason := _put(holding, each, DrillOutcome.INTACT, at, ()))), None)


def _still_condemned(holding: Holding, snapshot: SnapshotId, before: Drill) -> set[str]:
    """The damaged packs in the record of `snapshot`, but for those that were put again since: a new one is later."""
    recorded_at = holding.survey.drills[snapshot].modified_at
    put = holding.survey.packs
    return {each for each in before.damaged_packs if each not in put or put[each].modified_at <= recorded_at}


def _recorded(holding: Holding, snapshot: SnapshotId) -> Drill | None:
    """What the store has recorded of a snapshot, as far as that can be read."""
    stored = holding.survey.drills.get(snapshot)
    if stored is None:
        return None
    try:
        return read_record(holding.repository, holding.database, stored, decode_drill)
    except (FormatError, NoSuchObjectError):
        return None  # it is written anew


def _put(
    holding: Holding, snapshot: SnapshotId, outcome: DrillOutcome, at: datetime, packs: tuple[str, ...]
) -> str | None:
    record = Drill(snapshot=snapshot, database=holding.database, outcome=outcome, at=at, damaged_packs=packs)
    key = RecordKey(RecordKind.DRILL, holding.database, str(snapshot))
    try:
        holding.repository.put_object(str(key), encode_drill(record))
    except BackupdError as error:
        return error.message
    return None
