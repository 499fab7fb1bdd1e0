"""The user of backupd in its container: the owner of the database, without further rights."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from container.engine import BASE_IMAGE
from container.project import BACKUPD_IMAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEEDED = ["CHOWN", "DAC_OVERRIDE", "SETGID", "SETUID"]
_MAKE_DATABASE = """
import sqlite3
connection = sqlite3.connect("/app/instance/app.db")
connection.execute("PRAGMA journal_mode = wal")
with connection:
    connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
    connection.execute("INSERT INTO t VALUES (1)")
"""
_WHOSE = r"find /app/instance /backups /var/lib/backupd -printf '%p %U:%G\n' | sort"


class _Volumes:
    """Three volumes and the containers that see them."""

    def __init__(self, engine) -> None:
        self.engine = engine
        name = f"backupd-test-{secrets.token_hex(4)}"
        self.names = {f"{name}-{what}": f"/{what}" for what in ("app/instance", "backups", "var/lib/backupd")}
        self.names = {name.replace("/", "-"): path for name, path in self.names.items()}

    def _options(self) -> list[str]:
        mounts = [f"--volume={name}:{path}" for name, path in self.names.items()]
        return ["--rm", "--network=none", *mounts]

    def run_as(self, user: int | str, *command: str) -> str:
        """Run a command as `user` in a container of the base image, with the default rights."""
        return self.engine.docker("run", *self._options(), f"--user={user}", BASE_IMAGE, *command)

    def backupd(self, *arguments: str, options: tuple[str, ...] = (), capabilities=_NEEDED, **others) -> str:
        """Run backupd as docker-compose.override.yml does."""
        return self.engine.docker(
            *("run", *self._options(), "--read-only", "--tmpfs=/tmp", "--security-opt=no-new-privileges"),
            *("--cap-drop=ALL", *(f"--cap-add={name}" for name in capabilities)),
            *("--env=BACKUPD_DATABASES__0__PATH=/app/instance/*.db", "--env=BACKUPD_STORES__0__URL=/backups"),
            *(*options, BACKUPD_IMAGE, *arguments),
            **others,
        )

    def owners(self) -> dict[str, str]:
        """Whom each file belongs to."""
        return dict(line.rsplit(" ", 1) for line in self.run_as(0, "sh", "-c", _WHOSE).splitlines())


@contextmanager
def _volumes_of(engine, owner: str, mode: str = "750") -> Iterator[_Volumes]:
    volumes = _Volumes(engine)
    try:
        volumes.run_as(0, "sh", "-c", f"chown {owner} /app/instance && chmod {mode} /app/instance")
        yield volumes
    finally:
        engine.docker("volume", "rm", *volumes.names)


@pytest.fixture
def volumes(engine):
    """Volumes of a web service that runs as 1000."""
    with _volumes_of(engine, "1000:1000") as made:
        made.run_as("1000:1000", "python3", "-c", _MAKE_DATABASE)
        yield made


def test_what_it_writes_belongs_to_the_owner_of_the_database(volumes):
    """Beside the database, in the store and in its state; and nothing that was there changes hands."""
    volumes.backupd("now")
    owners = volumes.owners()
    assert owners.pop("/var/lib/backupd") == "0:0"
    assert "/var/lib/backupd/1000/locks" in owners
    assert set(owners.values()) == {"1000:1000"}


@pytest.mark.parametrize("missing", _NEEDED)
def test_each_capability_is_needed(engine, missing):
    """Without any one of the capabilities a command fails with an error and a hint; with it, the command succeeds."""
    others = [name for name in _NEEDED if name != missing]
    with _volumes_of(engine, "1000:1000") as volumes:
        volumes.run_as("1000:1000", "python3", "-c", _MAKE_DATABASE)
        # What a bind mount is like that Docker made: root's, for root to write. And a secret of the operator's own.
        volumes.run_as(0, "sh", "-c", "chmod 755 /backups /var/lib/backupd")
        volumes.run_as(0, "sh", "-c", "echo secret >/app/instance/secret; chmod 400 /app/instance/secret")
        volumes.run_as(0, "chown", "4242", "/app/instance/secret")
        store = {
            "URL": "s3://somewhere",
            "ACCESS_KEY_ID": "key",
            "SECRET_ACCESS_KEY_FILE": "/app/instance/secret",
        }
        options = tuple(f"--env=BACKUPD_STORES__1__{key}={value}" for key, value in store.items())
        said = volumes.backupd(
            *("now", "--store", "/backups"), options=options, capabilities=others, is_failure_expected=True
        )
        assert "error: " in said
        assert "hint: " in said
        assert "snapshots" not in said
        volumes.backupd("now", "--store", "/backups", options=options)


def test_configured_user_is_kept(volumes):
    """A configured user is kept, and needs no capability and no prepared volumes."""
    volumes.backupd("now", options=("--user=1000:1000",), capabilities=())
    owners = volumes.owners()
    assert owners["/backups/backupd.json"] == owners["/var/lib/backupd/1000"] == "1000:1000"


@pytest.mark.parametrize("user", [None, "1000:1000"], ids=["started as root", "with user"])
def test_a_file_without_a_directory_is_written_where_it_is_kept(volumes, user):
    """A target without a directory is written to the state volume, be it new or with the state of another user."""
    options = (f"--user={user}",) if user else ()
    volumes.backupd("now", options=options)
    volumes.backupd("restore", "latest", "--to", "restored.db", options=options)
    assert volumes.owners()["/var/lib/backupd/restored.db"] == "1000:1000"
    volumes.backupd("-R", "10001:10001", "/app/instance", "/backups", options=("--user=0", "--entrypoint=chown"))
    options = ("--user=10001:10001",) if user else ()
    volumes.backupd("restore", "latest", "--to", "another.db", options=options)
    assert volumes.owners()["/var/lib/backupd/another.db"] == "10001:10001"


def test_files_of_another_user_keep_their_owner(volumes):
    """A volume that is not empty is not given away: the error says who has to be let in."""
    volumes.run_as(0, "sh", "-c", "touch /backups/other && chown 4242:4242 /backups /backups/other; chmod 755 /backups")
    said = volumes.backupd("now", is_failure_expected=True)
    assert "hint: let uid 1000 read and write /backups" in said
    owners = volumes.owners()
    assert owners["/backups"] == owners["/backups/other"] == "4242:4242"


def test_after_a_change_of_owner_the_new_one_says_what_it_may_not_read(volumes):
    """State is a cache, so each has its own; backups are not, and the error says whom to let in."""
    volumes.backupd("now")
    volumes.run_as(0, "chown", "-R", "10001:10001", "/app/instance")
    said = volumes.backupd("now", is_failure_expected=True)
    assert "hint: let uid 10001 read and write /backups" in said
    # As the page on operations has it.
    volumes.backupd("-R", "10001:10001", "/backups", options=("--user=0", "--entrypoint=chown"))
    volumes.backupd("now", "--tag=again")
    owners = volumes.owners()
    assert owners["/var/lib/backupd/1000"] == "1000:1000"
    assert owners["/var/lib/backupd/10001"] == "10001:10001"


def test_a_restored_database_belongs_to_its_former_owner(volumes):
    """A restored database belongs to its former owner, even if only the directory still shows who that was."""
    options = ("--env=BACKUPD_DATABASES__0__PATH=/app/instance/app.db",)
    volumes.backupd("now", options=options)
    volumes.run_as(0, "sh", "-c", "rm /app/instance/app.db*")
    volumes.backupd("restore", "latest", "--yes", options=options)
    assert volumes.owners()["/app/instance/app.db"] == "1000:1000"
