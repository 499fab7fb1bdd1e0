"""`backupd status`: the state of every database in every store, and whether it is healthy.

A container's health check runs this twice a minute: with BACKUPD_STATE_DIR, it imports next to nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output
from backupd.cli.verbs import Invocation, Verb, global_options
from backupd.errors import BackupdError, ExitCode, UsageError

if TYPE_CHECKING:
    from backupd.cli.output import Cells
    from backupd.health.alarms import Alarm
    from backupd.health.values import DatabaseHealth, FollowHealth, Status, StoreHealth
    from backupd.state.runs import Run

_UNHEALTHY = 1
_RUNS_SHOWN = 20
_NEVER_RAN = "backupd run has not run here yet"


@click.command(
    "status",
    cls=Verb,
    short_help="Show how every database is doing.",
    examples=("backupd status", "backupd status --runs", "backupd status --json"),
)
@click.option("--check", is_flag=True, help="Print one line, and exit with 0 if all is well or 1: for health checks.")
@click.option("--runs", is_flag=True, help="List the latest runs instead; with --json, those of the last 90 days.")
@global_options
@click.pass_obj
def command(invocation: Invocation, *, check: bool, runs: bool) -> int:
    """Show how every database is doing in every store, and below that what is wrong, and what to do about it.

    A database is current in a store when its state was captured there, or nothing had changed since; it is late when
    that is longer ago than its schedule and health.grace allow. Without `backupd run`, only what `backupd now` and its
    like have done is known, and nothing is ever late.

    Of a database that is followed, the recovery point is the time up to which every commit that was seen is stored.

    With --check, the exit code is 0 while `backupd run` is alive and every database is current, and 1 otherwise.

    With --runs, each run of a configured database that came to an end is a line: what came of it, how long it took, and
    why it failed. Older runs are thinned: of each outcome one an hour stays after two days, one a day after two weeks.
    """
    from backupd.logs import log

    log.configure(is_quiet=invocation.is_quiet)
    if runs:
        if check:
            raise UsageError("--check and --runs exclude each other", hint="ask for one after the other")
        return _show_runs(_Found(_state_dir(invocation)), is_json=invocation.is_json)
    if not check:
        return _show(_Found(_state_dir(invocation)), is_json=invocation.is_json)
    try:
        found = _Found(_state_dir(invocation))
    except BackupdError as error:
        if invocation.is_json:
            raise
        output.print_line(f"the status is not known: {error.message}")
        return _UNHEALTHY
    if invocation.is_json:
        _show(found, is_json=True)
    else:
        output.print_line(_line(found))
    return ExitCode.DONE if found.is_healthy else _UNHEALTHY


class _Found:
    """The status as it is now, and what is wrong with it. Raises `BackupdError` when it cannot be read."""

    def __init__(self, state_dir: Path) -> None:
        from backupd.health.alarms import find_alarms, is_healthy
        from backupd.health.file import StatusFile
        from backupd.health.values import Status
        from backupd.state import StateDirectory

        _become_owner(state_dir)
        file = StatusFile(StateDirectory(state_dir))
        self.state_dir = state_dir
        self.now = datetime.now(UTC)
        status = file.find()
        self.is_known = status is not None
        self.status: Status = status or Status()
        self.alive_at = file.alive_at()
        self.alarms: tuple[Alarm, ...] = find_alarms(self.status, now=self.now, alive_at=self.alive_at)
        self.is_healthy = self.status.daemon is not None and is_healthy(self.status, self.alarms)


def _state_dir(invocation: Invocation) -> Path:
    """The state directory. The variable wins, so that no file need be read."""
    from backupd.privileges import active_state_dir

    if named := os.environ.get("BACKUPD_STATE_DIR"):
        return active_state_dir(Path(named).expanduser().absolute())
    from backupd.config import load

    return active_state_dir(load(invocation.config_file).state_dir)


def _become_owner(state_dir: Path) -> None:
    """Become the owner of the state directory where root may not read it: a health check may run as root."""
    if os.geteuid() != 0 or os.access(state_dir, os.R_OK | os.X_OK, effective_ids=True):
        return
    with suppress(OSError):  # there is no directory, or this root may not become another user: reading reports which
        owner = state_dir.stat()
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)


def _line(found: _Found) -> str:
    """Describe the health in one line: all is well, or the first thing that is wrong."""
    status, alarms = found.status, [alarm for alarm in found.alarms if alarm.is_red]
    if status.daemon is None:
        return f"{_NEVER_RAN} (there is no sign of it in {found.state_dir})"
    watched = {name: each for name, each in status.databases.items() if each.vanished_at is None}
    if alarms:
        concerned = len({alarm.database for alarm in alarms if alarm.database})
        first = alarms[0]
        whose = f"{concerned} of {output.count(len(watched), 'database')}: " if first.database else ""
        more = f"; and {output.count(len(alarms) - 1, 'more alarm')}" if len(alarms) > 1 else ""
        return f"{whose}{first.message}, since {output.local_time(first.since)}{more}"
    awaited = _awaited(found)
    waiting = f"waiting for the application to create {' and '.join(awaited)}" if awaited else ""
    if not watched:
        return waiting or "no database is known yet: the daemon has just started"
    return f"ok: {_ok(watched, found.now)}{_stopped(found)}{'; ' if waiting else ''}{waiting}"


def _ok(watched: dict[str, DatabaseHealth], now: datetime) -> str:
    """Say which databases are current: `3 databases current in 2 stores, newest 4 min ago`."""
    healths = [health for database in watched.values() for health in database.stores.values()]
    stores = len({url for database in watched.values() for url in database.stores})
    times = sorted(health.current_at for health in healths if health.current_at is not None)
    waiting = len(healths) - len(times)
    where = f"in {output.count(stores, 'store')}"
    if not times:
        return f"{output.count(len(watched), 'database')} {where} not due yet"
    newest, oldest = (output.age(times[position], now) for position in (-1, 0))
    since = f"newest {newest}" + (f", oldest {oldest}" if oldest != newest else "")
    later = f", {output.count(waiting)} not due yet" if waiting else ""
    return f"{output.count(len(watched), 'database')} current {where}, {since}{later}"


def _awaited(found: _Found) -> list[str]:
    """The paths that the daemon has not found, for so short a time that there is no alarm yet."""
    daemon = found.status.daemon
    if daemon is None or daemon.stopped_at is not None:
        return []
    alarms = {alarm.key for alarm in found.alarms}
    return [
        path
        for path, problem in sorted(daemon.entry_problems.items())
        if problem.is_transient and f"nothing-matches {path}" not in alarms
    ]


def _stopped(found: _Found) -> str:
    daemon = found.status.daemon
    return (
        f"; the daemon was stopped {output.age(daemon.stopped_at, found.now)}" if daemon and daemon.stopped_at else ""
    )


def _show(found: _Found, *, is_json: bool) -> int:
    if is_json:
        output.print_document({"status": _values(found)})
        return ExitCode.DONE
    if found.status.databases:
        _print_table(found)
    elif found.status.daemon is not None:
        output.print_result(f"{_daemon(found)}; it has found no database yet")
    else:
        output.print_result(
            f"nothing is known yet: neither backupd run nor backupd now has worked with {found.state_dir}"
        )
    for name, database in found.status.databases.items():
        for url, health in database.stores.items():
            if health.odd_values is not None:
                output.print_note(f"note: {name}@{health.proven_id} in {url} has {health.odd_values}")
    _print_following(found)
    for path in _awaited(found):
        output.print_line(f"waiting for the application to create {path}")
    for alarm in found.alarms:
        since = output.local_time(alarm.since)
        output.print_warning(f"{alarm.message}, since {since}")
        output.print_hint(alarm.hint, store=alarm.store)
    return ExitCode.DONE


def _print_table(found: _Found) -> None:
    rows = [
        _cells(name, database, url, health, found)
        for name, database in found.status.databases.items()
        for url, health in database.stores.items()
    ]
    headings = ("DATABASE", "STORE", "STATE", "CURRENT", "SNAPSHOT", "PROVEN", "NEXT RUN")
    output.print_result(output.table(headings, [(_daemon(found), rows)]))


def _print_following(found: _Found) -> None:
    """Print a line for each database that is to be followed, and once how the others could be."""
    from backupd.health.recovery import TO_WAL, is_followable

    followed = {
        name: (database, database.follow)
        for name, database in found.status.databases.items()
        if database.follow is not None and database.vanished_at is None
    }
    for name, (database, follow) in followed.items():
        output.print_line(f"{name}: {_following(database, follow, found)}")
    others = [database for database, _ in followed.values() if not is_followable(database) and database.journal_mode]
    if others:
        output.print_hint(f"to have it followed, {TO_WAL.format(path=others[0].path)}")


def _following(database: DatabaseHealth, follow: FollowHealth, found: _Found) -> str:
    """Describe how one database is followed: `recovery point 2 s ago; window since 2026-11-22 09:55:57+01:00`."""
    from backupd.health.recovery import is_followable

    if not is_followable(database):
        is_known = database.journal_mode is not None
        return f"not followed: {'rollback-journal mode' if is_known else 'it has had no write-ahead log yet'}"
    parts = (_recovery_points(database, found), _window(follow), _continuity(database), _gaps(follow, found.now))
    return "; ".join(filter(None, parts))


def _recovery_points(database: DatabaseHealth, found: _Found) -> str:
    """Describe the recovery point: that of all stores, or those of each of them where they differ."""
    ages = {
        url: "none yet" if point is None else output.age(point, found.now)
        for url, point in _points(database, found).items()
    }
    if len(set(ages.values())) == 1:
        return f"recovery point {next(iter(ages.values()))}"
    return f"recovery point {', '.join(f'{age} in {url}' for url, age in ages.items())}"


def _points(database: DatabaseHealth, found: _Found) -> dict[str, datetime | None]:
    """The recovery point in each store (URL), as far as is known: no later than the daemon's last sign of life."""
    from backupd.health.recovery import recovery_point

    alive_at = min(found.alive_at or found.now, found.now)
    return {
        url: recovery_point(database, health, found.status.daemon, alive_at=alive_at)
        for url, health in database.stores.items()
    }


def _window(follow: FollowHealth) -> str:
    if follow.window_since is not None:
        return f"window since {output.local_time(follow.window_since)}"
    gap = follow.last_gap
    if gap is None:
        return "no window yet: no commit has been seen"
    return f"no window since {output.local_time(gap.at)}: {gap.reason}"


def _continuity(database: DatabaseHealth) -> str:
    """Say up to when commits were found to be what was committed: in each of the stores in which they were checked."""
    proven = [health.continuity_at for health in database.stores.values() if health.continuity_at is not None]
    return f"continuity proven up to {output.local_time(min(proven))}" if proven else ""


def _gaps(follow: FollowHealth, now: datetime) -> str:
    from backupd.health.recovery import gaps_since, has_all_gaps

    count = gaps_since(follow, now - timedelta(days=1))
    return f"{output.count(count, 'gap')}{'' if has_all_gaps(follow) else ' or more'} in 24 h" if count else ""


def _daemon(found: _Found) -> str:
    daemon = found.status.daemon
    if daemon is None:
        return "no daemon has run here: this is what backupd now has done, and nothing counts as late"
    if daemon.stopped_at is not None:
        return f"the daemon was stopped {output.age(daemon.stopped_at, found.now)}"
    sign = "never" if found.alive_at is None else output.age(found.alive_at, found.now)
    return (
        f"the daemon (process {daemon.pid}, version {daemon.version}) was started "
        f"{output.age(daemon.started_at, found.now)}; last sign of life {sign}"
    )


def _show_runs(found: _Found, *, is_json: bool) -> int:
    from itertools import groupby

    from backupd.state import StateDirectory
    from backupd.state.runs import read_runs

    # Nothing is made where nothing was done.
    runs = read_runs(StateDirectory(found.state_dir), latest=None if is_json else _RUNS_SHOWN) if found.is_known else []
    if is_json:
        output.print_document({"runs": [_run_values(run) for run in runs]})
        return ExitCode.DONE
    if not runs:
        output.print_line(f"no run is remembered in {found.state_dir}")
        return ExitCode.DONE
    groups = [
        (f"{database} in {store}", [_run_cells(run) for run in group])
        for (database, store), group in groupby(runs, key=lambda run: (run.database, run.store))
    ]
    headings = ("STARTED", "OUTCOME", ">TOOK", ">CHANGED", ">STORED", ">SIZE", "REASON")
    output.print_result(output.table(headings, groups))
    return ExitCode.DONE


def _run_cells(run: Run) -> Cells:
    return (
        output.local_time(run.started_at),
        run.outcome,
        f"{run.duration_seconds:.1f} s",
        "-" if run.changed_pages is None else output.count(run.changed_pages, "page"),
        output.size(run.stored_bytes),
        "-" if run.page_count is None or run.page_size is None else output.size(run.page_count * run.page_size),
        run.message or "",
    )


def _run_values(run: Run) -> dict[str, Any]:
    from backupd.health.codec import utc_text

    return {**run._asdict(), "started_at": utc_text(run.started_at)}


def _is_running(found: _Found) -> bool:
    return found.status.daemon is not None and found.status.daemon.stopped_at is None


def _cells(name: str, database: DatabaseHealth, url: str, health: StoreHealth, found: _Found) -> Cells:
    return (
        name,
        url,
        _state(name, database, url, health, found),
        "never" if health.current_at is None else output.age(health.current_at, found.now),
        health.snapshot_id or "-",
        _proven(health, found.now),
        "-" if database.next_run_at is None or not _is_running(found) else output.local_time(database.next_run_at),
    )


def _proven(health: StoreHealth, now: datetime) -> str:
    """The age of the last proof, or of the check of another snapshot's bytes when that is newer or all there is."""
    proven_at, intact_at = health.proven_at, health.intact_at
    is_other = health.intact_id != health.proven_id
    if intact_at is not None and (proven_at is None or (is_other and intact_at > proven_at)):
        return f"intact {output.age(intact_at, now)}"
    if proven_at is None:
        return "-" if health.is_put_only else "never"  # this machine can prove nothing there
    return output.age(proven_at, now)


def _state(name: str, database: DatabaseHealth, url: str, health: StoreHealth, found: _Found) -> str:
    from backupd.health.summary import state_of

    kinds = {alarm.kind for alarm in found.alarms if alarm.database == name and alarm.store in {None, url}}
    return state_of(database, health, found.status.daemon, kinds)


def _values(found: _Found) -> dict[str, Any]:
    from backupd.health.codec import utc_text, values

    status = values(found.status)
    return {
        **status,
        "alive_at": None if found.alive_at is None else utc_text(found.alive_at),
        "is_healthy": found.is_healthy,
        "alarms": [_alarm_values(alarm, found.status) for alarm in found.alarms],
        "recovery_points": {
            name: {url: None if point is None else utc_text(point) for url, point in _points(database, found).items()}
            for name, database in found.status.databases.items()
            if database.follow is not None
        },
    }


def _alarm_values(alarm: Alarm, status: Status) -> dict[str, Any]:
    from backupd.health.codec import utc_text

    state = status.alarms.get(alarm.key)
    return {
        "kind": alarm.kind,
        "database": alarm.database,
        "store": alarm.store,
        "message": alarm.message,
        "hint": alarm.hint,
        "since": utc_text(alarm.since),
        "is_red": alarm.is_red,
        "told_at": utc_text(state.notified_at) if state and state.notified_at else None,
        "times_told": state.times_notified if state else 0,
    }
