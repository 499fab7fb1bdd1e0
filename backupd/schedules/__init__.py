"""When something is done: an interval ("every 15m") or a cron expression, and the next time after a moment."""

from backupd.schedules.local import Misunderstanding, misunderstood_zone, zone_meant
from backupd.schedules.parsing import InvalidScheduleError
from backupd.schedules.schedule import Schedule

__all__ = ["InvalidScheduleError", "Misunderstanding", "Schedule", "misunderstood_zone", "zone_meant"]
