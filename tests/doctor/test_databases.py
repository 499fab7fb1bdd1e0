from __future__ import annotations

import os
import sqlite3
import sys
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from harness.cli import tree
from harness.confinement import private_mounts, shared_directory
from harness.place import connected, create_database

from backupd.config import CaptureSettings, Database
from backupd.doctor.databases import DatabaseFacts, FileFacts, Refusal, check_database, has_wal_reset, inspect_database
from backupd.doctor.findings import Verdict
from backupd.errors import BackupdError, BusyError, ExitCode
from backupd.system.mounts import Host, Mount

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.doctor.findings import Finding

_GB = 10**9
_DISK = Mount("/", "ext4", "/dev/sda1", is_read_only=False)
_MACHINE = Host((_DISK,), is_container=False)
_WELL = DatabaseFacts(
    real_path="/data/app.db",
    file=FileFacts(0, 0, 0o644, 41 * 10**6),
    wal=FileFacts(0, 0, 0o644, 4 * 10**6),
    index=FileFacts(0, 0, 0o644, 32768),
    directory=FileFacts(0, 0, 0o755, 4096),
    is_writable=True,
    is_directory_writable=True,
    is_read_only=False,
    device=1,
    free_bytes=100 * _GB,
    journal_mode="wal",
    sqlite_version="3.51.3",
    image_bytes=41 * 10**6,
)


def _found(
    tmp_path: Path, facts: DatabaseFacts = _WELL, host: Host = _MACHINE, **changes: object
) -> dict[str, Finding]:
    database = Database("app", tmp_path / "app.db")
    findings = [*check_database(database, replace(facts, **changes), CaptureSettings(), host)]
    assert {finding.subject for finding in findings} == {"database app"}
    assert all(finding.remedy for finding in findings if finding.verdict in {Verdict.WARNING, Verdict.ERROR})
    return {finding.check: finding for finding in findings}


def _inspect(path: Path) -> DatabaseFacts:
    return inspect_database(path, lock_timeout=0.5, max_lock=3, deadline=20)


def test_a_healthy_database_passes_every_check(tmp_path: Path) -> None:
    """Every check has a finding, and each is ok."""
    found = _found(tmp_path)
    assert list(found) == ["opens", "size", "journal mode", "sqlite", "owner", "mount", "space"]
    assert {finding.verdict for finding in found.values()} == {Verdict.OK}
    assert "41 MB; expect about 0.5 s for the first capture and 0.3 s" in found["size"].message


@pytest.mark.parametrize(
    ("changes", "check", "verdict", "expected"),
    [
        (
            {"journal_mode": "delete", "image_bytes": _GB, "step_seconds": 0.004, "confirm_seconds": 0.2},
            "journal mode",
            Verdict.NOTE,
            "as measured now 4 ms between occasional writes and 0.2 s under constant writes",
        ),
        (
            {"journal_mode": "delete", "image_bytes": 30 * _GB, "step_seconds": 0.004, "confirm_seconds": 6.1},
            "journal mode",
            Verdict.WARNING,
            "6.1 s under constant writes, more than capture.max_lock (3.0 s) allows",
        ),
        (
            {"journal_mode": "delete", "image_bytes": 10**7, "step_seconds": 0.005, "confirm_seconds": 0.002},
            "journal mode",
            Verdict.OK,
            "writers wait 5 ms for each capture, as measured now",
        ),
        ({"wal": FileFacts(0, 0, 0o644, 2 * _GB)}, "journal mode", Verdict.WARNING, "2.0 GB, more than the database"),
        ({"image_bytes": 900 * _GB}, "size", Verdict.WARNING, "capture.deadline"),
        ({"sqlite_version": "3.51.2"}, "sqlite", Verdict.NOTE, "3.7.0 to 3.51.2"),
        ({"sqlite_version": "3.51.2", "journal_mode": "delete"}, "sqlite", Verdict.OK, "3.51.2"),
        ({"sqlite_version": ""}, "sqlite", Verdict.OK, "empty"),
        ({"is_schema_readable": False}, "opens", Verdict.WARNING, "damaged"),
        ({"is_writable": False}, "owner", Verdict.NOTE, "not for a restore in place"),
        ({"is_directory_writable": False}, "owner", Verdict.WARNING, "only while the application has it open"),
        (
            {"is_directory_writable": False, "journal_mode": "delete"},
            "owner",
            Verdict.NOTE,
            "into the directory (uid 0",
        ),
        ({"uid": 7}, "owner", Verdict.WARNING, "only while the application has it open"),
        ({"uid": 7, "journal_mode": "delete"}, "owner", Verdict.OK, "backupd is uid 7"),
        ({"file": FileFacts(7, 7, 0o644, 1)}, "owner", Verdict.WARNING, "app.db-wal belongs to another uid"),
        ({"free_bytes": 1000}, "space", Verdict.WARNING, "1.0 kB free"),
        ({"free_bytes": 0}, "space", Verdict.ERROR, "0 B free"),
        ({"has_free_inodes": False}, "space", Verdict.ERROR, "no inodes"),
        ({"is_read_only": True}, "mount", Verdict.WARNING, "only while the application runs"),
        ({"is_read_only": True, "journal_mode": "delete"}, "mount", Verdict.NOTE, "enough for backups"),
        (
            {"is_read_only": True, "is_directory_writable": False, "is_writable": False},
            "owner",
            Verdict.OK,
            "backupd is uid 0",
        ),
        ({"is_read_only": True, "is_directory_writable": False, "uid": 7}, "owner", Verdict.OK, "backupd is uid 7"),
    ],
)
def test_each_problem_has_its_verdict_and_message(
    tmp_path: Path, changes: dict[str, object], check: str, verdict: Verdict, expected: str
) -> None:
    """Each fact that matters changes the verdict, and the message names it."""
    finding = _found(tmp_path, **changes)[check]
    assert (finding.verdict, expected in finding.message) == (verdict, True), finding


@pytest.mark.parametrize(
    ("kind", "is_container", "expected"),
    [
        ("nfs4", False, "a network file system"),
        ("virtiofs", True, "a file system of the host"),
        ("tmpfs", False, "in memory"),
        ("overlay", True, "the container's own file system"),
    ],
)
def test_unreliable_file_systems_are_a_warning(tmp_path: Path, kind: str, *, is_container: bool, expected: str) -> None:
    """File systems on which locks are not reliable, or whose content is lost."""
    host = Host((_DISK, Mount("/data", kind, "x", is_read_only=False)), is_container)
    finding = _found(tmp_path, host=host)["mount"]
    assert finding.verdict is Verdict.WARNING
    assert expected in finding.message


def test_a_read_only_mount_is_reported_beside_another_problem_of_the_mount(tmp_path: Path) -> None:
    """A read-only mount is reported beside another problem of it: a WAL database then needs a running application."""
    host = Host((_DISK, Mount("/data", "virtiofs", "x", is_read_only=True)), is_container=True)
    facts = replace(_WELL, is_directory_writable=False, is_writable=False)
    findings = check_database(Database("app", tmp_path / "app.db"), facts, CaptureSettings(), host)
    messages = [finding.message for finding in findings if finding.verdict is Verdict.WARNING]
    assert len(messages) == 2
    assert "a file system of the host" in messages[0]
    assert "only while the application runs" in messages[1]


def test_a_refusal_is_an_error_with_its_code(tmp_path: Path) -> None:
    """Doctor gives the message and exit code of a capture; checks that need no opened database still run."""
    facts = replace(_WELL, refusal=Refusal("BusyError", "locked", None), image_bytes=0)
    found = _found(tmp_path, facts)
    assert (found["opens"].verdict, found["opens"].exit_code) == (Verdict.ERROR, ExitCode.BUSY)
    assert "owner" in found
    assert "size" not in found
    missing = DatabaseFacts(real_path="/x", refusal=Refusal("SourceUnusableError", "gone", "mount it"))
    assert list(_found(tmp_path, missing)) == ["opens"]
    assert _found(tmp_path, missing)["opens"].exit_code is ExitCode.SOURCE_UNUSABLE


@pytest.mark.parametrize(
    ("version", "has_it"),
    [
        ("3.6.23", False),
        ("3.7.0", True),
        ("3.40.1", True),
        ("3.44.5", True),
        ("3.50.6", True),
        ("3.51.2", True),
        ("3.51.3", False),
        ("3.53.0", False),
    ],
)
def test_versions_with_the_wal_reset_race(version: str, *, has_it: bool) -> None:
    """The WAL reset race is in SQLite from the first version with WAL to the last one before its correction."""
    assert has_wal_reset(version) is has_it


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_inspecting_a_real_database_changes_nothing(tmp_path: Path, journal_mode: str) -> None:
    """The facts are those of SQLite and the file system; the database and its directory stay as they were."""
    path = tmp_path / "app.db"
    create_database(path, journal_mode=journal_mode)
    with connected(path, "SELECT count(*) FROM report"):
        before = tree(tmp_path)
        facts = _inspect(path)
        assert tree(tmp_path).keys() == before.keys()
        assert {name: facts for name, facts in tree(tmp_path).items() if not name.endswith("-shm")} == {
            name: facts for name, facts in before.items() if not name.endswith("-shm")
        }
    assert facts.refusal is None
    assert (facts.journal_mode, facts.sqlite_version) == (journal_mode, sqlite3.sqlite_version)
    assert facts.image_bytes == path.stat().st_size
    assert facts.device == tmp_path.stat().st_dev
    assert facts.file is not None
    assert (facts.file.uid, facts.file.size_bytes) == (os.geteuid(), path.stat().st_size)
    assert (facts.wal is not None) == (journal_mode == "wal")


def test_a_link_is_resolved(tmp_path: Path) -> None:
    """The log is beside the file that the link leads to."""
    (tmp_path / "real").mkdir()
    create_database(tmp_path / "real/app.db")
    (tmp_path / "app.db").symlink_to("real/app.db")
    assert _inspect(tmp_path / "app.db").real_path == str(tmp_path / "real/app.db")


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "does not exist"), (b"not a database" * 20, "not an SQLite database"), (b"", None)],
    ids=["missing", "other content", "empty"],
)
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes | None, expected: str | None) -> None:
    """A missing file or other content is refused with the message of a capture; an empty file is a database."""
    if content is not None:
        (tmp_path / "app.db").write_bytes(content)
    refusal = _inspect(tmp_path / "app.db").refusal
    assert (refusal is None) == (expected is None)
    assert refusal is None or expected in refusal.message


def test_hot_journal_is_reported_and_left_alone(tmp_path: Path) -> None:
    """A program that crashed inside a transaction: only the application may roll it back."""
    path = tmp_path / "app.db"
    create_database(path)
    statements = ("PRAGMA cache_size = 1", "BEGIN IMMEDIATE", "UPDATE report SET body = randomblob(900)")
    with connected(path, *statements) as application:
        application.kill()
        application.wait()
    before = tree(tmp_path)
    refusal = _inspect(path).refusal
    assert refusal is not None
    assert "hot rollback journal" in refusal.message
    assert tree(tmp_path) == before


def test_locked_database_is_busy_after_the_lock_timeout(tmp_path: Path) -> None:
    """Doctor waits for an exclusive lock as long as configured, and no longer."""
    path = tmp_path / "app.db"
    create_database(path)
    with connected(path, "PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE"):
        refusal = _inspect(path).refusal
    assert refusal is not None
    assert refusal.error == "BusyError"


def test_an_inspection_that_hangs_is_killed_at_the_deadline(tmp_path: Path) -> None:
    """The error names the database."""
    started = time.monotonic()
    hanging = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(BusyError, match=r"app\.db could not be inspected within 0\.3 s"):
        inspect_database(tmp_path / "app.db", lock_timeout=1, max_lock=3, deadline=0.3, command=hanging)
    assert time.monotonic() - started < 10


def test_an_inspection_that_blocks_writers_ends_itself(tmp_path: Path) -> None:
    """An inspection has a timer for its lock, as a capture has, and ends when that expires."""
    late = [sys.executable, "-c", "import signal, time; signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(60)"]
    with pytest.raises(BusyError, match=r"app\.db is not in WAL mode, and copying it held up its writers"):
        inspect_database(tmp_path / "app.db", lock_timeout=1, max_lock=3, deadline=20, command=late)


def test_schema_that_is_not_read_in_time_is_a_warning(tmp_path: Path) -> None:
    """A table that is an endless view is left out, and the other facts are collected."""
    path = tmp_path / "app.db"
    create_database(path)
    endless = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT x AS version_num FROM r"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "INSERT INTO sqlite_schema VALUES ('table', 'alembic_version', 'alembic_version', 2, ?)",
            (f"CREATE VIEW alembic_version AS {endless}",),
        )
    facts = _inspect(path)
    opens = _found(tmp_path, facts)["opens"]
    assert opens.verdict is Verdict.WARNING
    assert "its Alembic revisions are left out of the manifest" in opens.message
    assert facts.step_seconds > 0


def test_an_inspection_that_fails_unexpectedly_is_a_bug(tmp_path: Path) -> None:
    """The last line that the process wrote is in the error."""
    broken = [sys.executable, "-c", "raise SystemExit('it broke')"]
    with pytest.raises(BackupdError, match="it broke") as caught:
        inspect_database(tmp_path / "app.db", lock_timeout=1, max_lock=3, deadline=20, command=broken)
    assert caught.value.exit_code is ExitCode.BUG


def test_a_read_only_volume_is_recognized(tmp_path: Path) -> None:
    """A volume that is mounted with :ro."""
    create_database(tmp_path / "app.db")
    with private_mounts() as mounts:
        mounts.mount("--bind", tmp_path, tmp_path)
        mounts.mount("-o", "remount,bind,ro", tmp_path)
        enter = [*mounts.runner().enter, sys.executable, "-P", "-m", "backupd.doctor.database_child"]
        facts = inspect_database(tmp_path / "app.db", lock_timeout=1, max_lock=3, deadline=20, command=enter)
    assert facts.is_read_only
    assert facts.refusal is None
    assert _found(tmp_path, facts)["mount"].verdict is Verdict.NOTE


def test_a_closed_wal_database_of_another_user_is_refused() -> None:
    """Opening it would leave files that its owner cannot write, so a capture refuses it too."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files to other users")
    with shared_directory() as directory:
        path = directory / "app.db"
        create_database(path, journal_mode="wal")
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        directory.chmod(0o777)
        os.chown(path, 1000, 1000)
        from harness.confinement import another_user  # noqa: PLC0415  (skips, so only here)

        with another_user() as other_user:
            command = [
                *other_user.enter,
                "env",
                *(f"{k}={v}" for k, v in other_user.environ.items()),
                *other_user.become,
            ]
            facts = inspect_database(
                path,
                lock_timeout=1,
                max_lock=3,
                deadline=20,
                command=[*command, other_user.python, "-m", "backupd.doctor.database_child"],
            )
        assert facts.refusal is not None
        assert "uid 1000, cannot write" in facts.refusal.message
        assert not path.with_name("app.db-wal").exists()
