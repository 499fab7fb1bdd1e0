"""Commits that applications know of: each has a number, and the times between which it was made."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

_CLOCK_SECONDS = 0.001
"""Times in segments are rounded down to a millisecond."""
_SEEN_WITHIN_SECONDS = 3.0
"""The second that docs/following.md promises, and what a busy machine adds to it."""


class Acknowledged(NamedTuple):
    """One commit, with times in seconds since 1970."""

    number: int
    asked_at: float
    known_at: float


class Ledger:
    """All commits that were acknowledged. Their numbers follow the order of the commits, from 1 on."""

    def __init__(self, commits: list[Acknowledged]) -> None:
        self.commits = commits

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """What processes have written, one line each."""
        lines = [line.split() for line in path.read_text().splitlines()]
        return cls([Acknowledged(int(number), float(asked), float(known)) for number, asked, known in lines])

    @property
    def last(self) -> int:
        """The highest number."""
        return max((each.number for each in self.commits), default=0)

    def wait_for(self, commits: int, *, within_seconds: float = 60.0) -> None:
        """Wait until so many more are acknowledged."""
        until, give_up_at = len(self.commits) + commits, time.monotonic() + within_seconds
        while len(self.commits) < until:
            assert time.monotonic() < give_up_at, "the application does not commit any more"
            time.sleep(0.01)

    def require_state(self, last: int, at: datetime) -> None:
        """The commits up to `last`, and no others, are what a restore of the time `at` has to give."""
        moment = at.timestamp()
        later = [each for each in self.commits if each.number <= last and each.asked_at > moment + _CLOCK_SECONDS]
        assert not later, f"the state of {at} has what was asked for later: {later}"
        limit = moment - _SEEN_WITHIN_SECONDS
        missing = [each for each in self.commits if each.number > last and each.known_at < limit]
        assert not missing, f"the state of {at} ends with {last}, and lacks {missing}"


class SharedLedger(Ledger):
    """A ledger that threads write."""

    def __init__(self) -> None:
        super().__init__([])
        self.failures: list[str] = []
        self._lock = threading.Lock()

    def add(self, commit: Acknowledged) -> None:
        with self._lock:
            self.commits.append(commit)


def utc(text: str) -> datetime:
    """A time in a document of the command line."""
    return datetime.fromisoformat(text).astimezone(UTC)
