"""A database as it is configured, and when it has to be current again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from backupd.config import Database, ScheduleSettings


@dataclass(frozen=True, slots=True)
class Configured:
    """A database with the schedule that holds for it."""

    database: Database
    schedule: ScheduleSettings

    @property
    def name(self) -> str:
        """The database's name."""
        return self.database.name

    def due_after(self, moment: datetime, grace: timedelta) -> datetime:
        """When it has to be current again after it was so at `moment`: the next run, the jitter, and the grace."""
        next_run = self.schedule.snapshots.next_after(moment, self.schedule.zone)
        return next_run + self.schedule.latest_start + grace

    def proof_due_after(self, moment: datetime, grace: timedelta) -> datetime | None:
        """When a drill has to have succeeded again after one did at `moment`: one may fail or be missed, not two.

        None when none is scheduled.
        """
        drills = self.schedule.drills
        if drills is None:
            return None
        for _ in range(2):
            moment = drills.next_after(moment, self.schedule.zone) + self.schedule.latest_start
        return moment + grace


class ProofsDue:
    """`proof_due_after` for all databases of one schedule: each stretch between two drills is asked for only once."""

    def __init__(self, configured: Configured, grace: timedelta) -> None:
        self._configured = configured
        self._grace = grace
        self._known: list[tuple[datetime, datetime, datetime | None]] = []

    def after(self, moment: datetime) -> datetime | None:
        """When a drill has to have succeeded again after one did at `moment` (aware)."""
        schedule = self._configured.schedule
        if schedule.drills is None:
            return None
        for begin, end, due in self._known:
            if begin <= moment < end:
                return due
        due = self._configured.proof_due_after(moment, self._grace)
        self._known.append((moment, schedule.drills.next_after(moment, schedule.zone), due))
        return due
