"""A service in production: a copy in a bucket, containers that are killed, a store that is cut off, migrations."""

from __future__ import annotations

import re
import secrets
import threading

import pytest

from container.engine import ROOT
from container.project import OVERRIDE, project, wait_until, web_image

_UID = 1000
_PATIENCE_SECONDS = 150
_BUCKET = "s3://backups/creditrobot"
_OF_S3 = re.compile(r"^(\s*)#(?=BACKUPD_STORES__1|secrets:|  s3_secret|    file:)", re.MULTILINE)


@pytest.fixture
def service(engine, s3_image, tmp_path):
    """The commented lines for a bucket taken in, a secret put into its file, and everything started."""
    engine.build(ROOT / "tests/creditrobot", web_image(_UID), UID=_UID)
    secret = secrets.token_hex(16)
    files = ("docker-compose.s3.yml",)
    with project(engine, tmp_path, files=files, CREDITROBOT_IMAGE=web_image(_UID), S3_SECRET=secret) as made:
        override = made.directory / OVERRIDE
        override.write_text(_OF_S3.sub(r"\1", override.read_text()))
        file = made.directory / "s3_secret_access_key"
        file.write_text(f"{secret}\n")
        file.chmod(0o600)
        made.up()
        yield made


def _newest(service) -> str:
    return service.snapshots("--store", _BUCKET)[-1]["id"]


def test_snapshots_are_in_both_stores_and_either_restores(service):
    """A snapshot has the same id in both stores, and the bucket alone is enough to restore it."""
    acknowledged = service.load(2)
    service.backupd("now", "--tag", "both")
    assert _newest(service) == service.snapshots("--store", "/backups")[-1]["id"]
    service.load(1)
    service.compose("exec", "-T", f"--user={_UID}", "backupd", "sh", "-c", "rm -r /backups/creditrobot")
    service.backupd("restore", "both", "--yes", "--no-safety-snapshot", "--store", _BUCKET)
    assert service.orders() == {"payments": acknowledged, "is_balanced": True}


@pytest.mark.parametrize("victim", ["backupd", "web", "s3"])
def test_any_container_may_be_killed(service, victim):
    """A container killed under load is restarted, no acknowledged order is lost, and the next snapshot has all."""
    placed: list[int] = []
    customers = threading.Thread(target=lambda: placed.append(service.load(6 if victim == "web" else 12)))
    if victim == "web":
        placed.append(service.load(3))
    else:
        customers.start()
    service.engine.docker("kill", service.container(victim))
    service.up()
    if customers.ident is not None:
        customers.join()
    service.backupd("now", "--tag", "after")
    assert service.orders()["payments"] >= max(placed)
    service.load(1)
    service.backupd("restore", "after", "--yes", "--store", _BUCKET)
    restored = service.orders()
    assert restored["is_balanced"]
    assert restored["payments"] >= max(placed)
    wait_until(service.is_healthy, seconds=_PATIENCE_SECONDS)


def test_a_store_that_is_cut_off_turns_health_red_and_green_again(service):
    """A store that is cut off turns health red, gets what it missed when it is back, and the other one goes on."""
    service.engine.docker("network", "disconnect", service.network(), service.container("s3"))
    service.load(1)
    wait_until(lambda: not service.is_healthy(), seconds=_PATIENCE_SECONDS)
    assert _BUCKET in service.last_health_check()
    here = service.snapshots("--store", "/backups")[-1]["id"]
    service.engine.docker("network", "connect", "--alias=s3", service.network(), service.container("s3"))
    wait_until(service.is_healthy, seconds=_PATIENCE_SECONDS)
    assert _newest(service) >= here


def test_a_store_that_hangs_turns_health_red_and_green_again(service):
    """A server that takes connections and never answers is no different."""
    service.engine.docker("pause", service.container("s3"))
    try:
        service.load(1)
        wait_until(lambda: not service.is_healthy(), seconds=_PATIENCE_SECONDS)
    finally:
        service.engine.docker("unpause", service.container("s3"))
    wait_until(service.is_healthy, seconds=_PATIENCE_SECONDS)


def test_a_migration_that_fails_is_taken_back(service):
    """A snapshot, `flask db upgrade`, half a migration, the snapshot again; then the migration succeeds."""
    acknowledged = service.load(2)
    service.backupd("now", "--tag", "pre-migration")
    service.web("sh", "-c", "! CREDITROBOT_FAIL_MIGRATION=1 flask db upgrade")
    assert "duplicate column name" in service.web("sh", "-c", "! flask db upgrade 2>&1")
    service.backupd("restore", "pre-migration", "--yes")
    assert service.orders() == {"payments": acknowledged, "is_balanced": True}
    service.web("flask", "db", "upgrade")
    assert "0002 (head)" in service.web("flask", "db", "current")
    assert service.load(1) > acknowledged


def test_a_migration_that_succeeded_can_be_taken_back_too(service):
    """A migration that succeeded can be undone by a restore, once the user agrees that the schema changes."""
    service.backupd("now", "--tag", "pre-migration")
    service.web("flask", "db", "upgrade")
    service.load(1)
    service.backupd("restore", "pre-migration", "--yes", "--allow-revision-change")
    assert "0001" in service.web("flask", "db", "current")


def test_stopping_takes_no_longer_than_it_may(service):
    """SIGTERM is enough: nothing has to be killed, and the next start goes on."""
    service.load(1)
    service.compose("stop", "backupd")
    assert service.inspected("backupd", "{{.State.ExitCode}}") in {"0", "130", "143"}
    service.up()
