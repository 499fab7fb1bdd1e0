"""What is done once a day or so for the databases of an entry: test restores, and a look at what may go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.daemon.outcomes import log_drill, log_prune
from backupd.errors import BusyError, InterruptedByUserError
from backupd.upkeep.drills import drill_next
from backupd.upkeep.rotation import rotate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backupd.config import DatabaseSettings
    from backupd.daemon.charge import Charge
    from backupd.upkeep.configured import Configured
    from backupd.upkeep.stores import RotatedStore

_LONGEST_WAIT_SECONDS = 60.0


def run_drills(charge: Charge, entry: DatabaseSettings) -> None:
    """A drill of each database of the entry, one after the other, in the store whose turn it is.

    Each needs as much room as its database: no two of these may go on at the same time.
    """
    databases, _ = charge.databases(entry)
    stores = charge.stores()
    for configured in databases:
        try:
            # A turn of its own, beside snapshots: whoever stops the daemon waits until the copy is gone from scratch.
            with charge.runs.turn(f"{configured.name} (drill)", timeout=None):
                result = drill_next(
                    configured,
                    stores,
                    charge.settings,
                    charge.state,
                    charge.status,
                    should_stop=charge.runs.go_on_unless_stopping,
                )
        except InterruptedByUserError:
            return
        if result is not None:
            log_drill(result)
            charge.wake()


def run_prunes(charge: Charge, entry: DatabaseSettings) -> None:
    """Prune each database of the entry in each store, one after the other.

    A snapshot that is scheduled for the same moment comes after that. A database whose run takes long is left out: the
    next prune takes it up.
    """
    databases, _ = charge.databases(entry)
    stores = charge.stores()
    for configured in databases:
        try:
            with charge.runs.turn(configured.name, timeout=_LONGEST_WAIT_SECONDS):
                _prune(configured, stores, charge)
        except BusyError:
            continue
        except InterruptedByUserError:
            return


def _prune(configured: Configured, stores: Sequence[RotatedStore], charge: Charge) -> None:
    for rotated in stores:
        charge.runs.go_on()
        log_prune(rotate(configured.name, rotated, charge.state, charge.status), charge.state)
    charge.wake()
