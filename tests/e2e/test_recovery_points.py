"""The health of following, as status, metrics and alarms of a real daemon show it, also while a store is down."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness.daemon import wait_until
from harness.extent import slow
from harness.place import create_database
from harness.restarting import restarting_server
from harness.site import new_site, on_s3

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.daemon import Daemon
    from harness.site import Site

_FOLLOW = {"enabled": True, "interval": "1s", "max_age": "5s"}


@contextmanager
def _application(path: Path) -> Iterator[sqlite3.Connection]:
    """An application that keeps a connection to a database in WAL mode open."""
    create_database(path, rows=10, journal_mode="wal")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        _commit(connection)
        yield connection


def _commit(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE report SET title = title || 'x' WHERE id = 1")


def _wait_for_window(site: Site, daemon: Daemon) -> None:
    daemon.wait_for("a recovery window begins", database="app")
    wait_until(lambda: (follow := site.status.read().databases["app"].follow) and follow.window is not None)


def test_what_is_followed_and_what_is_not_is_in_status_and_metrics(tmp_path: Path) -> None:
    """A database in WAL mode has a recovery point; one in rollback-journal mode is named with the remedy, once."""
    site = new_site(tmp_path)
    create_database(tmp_path / "old.db", rows=10)
    site.configure("app.db", "old.db", follow=_FOLLOW)
    with _application(tmp_path / "app.db") as connection, site.daemon() as daemon:
        _wait_for_window(site, daemon)
        wait_until(lambda: site.status.read().databases["old"].journal_mode == "delete")
        _commit(connection)
        finished = site.backupd.run("status")
        lines = finished.stdout.splitlines()
        assert [line for line in lines if line.startswith("app: recovery point ") and "; window since " in line]
        assert "old: not followed: rollback-journal mode" in lines
        assert f"sqlite3 {tmp_path}/old.db 'PRAGMA journal_mode=WAL'" in finished.stderr
        point = daemon.metric("backupd_recovery_point_timestamp_seconds", database="app")
        assert point is not None
        assert abs(time.time() - point) < 30
        assert daemon.metric("backupd_recovery_window_open", database="app") == 1
        assert daemon.metric("backupd_recovery_window_open", database="old") == 0
        assert daemon.metric("backupd_recovery_point_timestamp_seconds", database="old") is None
        daemon.require_green()


def test_segments_that_are_stored_in_time_do_not_write_the_status(tmp_path: Path) -> None:
    """A busy database costs no write of the status: the recovery point moves with the time."""
    site = new_site(tmp_path)
    site.configure(follow=_FOLLOW)
    segments = tmp_path / "backups/app/segments"
    with _application(tmp_path / "app.db") as connection, site.daemon() as daemon:
        daemon.wait_for("snapshot", outcome="created")
        _wait_for_window(site, daemon)
        wait_until(lambda: site.status.read().databases["app"].running_since is None)
        written_at = site.status.read().written_at
        for _ in range(3):
            before = len([*segments.rglob("*.zst")])
            _commit(connection)
            wait_until(lambda before=before: len([*segments.rglob("*.zst")]) > before)
        assert site.status.read().written_at == written_at


@slow
def test_a_recovery_point_stops_while_its_store_is_down(tmp_path: Path) -> None:
    """The store that is down has an alarm and the time of the first commit it lacks; the other one is not affected."""
    site = new_site(tmp_path)
    with (
        _application(tmp_path / "app.db") as connection,
        restarting_server() as bucket,
    ):
        store = on_s3(bucket.server, connect_timeout="2s")
        site.configure(stores=[store, "backups"], follow=_FOLLOW)
        with site.daemon() as daemon:
            daemon.wait_for("snapshot", outcome="created", store=store["url"])
            _wait_for_window(site, daemon)
            daemon.require_green()
            bucket.kill()
            committed_at = datetime.now(UTC).timestamp()
            _commit(connection)
            daemon.wait_for("segments wait in the spool", database="app", store=store["url"])
            said = daemon.require_red("recovery-late", database="app").stdout
            assert f"app can be restored from {store['url']} up to " in said
            point = daemon.metric("backupd_recovery_point_timestamp_seconds", store=str(store["url"]))
            other = daemon.metric("backupd_recovery_point_timestamp_seconds", store=str(site.store))
            waiting = daemon.metric("backupd_waiting_segments_bytes", store=str(store["url"]))
            assert point is not None
            assert other is not None
            assert waiting is not None
            assert committed_at - 1 < point < committed_at + 5 < other + 5
            assert other > point
            assert waiting > 0
            bucket.start()
            daemon.wait_for("the store takes segments again", store=store["url"])
            daemon.require_green()
            wait_until(lambda: daemon.metric("backupd_waiting_segments_bytes", store=str(store["url"])) == 0)


@slow
def test_a_window_continues_over_a_restart_of_the_daemon(tmp_path: Path) -> None:
    """The daemon learns from the follower which window is open, without a gap."""
    site = new_site(tmp_path)
    site.configure(follow=_FOLLOW)
    with _application(tmp_path / "app.db") as connection:
        with site.daemon() as daemon:
            daemon.wait_for("snapshot", outcome="created")
            _wait_for_window(site, daemon)
            _commit(connection)
            daemon.stop()
        before = site.status.read().databases["app"].follow
        with site.daemon() as daemon:
            wait_until((tmp_path / "state/healthy").exists)
            after = site.status.read().databases["app"].follow
            assert before is not None
            assert after == before
            assert daemon.metric("backupd_recovery_gaps_total", database="app") == 0
