"""A daemon proves that what it follows is what was committed, and says so when it is not."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from harness.daemon import wait_until
from harness.place import create_database
from harness.site import new_site, not_within_a_test

if TYPE_CHECKING:
    from pathlib import Path

    from harness.daemon import Daemon
    from harness.site import Site

_DAMAGE = 20
_ROW = b"a row that never changes"


def _commit(connection: sqlite3.Connection, site: Site) -> None:
    """Commit, and wait until that is in a segment in the store."""
    segments = site.store / "app/segments"
    before = len([*segments.rglob("*.zst")])
    connection.execute("UPDATE report SET title = title || 'x' WHERE id = 1")
    wait_until(lambda: len([*segments.rglob("*.zst")]) > before)


def _snapshot_among_commits(connection: sqlite3.Connection, site: Site, daemon: Daemon) -> str:
    """Have the daemon take a snapshot between two commits; the id of the newest one. The window may want one, too."""
    _commit(connection, site)
    daemon.wait_for("snapshot", after=daemon.run_again())
    newest = max(each["id"] for each in site.listed())
    _commit(connection, site)
    return str(newest)


def test_a_page_that_no_commit_wrote_is_found(tmp_path: Path) -> None:
    """A drill proves a window; when another program has written into the file, it is broken, and another one begins."""
    site = new_site(tmp_path)
    path = tmp_path / "app.db"
    create_database(path, rows=10, journal_mode="wal")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE quiet (text)")
        connection.execute("INSERT INTO quiet VALUES (?)", (_ROW.decode(),))
    site.configure(schedule={"drills": not_within_a_test()}, follow={"enabled": True, "interval": "1s"})
    with closing(sqlite3.connect(path, isolation_level=None)) as connection, site.daemon() as daemon:
        connection.execute("UPDATE report SET title = 'followed' WHERE id = 1")
        daemon.wait_for("a recovery window begins")
        first = _snapshot_among_commits(connection, site, daemon)
        second = _snapshot_among_commits(connection, site, daemon)
        assert "built from the log" in site.backupd.run("show", f"app@{second}").stdout
        proven = daemon.wait_for("continuity", after=daemon.drill_again())
        assert proven["outcome"] == "proven"
        assert proven["base"] <= first < second <= proven["snapshot"]
        daemon.require_green()
        assert "; continuity proven up to " in site.backupd.run("status").stdout
        assert "; continuity proven from " in site.backupd.run("list").stdout
        assert daemon.metric("backupd_continuity_proven_timestamp_seconds", database="app") is not None

        content = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(content.index(_ROW))
            file.write(b"A")
        third = _snapshot_among_commits(connection, site, daemon)
        assert "built from the log" in site.backupd.run("show", f"app@{third}").stdout
        position = daemon.drill_again()
        broken = daemon.wait_for("continuity", after=position)
        assert (broken["outcome"], broken["base"]) == ("broken", proven["snapshot"])
        assert broken["base"] < third <= broken["snapshot"]
        ended = daemon.wait_for("a recovery window has ended", after=position)
        assert "its commits are not what was committed" in ended["reason"]
        shown = daemon.require_red("continuity", database="app").stdout
        assert f"added to snapshot {broken['base']}, do not give snapshot {broken['snapshot']}" in shown
        assert "do not give snapshot" in site.backupd.run("list").stdout
        found = site.backupd.run("verify", "latest", "--level", "drill", code=_DAMAGE)
        assert f"the recovery window {broken['window']} of app" in found.stderr
        assert "which were built from these commits" in found.stderr

        connection.execute("UPDATE report SET title = title || 'y' WHERE id = 1")
        begun = daemon.wait_for("a recovery window begins", after=position)
        assert begun["window"] != broken["window"]
        _snapshot_among_commits(connection, site, daemon)
        fourth = _snapshot_among_commits(connection, site, daemon)
        proven = daemon.wait_for("continuity", after=daemon.drill_again())
        assert (proven["outcome"], proven["window"]) == ("proven", begun["window"])
        assert proven["snapshot"] >= fourth
        daemon.require_green()
        verified = site.backupd.run("verify", "latest", "--level", "drill").stdout
        assert f"give exactly {proven['snapshot']}" in verified


def test_a_window_that_is_found_broken_by_hand_ends(tmp_path: Path) -> None:
    """The daemon learns from the status what `backupd verify` has found in the window that is open."""
    site = new_site(tmp_path)
    path = tmp_path / "app.db"
    create_database(path, rows=10, journal_mode="wal")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE quiet (text)")
        connection.execute("INSERT INTO quiet VALUES (?)", (_ROW.decode(),))
    site.configure(schedule={"drills": not_within_a_test()}, follow={"enabled": True, "interval": "1s"})
    with closing(sqlite3.connect(path, isolation_level=None)) as connection, site.daemon() as daemon:
        connection.execute("UPDATE report SET title = 'followed' WHERE id = 1")
        began = daemon.wait_for("a recovery window begins")
        _snapshot_among_commits(connection, site, daemon)
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(content.index(_ROW))
            file.write(b"A")
        connection.execute("CREATE TABLE other (a)")  # after that, the database is read
        _snapshot_among_commits(connection, site, daemon)
        position = len(daemon.events)
        found = site.backupd.run("verify", "latest", "--level", "drill", code=_DAMAGE)
        assert f"the recovery window {began['window']} of app" in found.stderr
        ended = daemon.wait_for("a recovery window has ended")
        assert "its commits are not what was committed" in ended["reason"]
        connection.execute("UPDATE report SET title = title || 'y' WHERE id = 1")
        again = daemon.wait_for("a recovery window begins", after=position)
        assert again["window"] != began["window"]
