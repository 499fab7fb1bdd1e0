"""The daemon follows a database that is written all the time: each moment in a store is one that there was."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.booking import application
from harness.daemon import wait_until
from harness.extent import sampled, slow
from harness.relay import relay
from harness.site import new_site, on_s3
from harness.windows import require_truth, stored_windows

from backupd.config import StoreSettings
from backupd.encryption import NO_ENCRYPTION
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from backupd.store.s3 import S3Store

if TYPE_CHECKING:
    from harness.daemon import Daemon
    from harness.s3_server import S3Server
    from harness.site import Site

    from backupd.repository.archive import Archive

FOLLOW = {"enabled": True, "interval": "1s"}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A place with one database and one store, which is followed."""
    found = new_site(tmp_path)
    found.configure("app.db", follow=FOLLOW)
    return found


def archive_of(site: Site, store: str = "backups", name: str = "app") -> Archive:
    """What another machine finds in a directory store of the site."""
    state = StateDirectory(site.home / "reader")
    return Repository(DirectoryStore(site.home / store), state, NO_ENCRYPTION).archive(name)


def bucket_of(site: Site, server: S3Server, entry: dict[str, object]) -> Archive:
    """What another machine finds in a bucket, without the network between."""
    settings = StoreSettings.read({**entry, "endpoint_url": server.endpoint_url})
    return Repository(S3Store(settings), StateDirectory(site.home / "reader"), NO_ENCRYPTION).archive("app")


def wait_for_anchor(archive: Archive, *, others: int = 0) -> None:
    """Wait until the newest window has a snapshot, and there are `others` besides."""

    def has_anchor() -> bool:
        windows = stored_windows(archive)
        return len(windows) > others and bool(windows[-1].anchors)

    wait_until(has_anchor)


def follower_of(daemon: Daemon) -> int:
    """The process that follows."""
    found: list[int] = []

    def is_there() -> bool:
        for thread in Path(f"/proc/{daemon.process.pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                children = (thread / "children").read_text().split()
                found.extend(int(each) for each in children if _is_follower(each))
        return bool(found)

    wait_until(is_there)
    return found[-1]


def _is_follower(pid: str) -> bool:
    return b"backupd.follow.child" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_every_moment_in_the_store_is_a_state_that_there_was(site: Site, tmp_path: Path):
    """Snapshots beside a busy application, and all commits since: each rebuilt state has exactly what was booked."""
    with application(tmp_path / "app.db") as busy, site.daemon() as daemon:
        wait_for_anchor(archive_of(site))
        busy.wait_for(100)
        daemon.run_again()
        busy.wait_for(300)
        acknowledged = busy.stop()
        daemon.stop()
    windows = require_truth(archive_of(site), acknowledged, tmp_path / "scratch")
    assert len(windows) == 1
    assert len({anchor.snapshot for anchor in windows[0].anchors}) >= 1


@pytest.mark.parametrize("victim", sampled(["daemon", "follower", "both"]))
def test_a_kill_loses_no_commit(site: Site, tmp_path: Path, victim: str):
    """A process is killed while commits go on: the next one continues, or a window with a reason begins."""
    with application(tmp_path / "app.db") as busy:
        with site.daemon() as daemon:
            wait_for_anchor(archive_of(site))
            busy.wait_for(50)
            if victim in {"follower", "both"}:
                os.kill(follower_of(daemon), signal.SIGKILL)
            if victim == "follower":
                daemon.wait_for("the process that follows databases has ended", status=-signal.SIGKILL)
                busy.wait_for(100)
                wait_until(lambda: follower_of(daemon))
            else:
                os.kill(daemon.process.pid, signal.SIGKILL)
                daemon.process.wait()
            busy.wait_for(50)
        with site.daemon() as daemon:
            wait_until(lambda: follower_of(daemon))
            busy.wait_for(50)
            wait_for_anchor(archive_of(site))
            acknowledged = busy.stop()
            daemon.stop()
    require_truth(archive_of(site), acknowledged, tmp_path / "scratch")


@slow
def test_resets_of_the_log_lose_no_commit(site: Site, tmp_path: Path):
    """An application that checkpoints often writes its log from the beginning again and again.

    Where the follower came too late, a window with a reason begins. The last one may have no snapshot yet.
    """
    pragmas = ["wal_autocheckpoint = 100"]
    with application(tmp_path / "app.db", pause_seconds=0.01, pragmas=pragmas) as busy, site.daemon() as daemon:
        wait_for_anchor(archive_of(site))
        busy.wait_for(500)
        acknowledged = busy.stop()
        position = daemon.run_again()
        daemon.wait_for("snapshot", after=position, outcome="created")
        daemon.stop()
    require_truth(archive_of(site), acknowledged, tmp_path / "scratch")


@slow
def test_two_stores_of_which_one_is_down_miss_nothing(tmp_path: Path, moto: S3Server):
    """The directory has all commits while the bucket does not answer; then the bucket gets them, too."""
    site = new_site(tmp_path)
    with relay(moto.endpoint_url) as network:
        entry = on_s3(moto, endpoint_url=network.url, read_timeout="1s")
        site.configure("app.db", stores=["backups", entry], follow=FOLLOW)
        with application(tmp_path / "app.db") as busy, site.daemon() as daemon:
            wait_for_anchor(archive_of(site))
            network.hang()
            network.wait_until_held()
            acknowledged = busy.wait_for(200)
            wait_until(lambda: sum(each.reach() for each in stored_windows(archive_of(site))) >= acknowledged)
            daemon.wait_for("segments wait in the spool", store=entry["url"])
            network.flow()
            daemon.wait_for("the store takes segments again", store=entry["url"])
            acknowledged = busy.stop()
            wait_until(lambda: not list((site.state / "followed/app").glob("*.segment")))
            daemon.stop()
    for archive in (archive_of(site), bucket_of(site, moto, entry)):
        require_truth(archive, acknowledged, tmp_path / "scratch")


@slow
def test_a_bucket_of_a_real_server_has_every_moment(tmp_path: Path, seaweed: S3Server):
    """Segments are put into SeaweedFS beside snapshots, over a restart of the daemon during an upload."""
    site = new_site(tmp_path)
    with relay(seaweed.endpoint_url) as network:
        entry = on_s3(seaweed, endpoint_url=network.url, read_timeout="5s")
        site.configure("app.db", stores=[entry], follow=FOLLOW)
        archive = bucket_of(site, seaweed, entry)
        with application(tmp_path / "app.db") as busy:
            with site.daemon() as daemon:
                wait_for_anchor(archive)
                busy.wait_for(50)
                network.hang()
                network.wait_until_held()
                daemon.stop()
                network.flow()
            with site.daemon() as daemon:
                acknowledged = busy.wait_for(50)
                wait_until(lambda: stored_windows(archive)[-1].reach() >= acknowledged)
                acknowledged = busy.stop()
                daemon.stop()
    require_truth(archive, acknowledged, tmp_path / "scratch")
