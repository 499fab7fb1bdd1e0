"""Pruning that may be left behind: a store that hangs while it is tidied up must not hold up a snapshot."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from backupd.daemon.outcomes import log_prune
from backupd.errors import BackupdError, StoreUnavailableError
from backupd.health.recording import with_prune
from backupd.logs import log
from backupd.prune import PruneResult
from backupd.threads import start_thread
from backupd.upkeep.rotation import rotate

if TYPE_CHECKING:
    from collections.abc import Callable

    from backupd.health import StatusFile
    from backupd.state import StateDirectory
    from backupd.upkeep.stores import RotatedStore

# Pruning itself stops after some 20 s of work, and leaves the rest to the next time.
_PATIENCE = timedelta(minutes=2)
_LOOKS_SECONDS = 0.5


class Rotations:
    """Prunes databases in stores, and waits for each only so long; one that hangs is left alone until it answers."""

    def __init__(self, state: StateDirectory, status: StatusFile, *, patience: timedelta = _PATIENCE) -> None:
        self._state = state
        self._status = status
        self._patience = patience
        self._lock = threading.Lock()
        self._hanging: set[str] = set()

    def rotate(self, database: str, rotated: RotatedStore, go_on: Callable[[], None]) -> PruneResult | None:
        """Prune a configured database in one store, log the outcome, and give it; None when that store hangs already.

        Expected failures are in the result. `go_on` is called now and then, and may raise to give up waiting.
        """
        with self._lock:
            if rotated.url in self._hanging:
                return None
        outcome: Future[PruneResult] = Future()
        start_thread(self._run, database, rotated, outcome, name="rotate")
        give_up_at = time.monotonic() + self._patience.total_seconds()
        while not wait([outcome], timeout=_LOOKS_SECONDS).done:
            go_on()
            if time.monotonic() > give_up_at and self._is_left_behind(rotated.url, outcome):
                return self._given_up(database, rotated.url)
        result = outcome.result()
        log_prune(result, self._state)
        return result

    def _run(self, database: str, rotated: RotatedStore, outcome: Future[PruneResult]) -> None:
        try:
            result = rotate(database, rotated, self._state, self._status)
        except Exception as bug:  # noqa: BLE001  (no bug may end what waits for this)
            error = log.unexpected(bug, database=database)
            result = PruneResult(database=database, store=rotated.url, error=error)
        with self._lock:
            outcome.set_result(result)
            self._hanging.discard(rotated.url)

    def _is_left_behind(self, url: str, outcome: Future[PruneResult]) -> bool:
        with self._lock:
            if not outcome.done():
                self._hanging.add(url)
        return not outcome.done()

    def _given_up(self, database: str, url: str) -> PruneResult:
        now = datetime.now(UTC)
        error = StoreUnavailableError(
            f"{url} has not let {database} be pruned within {self._patience.total_seconds():.0f} s",
            hint="check that it is up and can be reached from here; it is pruned again when it answers",
        )
        result = PruneResult(database=database, store=url, error=error)
        try:
            self._status.update(lambda found: with_prune(found, result, at=now))
        except BackupdError as unwritten:
            log.error("the status cannot be written", error=unwritten.values())
        log_prune(result, self._state)
        return result
