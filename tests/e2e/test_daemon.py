"""`backupd run` as a process: how it starts, what it logs, what it makes up for, and who may be beside it."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli import CommandLine
from harness.clock import settable_clock
from harness.daemon import wait_until
from harness.extent import slow
from harness.ledger import bookkeeper, create_ledger, imbalance
from harness.place import change_rows, connected, create_database
from harness.relay import relay
from harness.sink import sink
from harness.site import TOKEN, new_site, on_s3

if TYPE_CHECKING:
    from harness.s3_server import S3Server

BUSY = 11


def test_start_takes_a_snapshot_and_shows_no_secret(tmp_path: Path, seaweed: S3Server) -> None:
    """A snapshot is taken at once, while the application writes; each log line is a JSON object without secrets."""
    site = new_site(tmp_path)
    create_ledger(tmp_path / "app.db", journal_mode="wal")
    with sink() as listener, bookkeeper(tmp_path / "app.db"):
        notified, beaten = "0a1b2c3d4e5f", "f5e4d3c2b1a0"
        bucket = on_s3(seaweed)
        site.configure(
            {"path": "app.db"},
            {"path": "gone/*.db"},
            stores=[bucket, "backups"],
            http={"token": TOKEN},
            notifications=[{"url": f"json://127.0.0.1:{listener.port}/{notified}"}],
            heartbeats=[{"url": f"{listener.url}/{beaten}"}],
        )
        with site.daemon() as daemon:
            for store in (bucket["url"], str(site.store)):
                created = daemon.wait_for("snapshot", store=store)
                assert (created["database"], created["outcome"], created["error"]) == ("app", "created", None)
            daemon.require_red("nothing-matches")
            wait_until(lambda: any(notified in each.path for each in listener.received))
            answers = [daemon.ask("/metrics").text, daemon.ask("/healthz").text]
            reported = "".join([*daemon.lines, site.status_text, *answers])
            reported += Path(f"/proc/{daemon.process.pid}/cmdline").read_text()
            daemon.stop()
    for event in daemon.events:
        assert list(event)[:3] == ["timestamp", "level", "event"]
    for secret in (bucket["secret_access_key"], TOKEN, notified, beaten):
        assert str(secret) not in reported
    assert {each.path.rsplit("/", 1)[0] for each in listener.received} >= {f"/{beaten}"}
    assert any(notified in each.path for each in listener.received)
    site.backupd.run("restore", "app@latest", "--to", "restored.db", "--store", str(site.store))
    assert imbalance(tmp_path / "restored.db") == []


def test_start_logs_the_next_times(tmp_path: Path) -> None:
    """The log has the schedule and the next time of the snapshots, drills and prunes of each entry."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    create_database(tmp_path / "users.db", rows=10)
    site.configure("app.db", {"path": "users.db", "schedule": {"drills": "0 4 29 2 *", "prunes": "@monthly"}})
    with site.daemon() as daemon:
        daemon.wait_for("planned", what="prunes", schedule="@monthly")
        planned = {(Path(each["path"]).stem, each["what"]): each for each in daemon.events_of("planned")}
        assert list(planned) == [("app", "snapshots")] + [("users", what) for what in ("snapshots", "drills", "prunes")]
        assert planned["users", "drills"]["next_run_at"].startswith("2028-02-29T")
        for name in ("app", "users"):
            daemon.wait_for("snapshot", database=name)
        known = site.status.read().databases
        assert all(known[name].next_run_at is not None for name in ("app", "users"))


def test_terminal_gets_readable_lines(tmp_path: Path) -> None:
    """A terminal gets a readable log in colours, and Ctrl-C ends the daemon as SIGTERM does."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    site.configure()
    ours, theirs = pty.openpty()
    environ = {**os.environ, "BACKUPD_STATE_DIR": str(site.state), "HOME": str(tmp_path), "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "backupd", "run"]
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = read_until(ours, "stored_bytes")
        process.send_signal(signal.SIGINT)
        shown += read_until(ours, None)
    os.close(ours)
    assert process.returncode == 0
    assert "\x1b[" in shown
    assert "backupd has started" in shown
    assert "{" not in shown.partition("\n")[0]


def read_until(terminal: int, text: str | None) -> str:
    """Return what a terminal shows until `text` appears, or (None) until its other side is closed."""
    shown = ""
    while text is None or text not in shown:
        if not select.select([terminal], [], [], 60)[0]:
            raise AssertionError(shown)
        try:
            block = os.read(terminal, 4096)
        except OSError:  # how Linux tells the end of a terminal
            break
        shown += block.decode()
    return shown


def test_restart_runs_only_what_was_missed(tmp_path: Path) -> None:
    """A restart takes no snapshot before its time; after a time that was missed, it takes one at once."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db")
    site.configure()
    with site.daemon() as daemon:
        first = daemon.wait_for("snapshot", outcome="created")
        daemon.stop()
    change_rows(tmp_path / "app.db", "changed")
    with site.daemon() as daemon:
        assert daemon.wait_for("planned")["is_missed"] is False
        daemon.require_green()
        daemon.stop()
        assert daemon.events_of("snapshot") == []
    site.make_due()
    with site.daemon() as daemon:
        assert daemon.wait_for("planned")["is_missed"] is True
        second = daemon.wait_for("snapshot", outcome="created")
        daemon.require_green()
    assert [each["id"] for each in site.listed()] == [first["id"], second["id"]]


@slow
def test_schedules_by_the_clock(tmp_path: Path) -> None:
    """Snapshots, test restores and prunes have their times; a hung capture holds up no other database.

    No schedule is shorter than a minute, and this waits for the next one to begin.
    """
    site = new_site(tmp_path)
    for name in ("hung", "minutely", "hourly"):
        create_database(tmp_path / f"{name}.db", rows=10)
    every_minute = {"snapshots": "every 1m", "prunes": "every 1m", "drills": "every 1m"}
    site.configure(
        *({"path": f"{name}.db", "schedule": every_minute} for name in ("hung", "minutely")),
        "hourly.db",
        capture={"lock_timeout": "10m"},
        retention={"keep_last": 1, "daily": 0, "weekly": 0, "monthly": 0, "after_snapshot": False},
    )
    with connected(tmp_path / "hung.db", "BEGIN EXCLUSIVE"), site.daemon() as daemon:
        for name in ("hourly", "minutely"):
            daemon.wait_for("snapshot", database=name, outcome="created")
            position = daemon.position  # before the change: the minute may end at any time
            site.backupd.run("now", name, "--tag", "older", "--full")
            change_rows(tmp_path / f"{name}.db", "changed")
        daemon.wait_for("snapshot", after=position, database="minutely", outcome="created", patience_seconds=90)
        assert daemon.wait_for("drill", after=position, database="minutely")["outcome"] == "proven"
        assert daemon.wait_for("prune", after=position, database="minutely")["removed"]
        assert daemon.events_of("snapshot", database="hung") == []
        assert daemon.metric("backupd_running", database="hung") == 1.0
        assert len(daemon.events_of("snapshot", database="hourly")) == 1
        (proven,) = site.status.read().databases["minutely"].stores.values()
        assert proven.proven_at is not None
        daemon.require_green()


def test_a_clock_that_jumps_causes_new_plans(tmp_path: Path) -> None:
    """A clock that jumps is noticed, and what was missed is made up for within seconds."""
    clock = settable_clock(tmp_path)
    site = new_site(tmp_path, runner=clock.runner())
    create_database(tmp_path / "app.db", rows=10)
    site.configure()
    with site.daemon() as daemon:
        daemon.wait_for("snapshot", outcome="created")
        change_rows(tmp_path / "app.db", "changed")
        position = daemon.position
        clock.set(90 * 60)
        daemon.wait_for("the clock was set", after=position)
        daemon.wait_for("snapshot", after=position, outcome="created")
        wait_until(lambda: daemon.ask("/healthz").code == 200)


def test_second_daemon_is_refused(tmp_path: Path) -> None:
    """A second daemon of one state directory, or of one address, is refused with a hint; the first stays green."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    site.configure()
    with site.daemon() as daemon:
        daemon.wait_for("snapshot", outcome="created")
        refused = site.backupd.run("run", code=BUSY)
        assert str(site.state) in refused.reported("error")[0]
        assert "state_dir" in refused.reported("hint")[0]
        assert refused.stdout == ""
        daemon.require_green()
        elsewhere = CommandLine(tmp_path, state="another state", BACKUPD_HTTP__LISTEN=f"127.0.0.1:{site.port}")
        refused = elsewhere.run("run", code=2)
        assert f"cannot listen on 127.0.0.1:{site.port}" in refused.reported("error")[0]
        assert "http.listen" in refused.reported("hint")[0]


def test_now_beside_the_daemon(tmp_path: Path, seaweed: S3Server) -> None:
    """`now` is refused during the daemon's run of the same database, succeeds after it, and is in the status."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    with relay(seaweed.endpoint_url) as network:
        site.configure(stores=[on_s3(seaweed, endpoint_url=network.url)], capture={"lock_timeout": "300ms"})
        network.stall_uploads()
        with site.daemon() as daemon:
            network.wait_until_held()
            (refused,) = site.backupd.json("now", code=BUSY)["snapshots"]
            assert "another backupd is working on" in refused["error"]["message"]
            network.flow()
            first = daemon.wait_for("snapshot", outcome="created")
            change_rows(tmp_path / "app.db", "changed")
            (second,) = site.backupd.json("now", "--tag", "by-hand")["snapshots"]
            daemon.require_green()
            assert daemon.metric("backupd_snapshots_total", database="app") == 2.0
            (health,) = site.status.read().databases["app"].stores.values()
            assert (health.snapshot_id, health.failure, health.totals.failures) == (second["id"], None, 0)
            assert [each["id"] for each in site.listed()] == [first["id"], second["id"]]


def test_now_that_is_refused_beside_the_daemon_is_no_alarm(tmp_path: Path, seaweed: S3Server) -> None:
    """However often it is refused while the daemon's own run continues, that says nothing of the database."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    with relay(seaweed.endpoint_url) as network:
        site.configure(stores=[on_s3(seaweed, endpoint_url=network.url)], capture={"lock_timeout": "100ms"})
        network.stall_uploads()
        with site.daemon() as daemon:
            network.wait_until_held()
            for _ in range(2):
                site.backupd.run("now", code=BUSY)
            assert daemon.alarms() == set()
