"""Health turns red for whatever keeps a snapshot from being made, and green again by itself, as all who ask can see."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
from harness.clock import settable_clock
from harness.confinement import private_mounts
from harness.daemon import wait_until
from harness.extent import slow
from harness.place import change_rows, connected, create_database
from harness.relay import relay
from harness.restarting import restarting_server
from harness.site import new_site, on_s3

if TYPE_CHECKING:
    from pathlib import Path

    from harness.cli import Runner
    from harness.confinement import Mounts
    from harness.daemon import Daemon
    from harness.s3_server import S3Server
    from harness.site import Site

LONG = timedelta(hours=4)


@slow
def test_source_gone_and_back(tmp_path: Path) -> None:
    """The file was moved away; the database beside it is backed up all the time, and the first once it is back."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db")
    create_database(tmp_path / "users.db", rows=10)
    site.configure("app.db", "users.db")
    with site.daemon() as daemon:
        for name in ("app", "users"):
            daemon.wait_for("snapshot", database=name, outcome="created")
        daemon.require_green()
        (tmp_path / "app.db").rename(tmp_path / "elsewhere.db")
        change_rows(tmp_path / "users.db", "changed")
        position = daemon.run_again()
        said = daemon.require_red("nothing-matches", database="app").stdout
        assert f"1 of 2 databases: not everything at {tmp_path / 'app.db'} is backed up" in said
        waits = daemon.wait_for("waiting for the application to create it", after=position)
        missing = daemon.wait_for("databases not found", after=position)
        assert waits["path"] == missing["path"] == str(tmp_path / "app.db")
        assert missing["error"]["hint"]
        daemon.wait_for("snapshot", after=position, database="users", outcome="created")
        (tmp_path / "elsewhere.db").rename(tmp_path / "app.db")
        assert "2 databases current" in daemon.require_green().stdout
        daemon.wait_for("alarm over:", kind="nothing-matches", database="app")


def test_sign_for_health_checks(tmp_path: Path) -> None:
    """The daemon leaves a sign while nothing is wrong, takes it away with the first red alarm, and when it stops."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    site.configure()
    sign = site.state / "healthy"
    with site.daemon() as daemon:
        daemon.wait_for("snapshot", outcome="created")
        daemon.require_green()
        wait_until(sign.exists)
        (tmp_path / "app.db").rename(tmp_path / "elsewhere.db")
        daemon.run_again()
        daemon.require_red("nothing-matches", database="app")
        wait_until(lambda: not sign.exists())
        (tmp_path / "elsewhere.db").rename(tmp_path / "app.db")
        daemon.require_green()
        wait_until(sign.exists)
        daemon.stop()
    assert not sign.exists()


def test_directory_store_gone_and_back(tmp_path: Path) -> None:
    """A store whose directory is replaced by a file is red until it is back; the other store gets its snapshots."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db")
    site.configure(stores=["backups", "more"])
    with site.daemon() as daemon:
        daemon.wait_for("snapshot", outcome="created", store=str(tmp_path / "more"))
        site.store.rename(tmp_path / "moved")
        site.store.touch()
        change_rows(tmp_path / "app.db", "changed")
        position = daemon.run_again()
        said = daemon.require_red("failing", database="app")
        assert f"app is not current in {site.store}" in said.stdout
        daemon.wait_for("snapshot", after=position, outcome="created", store=str(tmp_path / "more"))
        assert daemon.metric("backupd_is_current", store=str(site.store)) == 0.0
        assert daemon.metric("backupd_is_current", store=str(tmp_path / "more")) == 1.0
        assert (daemon.metric("backupd_store_errors_total", store=str(site.store)) or 0) >= 2
        site.store.unlink()
        (tmp_path / "moved").rename(site.store)
        daemon.require_green()
        assert len(list(site.store.glob("app/snapshots/*.json"))) == 2


@slow
def test_s3_server_killed_and_started_again(tmp_path: Path) -> None:
    """A bucket whose server is killed is down until the server is back, and is not waited for by other databases."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db")
    create_database(tmp_path / "users.db", rows=10)
    with restarting_server() as bucket:
        site.configure("app.db", "users.db", stores=[on_s3(bucket.server, connect_timeout="2s"), "backups"])
        with site.daemon() as daemon:
            for name in ("app", "users"):
                daemon.wait_for("snapshot", database=name, outcome="created", store=str(site.store))
            daemon.require_green()
            bucket.kill()
            change_rows(tmp_path / "app.db", "changed")
            position = daemon.run_again()
            daemon.wait_for("store not asked", after=position)
            daemon.require_red("failing", database="app")
            daemon.wait_for("snapshot", after=position, database="app", outcome="created", store=str(site.store))
            bucket.start()
            daemon.require_green()


@slow
def test_a_hung_store_fails_within_its_time_limit(tmp_path: Path, seaweed: S3Server) -> None:
    """A store that accepts connections and never answers costs its time limit, and no more."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db")
    with relay(seaweed.endpoint_url) as network:
        bucket = on_s3(seaweed, endpoint_url=network.url, time_limit="1s", read_timeout="1s")
        site.configure(stores=[bucket, "backups"])
        with site.daemon() as daemon:
            daemon.wait_for("snapshot", outcome="created", store=str(site.store))
            network.hang()
            change_rows(tmp_path / "app.db", "changed")
            position = daemon.run_again()
            daemon.require_red("failing", database="app")
            daemon.wait_for("snapshot", after=position, outcome="created", store=str(site.store))
            network.flow()
            daemon.require_green()


@slow
def test_a_store_that_hangs_within_an_upload_fails_within_its_time_limit(tmp_path: Path, seaweed: S3Server) -> None:
    """The store takes a request and stops in the middle of a pack."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db")
    with relay(seaweed.endpoint_url) as network:
        site.configure(stores=[on_s3(seaweed, endpoint_url=network.url, time_limit="1s", read_timeout="1s")])
        network.stall_uploads()
        with site.daemon() as daemon:
            daemon.require_red("failing", database="app")
            network.flow()
            daemon.require_green()
            assert len(site.listed()) == 1


def test_stale_snapshot_turns_health_red_until_the_next_one(tmp_path: Path) -> None:
    """A snapshot that is late because the application holds its database is red until the next one."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    site.configure(capture={"lock_timeout": "10m"})
    site.backupd.run("now")
    long_ago = datetime.now(UTC) - LONG
    site.change_status(
        lambda health: msgspec.structs.replace(health, current_at=long_ago, due_by=long_ago + timedelta(hours=3))
    )
    with connected(tmp_path / "app.db", "BEGIN EXCLUSIVE") as application, site.daemon() as daemon:
        said = daemon.require_red("stale", database="app").stdout
        assert "1 of 1 database: app is not current" in said
        assert "no run has ended in time" in said
        assert daemon.metric("backupd_is_current", database="app") == 0.0
        application.kill()
        daemon.require_green()


def test_full_state_directory_turns_health_red_until_there_is_space(tmp_path: Path) -> None:
    """A full state directory stops the signs of life, which turns health red until there is space."""
    with private_mounts() as mounts:
        site = _on_small_disk(tmp_path, mounts, mounts.runner())
        with site.daemon() as daemon:
            position = _fill_the_disk(site, daemon)
            failed = daemon.wait_for("snapshot", after=position, outcome="failed")
            assert "No space left on device" in failed["error"]["message"]
            assert site.check().code == 0
            _let_minutes_pass_since_sign_of_life(site)
            said = site.check()
            assert (said.code, len(said.lines)) == (1, 1)
            assert "has left no sign of life since" in said.stdout
            (site.state / "ballast").unlink()
            wait_until(lambda: site.check().code == 0)
            daemon.wait_for("snapshot", after=position, outcome="created")
            daemon.require_green()


def test_state_directory_full_for_minutes(tmp_path: Path) -> None:
    """The daemon itself says so too, over HTTP, when it could not write for two minutes."""
    clock = settable_clock(tmp_path)
    with private_mounts() as mounts:
        runner = replace(clock.runner(), enter=mounts.runner().enter)
        site = _on_small_disk(tmp_path, mounts, runner)
        with site.daemon() as daemon:
            position = _fill_the_disk(site, daemon)
            daemon.wait_for("snapshot", after=position, outcome="failed")
            assert daemon.ask("/healthz").code == 200
            clock.set(130)
            wait_until(lambda: daemon.alarms() == {("daemon-silent", None)})
            assert daemon.ask("/healthz").code == 503
            assert daemon.metric("backupd_healthy") == 0.0
            (site.state / "ballast").unlink()
            wait_until(lambda: daemon.ask("/healthz").code == 200)
            daemon.wait_for("snapshot", after=position, outcome="created")


def test_a_killed_daemon_is_red_until_the_next_start(tmp_path: Path) -> None:
    """The check from outside finds it, and is green when the next daemon has started."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    site.configure()
    with site.daemon() as daemon:
        daemon.wait_for("snapshot", outcome="created")
        daemon.require_green()
    _let_minutes_pass_since_sign_of_life(site)
    said = site.check()
    assert said.code == 1
    assert f"the daemon (process {daemon.process.pid}) has left no sign of life since" in said.stdout
    with site.daemon() as daemon:
        wait_until(lambda: site.check().code == 0)
        daemon.require_green()


def _let_minutes_pass_since_sign_of_life(site: Site) -> None:
    earlier = time.time() - 150
    os.utime(site.state / "alive", (earlier, earlier))


def _on_small_disk(home: Path, mounts: Mounts, runner: Runner) -> Site:
    """A site whose state directory is a disk of its own that only `runner` sees."""
    site = new_site(home, runner=runner)
    create_database(home / "app.db", rows=10)
    site.configure()
    site.state.mkdir()
    mounts.mount("-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", site.state)
    return replace(site, seen_state=mounts.seen(site.state))


def _fill_the_disk(site: Site, daemon: Daemon) -> int:
    """Let a round come that finds a change and no space; the position in the log before it."""
    daemon.wait_for("snapshot", outcome="created")
    assert daemon.ask("/healthz").code == 200
    change_rows(site.home / "app.db", "changed")
    site.make_due()
    with (site.state / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
        while ballast.write(bytes(4096)):
            pass
    position = daemon.reload()
    daemon.wait_for("the state directory cannot be written", after=position)
    return position
