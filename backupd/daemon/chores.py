"""What is done once a day or so for the databases of an entry: test restores, and a look at what may go.

Both take the stores that answer, and leave one out for the rest as soon as it does not: a thousand databases are not to
wait for it one after the other.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from backupd.daemon.outcomes import log_drill
from backupd.errors import BusyError, InterruptedByUserError, StoreUnavailableError
from backupd.logs import log
from backupd.upkeep.drills import drill_next

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.config import DatabaseSettings
    from backupd.daemon.charge import Charge
    from backupd.errors import BackupdError
    from backupd.upkeep.configured import Configured
    from backupd.upkeep.stores import RotatedStore

_LONGEST_WAIT_SECONDS = 60.0


def run_drills(charge: Charge, entry: DatabaseSettings) -> None:
    """A drill of each database of the entry, one after the other, in the store whose turn it is.

    Each needs as much room as its database: no two of these may go on at the same time.
    """
    stores = _answering(charge)
    with _until_stopped():
        for configured in charge.databases(entry)[0]:
            with _telling_of_bugs(configured.name):
                _drill(configured, stores, charge)


def run_drill(charge: Charge, configured: Configured) -> None:
    """A drill of one database now: whether a snapshot has mended what another drill had found damaged."""
    with _until_stopped(), _telling_of_bugs(configured.name):
        _drill(configured, _answering(charge), charge)


def _drill(configured: Configured, stores: dict[str, RotatedStore], charge: Charge) -> None:
    others = [rotated for rotated in charge.stores() if rotated.url not in stores]
    # A turn of its own, beside snapshots: whoever stops the daemon waits until the copy is gone from scratch.
    with charge.runs.turn(f"{configured.name} (drill)", timeout=None):
        result = drill_next(
            configured,
            [*stores.values()],
            charge.settings,
            charge.state,
            charge.status,
            others=others,
            should_stop=charge.runs.go_on_unless_stopping,
        )
    if result is not None:
        log_drill(result)
        _leave_out(result.store, result.error, stores)
        charge.wake()


def run_prunes(charge: Charge, entry: DatabaseSettings) -> None:
    """Prune each database of the entry in each store, one after the other.

    A snapshot that is scheduled for the same moment comes after that. A database whose run takes long is left out: the
    next prune takes it up.
    """
    stores = _answering(charge)
    with _until_stopped():
        for configured in charge.databases(entry)[0]:
            with _telling_of_bugs(configured.name):
                _prune(configured, stores, charge)


def _prune(configured: Configured, stores: dict[str, RotatedStore], charge: Charge) -> None:
    try:
        with charge.runs.turn(configured.name, timeout=_LONGEST_WAIT_SECONDS):
            for rotated in [*stores.values()]:
                result = charge.rotations.rotate(configured.name, rotated, charge.runs.go_on)
                if result is not None:
                    _leave_out(result.store, result.error, stores)
    except BusyError:
        return
    charge.wake()


def _answering(charge: Charge) -> dict[str, RotatedStore]:
    """The stores that are there and whose keys may read packs and delete, by their URLs."""
    stores = [rotated for rotated in charge.stores() if not rotated.is_put_only]
    answers = charge.questions.ask(stores)
    for url, error in answers.errors.items():
        log.error("store not asked", store=url, error=error.values())
    return {rotated.url: rotated for rotated in stores if rotated.url not in answers.errors}


def _leave_out(url: str, error: BackupdError | None, stores: dict[str, RotatedStore]) -> None:
    if isinstance(error, StoreUnavailableError):
        stores.pop(url, None)


@contextmanager
def _until_stopped() -> Iterator[None]:
    try:
        yield
    except InterruptedByUserError:
        return


@contextmanager
def _telling_of_bugs(database: str) -> Iterator[None]:
    """What goes wrong with one database for no known reason must not cost the others their turn."""
    try:
        yield
    except InterruptedByUserError:
        raise
    except Exception as bug:  # noqa: BLE001  (as said)
        log.unexpected(bug, database=database)
