"""SIGTERM, SIGKILL and SIGHUP of a real daemon, also in the middle of an upload."""

from __future__ import annotations

import signal
import socket
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from harness.daemon import wait_until
from harness.extent import sampled, slow
from harness.killing import processes_of
from harness.place import change_rows, connected, content_digest, create_database
from harness.ports import reserved_port
from harness.relay import relay
from harness.site import new_site, not_within_a_test, on_s3

if TYPE_CHECKING:
    from harness.s3_server import S3Server
    from harness.site import Site

INTERRUPTED = 130
# Docker kills after ten. It takes two or three here, on a machine that has nothing else to do.
STOPS_WITHIN_SECONDS = 30
LONG = timedelta(hours=4)


def _restored(site: Site) -> str:
    """The digest of the newest snapshot's content."""
    target = site.home / "restored.db"
    site.backupd.run("restore", "app@latest", "--to", target)
    return content_digest(target)


def test_idle_daemon_ends_at_once(tmp_path: Path) -> None:
    """SIGTERM without a run in progress waits for nothing, and the status shows a regular end."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db")
    site.configure(daemon={"stop_timeout": "50s"})
    with site.daemon() as daemon:
        daemon.wait_for("snapshot", outcome="created")
        assert daemon.stop() < STOPS_WITHIN_SECONDS
        assert daemon.events[-1]["event"] == "backupd has stopped"
    assert "the daemon was stopped" in site.check().stdout


@pytest.mark.parametrize("moment", sampled(["locking", "importing"]))
def test_sigterm_while_starting_ends_the_daemon_cleanly(tmp_path: Path, moment: str) -> None:
    """A daemon that is still on its way ends at once and without a traceback, and the next one starts."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db")
    site.configure()
    process = site.backupd.start("run")
    loaded = Path(f"/proc/{process.pid}/maps")
    wait_until(lambda: "msgspec" in loaded.read_text() if moment == "importing" else site.state.exists())
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in {0, INTERRUPTED}
    assert "Traceback" not in stderr
    with site.daemon() as daemon:
        daemon.wait_for("planned")
        wait_until(lambda: "1 database current" in site.check().stdout)
        assert daemon.stop() < STOPS_WITHIN_SECONDS


def test_sigterm_lets_a_short_upload_finish(tmp_path: Path, seaweed: S3Server) -> None:
    """The snapshot that was being uploaded is finished, listed and restorable, and the process ends in time."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db")
    with relay(seaweed.endpoint_url) as network:
        site.configure(stores=[on_s3(seaweed, endpoint_url=network.url)], daemon={"stop_timeout": "50s"})
        network.stall_uploads()
        with site.daemon() as daemon:
            network.wait_until_held()
            daemon.signal(signal.SIGTERM)
            daemon.wait_for("backupd is stopping")
            network.flow()
            created = daemon.wait_for("snapshot", outcome="created")
            assert daemon.process.wait(60) == 0
            assert daemon.wait_for("backupd has stopped")["abandoned"] == []
        assert [each["id"] for each in site.listed()] == [created["id"]]
        assert _restored(site) == content_digest(tmp_path / "app.db")
        assert site.backupd.spooled() == []


@slow
def test_sigterm_abandons_a_stalled_upload(tmp_path: Path, seaweed: S3Server) -> None:
    """SIGTERM ends a stalled upload in time and leaves nothing partial; the next start takes the snapshot."""
    site = new_site(tmp_path)
    # More than fits into the spool: the directory, which is quick, cannot finish before the bucket either.
    create_database(tmp_path / "app.db", rows=4500, row_bytes=10_000, journal_mode="wal")
    with relay(seaweed.endpoint_url) as network:
        bucket = on_s3(seaweed, endpoint_url=network.url, time_limit="1m")
        site.configure(stores=["backups", bucket], daemon={"stop_timeout": "300ms"}, packs={"spool_limit": "8MB"})
        network.stall_uploads()
        with site.daemon() as daemon:
            network.wait_until_held()
            wait_until(lambda: len(list(site.store.glob("app/packs/*"))) >= 3)
            assert daemon.stop() < STOPS_WITHIN_SECONDS
            assert daemon.wait_for("backupd has stopped")["abandoned"] == ["app"]
        assert list(site.store.glob("app/snapshots/*")) == []
        assert list((site.store / ".incoming").iterdir()) == []
        assert site.backupd.spooled() == []
        network.flow()
        assert site.listed() == []
        with site.daemon() as daemon:
            daemon.wait_for("snapshot", outcome="created", store=str(site.store))
            daemon.require_green()
            daemon.stop()
        assert _restored(site) == content_digest(tmp_path / "app.db")


@slow
def test_sigterm_interrupts_a_drill(tmp_path: Path, seaweed: S3Server) -> None:
    """The stop does not wait for it; the next start makes up for it, and nothing of it is left."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    with relay(seaweed.endpoint_url) as network:
        bucket = on_s3(seaweed, endpoint_url=network.url, time_limit="1m")
        site.configure(stores=[bucket], schedule={"drills": not_within_a_test()})
        with site.daemon() as daemon:
            daemon.wait_for("snapshot", outcome="created")
            network.stall_downloads()
            site.change_status(
                lambda health: msgspec.structs.replace(
                    health, snapshot_at=health.snapshot_at and health.snapshot_at - LONG
                )
            )
            daemon.reload()
            network.wait_until_held()
            assert daemon.stop() < STOPS_WITHIN_SECONDS
            network.flow()
        with site.daemon() as daemon:
            assert daemon.wait_for("drill")["outcome"] == "proven"
            assert site.backupd.spooled() == []


def test_sigkill_in_the_middle_of_an_upload(tmp_path: Path, seaweed: S3Server) -> None:
    """The next daemon clears away what the killed one left, takes the snapshot, and all is well."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db")
    with relay(seaweed.endpoint_url) as network:
        site.configure(stores=[on_s3(seaweed, endpoint_url=network.url)])
        network.stall_uploads()
        with site.daemon() as daemon:
            network.wait_until_held()
            assert site.backupd.spooled() != []
            assert site.status.read().databases["app"].running_since is not None
            daemon.signal(signal.SIGKILL)
        network.flow()
        assert site.listed() == []
        with site.daemon() as daemon:
            created = daemon.wait_for("snapshot", outcome="created")
            daemon.require_green()
            assert site.status.read().databases["app"].running_since is None
            assert site.backupd.spooled() == []
            assert [each["id"] for each in site.listed()] == [created["id"]]
        assert _restored(site) == content_digest(tmp_path / "app.db")


def test_sigkill_in_the_middle_of_a_capture(tmp_path: Path) -> None:
    """The capturing process does not outlive its daemon, and the next daemon takes the snapshot."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db")
    site.configure(capture={"lock_timeout": "10m"})
    with site.daemon() as daemon, connected(tmp_path / "app.db", "BEGIN EXCLUSIVE"):
        wait_until(lambda: len(processes_of(daemon.process.pid)) > 1)
        daemon.signal(signal.SIGKILL)
        wait_until(lambda: processes_of(daemon.process.pid) == [])
    with site.daemon() as daemon:
        daemon.wait_for("snapshot", outcome="created")
        daemon.require_green()
        assert site.status.read().databases["app"].running_since is None
        assert site.backupd.spooled() == []


def test_sighup_takes_a_changed_configuration(tmp_path: Path) -> None:
    """A new database is backed up at once, and the address is the new one; what has not changed is left alone."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db")
    create_database(tmp_path / "new.db", rows=10)
    site.configure()
    with site.daemon() as daemon:
        daemon.wait_for("snapshot", outcome="created")
        moved = replace(site, port=reserved_port())
        moved.configure("app.db", {"path": "new.db", "schedule": {"snapshots": "every 7h"}})
        position = daemon.reload()
        created = daemon.wait_for("snapshot", after=position)
        assert (created["database"], created["outcome"]) == ("new", "created")
        planned = daemon.events_of("planned", after=position)
        assert [(Path(each["path"]).stem, each["is_missed"]) for each in planned] == [("app", False), ("new", True)]
        assert planned[1]["schedule"] == "every 7h"
        with pytest.raises(ConnectionRefusedError):
            daemon.ask("/healthz")
        daemon.site = moved
        assert "2 databases current" in daemon.require_green().stdout


def test_sighup_with_another_store(tmp_path: Path) -> None:
    """The store that came in has nothing yet: its first snapshot is made up for at once."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    site.configure()
    with site.daemon() as daemon:
        daemon.wait_for("snapshot", outcome="created")
        site.configure(stores=["backups", "more"])
        position = daemon.reload()
        daemon.wait_for("snapshot", after=position, store=str(tmp_path / "more"))


def test_sighup_keeps_the_old_configuration_when_the_new_one_is_wrong(tmp_path: Path) -> None:
    """The refusal is reported and not red, everything continues as before, and the next good configuration is taken."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db")
    site.configure()
    with site.daemon() as daemon:
        daemon.wait_for("snapshot", outcome="created")
        good = (tmp_path / "backupd.toml").read_text()
        (tmp_path / "backupd.toml").write_text(f"{good}\n[shedule]\nsnapshots = 'every 5m'\n")
        daemon.signal(signal.SIGHUP)
        refused = daemon.wait_for("the configuration was not reloaded")
        assert "shedule" in refused["error"]["message"]
        wait_until(lambda: daemon.alarms() == {("config-refused", None)})
        assert daemon.ask("/healthz").code == 200
        assert site.check().code == 0
        change_rows(tmp_path / "app.db", "changed")
        site.make_due()
        (tmp_path / "backupd.toml").write_text(good)
        position = daemon.reload()
        daemon.wait_for("snapshot", after=position, outcome="created")
        wait_until(lambda: daemon.alarms() == set())


def test_sighup_with_an_address_that_is_taken_changes_nothing(tmp_path: Path) -> None:
    """A reload to an address that is taken is refused, and the daemon answers at its old one."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db")
    site.configure()
    with site.daemon() as daemon, socket.create_server(("127.0.0.1", 0)) as taken:
        daemon.wait_for("snapshot", outcome="created")
        site.configure(http={"listen": f"127.0.0.1:{taken.getsockname()[1]}"})
        daemon.signal(signal.SIGHUP)
        refused = daemon.wait_for("the configuration was not reloaded")
        assert "cannot listen on" in refused["error"]["message"]
        assert daemon.ask("/healthz").code == 200
