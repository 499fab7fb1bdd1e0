"""Applications as they are, followed by a real daemon: no commit is lost without a gap, and no state is invented."""

from __future__ import annotations

import re
import signal
import time
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

import pytest
from harness.acknowledged import Ledger, utc
from harness.booking import application, ledger_of
from harness.checkpointing import checkpointer, litestream, resets
from harness.daemon import PATIENCE_SECONDS, wait_until
from harness.extent import sampled, slow
from harness.ordering import DATABASE, creditrobot, customers, last_payment
from harness.site import new_site, not_within_a_test
from harness.visits import start_visits, visits
from harness.windows import base_image, last_booking, require_truth, stored_windows

from backupd.encryption import NO_ENCRYPTION
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from datetime import datetime
    from pathlib import Path

    from harness.daemon import Daemon
    from harness.site import Site
    from harness.windows import Window

    from backupd.repository.archive import Archive

_FOLLOW = {"enabled": True, "interval": "1s"}
_WORKERS, _CUSTOMERS = 4, 6
_IN_TURN, _AT_ONCE, _BURST = 4, 4, 16
_RESETS = 2
_MANY = 50
"""At least so many states must have been looked at, for the outcome to mean anything."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """A window in `backupd list`, with the numbers of the last commits of the states at its two ends."""

    began_at: datetime
    ended_at: datetime
    first: int
    last: int


class _Truth:
    """Compares what the command line shows and restores with what was acknowledged."""

    def __init__(self, site: Site, ledger: Ledger, last_number: Callable[[bytes, Path], int]) -> None:
        self._site = site
        self._ledger = ledger
        self._last_number = last_number

    def restored_at(self, at: datetime) -> int:
        """The last commit in what `backupd restore` gives for a moment in a window."""
        target = self._site.home / "restored.db"
        moment = f"app@{at.isoformat(timespec='milliseconds')}"
        restored = self._site.backupd.json("restore", moment, "--to", "restored.db")["restored"]
        assert restored["gap"] is None
        last = self._last_number(target.read_bytes(), self._site.home / "scratch")
        target.unlink()
        self._ledger.require_state(last, at)
        return last

    def windows(self) -> list[_Shown]:
        """All windows that can be restored, whose ends are. What is acknowledged and in none of them is in a gap."""
        found = []
        followed_to = 0
        for window in self._site.backupd.json("list")["windows"]:
            assert window["problem"] is None
            if window["began_at"] is None:
                continue
            began_at, ended_at = utc(window["began_at"]), utc(window["ended_at"])
            shown = _Shown(began_at, ended_at, self.restored_at(began_at), self.restored_at(ended_at))
            assert shown.first <= shown.last
            is_gap_named = window["gap"] is not None and window["gap"]["reason"]
            assert followed_to in (0, shown.first - 1) or is_gap_named, (found, window)
            followed_to = shown.last
            found.append(shown)
        if followed_to < self._ledger.last:
            follow = self._site.status.read().databases["app"].follow
            assert follow is not None
            assert follow.last_gap is not None, (followed_to, self._ledger.last)
            assert follow.last_gap.reason
        return found

    def moments(self, windows: list[_Shown], count: int) -> None:
        """Restore random moments in windows, of those that have more than one if there are any."""
        chosen = Random(11)
        longer = [window for window in windows if window.began_at < window.ended_at] or windows
        for _ in range(count):
            window = chosen.choice(longer)
            last = self.restored_at(window.began_at + chosen.random() * (window.ended_at - window.began_at))
            assert window.first <= last <= window.last


def _archive(site: Site) -> Archive:
    """What another machine finds in the store of the site."""
    state = StateDirectory(site.home / "reader")
    return Repository(DirectoryStore(site.store), state, NO_ENCRYPTION).archive("app")


def _anchored(site: Site) -> list[Window]:
    """The windows with a snapshot."""
    return [window for window in stored_windows(_archive(site)) if window.anchors]


def _wait_for_anchor(site: Site) -> None:
    wait_until(lambda: _anchored(site))


def _snapshot(daemon: Daemon) -> None:
    """Take a snapshot besides those that windows ask for."""
    daemon.wait_for("snapshot", after=daemon.run_again())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A place with one database and one store, which is followed."""
    found = new_site(tmp_path)
    found.configure("app.db", schedule={"drills": not_within_a_test()}, follow=_FOLLOW)
    return found


@slow
def test_creditrobot_under_load_can_be_restored_to_any_moment(tmp_path: Path) -> None:
    """Four workers, six customers at once: one window without a gap, and the service does not notice the follower."""
    site = new_site(tmp_path)
    site.configure({"path": DATABASE, "name": "app"}, schedule={"drills": not_within_a_test()}, follow=_FOLLOW)
    with creditrobot(tmp_path, workers=_WORKERS) as service, site.daemon() as daemon:
        with customers(service, clients=_CUSTOMERS) as ledger:
            _wait_for_anchor(site)
            for _ in range(2):
                ledger.wait_for(150)
                _snapshot(daemon)
            ledger.wait_for(150)
        assert ledger.failures == []
        proven = daemon.wait_for("continuity", after=daemon.drill_again())
        assert proven["outcome"] == "proven", proven
        daemon.stop()
    windows = require_truth(_archive(site), ledger.last, tmp_path / "scratch", moments=6, last_number=last_payment)
    assert len(windows) == 1
    truth = _Truth(site, ledger, last_payment)
    (shown,) = truth.windows()
    assert shown.last == ledger.last
    truth.moments([shown], 6)


@slow
def test_an_application_that_closes_its_connection_has_honest_gaps(site: Site, tmp_path: Path) -> None:
    """The log is removed after each visit: few snapshots, an alarm that says how to keep it, and no false window."""
    database = tmp_path / "app.db"
    with site.daemon() as daemon:
        began = time.monotonic()
        with visits(database, bookings=3, pause_seconds=0.2):
            wait_until(lambda: ("gaps", "app") in daemon.alarms())
            snapshots = len(daemon.events_of("snapshot"))
            # One is due when the daemon starts, and one a minute is for windows.
            assert snapshots <= 2 + (time.monotonic() - began) // 60
            said, examined = site.backupd.run("status"), site.backupd.run("doctor").stdout
        with visits(database, bookings=20, pause_seconds=0.1):
            for _ in range(2):
                before = len(_anchored(site))
                wait_until(lambda before=before: _snapshot(daemon) or len(_anchored(site)) > before)
        _snapshot(daemon)
        ended = daemon.events_of("a recovery window has ended")
        daemon.stop()
    assert re.search(r"^app: recovery point .*; [0-9]+ gaps in 24 h$", said.stdout, re.MULTILINE)
    assert "hint: if the application closes its last connection again and again, keep one open" in said.stderr
    assert re.search(r"^  warning  following     [0-9]+ recovery windows have ended in 24 h", examined, re.MULTILINE)
    assert "keep one connection open as long as the application runs" in examined
    assert not [each for each in ended if "cannot be read" in each["reason"]]
    ledger = Ledger.read(ledger_of(database))
    require_truth(_archive(site), ledger.last, tmp_path / "scratch")
    truth = _Truth(site, ledger, last_booking)
    windows = truth.windows()
    truth.moments(windows, 6)
    assert len(windows) >= 2


@pytest.mark.parametrize("bursts", sampled([1, 5]))
def test_short_processes_that_overlap_or_are_killed_lose_no_commit(site: Site, tmp_path: Path, bursts: int) -> None:
    """Each of them opens the database, commits once and exits, or is killed when the commit was acknowledged."""
    database, chosen = tmp_path / "app.db", Random(bursts)
    with site.daemon() as daemon:
        _visit_in_turn(database, chosen)
        for _ in range(bursts):
            _visit_at_once(database, chosen, daemon)
            _visit_in_turn(database, chosen)
        _snapshot(daemon)
        ended = daemon.events_of("a recovery window has ended")
        daemon.stop()
    assert not [each for each in ended if "cannot be read" in each["reason"]]
    ledger = Ledger.read(ledger_of(database))
    assert sorted(each.number for each in ledger.commits) == [*range(1, ledger.last + 1)]
    require_truth(_archive(site), ledger.last, tmp_path / "scratch")
    truth = _Truth(site, ledger, last_booking)
    windows = truth.windows()
    if windows:  # each may have been over before its snapshot was
        truth.moments(windows, 3 * bursts)


def _end(chosen: Random) -> str:
    return "kill" if chosen.random() < 1 / 4 else "exit"


def _visit_in_turn(database: Path, chosen: Random) -> None:
    for _ in range(_IN_TURN):
        _require_end(start_visits(database, _end(chosen)))


def _visit_at_once(database: Path, chosen: Random, daemon: Daemon) -> None:
    """Have `_AT_ONCE` processes at any time, so that most of them find the log in use; and a snapshot among them."""
    running: list[subprocess.Popen[bytes]] = []
    for number in range(_BURST):
        if number == _BURST // 2:
            position = daemon.run_again()
        running.append(start_visits(database, _end(chosen), pause_seconds=0.2 + chosen.random() / 3))
        wait_until(lambda: len(running) < _AT_ONCE or any(each.poll() is not None for each in running))
        for process in [each for each in running if each.poll() is not None]:
            _require_end(process)
            running.remove(process)
    daemon.wait_for("snapshot", after=position)
    for process in running:
        _require_end(process)


def _require_end(process: subprocess.Popen[bytes]) -> None:
    assert process.wait(PATIENCE_SECONDS) in (0, -signal.SIGKILL)


@slow
@pytest.mark.parametrize("beside", [litestream, checkpointer])
def test_a_program_that_checkpoints_by_itself_does_no_harm(
    site: Site, tmp_path: Path, beside: Callable[[Path], AbstractContextManager[None]]
) -> None:
    """Litestream resets the log and commits something of its own: all of it is followed, or is in a gap with a reason.

    A process that treats the log as Litestream does shows that where it is not installed.
    """
    database = tmp_path / "app.db"
    pragmas = ["wal_autocheckpoint = 0"]  # as Litestream's documentation advises
    with (
        application(database, pause_seconds=0.01, pragmas=pragmas) as busy,
        beside(database),
        site.daemon() as daemon,
    ):
        _wait_for_anchor(site)
        _wait_for_resets(database)
        _snapshot(daemon)
        _wait_for_resets(database)
        acknowledged = busy.stop()
        _snapshot(daemon)
        proven = daemon.wait_for("continuity", after=daemon.drill_again())
        assert proven["outcome"] == "proven", proven
        daemon.stop()
    windows, archive, scratch = _anchored(site), _archive(site), tmp_path / "scratch"
    assert last_booking(base_image(archive, max(archive.listing().manifests)), scratch) >= acknowledged
    assert _require_each_state(windows, archive, scratch) > _MANY


def _wait_for_resets(database: Path) -> None:
    before = resets(database)
    wait_until(lambda: resets(database) - before >= _RESETS)


def _require_each_state(windows: list[Window], archive: Archive, scratch: Path) -> int:
    """Each commit of a window books the next number or, as one of another program, none. Returns how many there are."""
    last, states = 0, 0
    for window in windows:
        anchor = window.anchors[0]
        base = base_image(archive, anchor.snapshot)
        found = [
            last_booking(window.image(base, anchor, number), scratch)
            for number in range(max(1, anchor.by), window.reach(anchor.after) + 1)
        ]
        assert all(after - before in (0, 1) for before, after in pairwise(found)), found
        assert last == 0 or (window.gap and last < found[0])
        last = found[-1]
        states += len(found)
    return states
