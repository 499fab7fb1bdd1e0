"""When what failed is tried again: after growing pauses, until the next scheduled time takes it up."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


class Retries:
    """The failed databases of one entry. They are tried again together: a store that is down is asked once for all."""

    def __init__(self, first_pause: timedelta) -> None:
        self._first_pause = first_pause
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self._attempts = 0
        self._is_planned = False

    def begin_anew(self) -> None:
        """A scheduled round takes all databases up: forget them, and begin with the first pause."""
        with self._lock:
            self._names.clear()
            self._attempts = 0
            self._is_planned = False

    def want(
        self,
        name: str,
        *,
        now: datetime,
        next_run_at: datetime | None,
        first_pause: timedelta | None = None,
        longest_pause: timedelta = timedelta.max,
    ) -> datetime | None:
        """Note that `name` has failed. Gives when to try again, None when that is planned already or comes anyway.

        `first_pause` in place of the usual one; it grows as that does, up to `longest_pause`.
        """
        with self._lock:
            self._names.add(name)
            if self._is_planned:
                return None
            # The exponent is bounded only to stay a number: long before that, the next scheduled run comes first.
            pause: timedelta = (first_pause or self._first_pause) * 2 ** min(self._attempts, 20)
            at = now + min(pause, longest_pause)
            if next_run_at is not None and at >= next_run_at:
                return None
            self._attempts += 1
            self._is_planned = True
            return at

    def take(self) -> frozenset[str]:
        """What is to be tried now."""
        with self._lock:
            names = frozenset(self._names)
            self._names.clear()
            self._is_planned = False
            return names
