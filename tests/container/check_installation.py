"""`docker compose up -d` beside a web service, whoever that runs as: from nothing to a restored snapshot."""

from __future__ import annotations

import shutil

import pytest

from container.engine import BASE_IMAGE, ROOT, package_sources
from container.project import BACKUPD_IMAGE, DATABASE, OVERRIDE, project, wait_until, web_image

_PATIENCE_SECONDS = 120
_QUICK = ("docker-compose.quick.yml",)


@pytest.fixture
def installed(engine, uid, tmp_path):
    """The web service as `uid`, with nothing but one file put beside its own."""
    with project(engine, tmp_path, CREDITROBOT_IMAGE=web_image(uid)) as made:
        made.up()
        yield made


def test_one_file_is_the_whole_installation(installed, uid):
    """Healthy, snapshots by itself and by hand, as the owner of the database, with no rights left; and a restore."""
    wait_until(installed.snapshots, seconds=_PATIENCE_SECONDS)
    assert installed.process("Uid") == installed.process("Gid") == [str(uid)] * 4
    if uid:
        assert {installed.process(f"Cap{which}")[0] for which in ("Prm", "Eff", "Amb")} == {"0" * 16}
    assert installed.process("NoNewPrivs") == ["1"]
    assert installed.inspected("backupd", "{{.HostConfig.ReadonlyRootfs}}") == "true"
    assert "Read-only file system" in installed.sidecar("sh", "-c", "touch /opt/backupd/x 2>&1 || true")

    acknowledged = installed.load(2)
    installed.backupd("now", "--tag", "by-hand")
    assert installed.load(2) > acknowledged
    assert installed.orders()["payments"] > acknowledged
    installed.backupd("restore", "by-hand", "--yes")
    assert installed.orders() == {"payments": acknowledged, "is_balanced": True}
    assert installed.load(1) > acknowledged, "the service writes what was restored"

    whose = installed.sidecar("sh", "-c", "stat -c %u /app/instance/* /backups/backupd.json").split()
    assert set(whose) == {str(uid)}
    assert installed.is_healthy()


def test_compose_builds_what_is_not_there(engine, tmp_path):
    """With the source below the project, as the file has it, nothing has to be built by hand before."""
    built = {"BACKUPD_IMAGE": f"{BACKUPD_IMAGE}-by-compose", "CREDITROBOT_IMAGE": "creditrobot-test-by-compose"}
    files = ("docker-compose.build.yml", *_QUICK)
    with project(engine, tmp_path, files=files, **built, **package_sources()) as made:
        shutil.copytree(ROOT / "backupd", tmp_path / "backupd/backupd")
        for file in ("Dockerfile", ".dockerignore", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
            shutil.copy(ROOT / file, tmp_path / "backupd")
        try:
            made.up()
            wait_until(made.snapshots, seconds=_PATIENCE_SECONDS)
        finally:
            made.compose("down", "--volumes", "--rmi=all", "--timeout=5")


def test_directories_of_the_host_do_as_well(engine, tmp_path, uid):
    """As the comment says: the same line as web's. And a directory for backups that Docker makes, as root's."""
    with project(engine, tmp_path, files=_QUICK, CREDITROBOT_IMAGE=web_image(uid)) as made:
        for file in ("docker-compose.yml", OVERRIDE):
            text = (tmp_path / file).read_text()
            text = text.replace("- creditrobot_db_data:", "- ./instance:").replace("- backupd_backups:", "- ./backups:")
            (tmp_path / file).write_text(text)
        (tmp_path / "instance").mkdir()
        as_root = ("run", "--rm", "--network=none", f"--volume={tmp_path}:/project", BASE_IMAGE, "sh", "-c")
        engine.docker(*as_root, f"chown {uid} /project/instance")
        made.up()
        wait_until(made.snapshots, seconds=_PATIENCE_SECONDS)
        assert made.process("Uid") == [str(uid)] * 4
        assert {path.stat().st_uid for path in (tmp_path / "backups", *(tmp_path / "instance").iterdir())} == {uid}
        # Whoever runs the tests could not remove what belongs to others.
        engine.docker(*as_root, "rm -r /project/instance/* /project/backups")


def test_it_finds_a_database_that_comes_later(engine, tmp_path, uid):
    """Started first, it waits as root beside an empty volume, and becomes the owner once the service has one."""
    with project(engine, tmp_path, files=_QUICK, CREDITROBOT_IMAGE=web_image(uid)) as made:
        made.compose("up", "--detach", "backupd")
        made.compose("up", "--detach", "--wait", "web")
        wait_until(lambda: made.process("Uid")[0] == str(uid), seconds=_PATIENCE_SECONDS)
        wait_until(made.snapshots, seconds=_PATIENCE_SECONDS)
        wait_until(made.is_healthy, seconds=_PATIENCE_SECONDS)


def test_a_deleted_database_comes_back(engine, tmp_path, uid):
    """From nothing but the volume of backups, with the service stopped."""
    with project(engine, tmp_path, files=_QUICK, CREDITROBOT_IMAGE=web_image(uid)) as made:
        made.up()
        acknowledged = made.load(1)
        made.backupd("now", "--tag", "all")
        made.compose("stop", "web")
        made.sidecar("sh", "-c", f"rm {DATABASE}*")
        made.backupd("restore", "all", "--to", DATABASE)
        made.up()
        assert made.orders() == {"payments": acknowledged, "is_balanced": True}
