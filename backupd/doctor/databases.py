"""Whether a database can be backed up and restored, from what a look at it gave. Pure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from backupd import errors
from backupd.capture.limits import WHOLE_BYTES
from backupd.doctor import figures
from backupd.doctor.findings import Finding, Subject
from backupd.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.config import CaptureSettings, Database
    from backupd.doctor.look import DatabaseLook, FileFacts
    from backupd.doctor.mounts import Host, Mount

# A checkpoint runs at 1,000 pages by default, so that a log is a few MB; this is far beyond.
_LARGE_LOG_BYTES = 64 * 10**6
_NOTICEABLE_SECONDS = 0.1
_TO_WAL = "PRAGMA journal_mode = WAL, once; for SQLAlchemy see docs/configuration.md"
_FIRST_WITH_WAL = (3, 7, 0)
_LAST_WITH_WAL_RESET = (3, 51, 2)


def judge(database: Database, look: DatabaseLook, capture: CaptureSettings, host: Host) -> list[Finding]:
    """Every finding about one database."""
    return [*_Judgement(database, look, capture, host).findings()]


def subject_of(database: Database) -> Subject:
    """What findings about `database` are called."""
    return Subject(f"database {database.name}")


class _Judgement:
    def __init__(self, database: Database, look: DatabaseLook, capture: CaptureSettings, host: Host) -> None:
        self._path = database.path
        self._look = look
        self._capture = capture
        self._host = host
        self._mount = host.mount_of(Path(look.real_path))
        self._subject = subject_of(database)

    def findings(self) -> Iterator[Finding]:
        yield self._opens()
        if self._look.file is None:
            return
        if self._look.image_bytes or self._look.refusal is None:
            yield self._size()
        if self._look.journal_mode is not None:
            yield self._journal_mode()
            yield self._sqlite_version()
        yield self._owner(self._look.file)
        yield from self._mounted()
        if self._look.free_bytes is not None:
            yield self._space(self._look.free_bytes)

    def _opens(self) -> Finding:
        refusal = self._look.refusal
        if refusal is not None:
            exit_code: ExitCode = getattr(errors, refusal.error, errors.BackupdError).exit_code
            remedy = refusal.hint or "look at the system log and at the file"
            return self._subject.error("opens", refusal.message, remedy, exit_code)
        if not self._look.is_schema_readable:
            return self._subject.warning(
                "opens",
                f"{self._path} opens, and its schema cannot be read: it is damaged",
                "check it with: sqlite3 FILE 'PRAGMA integrity_check'; it is backed up as it is",
            )
        if self._look.left_out:
            return self._subject.warning(
                "opens",
                f"{self._path} opens read-only, and {'; '.join(self._look.left_out)}",
                "look at its schema with: sqlite3 FILE .schema; it is backed up as it is",
            )
        return self._subject.ok("opens", f"{self._path} opens read-only")

    def _size(self) -> Finding:
        size_bytes = self._look.image_bytes
        first, later = figures.first_capture_seconds(size_bytes), figures.later_capture_seconds(size_bytes)
        expected = (
            f"{figures.size(size_bytes)}; expect about {figures.seconds(first)} for the first capture and "
            f"{figures.seconds(later)} for later ones, at the rates in README"
        )
        deadline = self._capture.deadline.total_seconds()
        if first > deadline:
            return self._subject.warning(
                "size",
                f"{expected}: more than capture.deadline ({figures.seconds(deadline)})",
                "raise capture.deadline",
            )
        return self._subject.ok("size", expected)

    def _journal_mode(self) -> Finding:
        if not self._look.is_wal:
            return self._rollback_mode()
        log = self._look.wal
        log_bytes = 0 if log is None else log.size_bytes
        if log_bytes > max(_LARGE_LOG_BYTES, self._look.image_bytes):
            return self._subject.warning(
                "journal mode",
                f"WAL, and the log {self._path}-wal has {figures.size(log_bytes)}, more than the database itself",
                "look for a connection of the application that keeps a transaction open: no checkpoint gets past it; "
                "PRAGMA wal_checkpoint(TRUNCATE) in the application makes the log small again",
            )
        return self._subject.ok("journal mode", f"WAL, with a log of {figures.size(log_bytes)}: nobody waits")

    def _rollback_mode(self) -> Finding:
        look, most = self._look, self._capture.max_lock.total_seconds()
        alone, beside = figures.wait(look.step_seconds), figures.wait(max(look.step_seconds, look.confirm_seconds))
        is_small = look.image_bytes <= WHOLE_BYTES
        measured = (
            f"{look.journal_mode}, not WAL: writers wait {alone} for each capture, as measured now"
            if is_small
            else f"{look.journal_mode}, not WAL: writers wait for each capture, as measured now {alone} "
            f"between occasional writes and {beside} under constant writes"
        )
        if look.confirm_seconds > most and not is_small:
            return self._subject.warning(
                "journal mode",
                f"{measured}, more than capture.max_lock ({figures.seconds(most)}) allows",
                f"switch the application to WAL mode ({_TO_WAL}), or raise capture.max_lock to "
                f"{math.ceil(look.confirm_seconds * 1.5)}s if it can wait that long",
            )
        if is_small or max(look.step_seconds, look.confirm_seconds) < _NOTICEABLE_SECONDS:
            return self._subject.ok("journal mode", measured)
        return self._subject.note("journal mode", measured, f"in WAL mode writers do not wait: {_TO_WAL}")

    def _sqlite_version(self) -> Finding:
        version = self._look.sqlite_version
        if not version:
            return self._subject.ok("sqlite", "the database is empty: no SQLite has written to it")
        told = f"written last by SQLite {version}"
        if self._look.is_wal and has_wal_reset(version):
            return self._subject.note(
                "sqlite",
                f"{told}; in WAL mode 3.7.0 to 3.51.2 can, very rarely, damage a database when a checkpoint and a "
                "writer meet",
                "give the application SQLite 3.51.3 or later; backupd never checkpoints",
            )
        return self._subject.ok("sqlite", told)

    def _owner(self, file: FileFacts) -> Finding:
        look = self._look
        told = f"{_described(file)}; backupd is uid {look.uid}, gid {look.gid}"
        if (foreign := self._foreign_side_file(file)) is not None:
            return self._subject.warning(
                "owner",
                f"{look.real_path}{foreign} belongs to another uid than the database ({told}): the application may not "
                "be able to write",
                f"while the application is stopped, chown that file to {file.uid}:{file.gid}; remove nothing",
            )
        # Where nobody can write, no rights are missing, and what that means is told of the mount.
        problem = None if self._is_read_only else self._missing_right(file, told)
        return problem or self._subject.ok("owner", told)

    def _missing_right(self, file: FileFacts, told: str) -> Finding | None:
        look = self._look
        if look.is_wal and not (look.makes_files_of_owner and look.uid in {0, file.uid}):
            return self._subject.warning(
                "owner",
                f"{told}: a WAL database can then be backed up only while the application has it open",
                f"run backupd as uid {file.uid}, or as a root that may chown there",
            )
        if not look.is_directory_writable and look.directory is not None:
            where = f"{told}, which may not write into the directory ({_described(look.directory)})"
            if look.is_wal:
                return self._subject.warning(
                    "owner",
                    f"{where}: a WAL database can then be backed up only while the application has it open",
                    "let that uid write into the directory, or run backupd as root",
                )
            return self._restore_elsewhere(where)
        if not look.is_writable:
            return self._restore_elsewhere(f"{told}, which may not write it")
        if not look.makes_files_of_owner:
            return self._restore_elsewhere(f"{told}, which may not make files that belong to the owner")
        return None

    def _restore_elsewhere(self, told: str) -> Finding:
        return self._subject.note(
            "owner",
            f"{told}: enough for backups, not for a restore in place",
            "restore as root or as the owner, or to a file with --to",
        )

    def _foreign_side_file(self, file: FileFacts) -> str | None:
        """The ending of a side file that the database's owner cannot write, unless the owner is root."""
        for ending, side in (("-wal", self._look.wal), ("-shm", self._look.index)):
            if side is None or file.uid in {0, side.uid}:
                continue
            group_may_write = side.gid == file.gid and side.mode & 0o020
            if not group_may_write and not side.mode & 0o002:
                return ending
        return None

    @property
    def _is_read_only(self) -> bool:
        return bool(self._look.is_read_only or (self._mount is not None and self._mount.is_read_only))

    def _mounted(self) -> Iterator[Finding]:
        mount = self._mount
        if mount is None:
            yield self._subject.note("mount", "this system does not say what the database is mounted from")
            told, unsafe = "something", None
        else:
            told = f"{mount.kind} at {mount.point}"
            unsafe = self._unsafe_mount(mount, told)
        if unsafe is not None:
            yield unsafe
        if self._is_read_only:
            yield self._read_only(told)
        elif mount is not None and unsafe is None:
            yield self._subject.ok("mount", told)

    def _unsafe_mount(self, mount: Mount, told: str) -> Finding | None:
        if mount.is_in_memory:
            return self._subject.warning(
                "mount", f"{told}: in memory, gone with the next restart", "put the database on a disk or a volume"
            )
        if self._host.loses(mount):
            return self._subject.warning(
                "mount",
                f"{told}: the container's own file system and not a volume: is this the application's database?",
                "mount the volume that the application has its database on, at the same path",
            )
        if mount.is_network:
            return self._subject.warning(
                "mount",
                f"{told}: a network file system, on which SQLite's locks are not reliable, and WAL mode works for one "
                "machine only",
                "put the database on a local disk; until then let no two machines use it",
            )
        if mount.is_virtual:
            return self._subject.warning(
                "mount",
                f"{told}: a file system of the host, on which locks and shared memory may not reach the application",
                "put the database on a named volume, or run backupd where the application runs",
            )
        return None

    def _read_only(self, told: str) -> Finding:
        if self._look.is_wal:
            return self._subject.warning(
                "mount",
                f"{told}, read-only: a WAL database can then be read only while the application runs",
                "mount it without :ro; backupd opens the database read-only by itself",
            )
        return self._subject.note(
            "mount",
            f"{told}, read-only: enough for backups, not for a restore in place",
            "mount it without :ro to restore",
        )

    def _space(self, free_bytes: int) -> Finding:
        # Beside the database: the log of a live restore, or the new file of a replacement.
        told = f"{figures.size(free_bytes)} free beside the database"
        if not free_bytes or not self._look.has_free_inodes:
            full = told if not free_bytes else "no inodes free beside the database"
            return self._subject.error(
                "space", full, "free some: neither the application nor SQLite can write", ExitCode.SOURCE_UNUSABLE
            )
        if free_bytes < self._look.image_bytes:
            return self._subject.warning(
                "space",
                f"{told}, and a restore in place needs {figures.size(self._look.image_bytes)}",
                "free some space there, or know that you will restore to a file on another disk with --to",
            )
        return self._subject.ok("space", told)


def _described(file: FileFacts) -> str:
    return f"uid {file.uid}, gid {file.gid}, mode {file.mode:04o}"


def has_wal_reset(version: str) -> bool:
    """Whether SQLite `version`, such as `3.45.1`, has the race between a checkpoint and a writer.

    Source: https://www.sqlite.org/wal.html#walresetbug.
    """
    major, minor, patch = (int(part) for part in version.split("."))
    return _FIRST_WITH_WAL <= (major, minor, patch) <= _LAST_WITH_WAL_RESET
