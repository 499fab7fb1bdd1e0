"""`docker compose up -d` beside a web service of any user: from nothing to a restored snapshot."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
from contextlib import closing

import pytest
from harness.pages import README, blocks

from container.engine import BASE_IMAGE, ROOT, package_sources
from container.project import BACKUPD_IMAGE, DATABASE, OVERRIDE, project, wait_until, web_image

_PATIENCE_SECONDS = 120
_QUICK = ("docker-compose.quick.yml",)
_UID = 1000
_WRONG = "BACKUPD_SCHEDULE__SNAPSHOTS: sometimes"
_ALONE = {"COMPOSE_FILE": "docker-compose.yml"}


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


def test_the_quick_start_ends_with_a_restored_file(engine, tmp_path, uid):
    """README's lines, as they stand there, beside a service that runs already."""
    with project(engine, tmp_path, CREDITROBOT_IMAGE=web_image(uid)) as made:
        (tmp_path / "backupd").mkdir()
        (tmp_path / OVERRIDE).rename(tmp_path / "backupd" / OVERRIDE)
        engine.compose("up", "--detach", "--wait", directory=tmp_path, environment={**made.environment, **_ALONE})
        acknowledged = int(_of_web_alone(made, "python", "-m", "creditrobot.load", "1"))
        (quick_start, *_) = blocks(README, "sh")
        assert "docker compose" in quick_start
        _type(made, quick_start)
        with closing(sqlite3.connect(tmp_path / "restored.db")) as restored:
            assert restored.execute("SELECT count(*) FROM payments").fetchall() == [(acknowledged,)]


def _of_web_alone(made, *command: str) -> str:
    environment = {**made.environment, **_ALONE}
    return made.engine.compose("exec", "-T", "web", *command, directory=made.directory, environment=environment)


def _type(made, lines: str) -> None:
    """Have a shell run `lines` in the project's directory, with `docker` being this engine's, Compose included."""
    docker, compose = (shlex.join(command) for command in (made.engine.docker_command, made.engine.compose_command))
    (made.directory / "bin").mkdir()
    script = made.directory / "bin/docker"
    script.write_text(f'#!/bin/sh\n[ "$1" = compose ] || exec {docker} "$@"\nshift\nexec {compose} "$@"\n')
    script.chmod(0o755)
    ran = subprocess.run(
        ["sh", "-eux", "-c", lines],
        cwd=made.directory,
        env={**os.environ, **made.environment, "PATH": f"{script.parent}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_file_can_have_the_configuration(engine, tmp_path):
    """A file that only root may read is read at the start; SIGHUP then says which user must be able to read it."""
    engine.build(ROOT / "tests/creditrobot", web_image(_UID), UID=_UID)
    with project(engine, tmp_path, files=_QUICK, CREDITROBOT_IMAGE=web_image(_UID)) as made:
        override = tmp_path / OVERRIDE
        text = re.sub(r"^ +BACKUPD_(DATABASES|STORES).*\n", "", override.read_text(), flags=re.MULTILINE)
        override.write_text(text.replace("#- ./backupd.toml:", "- ./backupd.toml:"))
        file = tmp_path / "backupd.toml"
        file.write_text(f'[[databases]]\npath = "{DATABASE}"\nname = "by-file"\n[[stores]]\nurl = "/backups"\n')
        file.chmod(0o600)
        made.up()
        wait_until(made.snapshots, seconds=_PATIENCE_SECONDS)
        assert {snapshot["database"] for snapshot in made.snapshots()} == {"by-file"}
        made.compose("kill", "--signal", "HUP", "backupd")
        wait_until(lambda: f"let uid {_UID} read it" in made.backupd("status"), seconds=_PATIENCE_SECONDS)
        made.compose("restart", "backupd")
        wait_until(lambda: "let uid" not in made.backupd("status"), seconds=_PATIENCE_SECONDS)


def test_a_wrong_configuration_is_tried_beside_a_container_that_restarts(engine, tmp_path):
    """`docker compose run` needs no container that runs, and names what is wrong."""
    with project(engine, tmp_path) as made:
        override = tmp_path / OVERRIDE
        override.write_text(override.read_text().replace("#BACKUPD_SCHEDULE__SNAPSHOTS: every 5m", _WRONG))
        made.compose("up", "--detach", "backupd")
        with pytest.raises(AssertionError, match=r"BACKUPD_SCHEDULE__SNAPSHOTS: .*sometimes"):
            made.compose("run", "--rm", "-T", "backupd", "doctor")


def test_compose_builds_what_is_not_there(engine, tmp_path):
    """Compose builds the missing images from the source below the project, with no manual step before."""
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
    """Directories of the host work instead of volumes, even one for backups that Docker makes as root."""
    with project(engine, tmp_path, files=_QUICK, CREDITROBOT_IMAGE=web_image(uid)) as made:
        of_web, override = tmp_path / "docker-compose.yml", tmp_path / OVERRIDE
        of_web.write_text(of_web.read_text().replace("- creditrobot_db_data:", "- ./instance:"))
        text = re.sub(r"- creditrobot_db_data:.*\n +#(?=- ./instance:)", "", override.read_text())
        override.write_text(text.replace("- backupd_backups:", "- ./backups:"))
        (tmp_path / "instance").mkdir()
        as_root = ("run", "--rm", "--network=none", f"--volume={tmp_path}:/project", BASE_IMAGE, "sh", "-c")
        engine.docker(*as_root, f"chown {uid} /project/instance")
        made.up()
        wait_until(made.snapshots, seconds=_PATIENCE_SECONDS)
        assert made.process("Uid") == [str(uid)] * 4
        assert {path.stat().st_uid for path in (tmp_path / "backups", *(tmp_path / "instance").iterdir())} == {uid}
        # The user who runs the tests could not remove files of other users.
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
    """A deleted database is restored from nothing but the volume of backups, while the service is stopped."""
    with project(engine, tmp_path, files=_QUICK, CREDITROBOT_IMAGE=web_image(uid)) as made:
        made.up()
        acknowledged = made.load(1)
        made.backupd("now", "--tag", "all")
        made.compose("stop", "web")
        made.sidecar("sh", "-c", f"rm {DATABASE}*")
        made.backupd("restore", "all", "--to", DATABASE)
        made.up()
        assert made.orders() == {"payments": acknowledged, "is_balanced": True}
