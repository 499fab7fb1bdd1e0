"""What is wrong: pure, of a status and a time. What health checks, notifications and metrics say comes from here.

failing          attempts at a snapshot failed, the retry too; or a database is late besides     red
stale            a database is not current although it should be by now                          red
nothing-matches  a [[databases]] entry finds no file, or one that cannot be backed up            red
damaged          a drill found stored bytes that are not the ones that were written              red
damaged-source   what was captured is a damaged database, by its schema or by a drill            red
drill-failed     a drill did not succeed for another reason                                      red
unproven         drills are scheduled, and none has succeeded for too long                       red
daemon-silent    the daemon has left no sign of life (only who looks from outside can tell)      red
read-differs     reading the file of a database gave something else than SQLite reads
vanished         a file that a pattern found before is gone
held             pruning would remove something and does not
prune-failing    pruning failed
passed-over      a store holds a manifest that no snapshot builds on
config-refused   a changed configuration was refused
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, timedelta
from typing import TYPE_CHECKING

from backupd.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from backupd.health.values import DatabaseHealth, Failure, Status, StoreHealth

SILENT_AFTER = timedelta(minutes=2)
"""A daemon that has left no sign of life for this long hangs, cannot write, or was killed."""

LOOKS_THAT_MAY_FIND_NOTHING = 3
"""An application that is started at the same moment may be about to make its first file: half a minute."""

_ATTEMPTS_THAT_MAY_FAIL = 1
_CLOCKS_MAY_DIFFER_BY = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One thing that is wrong. `message` says what, about what, and since when; `hint` what to do."""

    key: str
    """The same as long as it goes on; another for each database and store."""
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
    """The health check fails for it. What is not red is told all the same."""
    is_told_once: bool = False
    """Nobody has to be reminded of it."""


def judge(status: Status, *, now: datetime, alive_at: datetime | None) -> tuple[Alarm, ...]:
    """Everything that is wrong at `now` (aware): the daemon first, then by database, what is red first.

    `alive_at` is when the daemon last left a sign of life. The daemon itself gives `now`.
    """
    alarms = [*_daemon_alarms(status, now, alive_at)]
    for name, database in status.databases.items():
        is_missing = status.daemon is not None and database.path in status.daemon.entry_problems
        alarms += _database_alarms(name, database, now, is_missing=is_missing)
    return tuple(sorted(alarms, key=lambda alarm: not alarm.is_red))


def is_healthy(status: Status, alarms: Iterable[Alarm]) -> bool:
    """Whether nothing red is on, and there is anything to be healthy."""
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
    # Of a clock that was set back, what is left is a sign in the future: a daemon that lives leaves another soon.
    if daemon.stopped_at is None and (alive_at is None or abs(now - alive_at) > SILENT_AFTER):
        last = min(alive_at or daemon.started_at, now)
        yield Alarm(
            key="daemon-silent",
            kind="daemon-silent",
            title="the daemon",
            message=f"the daemon (process {daemon.pid}) has left no sign of life since {_time(last)}: "
            "it hangs, was killed, or cannot write its state directory",
            hint="look at its log and at the free space of the state directory, then start it again",
            since=last,
            is_red=True,
        )
    if daemon.config_problem is not None:
        problem = daemon.config_problem
        yield Alarm(
            key="config-refused",
            kind="config-refused",
            title="the configuration",
            message=f"the changed configuration was refused, and the one before is in force: {problem.message}",
            hint=_hint(problem.hint, "put it right, and send the daemon SIGHUP"),
            since=problem.since,
            is_red=False,
        )
    names = {database.path: name for name, database in status.databases.items()}
    for pattern, failure in daemon.entry_problems.items():
        if failure.count <= LOOKS_THAT_MAY_FIND_NOTHING:
            continue
        yield Alarm(
            key=f"nothing-matches {pattern}",
            kind="nothing-matches",
            database=names.get(pattern),
            title=pattern,
            message=f"not everything at {pattern} is backed up: {failure.message}",
            hint=_hint(failure.hint, "check the path and, in a container, that the volume is mounted there"),
            since=failure.since,
            is_red=True,
        )


def _database_alarms(name: str, database: DatabaseHealth, now: datetime, *, is_missing: bool) -> Iterator[Alarm]:
    """`is_missing`: its entry finds no file, which is waited for, or is an alarm already that says why it is late."""
    if database.vanished_at is not None:
        yield Alarm(
            key=f"vanished {name}",
            kind="vanished",
            database=name,
            title=name,
            message=f"{database.path} is gone; its snapshots stay",
            hint=f"if it should not be: backupd restore {name}@latest --to {database.path}",
            since=database.vanished_at,
            is_red=False,
            is_told_once=True,
        )
        return
    if database.read_problem is not None:
        yield Alarm(
            key=f"read-differs {name}",
            kind="read-differs",
            database=name,
            title=f"reading {name}",
            message=f"{database.path}: {database.read_problem.message}",
            hint=_hint(database.read_problem.hint, "look at its file system"),
            since=database.read_problem.since,
            is_red=False,
        )
    drills = {
        url: _drill(name, url, health, database) or _schema(name, database, url, health, now)
        for url, health in database.stores.items()
    }
    for url, health in database.stores.items():
        drill = drills[url]
        yield from filter(None, (None if is_missing else _not_current(name, url, health, now), drill))
        if health.passed_over is not None:
            yield Alarm(
                key=f"passed-over {name} {url}",
                kind="passed-over",
                database=name,
                store=url,
                title=f"snapshots of {name} in {url}",
                message=f"{health.passed_over.message}; newer snapshots are not affected",
                hint=_hint(health.passed_over.hint, f"see what there is: backupd list {name}"),
                since=health.passed_over.since,
                is_red=False,
                is_told_once=True,
            )
        # What a drill found holds pruning until another succeeds: that is told already.
        is_told = drill is not None and health.hold is not None and health.hold.ends_by_itself
        yield from _pruning(name, url, replace(health, hold=None) if is_told else health)
    if not any(drills.values()):
        yield from filter(None, (_unproven(name, database, now),))


def _not_current(name: str, url: str, health: StoreHealth, now: datetime) -> Alarm | None:
    """`failing` and `stale` are one alarm: what goes wrong all the time makes a database late in the end."""
    failure = health.failure
    is_late = is_stale(health, now)
    if not is_late and (failure is None or _may_pass(failure)):
        return None
    why, hint = (failure.message, failure.hint) if failure else _why_late(health, now)
    return Alarm(
        key=f"not-current {name} {url}",
        kind="stale" if is_late else "failing",
        database=name,
        store=url,
        title=f"{name} in {url}",
        message=f"{name} is not current in {url}: {why}{_attempts(failure)}; {_last_current(health)}",
        hint=_hint(hint, f"see what happens: backupd now {name}"),
        since=_since(health, now),
        is_red=True,
    )


def _may_pass(failure: Failure) -> bool:
    """Whether the next attempt may succeed for all that is known. What is a bug stays one."""
    return failure.count <= _ATTEMPTS_THAT_MAY_FAIL and failure.exit_code != ExitCode.BUG


def _why_late(health: StoreHealth, now: datetime) -> tuple[str, str]:
    if health.current_at is not None and _is_ahead(health.current_at, now):
        return (
            f"its last success is dated in the future, and it is {_time(now)} now",
            "the clock of this machine was wrong, or is: check it with date -u; the next snapshot puts this right",
        )
    return (
        "no run has ended in time",
        "look at the daemon's log: a run may be waiting for the database or the store; is the daemon running at all?",
    )


def _last_current(health: StoreHealth) -> str:
    return f"last current {_time(health.current_at)}" if health.current_at else "it never was current"


def _since(health: StoreHealth, now: datetime) -> datetime:
    if health.failure is not None:
        return health.failure.since
    return min(health.due_by or now, now)


def _attempts(failure: Failure | None) -> str:
    return f" ({failure.count} attempts)" if failure and failure.count > 1 else ""


def _drill(name: str, url: str, health: StoreHealth, database: DatabaseHealth) -> Alarm | None:
    failure = health.drill_failure
    is_found = health.is_damaged or health.is_source_damaged
    if failure is None or (failure.is_transient and failure.count <= _ATTEMPTS_THAT_MAY_FAIL and not is_found):
        return None
    if health.is_damaged:
        kind = "damaged"
        what = f"snapshots of {name} in {url} are damaged"
        hint = f"store the damaged pages again: backupd now {name}"
    elif health.is_source_damaged:
        kind = "damaged-source"
        what = f"{name} was a damaged database when it was captured into {url}"
        hint = "check the live database with PRAGMA integrity_check; the next drill shows whether it is repaired"
    else:
        kind = "drill-failed"
        what = f"a test restore of {name} from {url} failed"
        hint = "put that right; the next drill shows whether it is"
    attempts = "" if is_found else _attempts(failure)
    return Alarm(
        key=f"{kind} {name} {url}",
        kind=kind,
        database=name,
        store=url,
        title=f"drill of {name} in {url}",
        message=f"{what}: {failure.message}{attempts}; {_last_proven(database)}",
        hint=_hint(failure.hint, hint),
        since=failure.since,
        is_red=True,
    )


def _schema(name: str, database: DatabaseHealth, url: str, health: StoreHealth, now: datetime) -> Alarm | None:
    if not health.is_schema_unreadable:
        return None
    return Alarm(
        key=f"damaged-source {name} {url}",
        kind="damaged-source",
        database=name,
        store=url,
        title=f"drill of {name} in {url}",
        message=f"{name} is damaged: its schema cannot be read. It was captured into {url} as it is; "
        f"{_last_proven(database)}",
        hint=f"check it with: sqlite3 {database.path} 'PRAGMA integrity_check'; if it cannot be repaired, restore a "
        f"snapshot from before that: backupd list {name}",
        since=min(health.snapshot_at or now, now),
        is_red=True,
    )


def _last_proven(database: DatabaseHealth) -> str:
    """The newest snapshot to go back to, and in which store: those that turned out damaged are not proven any more."""
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


def _unproven(name: str, database: DatabaseHealth, now: datetime) -> Alarm | None:
    """That drills have stopped, for whatever reason. One that fails has an alarm of its own."""
    due_by = database.proof_due_by
    has_any = any(health.snapshot_id for health in database.stores.values())
    if due_by is None or now <= due_by or not has_any:
        return None
    proofs = [at for health in database.stores.values() for at in health.proofs_at]
    last = f"the last one that succeeded was that of {_time(max(proofs))}" if proofs else "none ever succeeded"
    return Alarm(
        key=f"unproven {name}",
        kind="unproven",
        database=name,
        title=f"drills of {name}",
        message=f"no test restore of {name} has succeeded for too long: {last}",
        hint=f"look for drills in the daemon's log, and test the newest snapshot: backupd verify {name}@latest "
        "--level drill",
        since=due_by,
        is_red=True,
    )


def _pruning(name: str, url: str, health: StoreHealth) -> Iterator[Alarm]:
    if health.hold is not None:
        yield Alarm(
            key=f"held {name} {url}",
            kind="held",
            database=name,
            store=url,
            title=f"pruning of {name} in {url}",
            message=f"nothing of {name} is removed from {url}: {health.hold.message}",
            hint=_hint(health.hold.hint, f"see what would be: backupd prune {name} --dry-run"),
            since=health.hold.since,
            is_red=False,
        )
    failure = health.prune_failure
    if failure is not None and not (failure.is_transient and failure.count <= _ATTEMPTS_THAT_MAY_FAIL):
        yield Alarm(
            key=f"prune {name} {url}",
            kind="prune-failing",
            database=name,
            store=url,
            title=f"pruning of {name} in {url}",
            message=f"old snapshots of {name} cannot be removed from {url}: {failure.message}{_attempts(failure)}",
            hint=_hint(failure.hint, f"see what happens: backupd prune {name}"),
            since=failure.since,
            is_red=False,
            # A bucket that keeps everything may well be meant to.
            is_told_once=failure.is_refusal,
        )


def _is_ahead(moment: datetime | None, now: datetime) -> bool:
    return moment is not None and moment > now + _CLOCKS_MAY_DIFFER_BY


def _hint(hint: str | None, otherwise: str) -> str:
    return hint or otherwise


def _time(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
