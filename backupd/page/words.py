"""Times and counts as elements of a page, and the sentence at its top."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, NamedTuple

from backupd.page.html import Markup, tag
from backupd.quantities import age, count, seconds

if TYPE_CHECKING:
    from datetime import datetime

    from backupd.health.alarms import Alarm
    from backupd.page.values import Situation

_TITLES = {
    "failing": "snapshots of {} fail",
    "stale": "{} is late",
    "nothing-matches": "not everything at {} is backed up",
    "damaged": "snapshots of {} are damaged",
    "damaged-source": "{} was captured as a damaged database",
    "drill-failed": "a test restore of {} failed",
    "unproven": "no test restore of {} has succeeded for too long",
    "recovery-late": "the recovery point of {} is too old",
    "continuity": "a recovery window of {} is broken",
    "daemon-silent": "the daemon has left no sign of life",
    "gaps": "recovery windows of {} end again and again",
    "read-differs": "reading the file of {} gave other bytes than SQLite reads",
    "vanished": "the file of {} is gone",
    "held": "nothing of {} is removed",
    "prune-failing": "old snapshots of {} cannot be removed",
    "passed-over": "no snapshot builds on a manifest of {}",
    "config-refused": "the changed configuration was refused",
}
"""What each kind of alarm is about, for a database or a database in a store."""


NOTHING = "-"
"""What stands for a value that there is none of."""


class Headline(NamedTuple):
    """The sentence at the top of a page: how things are, since when, and what to do about it."""

    tone: str
    """"good", "warn" or "bad"."""
    sentence: str
    since: datetime | None = None
    hint: str | None = None


def moment(at: datetime, *, is_exact: bool = False) -> Markup:
    """Return a time as an element: shown in local time to the minute, or to the second, and exact for programs."""
    exact = f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return tag("time", f"{local(at):%Y-%m-%d %H:%M:%S}" if is_exact else f"{local(at):%Y-%m-%d %H:%M}", datetime=exact)


def local(at: datetime) -> datetime:
    """Return a time in the zone of this machine; in UTC on the first and the last day of the calendar."""
    try:
        return at.astimezone()
    except (OverflowError, OSError, ValueError):
        return at


def ago(at: datetime | None, now: datetime, *, otherwise: str = "never") -> str:
    """Return how long ago a time was; of one that is to come, in how long it is."""
    if at is None:
        return otherwise
    return age(at, now) if at <= now else f"in {age(now, at).removesuffix(' ago')}"


def after(due: datetime | None, now: datetime) -> str:
    """Return in how long a planned time is; a dash without one."""
    if due is None:
        return NOTHING
    return "now" if due <= now else f"in {age(now, due).removesuffix(' ago')}"


def took(duration: float) -> str:
    """Return a duration; one of less than a second in milliseconds."""
    return seconds(duration) if duration >= 1 else f"{duration * 1000:.0f} ms"


def title_of(alarm: Alarm) -> str:
    """Return what an alarm is about, in a few words."""
    subject = f"{alarm.database} in {alarm.store}" if alarm.database and alarm.store else alarm.database or alarm.title
    return _TITLES.get(alarm.kind, "{}").format(subject)


def capitalized(title: str, *names: str | None) -> str:
    """Return `title` with a capital letter, unless it begins with a name."""
    return title if title.split(" ", 1)[0] in names else title[0].upper() + title[1:]


def headline(situation: Situation) -> Headline:
    """Return the one sentence that matters."""
    status, now = situation.status, situation.now
    names = [name for name, database in status.databases.items() if database.vanished_at is None]
    if not status.databases and status.daemon is None:
        hint = "start the daemon with backupd run, or take a snapshot with backupd now"
        return Headline("warn", "Nothing is known yet: backupd has not worked here", hint=hint)
    if red := [alarm for alarm in situation.alarms if alarm.is_red]:
        return _wrong(red, len(names))
    if not names:
        return Headline("warn", "No database is known yet", hint="wait for the first round, or see backupd doctor")
    restorable = {name: situation.restorable(name) for name in names}
    oldest = min((at for at in restorable.values() if at is not None), default=None)
    until = "" if oldest is None else f"{_oldest(len(names))} can be restored to {age(oldest, now)}"
    daemon = status.daemon
    if daemon is None or daemon.stopped_at is not None:
        stopped = "no daemon watches it" if len(names) == 1 else "no daemon watches them"
        since = None if daemon is None else daemon.stopped_at
        text = f"{_of_all(len(names))} known, but {stopped}" + (f"; {until}" if until else "")
        return Headline("warn", text, since, "start it with: backupd run")
    waiting = sum(at is None for at in restorable.values())
    retried = sum(at is not None and situation.state(name) == "retrying" for name, at in restorable.items())
    if waiting or retried:
        parts = [
            f"{count(waiting)} {'waits' if waiting == 1 else 'wait'} for a first snapshot" if waiting else "",
            f"{count(retried)} {'is' if retried == 1 else 'are'} tried again" if retried else "",
        ]
        text = f"{count(len(names) - waiting - retried)} of {count(len(names), 'database')} current; "
        return Headline("warn", text + " and ".join(filter(None, parts)))
    return Headline("good", f"{_of_all(len(names))} current; {until}")


def _wrong(red: list[Alarm], names: int) -> Headline:
    concerned = len({alarm.database for alarm in red if alarm.database})
    first, rest = red[0], len(red) - 1
    title = title_of(first)
    if concerned and names > 1:
        verb = "needs" if concerned == 1 else "need"
        title = f"{count(concerned)} of {count(names, 'database')} {verb} attention: {title}"
    more = f", and {count(rest)} more" if rest else ""
    return Headline("bad", capitalized(title, first.database) + more, first.since, first.hint)


def _of_all(names: int) -> str:
    return "The database is" if names == 1 else f"All {count(names)} databases are"


def _oldest(names: int) -> str:
    return "it" if names == 1 else "the oldest"
