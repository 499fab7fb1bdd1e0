"""When what is read of a file without a lock is compared with SQLite's backup API, and what follows from a difference.

The first time that a database is read so, and then once a week. While that would hold its writers up noticeably, it
waits for a better moment; after a day it takes the time that `max_lock` grants.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

from backupd import __version__

if TYPE_CHECKING:
    from backupd.state import StateDirectory

_EVERY = timedelta(days=7)
_MAY_WAIT_FOR = timedelta(days=1)
_UNNOTICED_SECONDS = 0.5
_TIMES = ("compared_at", "due_since")


@dataclass(frozen=True, slots=True)
class _Record:
    """What is remembered of one database: when it was compared last, and since when it has been due to be.

    A difference counts for one device and one version of backupd: either may be what is wrong.
    """

    compared_at: datetime | None = None
    due_since: datetime | None = None
    differs_on: int | None = None
    differs_in: str | None = None

    @classmethod
    def from_text(cls, text: str | None) -> Self:
        """What was noted; nothing, where that cannot be read: a comparison too many does no harm."""
        try:
            values = json.loads(text or "{}")
            times = {name: datetime.fromisoformat(values[name]) for name in _TIMES if values.get(name)}
            return cls(**times, differs_on=values.get("differs_on"), differs_in=values.get("differs_in"))
        except (ValueError, TypeError, AttributeError):
            return cls()

    def text(self) -> str:
        """The note."""
        return json.dumps(asdict(self), default=datetime.isoformat)


class Comparison:
    """Of one database, at `path`, for one run. Its methods raise `TargetUnwritableError`."""

    def __init__(self, state: StateDirectory, path: str, *, max_lock_seconds: float, now: datetime) -> None:
        self._state = state
        self._subject = f"comparison of {path} with the backup API"
        self._record = _Record.from_text(state.noted(self._subject))
        self._max_lock_seconds = max_lock_seconds
        self._now = now.astimezone(UTC)
        self._device = _device(path)
        self.differs = (self._record.differs_on, self._record.differs_in) == (self._device, __version__)
        """Whether what was read without a lock is known to be something else than what SQLite reads."""

    @property
    def most_seconds(self) -> float:
        """For how long the lock may be held to compare; 0 when it is not due."""
        due_since = self._due_since()
        if due_since is None:
            return 0.0
        return self._max_lock_seconds if self._now - due_since >= _MAY_WAIT_FOR else _UNNOTICED_SECONDS

    def note(self, *, is_same: bool | None) -> None:
        """Remember what came out; None: it was due, and would have taken too long."""
        if is_same is None:
            record = _Record(self._record.compared_at, self._due_since())
        elif is_same:
            record = _Record(compared_at=self._now)
        else:
            record = _Record(self._now, None, self._device, __version__)
            self.differs = True
        if record != self._record:
            self._record = record
            self._state.note(self._subject, record.text())

    def _due_since(self) -> datetime | None:
        """A moment that is not in the future: the clock may have been, when it was noted."""
        record, due_since = self._record, self._record.due_since
        if record.differs_on is not None:
            return self._now  # where it differed is past
        if due_since is None and record.compared_at is not None and record.compared_at <= self._now:
            due_since = record.compared_at + _EVERY
            return due_since if due_since <= self._now else None
        return min(due_since or self._now, self._now)


def _device(path: str) -> int | None:
    try:
        return Path(path).stat().st_dev
    except OSError:
        return None
