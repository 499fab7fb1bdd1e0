"""How fast a prune goes, and when it leaves the rest to the next one: a snapshot may be waiting for its lock."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeVar

from backupd.threads import worker_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_T = TypeVar("_T")
_WORKERS = 8
_BUDGET_SECONDS = 20.0


class Pace:
    """Does many small things, several at once, until the time for all of them is up."""

    def __init__(self, *, seconds: float = _BUDGET_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends_at = clock() + seconds

    def each(self, do: Callable[[_T], None], things: Iterable[_T]) -> int:
        """Call `do` with each of `things`, and with the first one even if the time is up; how many were left out.

        The first one goes alone, so that a store that refuses is asked once. After an exception, which is raised,
        nothing more is begun.
        """
        pending = iter(things)
        for first in pending:
            do(first)
            break
        has_failed = threading.Event()

        def do_in_time(thing: _T) -> bool:
            if has_failed.is_set() or self._clock() >= self._ends_at:
                return False
            try:
                do(thing)
            except BaseException:
                has_failed.set()
                raise
            return True

        with worker_threads(_WORKERS) as threads:
            futures = [threads.submit(do_in_time, thing) for thing in pending]
            return sum(not future.result() for future in futures)
