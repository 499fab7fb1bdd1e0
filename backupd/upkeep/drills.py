"""Test restores of the configured databases, each in one of its stores at a time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.drill import drill
from backupd.errors import BackupdError, InterruptedByUserError
from backupd.health.recording import with_drill
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backupd.config import Settings
    from backupd.drill import DrillResult
    from backupd.health import StatusFile, StoreHealth
    from backupd.state import StateDirectory
    from backupd.upkeep.configured import Configured
    from backupd.upkeep.stores import RotatedStore

_NEVER = datetime.min.replace(tzinfo=UTC)


def drill_next(
    configured: Configured,
    stores: Sequence[RotatedStore],
    settings: Settings,
    state: StateDirectory,
    status: StatusFile,
    *,
    should_stop: Callable[[], None],
) -> DrillResult | None:
    """A drill of the newest snapshot in the store that had its last one longest ago; None when no store has a snapshot.

    Expected failures are in the result, and in the status. Raises `InterruptedByUserError` as `should_stop` does.
    """
    known = status.read().databases.get(configured.name)
    health = known.stores if known else {}
    holding = [rotated for rotated in stores if rotated.url in health and health[rotated.url].snapshot_id]
    if not holding:
        return None
    rotated = min(holding, key=lambda each: last_drill(health[each.url]) or _NEVER)
    now = datetime.now(UTC)
    result = drill(rotated.repository, configured.name, state, settings, now=now, should_stop=should_stop)
    if isinstance(result.error, InterruptedByUserError):
        raise result.error
    try:
        status.update(lambda found: with_drill(found, result, at=now))
    except BackupdError as error:
        log.error("the status cannot be written", error=error.values())
    return result


def last_drill(health: StoreHealth) -> datetime | None:
    """When it was tried last, with whatever result: a store that fails every time must not keep others waiting."""
    failed_at = health.drill_failure.last_at if health.drill_failure else None
    return max((at for at in (health.proven_at, failed_at) if at is not None), default=None)
