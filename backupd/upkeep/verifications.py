"""What somebody who verifies by hand finds out, in the status of the databases that are looked after here."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.drill import Outcome
from backupd.health.recording import with_damaged_source, with_drill
from backupd.upkeep.damaged_sources import Told, tell_stores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backupd.config import Settings
    from backupd.drill import DrillResult
    from backupd.health import Status, StatusFile
    from backupd.upkeep.configured import Configured
    from backupd.upkeep.stores import RotatedStore


def tell_others(found: Sequence[DrillResult], stores: Sequence[RotatedStore]) -> Mapping[str, Told]:
    """Tell each of `stores` which of its snapshots drills `found` damaged as they were captured, in another store."""
    return {_name(result): tell_stores(result, stores) for result in found}


def _name(result: DrillResult) -> str:
    return f"{result.database}@{result.id} {result.store}"


def note_verified(
    verdicts: Sequence[DrillResult],
    configured: Mapping[str, Configured],
    settings: Settings,
    status: StatusFile,
    *,
    told: Mapping[str, Told],
    is_drill: bool,
) -> None:
    """Note `verdicts` as if drills had found them; nothing where neither database nor store is known.

    `told` is what `tell_others` gave.

    That every byte is right ends an alarm of damage; but unless a drill found it (`is_drill`), it is no proof. Raises
    the errors of `StatusFile`.
    """
    before = status.find()
    meant = [each for each in verdicts if before is not None and _changes(before, each, is_drill=is_drill)]
    if not meant:
        return

    def noted(found: Status) -> Status:
        for verdict in meant:
            known = configured.get(verdict.database)
            # A snapshot that was taken while this looked may have been built on what is damaged.
            at = verdict.started_at if verdict.error is None else datetime.now(UTC)
            due_by = known.proof_due_after(at, settings.health.grace) if known and is_drill else None
            found = with_drill(found, verdict, at=at, proof_due_by=due_by)
            also = told.get(_name(verdict), Told()).stores
            found = with_damaged_source(found, verdict, also, at=verdict.started_at)
        return found

    status.update(noted)


def _changes(status: Status, verdict: DrillResult, *, is_drill: bool) -> bool:
    database = status.databases.get(verdict.database)
    health = database.stores.get(verdict.store) if database else None
    if health is None:
        return False
    return is_drill or health.is_damaged or verdict.outcome is not Outcome.INTACT
