"""Each notification is sent exactly once, over restarts too, and heartbeats at each run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from harness.daemon import wait_until
from harness.extent import slow
from harness.place import change_rows, create_database
from harness.sink import sink
from harness.site import new_site

if TYPE_CHECKING:
    from pathlib import Path

    from harness.sink import Sink
    from harness.site import Site


def _break(site: Site) -> None:
    site.store.rename(site.home / "moved")
    site.store.touch()


def _mend(site: Site) -> None:
    site.store.unlink()
    (site.home / "moved").rename(site.store)


def _reported(listener: Sink) -> list[tuple[str, str]]:
    """Return title and message of each notification."""
    notified = [json.loads(each.body) for each in listener.received]
    return [(each["title"], each["message"]) for each in notified]


def test_a_failure_is_sent_once_and_its_end_once(tmp_path: Path) -> None:
    """A store fails, keeps failing over a restart, and comes back: two messages, with what to do."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    with sink() as listener:
        site.configure(
            notifications=[{"url": f"json://127.0.0.1:{listener.port}/messages"}],
            daemon={"retry_after": "100ms"},
        )
        with site.daemon() as daemon:
            daemon.wait_for("snapshot", outcome="created")
            _break(site)
            change_rows(tmp_path / "app.db", "changed")
            daemon.run_again()
            daemon.require_red("failing", database="app")
            listener.wait_for(1)
            wait_until(lambda: (daemon.metric("backupd_failures_total", database="app") or 0) >= 4)
            wait_until(lambda: [each.times_notified for each in site.status.read().alarms.values()] == [1])
            daemon.stop()
        with site.daemon() as daemon:
            daemon.wait_for("store not asked")
            daemon.require_red("failing", database="app")
            ((title, message),) = _reported(listener)
            assert title == f"backupd PROBLEM: failing: app in {site.store}"
            for part in (f"app is not current in {site.store}", "is not a directory", "Since: ", "What to do: "):
                assert part in message
            _mend(site)
            daemon.require_green()
            listener.wait_for(2)
            title, message = _reported(listener)[1]
            assert title == f"backupd: over: app in {site.store}"
            assert "Over: " in message
            wait_until(lambda: not site.status.read().alarms)
            daemon.stop()
        with site.daemon() as daemon:
            daemon.wait_for("planned")
            daemon.require_green()
            daemon.stop()
        assert len(listener.received) == 2


@slow
def test_a_failure_that_continues_is_sent_again(tmp_path: Path) -> None:
    """The reminder comes after health.remind_after."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    site.store.touch()
    with sink() as listener:
        site.configure(
            notifications=[{"url": f"json://127.0.0.1:{listener.port}/messages"}],
            health={"remind_after": "500ms"},
        )
        with site.daemon():
            listener.wait_for(2)
        titles = [title for title, _ in _reported(listener)]
        assert titles[:2] == [
            f"backupd PROBLEM: failing: app in {site.store}",
            f"backupd PROBLEM: still: failing: app in {site.store}",
        ]


@slow
def test_a_receiver_that_is_down_delays_nothing_and_gets_it_later(tmp_path: Path) -> None:
    """Snapshots continue, the daemon ends in time, and the next start sends it."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    with sink() as listener:
        listener.gate.clear()
        site.configure(
            "app.db",
            "gone/*.db",
            notifications=[{"url": f"json://127.0.0.1:{listener.port}/messages"}],
            heartbeats=[{"url": f"{listener.url}/beaten"}],
        )
        with site.daemon() as daemon:
            daemon.wait_for("snapshot", outcome="created")
            listener.wait_for(2)
            assert daemon.stop() < 20
        listener.received.clear()
        listener.gate.set()
        with site.daemon() as daemon:
            wait_until(lambda: any(each.path == "/messages" for each in listener.received))
            assert "nothing-matches" in next(each.body for each in listener.received if each.path == "/messages")


def test_heartbeats_report_start_success_and_failure(tmp_path: Path) -> None:
    """Start and success, start and failure with the reason, of everything and of one database, as POSTs."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    create_database(tmp_path / "users.db", rows=10)
    with sink() as listener:
        site.configure(
            "app.db",
            heartbeats=[{"url": f"{listener.url}/all"}, {"url": f"{listener.url}/app", "database": "app"}],
            daemon={"retry_after": "1h"},
        )
        with site.daemon() as daemon:
            listener.wait_for(4)
            assert sorted(listener.paths) == ["/all", "/all/start", "/app", "/app/start"]
            assert listener.paths.index("/app/start") < listener.paths.index("/app")
            listener.received.clear()
            _break(site)
            change_rows(tmp_path / "app.db", "changed")
            daemon.run_again()
            listener.wait_for(4)
            assert sorted(listener.paths) == ["/all/fail", "/all/start", "/app/fail", "/app/start"]
            for each in listener.received:
                assert ("is not a directory" in each.body) == each.path.endswith("/fail")
