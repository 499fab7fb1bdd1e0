"""What a round finds: tenants that come and go, databases that rest, stores that were wiped, drills that are due."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from harness.daemon import wait_until
from harness.damage import flip
from harness.extent import sampled, slow
from harness.place import change_rows, create_database
from harness.site import new_site, not_within_a_test, on_s3
from msgspec.structs import replace

if TYPE_CHECKING:
    from pathlib import Path

    from harness.daemon import Daemon
    from harness.s3_server import S3Server
    from harness.site import Site

AN_HOUR_AND_MORE = timedelta(minutes=61)


def _tenant(home: Path, name: str) -> Path:
    directory = home / "tenants" / name
    directory.mkdir(parents=True)
    create_database(directory / "app.db", rows=10)
    return directory


def test_tenants_come_and_go(tmp_path: Path) -> None:
    """A new one is backed up without a restart; a vanished one is reported once and is not red; none at all is red."""
    site = new_site(tmp_path)
    acme, bert = _tenant(tmp_path, "acme"), _tenant(tmp_path, "bert")
    _tenant(tmp_path, "no name, really")
    site.configure("tenants/*/app.db")
    with site.daemon() as daemon:
        for name in ("acme", "bert"):
            daemon.wait_for("snapshot", database=name, outcome="created")
        reported = daemon.wait_for("databases not found")["error"]["message"]
        assert str(tmp_path / "tenants/no name, really/app.db") in reported
        daemon.require_red("nothing-matches")
        shutil.rmtree(tmp_path / "tenants/no name, really")
        _tenant(tmp_path, "carl")
        position = daemon.run_again()
        daemon.wait_for("snapshot", after=position, database="carl", outcome="created")
        daemon.require_green()

        shutil.rmtree(bert)
        daemon.run_again()
        gone = daemon.wait_for("alarm:", kind="vanished", database="bert")
        assert str(bert / "app.db") in gone["event"]
        assert "backupd restore bert@latest" in gone["hint"]
        assert daemon.ask("/healthz").code == 200
        assert site.check().code == 0
        daemon.run_again()
        wait_until(lambda: daemon.alarms() == {("vanished", "bert")})

        for directory in (acme, tmp_path / "tenants/carl"):
            shutil.rmtree(directory)
        daemon.run_again()
        daemon.require_red("nothing-matches")
        _tenant(tmp_path, "dora")
        wait_until(lambda: "nothing-matches" not in {kind for kind, _ in daemon.alarms()} or daemon.run_again() < 0)


def test_a_tenant_that_vanished_while_the_daemon_was_off_is_reported(tmp_path: Path) -> None:
    """The next start reports it."""
    site = new_site(tmp_path)
    _tenant(tmp_path, "acme")
    bert = _tenant(tmp_path, "bert")
    site.configure("tenants/*/app.db")
    with site.daemon() as daemon:
        for name in ("acme", "bert"):
            daemon.wait_for("snapshot", database=name, outcome="created")
        daemon.stop()
    shutil.rmtree(bert)
    site.make_due()
    with site.daemon() as daemon:
        daemon.wait_for("alarm:", kind="vanished", database="bert")
        assert daemon.ask("/healthz").code == 200


def _due(site: Site) -> dict[str, float]:
    """The hours until each store is due, by the status."""
    stores = site.status.read().databases["app"].stores
    now = datetime.now(UTC)
    return {url: (health.due_by - now).total_seconds() / 3600 for url, health in stores.items() if health.due_by}


@pytest.mark.parametrize("way", sampled(["reload", "restart"]))
def test_changed_schedule_and_stores_count_from_the_start(tmp_path: Path, way: str) -> None:
    """A changed schedule or store counts from now on: what was late before is not late any more."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    create_database(tmp_path / "old.db", rows=10)
    site.configure(
        "app.db", "old.db", stores=["backups", "other"], schedule={"snapshots": "every 366d"}, health={"grace": "1m"}
    )
    with ExitStack() as running:
        daemon = running.enter_context(site.daemon())
        for name in ("app", "old"):
            for store in ("backups", "other"):
                daemon.wait_for("snapshot", database=name, store=str(tmp_path / store), outcome="created")
        daemon.require_green()
        now = datetime.now(UTC)
        site.change_status(lambda health: replace(health, due_by=now))
        daemon.require_red("stale", database="app")
        site.configure("app.db", schedule={"snapshots": "every 300d"}, health={"grace": "1m"})
        if way == "restart":
            daemon.stop()
            daemon = running.enter_context(site.daemon())
            position = 0
        else:
            position = daemon.reload()
        planned = daemon.wait_for("planned", after=position, what="snapshots", schedule="every 300d")
        assert not planned["is_missed"]
        daemon.require_green()
        assert list(_due(site)) == [str(tmp_path / "backups")]
        database = site.status.read().databases["app"]
        assert database.next_run_at == datetime.fromisoformat(planned["next_run_at"])
        assert set(site.status.read().databases) == {"app"}


@slow
def test_database_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    """A missing database is no error and no alarm at first, and the status says that it is waited for."""
    site = new_site(tmp_path)
    site.configure("app.db", "tenants/*/app.db", daemon={"retry_after": "30s"})
    with site.daemon() as daemon:
        for path in ("app.db", "tenants/*/app.db"):
            waits = daemon.wait_for("waiting for the application to create it", path=str(tmp_path / path))
            assert waits["level"] == "info"
            assert f"waiting for the application to create {tmp_path / path}" in site.backupd.run("status").stdout
        assert daemon.alarms() == set()
        assert f"waiting for the application to create {tmp_path / 'app.db'}" in site.check().stdout
        create_database(tmp_path / "app.db", rows=10)
        daemon.wait_for("snapshot", database="app", outcome="created")
        assert f"create {tmp_path / 'app.db'}" not in site.backupd.run("status").stdout
    assert {event["level"] for event in daemon.events} == {"info"}


def _rest(daemon: Daemon) -> None:
    """Return when a round has seen nothing change. A file that was written seconds ago may still be written to."""

    def is_resting() -> bool:
        position = daemon.run_again()
        wait_until(
            lambda: daemon.events_of("nothing changed", after=position) or daemon.events_of("snapshot", after=position)
        )
        return bool(daemon.events_of("nothing changed", after=position))

    wait_until(is_resting)


def _last_run(site: Site) -> object:
    (health,) = site.status.read().databases["app"].stores.values()
    return health.last_run


@slow
def test_resting_database_costs_no_capture(tmp_path: Path) -> None:
    """A database that `stat` shows unchanged is not captured, and counts as current."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10, journal_mode="wal")
    site.configure()
    with site.daemon() as daemon:
        daemon.wait_for("snapshot", outcome="created")
        _rest(daemon)
        before, current_at = _last_run(site), daemon.metric("backupd_last_current_timestamp_seconds")
        position = daemon.run_again()
        daemon.wait_for("nothing changed", after=position, databases=1)
        assert _last_run(site) == before
        assert daemon.metric("backupd_last_current_timestamp_seconds") > current_at
        change_rows(tmp_path / "app.db", "changed")
        position = daemon.run_again()
        daemon.wait_for("snapshot", after=position, outcome="created")


@slow
@pytest.mark.parametrize("what", sampled(["directory", "bucket", "manifests"]))
def test_wiped_store_never_looks_current(tmp_path: Path, what: str, request: pytest.FixtureRequest) -> None:
    """The database rests and the store loses everything, or its manifests: a full snapshot comes with the next round.

    That manifests alone have gone is seen within the hour.
    """
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    bucket = on_s3(request.getfixturevalue("seaweed")) if what == "bucket" else None
    site.configure(stores=[bucket or "backups"])
    with site.daemon() as daemon:
        daemon.wait_for("snapshot", outcome="created")
        _rest(daemon)
        if bucket is not None:
            _empty(request.getfixturevalue("seaweed"), str(bucket["url"]))
        else:
            shutil.rmtree(site.store / "app" / "snapshots" if what == "manifests" else site.store)
        site.change_status(lambda health: replace(health, seen_at=health.seen_at and health.seen_at - AN_HOUR_AND_MORE))
        position = daemon.run_again()
        again = daemon.wait_for("snapshot", after=position)
        assert (again["outcome"], again["changed_pages"]) == ("created", again["page_count"])
        assert [each["id"] for each in site.listed()] == [again["id"]]


def _empty(server: S3Server, url: str) -> None:
    bucket = url.split("/")[2]
    with closing(server.client()) as client:
        for each in client.list_objects_v2(Bucket=bucket)["Contents"]:
            client.delete_object(Bucket=bucket, Key=each["Key"])


def test_missed_drills_are_made_up_for_and_find_damage(tmp_path: Path) -> None:
    """A missed drill proves the snapshot; one flipped bit is found, reported and repaired."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=10)
    site.configure(schedule={"drills": not_within_a_test()})
    with site.daemon() as daemon:
        created = daemon.wait_for("snapshot", outcome="created")
        position = daemon.drill_again()
        assert daemon.wait_for("drill", after=position)["outcome"] == "proven"
        (health,) = site.status.read().databases["app"].stores.values()
        assert (health.proven_id, health.drill_failure) == (created["id"], None)
        assert daemon.metric("backupd_last_proven_timestamp_seconds") is not None
        assert site.backupd.spooled() == []

        for pack in site.store.glob("app/packs/*"):
            flip(pack)
        position = daemon.drill_again()
        drilled = daemon.wait_for("drill", after=position)
        assert drilled["outcome"] == "damaged-store"
        assert "damaged" in daemon.require_red("damaged", database="app").stdout
        position = daemon.run_again()
        mended = daemon.wait_for("snapshot", after=position)
        assert (mended["outcome"], mended["changed_pages"], mended["replaced_packs"]) == ("created", 0, 1)
        assert daemon.wait_for("drill", after=position)["outcome"] == "proven"
        daemon.require_green()
