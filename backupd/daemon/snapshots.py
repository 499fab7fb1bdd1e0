"""One database's turn: snapshots into the stores that want one, then rotation."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.backup import Wish
from backupd.daemon.outcomes import log_result
from backupd.errors import expected
from backupd.health import planning, recording
from backupd.upkeep.rotation import is_rotated_after
from backupd.upkeep.snapshots import take_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backupd.backup import BackupResult
    from backupd.daemon.charge import Charge
    from backupd.errors import BackupdError
    from backupd.health import StoreHealth
    from backupd.upkeep.configured import Configured
    from backupd.upkeep.stores import RotatedStore

_MOST_TRIES = 3


def look_after(
    configured: Configured, stores: Sequence[RotatedStore], charge: Charge, *, drill_soon: Callable[[Configured], None]
) -> BackupdError | None:
    """Have a snapshot in each of `stores`, rotate after it, and tell of both. Gives the first error of the snapshot.

    A store in which a drill found damage gets the damaged pages again, and every page when it is still damaged after
    that: each time `drill_soon` is called to see whether it is sound now.
    """
    started_at = datetime.now(UTC)
    charge.note(lambda status: planning.with_running(status, configured.name, since=started_at))
    try:
        results, has_mended = _take_all(configured, stores, charge)
    except Exception as bug:
        # Told by whoever started this; but a database that is not backed up must be seen to be so.
        down = {configured.name: [(rotated.url, expected(bug)) for rotated in stores]}
        charge.note(lambda status: recording.with_down(status, down, at=started_at))
        raise
    finally:
        charge.note(lambda status: planning.with_running(status, configured.name, since=None))
    if has_mended:
        drill_soon(configured)
    by_url = {rotated.url: rotated for rotated in stores}
    for result in results:
        if is_rotated_after(result, by_url[result.store]):
            charge.rotations.rotate(configured.name, by_url[result.store], charge.runs.go_on)
    return next((result.error for result in results if result.error is not None), None)


def _take_all(
    configured: Configured, stores: Sequence[RotatedStore], charge: Charge
) -> tuple[list[BackupResult], bool]:
    """The results, and whether a damaged store has got what was damaged again."""
    known = charge.status.read().databases.get(configured.name)
    health = known.stores if known else {}
    condemned = {rotated.url for rotated in stores if is_condemned(health.get(rotated.url))}
    beyond = [rotated for rotated in stores if rotated.url in condemned and is_still_damaged(health[rotated.url])]
    others = [rotated for rotated in stores if rotated not in beyond]
    # The others in one run: which pages of which store are damaged, a snapshot reads from that store itself.
    results = [
        *_take(configured, others, charge, Wish()),
        *_take(configured, beyond, charge, Wish(is_full=True)),
    ]
    known_damaged = {url for url, each in health.items() if each.is_damaged}
    # What another machine, or somebody by hand, has found is known to the store alone.
    unknown = {result.store for result in results if result.replaced_packs} - known_damaged
    mended = {result.store for result in results if result.error is None}
    return results, bool(mended & (condemned | unknown))


def _take(configured: Configured, stores: Sequence[RotatedStore], charge: Charge, wish: Wish) -> list[BackupResult]:
    if not stores:
        return []
    results = take_snapshot(
        configured, stores, charge.settings, charge.state, charge.status, wish=wish, on_progress=charge.runs.go_on
    )
    for result in results:
        log_result(result)
    return results


def is_condemned(health: StoreHealth | None) -> bool:
    """Whether a drill found stored bytes damaged, and no snapshot since has written their pages again."""
    if health is None or not health.is_damaged or health.drill_failure is None:
        return False
    if health.drill_failure.count > _MOST_TRIES:  # the store damages whatever it gets: somebody has to look at it
        return False
    return health.snapshot_at is None or health.snapshot_at <= health.drill_failure.last_at


def is_still_damaged(health: StoreHealth) -> bool:
    """Whether a drill found damage once more after a snapshot that had stored the damaged pages again."""
    failure, snapshot_at = health.drill_failure, health.snapshot_at
    return failure is not None and snapshot_at is not None and failure.since < snapshot_at <= failure.last_at
