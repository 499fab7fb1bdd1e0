"""Many databases of one pattern, some of which take as long as they are let: each other one keeps its schedule."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from harness.capturing import noted_captures, noting_captures
from harness.daemon import wait_until
from harness.extent import slow
from harness.place import connected, create_database
from harness.site import new_site

if TYPE_CHECKING:
    from harness.daemon import Daemon, Event
    from harness.site import Site

GOOD = [f"tenant-{number:02}" for number in range(50)]
HOSTILE = ["a-hostile", "b-hostile"]
LOCK_SECONDS = 3
ALL_GOOD_WITHIN_SECONDS = 120
STOPS_WITHIN_SECONDS = 30


def _tenants(home: Path, *names: str) -> None:
    for name in names:
        (home / "tenants" / name).mkdir(parents=True)
        create_database(home / "tenants" / name / "app.db", rows=2)


def _site(home: Path, **tables: object) -> Site:
    site = new_site(home)
    site.configure(str(home / "tenants/*/app.db"), **tables)
    return site


def _interval(event: Event) -> tuple[datetime, datetime]:
    """When a run began and ended."""
    end = datetime.fromisoformat(event["timestamp"])
    return end - timedelta(seconds=event["duration_seconds"]), end


def _child_that_captures(daemon: Daemon) -> int | None:
    for thread in Path(f"/proc/{daemon.process.pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in (thread / "children").read_text().split():
                if b"backupd.capture.child" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
    return None


@slow
def test_two_hostile_tenants_hold_up_none_of_fifty(tmp_path: Path) -> None:
    """Tenants that lock their databases are tried one at a time, after growing pauses, and hold up no other."""
    _tenants(tmp_path, *HOSTILE, *GOOD)
    site = _site(tmp_path, capture={"lock_timeout": f"{LOCK_SECONDS}s"}, daemon={"concurrent_runs": 2})
    with ExitStack() as locks:
        for name in HOSTILE:
            path = tmp_path / "tenants" / name / "app.db"
            locks.enter_context(connected(path, "PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE"))
        with site.daemon() as daemon:
            began = time.monotonic()
            for name in GOOD:
                daemon.wait_for("snapshot", database=name, outcome="created", patience_seconds=ALL_GOOD_WITHIN_SECONDS)
            assert time.monotonic() - began < ALL_GOOD_WITHIN_SECONDS
            # Now that no other wants a slot, they might have both.
            wait_until(lambda: all(len(_failed(daemon, name)) >= 3 for name in HOSTILE))
            daemon.require_red("failing", database=HOSTILE[0])
            alarm = daemon.wait_for(f"alarm: {HOSTILE[0]} is not current")["event"]
            assert f"{HOSTILE[0]}/app.db stayed locked by the application" in alarm
            assert {name for _, name in daemon.alarms()} == set(HOSTILE)
            assert daemon.stop() < STOPS_WITHIN_SECONDS
        _require_one_at_a_time(daemon)
        _require_growing_pauses(daemon)


def _failed(daemon: Daemon, name: str) -> list[Event]:
    return daemon.events_of("snapshot", database=name, outcome="failed")


def _require_one_at_a_time(daemon: Daemon) -> None:
    """Require that runs of these did not overlap, except for the first two, of which nothing was known."""
    runs = sorted(_interval(event) for name in HOSTILE for event in _failed(daemon, name)[1:])
    for (_, end), (begin, _) in pairwise(runs):
        assert begin >= end - timedelta(seconds=0.2)


def _require_growing_pauses(daemon: Daemon) -> None:
    for name in HOSTILE:
        runs = [_interval(event) for event in _failed(daemon, name)]
        pauses = [(begin - end).total_seconds() for (_, end), (begin, _) in pairwise(runs)]
        assert all(pause >= 0.2 * 2**number * 0.9 for number, pause in enumerate(pauses))


def test_stopped_child_ends_with_the_daemon(tmp_path: Path) -> None:
    """SIGTERM is answered in time, whatever a capture hangs in; others have their snapshots meanwhile."""
    _tenants(tmp_path, "app")
    site = _site(tmp_path, daemon={"stop_timeout": "300ms"})
    with site.daemon() as daemon:
        wait_until(lambda: _child_that_captures(daemon))
        child = _child_that_captures(daemon)
        assert child is not None
        os.kill(child, signal.SIGSTOP)
        _tenants(tmp_path, "other")
        daemon.reload()
        daemon.wait_for("snapshot", database="other", outcome="created")
        assert daemon.stop() < STOPS_WITHIN_SECONDS
        assert daemon.wait_for("backupd has stopped")["abandoned"] == ["app"]
    assert not Path(f"/proc/{child}").exists()
    assert site.backupd.spooled() == []


def test_idle_daemon_keeps_no_process_that_captures(tmp_path: Path) -> None:
    """A round captures its tenants in one process for each run at the same time, and leaves none behind."""
    names = [f"tenant-{number}" for number in range(8)]
    _tenants(tmp_path, *names)
    site = _site(tmp_path, daemon={"concurrent_runs": 1})
    with site.daemon(**noting_captures(tmp_path / "noted")) as daemon:
        for name in names:
            daemon.wait_for("snapshot", database=name, outcome="created")
        wait_until(lambda: _child_that_captures(daemon) is None)
    # One, unless a run ends before the next one is planned.
    assert 1 <= noted_captures(tmp_path / "noted") < len(names) / 2
