"""Test restores of the configured databases, each in one of its stores at a time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.drill import drill
from backupd.errors import BackupdError, InterruptedByUserError
from backupd.health.recording import with_damaged_source, with_drill
from backupd.logs import log
from backupd.upkeep.damaged_sources import tell_stores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backupd.config import Settings
    from backupd.drill import DrillResult
    from backupd.health import Status, StatusFile, StoreHealth
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
    others: Sequence[RotatedStore] = (),
    should_stop: Callable[[], None],
) -> DrillResult | None:
    """A drill of the newest snapshot in the store of `stores` whose turn it is; None when none has a snapshot.

    That what was captured is damaged, `stores` are told, and `others`, which get no drills. Expected failures are in
    the result, and in the status. Raises `InterruptedByUserError` as `should_stop` does.
    """
    known = status.read().databases.get(configured.name)
    health = known.stores if known else {}
    holding = [rotated for rotated in stores if rotated.url in health and health[rotated.url].snapshot_id]
    if not holding:
        return None
    url = _next_store({rotated.url: health[rotated.url] for rotated in holding})
    rotated = next(each for each in holding if each.url == url)
    now = datetime.now(UTC)
    result = drill(rotated.repository, configured.name, state, settings, now=now, should_stop=should_stop)
    if isinstance(result.error, InterruptedByUserError):
        raise result.error
    told = tell_stores(result, [*stores, *others])
    for warning in told.warnings:
        log.warning(warning)
    # A snapshot that was taken while this looked may have been built on what is damaged.
    at = now if result.error is None else datetime.now(UTC)
    due_by = configured.proof_due_after(at, settings.health.grace)

    def noted(found: Status) -> Status:
        found = with_drill(found, result, at=at, proof_due_by=due_by)
        return with_damaged_source(found, result, told.stores, at=now)  # so that it is their turn before this one's

    try:
        status.update(noted)
    except BackupdError as error:
        log.error("the status cannot be written", error=error.values())
    return result


def _next_store(health: Mapping[str, StoreHealth]) -> str:
    """The URL of the store that had its last drill longest ago; before that, one that may have been mended since.

    Whoever has mended a store waits for the alarm to end. But one that failed again a moment ago, although it had a
    newer snapshot, must not keep others waiting: after it, it is another's turn.
    """
    tried_at = {url: last_drill(each) or _NEVER for url, each in health.items()}
    latest = health[max(tried_at, key=tried_at.__getitem__)].drill_failure
    has_failed_again = latest is not None and latest.count > 1
    mended = [] if has_failed_again else [url for url, each in health.items() if _may_be_mended(each)]
    return min(mended or health, key=tried_at.__getitem__)


def _may_be_mended(health: StoreHealth) -> bool:
    tried_at, snapshot_at = last_drill(health), health.snapshot_at
    if health.drill_failure is None or tried_at is None or snapshot_at is None:
        return False
    return tried_at < snapshot_at  # not its failure alone: one of the source outlasts drills that find bytes right


def last_drill(health: StoreHealth) -> datetime | None:
    """When it was tried last, with whatever result: a store that fails every time must not keep others waiting."""
    failed_at = (health.drill_failure.last_at,) if health.drill_failure else ()
    return max((*health.proofs_at, *failed_at), default=None)
