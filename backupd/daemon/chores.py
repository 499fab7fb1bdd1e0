"""What is done once a day or so for the databases of an entry: test restores, and a look at what may go."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

from backupd.daemon.outcomes import log_drill, log_prune
from backupd.errors import InterruptedByUserError
from backupd.upkeep.drills import drill_next
from backupd.upkeep.rotation import rotate

if TYPE_CHECKING:
    from backupd.config import DatabaseSettings
    from backupd.daemon.charge import Charge
    from backupd.upkeep.configured import Configured

# Each needs as much room as its database: one at a time, whatever number of entries have theirs now.
_one_drill = threading.Lock()


def run_drills(charge: Charge, entry: DatabaseSettings) -> None:
    """A drill of each database of the entry, one after the other, in the store whose turn it is."""
    for configured in charge.databases(entry)[0]:
        with _one_drill:
            try:
                charge.runs.go_on()
                result = drill_next(
                    configured,
                    charge.stores(),
                    charge.settings,
                    charge.state,
                    charge.status,
                    should_stop=charge.runs.go_on,
                )
            except InterruptedByUserError:
                return
        if result is not None:
            log_drill(result)
            charge.wake()


def run_prunes(charge: Charge, entry: DatabaseSettings) -> None:
    """Prune each database of the entry in each store. One that is being backed up is pruned after that anyway."""
    for configured in charge.databases(entry)[0]:
        charge.runs.start(configured.name, partial(_prune, configured, charge))


def _prune(configured: Configured, charge: Charge) -> None:
    for rotated in charge.stores():
        charge.runs.go_on()
        log_prune(rotate(configured.name, rotated, charge.state, charge.status), charge.state)
    charge.wake()
