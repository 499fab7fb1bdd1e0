"""The alarms that a status raises at a time. Health checks, notifications and metrics all show these.

failing          attempts at a snapshot failed, the retry too; or a database is late too         red
stale            a database is not current although it should be by now                          red
nothing-matches  a [[databases]] entry finds no file, or one that cannot be backed up            red
damaged          a drill found stored bytes that are not the ones that were written              red
damaged-source   what was captured is a damaged database, by its schema or by a drill            red
drill-failed     a drill did not succeed for another reason                                      red
unproven         drills are scheduled, and none has succeeded for too long                       red
recovery-late    a store lacks commits of a followed database for longer than follow.max_age     red
continuity       a recovery window is not what it claims, or its segments are damaged             red
daemon-silent    the daemon has left no sign of life (only a check from outside can find that)   red
gaps             recovery windows of a followed database end again and again
read-differs     reading the file of a database gave other bytes than SQLite reads
vanished         a file that a pattern found before is gone
held             pruning would remove something and does not
prune-failing    pruning failed
passed-over      a store holds a manifest that no snapshot builds on
config-refused   a changed configuration was refused
"""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec.structs import replace

from backupd.errors import ExitCode
from backupd.health.recovery import gaps_since, recovery_stop

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from backupd.health.values import DaemonHealth, DatabaseHealth, Failure, Status, StoreHealth

SILENT_AFTER = timedelta(minutes=2)
"""A daemon that has left no sign of life for this long hangs, cannot write, or was killed."""
LOOKS_THAT_MAY_FIND_NOTHING = 3
"""How often a file may be missing before that is an alarm: an application may be about to create it (half a minute)."""

_ATTEMPTS_THAT_MAY_FAIL = 1
_GAPS_IN_AN_HOUR = 6
_CLOCKS_MAY_DIFFER_BY = timedelta(minutes=5)


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong. `message` says what, about what, and since when; `hint` what to do."""

    key: str
    """It stays as long as the alarm is on, and differs for each database and store."""
    kind: str
    database: str | None = None
    store: str | None = None
    """The store's URL."""
    title: str
    """What it is about, in a few words."""
    message: str
    hint: str
    since: datetime
    is_red: bool
    """The health check fails for it. Other alarms are reported, too."""
    is_sent_once: bool = False
    """No reminders of it are sent."""


class _Subject(msgspec.Struct, frozen=True):
    """What an alarm is about: the daemon, one database, or one database in one store (a URL)."""

    name: str | None = None
    url: str | None = None

    def __str__(self) -> str:
        return f"{self.name} in {self.url}" if self.url else self.name or "the daemon"

    def alarm(self, since: datetime, text: _Text, *, kind: str, key: str | None = None, is_red: bool = True) -> Alarm:
        """Make an alarm about this subject; `key` is the first part of the alarm's key when two kinds share it."""
        return Alarm(
            key=" ".join(filter(None, (key or kind, self.name, self.url))),
            kind=kind,
            database=self.name,
            store=self.url,
            title=text.title,
            message=text.message,
            hint=text.hint,
            since=since,
            is_red=is_red,
        )


class _Text(NamedTuple):
    title: str
    message: str
    hint: str


def find_alarms(status: Status, *, now: datetime, alive_at: datetime | None) -> tuple[Alarm, ...]:
    """Return everything that is wrong at `now` (aware): the daemon first, then by database, and all that is red first.

    `alive_at` is when the daemon last left a sign of life. The daemon itself gives `now`.
    """
    alarms = [*_daemon_alarms(status, now, alive_at)]
    for name, database in status.databases.items():
        is_missing = status.daemon is not None and database.path in status.daemon.entry_problems
        alarms += _database_alarms(name, database, now, is_missing=is_missing)
        if database.follow is not None and database.vanished_at is None:
            alarms += _following_alarms(name, database, status.daemon, now)
    return tuple(sorted(alarms, key=lambda alarm: not alarm.is_red))


def is_healthy(status: Status, alarms: Iterable[Alarm]) -> bool:
    """Whether no red alarm is on, and at least one database is known."""
    return bool(status.databases) and not any(alarm.is_red for alarm in alarms)


def is_stale(health: StoreHealth, now: datetime) -> bool:
    """Whether a database should be current in a store by `now`, and is not.

    A success that is dated in the future proves nothing: the clock was wrong then, or is now, and waiting until that
    time comes could take years.
    """
    return health.due_by is not None and (now > health.due_by or _is_ahead(health.current_at, now))


def _daemon_alarms(status: Status, now: datetime, alive_at: datetime | None) -> Iterator[Alarm]:
    daemon = status.daemon
    if daemon is None:
        return
    # After the clock was set back, the last sign lies in the future: a daemon that lives leaves another one soon.
    if daemon.stopped_at is None and (alive_at is None or abs(now - alive_at) > SILENT_AFTER):
        last = min(alive_at or daemon.started_at, now)
        text = _Text(
            "the daemon",
            f"the daemon (process {daemon.pid}) has left no sign of life since {_time(last)}: "
            "it hangs, was killed, or cannot write its state directory",
            "look at its log and at the free space of the state directory, then start it again",
        )
        yield _Subject().alarm(last, text, kind="daemon-silent")
    if daemon.config_problem is not None:
        problem = daemon.config_problem
        text = _Text(
            "the configuration",
            f"the changed configuration was refused, and the one before is in force: {problem.message}",
            problem.hint or "correct it, and send the daemon SIGHUP",
        )
        yield _Subject().alarm(problem.since, text, kind="config-refused", is_red=False)
    names = {database.path: name for name, database in status.databases.items()}
    for pattern, failure in daemon.entry_problems.items():
        if failure.count > LOOKS_THAT_MAY_FIND_NOTHING:
            text = _Text(
                pattern,
                f"not everything at {pattern} is backed up: {failure.message}",
                failure.hint or "check the path and, in a container, that the volume is mounted there",
            )
            alarm = _Subject(names.get(pattern)).alarm(failure.since, text, kind="nothing-matches")
            yield replace(alarm, key=f"nothing-matches {pattern}")


def _database_alarms(name: str, database: DatabaseHealth, now: datetime, *, is_missing: bool) -> Iterator[Alarm]:
    """Find the alarms of one database.

    `is_missing` says that its entry finds no file: that is waited for, or is an alarm already that explains the delay.
    """
    subject = _Subject(name)
    if database.vanished_at is not None:
        text = _Text(
            name,
            f"{database.path} is gone; its snapshots stay",
            f"if it should not be: backupd restore {name}@latest --to {database.path}",
        )
        yield replace(subject.alarm(database.vanished_at, text, kind="vanished", is_red=False), is_sent_once=True)
        return
    if (problem := database.read_problem) is not None:
        message = f"{database.path}: {problem.message}"
        text = _Text(f"reading {name}", message, problem.hint or "look at its file system")
        yield subject.alarm(problem.since, text, kind="read-differs", is_red=False)
    has_drill_alarm = False
    for url, health in database.stores.items():
        copy = _Subject(name, url)
        drill = _drill(copy, health, database) or _schema(copy, health, database, now)
        has_drill_alarm = has_drill_alarm or drill is not None
        continuity = None if database.follow is None else _continuity(copy, health)
        not_current = None if is_missing else _not_current(copy, health, now)
        # What a drill found holds pruning until another one succeeds: the alarm of the drill says that already.
        is_held_by_drill = drill is not None and health.hold is not None and health.hold.ends_by_itself
        held = None if is_held_by_drill else _held(copy, health)
        others = (_passed_over(copy, health), held, _prune_failing(copy, health))
        yield from filter(None, (not_current, drill, continuity, *others))
    if not has_drill_alarm:
        yield from filter(None, (_unproven(subject, database, now),))


def _following_alarms(
    name: str, database: DatabaseHealth, daemon: DaemonHealth | None, now: datetime
) -> Iterator[Alarm]:
    for url, health in database.stores.items():
        yield from filter(None, (_recovery_late(_Subject(name, url), database, health, daemon, now),))
    yield from filter(None, (_gaps(_Subject(name), database, now),))


def _recovery_late(
    copy: _Subject, database: DatabaseHealth, health: StoreHealth, daemon: DaemonHealth | None, now: datetime
) -> Alarm | None:
    stop = recovery_stop(database, health, daemon)
    follow = database.follow
    if stop is None or follow is None or (now - stop.at).total_seconds() <= follow.max_age_seconds:
        return None
    message = f"{copy.name} can be restored from {copy.url} up to {_time(stop.at)} only: {stop.reason}"
    return copy.alarm(stop.at, _Text(f"recovery point of {copy}", message, stop.hint), kind="recovery-late")


def _continuity(copy: _Subject, health: StoreHealth) -> Alarm | None:
    problem = health.continuity_problem
    if problem is None:
        return None
    known = health.continuity_at
    last = f"last proven up to {_time(known)}" if known else "continuity was never proven there"
    hint = problem.hint or f"restore from snapshots, which are not affected: backupd list {copy.name}"
    text = _Text(f"recovery windows of {copy}", f"{problem.message}; {last}", hint)
    return copy.alarm(problem.since, text, kind="continuity")


def _gaps(subject: _Subject, database: DatabaseHealth, now: datetime) -> Alarm | None:
    follow = database.follow
    if follow is None or follow.last_gap is None:
        return None
    since = now - timedelta(hours=1)
    count = gaps_since(follow, since)
    if count <= _GAPS_IN_AN_HOUR:
        return None
    text = _Text(
        f"recovery windows of {subject}",
        f"{count} recovery windows of {subject} have ended within an hour: some moments cannot be restored. The last "
        f"one ended because of this: {follow.last_gap.reason}",
        "if the application closes its last connection again and again, keep one open; docs/following.md shows how",
    )
    return subject.alarm(min(at for at in follow.gaps if at >= since), text, kind="gaps", is_red=False)


def _not_current(copy: _Subject, health: StoreHealth, now: datetime) -> Alarm | None:
    """Find the alarm of a database that is not current, because attempts fail (`failing`) or are late (`stale`).

    The two are one alarm: a database whose attempts fail all the time becomes late in the end.
    """
    failure = health.failure
    is_late = is_stale(health, now)
    # Nothing repairs a bug: one is enough.
    may_pass = failure is None or (failure.count <= _ATTEMPTS_THAT_MAY_FAIL and failure.exit_code != ExitCode.BUG)
    if not is_late and may_pass:
        return None
    why, hint = (failure.message, failure.hint) if failure else _why_late(health, now)
    last = f"last current {_time(health.current_at)}" if health.current_at else "it never was current"
    text = _Text(
        f"{copy}",
        f"{copy.name} is not current in {copy.url}: {why}{_attempts(failure)}; {last}",
        hint or f"see what happens: backupd now {copy.name}",
    )
    since = failure.since if failure else min(health.due_by or now, now)
    return copy.alarm(since, text, kind="stale" if is_late else "failing", key="not-current")


def _why_late(health: StoreHealth, now: datetime) -> tuple[str, str]:
    if _is_ahead(health.current_at, now):
        return (
            f"its last success is dated in the future, and it is {_time(now)} now",
            "the clock of this machine was wrong, or is: check it with date -u; the next snapshot corrects this",
        )
    return (
        "no run has ended in time",
        "look at the daemon's log: a run may be waiting for the database or the store; is the daemon running at all?",
    )


def _attempts(failure: Failure | None) -> str:
    return f" ({failure.count} attempts)" if failure and failure.count > 1 else ""


def _drill(copy: _Subject, health: StoreHealth, database: DatabaseHealth) -> Alarm | None:
    failure = health.drill_failure
    is_found = health.is_damaged or health.is_source_damaged
    if failure is None or (_may_be_over(failure) and not is_found):
        return None
    if health.is_damaged:
        kind = "damaged"
        what = f"snapshots of {copy} are damaged"
        hint = f"store the damaged pages again: backupd now {copy.name}"
    elif health.is_source_damaged:
        kind = "damaged-source"
        what = f"{copy.name} was a damaged database when it was captured into {copy.url}"
        hint = "check the live database with PRAGMA integrity_check; the next drill shows whether it is repaired"
    else:
        kind = "drill-failed"
        what = f"a test restore of {copy.name} from {copy.url} failed"
        hint = "solve that problem; the next drill shows whether it is"
    attempts = "" if is_found else _attempts(failure)
    message = f"{what}: {failure.message}{attempts}; {_last_proven(database)}"
    return copy.alarm(failure.since, _Text(f"drill of {copy}", message, failure.hint or hint), kind=kind)


def _schema(copy: _Subject, health: StoreHealth, database: DatabaseHealth, now: datetime) -> Alarm | None:
    if not health.is_schema_unreadable:
        return None
    text = _Text(
        f"drill of {copy}",
        f"{copy.name} is damaged: its schema cannot be read. It was captured into {copy.url} as it is; "
        f"{_last_proven(database)}",
        f"check it with: sqlite3 {database.path} 'PRAGMA integrity_check'; if it cannot be repaired, restore a "
        f"snapshot from before that: backupd list {copy.name}",
    )
    return copy.alarm(min(health.snapshot_at or now, now), text, kind="damaged-source")


def _last_proven(database: DatabaseHealth) -> str:
    """Name the newest snapshot to go back to, and its store. Those that turned out damaged are not proven any more."""
    stores = [(not each.is_damaged, url, each) for url, each in database.stores.items()]
    proven = [(each.proven_id or "", is_sound, url, each.proven_at) for is_sound, url, each in stores if each.proven_at]
    if proven:
        snapshot, _, url, at = max(proven)
        return f"last proven: {snapshot} in {url}, {_time(at)}"
    intact = [(each.intact_id or "", is_sound, url, each.intact_at) for is_sound, url, each in stores if each.intact_at]
    if intact:
        snapshot, _, url, at = max(intact)
        return f"no snapshot is known to be proven, and last found intact: {snapshot} in {url}, {_time(at)}"
    return "no snapshot is known to be proven"


def _unproven(subject: _Subject, database: DatabaseHealth, now: datetime) -> Alarm | None:
    """Find out whether drills have stopped, for whatever reason. One that fails has an alarm of its own."""
    due_by = database.proof_due_by
    has_any = any(health.snapshot_id for health in database.stores.values())
    if due_by is None or now <= due_by or not has_any:
        return None
    proofs = [at for health in database.stores.values() for at in health.proofs_at]
    last = f"the last one that succeeded was that of {_time(max(proofs))}" if proofs else "none ever succeeded"
    text = _Text(
        f"drills of {subject}",
        f"no test restore of {subject} has succeeded for too long: {last}",
        f"look for drills in the daemon's log, and test the newest snapshot: backupd verify {subject}@latest "
        "--level drill",
    )
    return subject.alarm(due_by, text, kind="unproven")


def _passed_over(copy: _Subject, health: StoreHealth) -> Alarm | None:
    problem = health.passed_over
    if problem is None:
        return None
    message = f"{problem.message}; newer snapshots are not affected"
    text = _Text(f"snapshots of {copy}", message, problem.hint or f"see what there is: backupd list {copy.name}")
    return replace(copy.alarm(problem.since, text, kind="passed-over", is_red=False), is_sent_once=True)


def _held(copy: _Subject, health: StoreHealth) -> Alarm | None:
    hold = health.hold
    if hold is None:
        return None
    message = f"nothing of {copy.name} is removed from {copy.url}: {hold.message}"
    hint = hold.hint or f"see what would be removed: backupd prune {copy.name} --dry-run"
    return copy.alarm(hold.since, _Text(f"pruning of {copy}", message, hint), kind="held", is_red=False)


def _prune_failing(copy: _Subject, health: StoreHealth) -> Alarm | None:
    failure = health.prune_failure
    if failure is None or _may_be_over(failure):
        return None
    what = f"old snapshots of {copy.name} cannot be removed from {copy.url}: {failure.message}{_attempts(failure)}"
    text = _Text(f"pruning of {copy}", what, failure.hint or f"see what happens: backupd prune {copy.name}")
    alarm = copy.alarm(failure.since, text, kind="prune-failing", key="prune", is_red=False)
    return replace(alarm, is_sent_once=failure.is_refusal)  # a bucket may keep everything on purpose


def _may_be_over(failure: Failure) -> bool:
    """Whether the next attempt may succeed."""
    return failure.is_transient and failure.count <= _ATTEMPTS_THAT_MAY_FAIL


def _is_ahead(moment: datetime | None, now: datetime) -> bool:
    return moment is not None and moment > now + _CLOCKS_MAY_DIFFER_BY


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
