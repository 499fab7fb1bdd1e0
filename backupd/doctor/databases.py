"""Whether a database can be backed up and restored: the facts that a process of its own finds, and their checks."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from backupd.capture.limits import WHOLE_BYTES, run_reader
from backupd.doctor.findings import Finding, Subject, seconds, size
from backupd.errors import ExitCode
from backupd.system.processes import command_of, error_from_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backupd.config import CaptureSettings, Database
    from backupd.system.mounts import Host, Mount

# docs/operations.md, "How fast": 1 GB on two cores. Other machines differ, and a cold disk costs more than all else.
_FIRST_SECONDS_PER_GB = 6.6
_LATER_SECONDS_PER_GB = 2.5
_START_SECONDS = 0.2
# A checkpoint runs at 1,000 pages by default, so that a log is a few MB; this is far beyond.
_LARGE_LOG_BYTES = 64 * 10**6
_NOTICEABLE_SECONDS = 0.1
_TO_WAL = "PRAGMA journal_mode = WAL, once; for SQLAlchemy see docs/configuration.md"
_FIRST_WITH_WAL = (3, 7, 0)
_LAST_WITH_WAL_RESET = (3, 51, 2)
_CHILD = command_of("backupd.doctor.database_child")


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Owner, permissions (`mode` without the file type) and size of a file or directory."""

    uid: int
    gid: int
    mode: int
    size_bytes: int

    def __str__(self) -> str:
        return f"uid {self.uid}, gid {self.gid}, mode {self.mode:04o}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a database cannot be backed up: the name of one of our errors, its message and its hint."""

    error: str
    message: str
    hint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseFacts:
    """The facts that the process which would capture a database finds. `real_path` has no symbolic links.

    `uid` and `gid` are those of that process. What could not be found out is None; `refusal` says why the database
    cannot be backed up, and `makes_files_of_owner` whether files that SQLite makes beside it can be its owner's.
    `index` is the `-shm` file, `device` that of the directory. `journal_mode` is SQLite's own word, or what the header
    says while it cannot be opened: `wal` or `rollback`; `image_bytes` is 0 then.

    In rollback mode, `step_seconds` is how long a writer waits for a capture that no commit interrupts, and
    `confirm_seconds` for one that commits keep interrupting, as measured.
    """

    real_path: str
    refusal: Refusal | None = None
    file: FileFacts | None = None
    wal: FileFacts | None = None
    index: FileFacts | None = None
    directory: FileFacts | None = None
    uid: int = 0
    gid: int = 0
    is_writable: bool = False
    is_directory_writable: bool = False
    makes_files_of_owner: bool = True
    is_read_only: bool | None = None
    device: int | None = None
    free_bytes: int | None = None
    has_free_inodes: bool = True
    journal_mode: str | None = None
    sqlite_version: str = ""
    is_schema_readable: bool = True
    left_out: tuple[str, ...] = ()
    """A sentence about each fact that would have taken too long."""
    image_bytes: int = 0
    step_seconds: float = 0.0
    confirm_seconds: float = 0.0

    @property
    def is_wal(self) -> bool:
        """Whether the database can be written to while it is read."""
        return self.journal_mode == "wal"

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """Build the facts from what `dataclasses.asdict` made of them."""
        files = {name: values[name] and FileFacts(**values[name]) for name in ("file", "wal", "index", "directory")}
        refusal = values["refusal"] and Refusal(**values["refusal"])
        return cls(**{**values, **files, "refusal": refusal, "left_out": tuple(values["left_out"])})


def inspect_database(
    path: Path, *, lock_timeout: float, max_lock: float, deadline: float, command: Sequence[str] = _CHILD
) -> DatabaseFacts:
    """Collect the facts of the database at `path`, in a process like the one that captures. Times are in seconds.

    `command` starts that process. Raises the errors of `limits.looked_at`.
    """
    text = os.fspath(path)
    arguments = [*command, text, str(lock_timeout), str(max_lock)]
    return DatabaseFacts.from_values(run_reader(text, arguments, max_lock=max_lock, deadline=deadline))


def subject_of(database: Database) -> Subject:
    """The subject of findings about `database`."""
    return Subject(f"database {database.name}")


def check_database(database: Database, facts: DatabaseFacts, capture: CaptureSettings, host: Host) -> Iterator[Finding]:
    """Check one database by its facts; gives every finding. Pure."""
    subject, path = subject_of(database), database.path
    yield _check_opening(subject, path, facts)
    if facts.file is None:
        return
    if facts.image_bytes or facts.refusal is None:
        yield _check_size(subject, facts, capture)
    if facts.journal_mode is not None:
        yield _check_wal(subject, path, facts) if facts.is_wal else _check_rollback_mode(subject, facts, capture)
        yield _check_sqlite_version(subject, facts)
    mount = host.mount_of(Path(facts.real_path))
    is_read_only = bool(facts.is_read_only or (mount is not None and mount.is_read_only))
    yield _check_owner(subject, facts, facts.file, is_read_only=is_read_only)
    yield from _check_mount(subject, facts, mount, host, is_read_only=is_read_only)
    if facts.free_bytes is not None:
        yield _check_space(subject, facts, facts.free_bytes)


def _check_opening(subject: Subject, path: Path, facts: DatabaseFacts) -> Finding:
    if facts.refusal is not None:
        return subject.failed("opens", error_from_json(asdict(facts.refusal)))
    if not facts.is_schema_readable:
        return subject.warning(
            "opens",
            f"{path} opens, and its schema cannot be read: it is damaged",
            "check it with: sqlite3 FILE 'PRAGMA integrity_check'; it is backed up as it is",
        )
    if facts.left_out:
        return subject.warning(
            "opens",
            f"{path} opens read-only, and {'; '.join(facts.left_out)}",
            "look at its schema with: sqlite3 FILE .schema; it is backed up as it is",
        )
    return subject.ok("opens", f"{path} opens read-only")


def _check_size(subject: Subject, facts: DatabaseFacts, capture: CaptureSettings) -> Finding:
    first = _START_SECONDS + facts.image_bytes / 1e9 * _FIRST_SECONDS_PER_GB
    later = _START_SECONDS + facts.image_bytes / 1e9 * _LATER_SECONDS_PER_GB
    expected = (
        f"{size(facts.image_bytes)}; expect about {seconds(first)} for the first capture and {seconds(later)} for "
        "later ones, at the rates in docs/operations.md"
    )
    deadline = capture.deadline.total_seconds()
    if first > deadline:
        too_long = f"{expected}: more than capture.deadline ({seconds(deadline)})"
        return subject.warning("size", too_long, "raise capture.deadline")
    return subject.ok("size", expected)


def _check_wal(subject: Subject, path: Path, facts: DatabaseFacts) -> Finding:
    log_bytes = 0 if facts.wal is None else facts.wal.size_bytes
    if log_bytes > max(_LARGE_LOG_BYTES, facts.image_bytes):
        return subject.warning(
            "journal mode",
            f"WAL, and the log {path}-wal has {size(log_bytes)}, more than the database itself",
            "look for a connection of the application that keeps a transaction open: no checkpoint gets past it; "
            "PRAGMA wal_checkpoint(TRUNCATE) in the application makes the log small again",
        )
    return subject.ok("journal mode", f"WAL, with a log of {size(log_bytes)}: writers do not wait")


def _check_rollback_mode(subject: Subject, facts: DatabaseFacts, capture: CaptureSettings) -> Finding:
    most = capture.max_lock.total_seconds()
    longest = max(facts.step_seconds, facts.confirm_seconds)
    is_small = facts.image_bytes <= WHOLE_BYTES
    measured = (
        f"{facts.journal_mode}, not WAL: writers wait {_wait(facts.step_seconds)} for each capture, as measured now"
        if is_small
        else f"{facts.journal_mode}, not WAL: writers wait for each capture, as measured now "
        f"{_wait(facts.step_seconds)} between occasional writes and {_wait(longest)} under constant writes"
    )
    if facts.confirm_seconds > most and not is_small:
        return subject.warning(
            "journal mode",
            f"{measured}, more than capture.max_lock ({seconds(most)}) allows",
            f"switch the application to WAL mode ({_TO_WAL}), or raise capture.max_lock to "
            f"{math.ceil(facts.confirm_seconds * 1.5)}s if it can wait that long",
        )
    if is_small or longest < _NOTICEABLE_SECONDS:
        return subject.ok("journal mode", measured)
    return subject.note("journal mode", measured, f"in WAL mode writers do not wait: {_TO_WAL}")


def _wait(duration: float) -> str:
    return seconds(duration) if duration >= _NOTICEABLE_SECONDS else f"{max(1, round(duration * 1000))} ms"


def _check_sqlite_version(subject: Subject, facts: DatabaseFacts) -> Finding:
    version = facts.sqlite_version
    if not version:
        return subject.ok("sqlite", "the database is empty: no SQLite has written to it")
    message = f"written last by SQLite {version}"
    if facts.is_wal and has_wal_reset(version):
        return subject.note(
            "sqlite",
            f"{message}; in WAL mode 3.7.0 to 3.51.2 can, very rarely, damage a database when a checkpoint and a "
            "writer meet",
            "give the application SQLite 3.51.3 or later; backupd never checkpoints",
        )
    return subject.ok("sqlite", message)


def has_wal_reset(version: str) -> bool:
    """Whether SQLite `version`, such as `3.45.1`, has the race between a checkpoint and a writer.

    Source: https://www.sqlite.org/wal.html#walresetbug.
    """
    major, minor, patch = (int(part) for part in version.split("."))
    return _FIRST_WITH_WAL <= (major, minor, patch) <= _LAST_WITH_WAL_RESET


def _check_owner(subject: Subject, facts: DatabaseFacts, file: FileFacts, *, is_read_only: bool) -> Finding:
    users = f"{file}; backupd is uid {facts.uid}, gid {facts.gid}"
    if (foreign := _foreign_side_file(facts, file)) is not None:
        return subject.warning(
            "owner",
            f"{facts.real_path}{foreign} belongs to another uid than the database ({users}): the application may not "
            "be able to write",
            f"while the application is stopped, chown that file to {file.uid}:{file.gid}; remove nothing",
        )
    # On a read-only mount no user can write, and the finding about the mount says so.
    problem = None if is_read_only else _missing_permission(subject, facts, file, users)
    return problem or subject.ok("owner", users)


def _foreign_side_file(facts: DatabaseFacts, file: FileFacts) -> str | None:
    """The ending of a side file that the database's owner cannot write, unless the owner is root."""
    for ending, side in (("-wal", facts.wal), ("-shm", facts.index)):
        if side is None or file.uid in {0, side.uid}:
            continue
        group_may_write = side.gid == file.gid and side.mode & 0o020
        if not group_may_write and not side.mode & 0o002:
            return ending
    return None


def _missing_permission(subject: Subject, facts: DatabaseFacts, file: FileFacts, users: str) -> Finding | None:
    only_while_open = "a WAL database can then be backed up only while the application has it open"
    if facts.is_wal and not (facts.makes_files_of_owner and facts.uid in {0, file.uid}):
        return subject.warning(
            "owner",
            f"{users}: {only_while_open}",
            f"run backupd as uid {file.uid}, or as a root that may chown there",
        )
    if not facts.is_directory_writable and facts.directory is not None:
        missing = f"which may not write into the directory ({facts.directory})"
        if facts.is_wal:
            return subject.warning(
                "owner",
                f"{users}, {missing}: {only_while_open}",
                "let that uid write into the directory, or run backupd as root",
            )
    elif not facts.is_writable:
        missing = "which may not write it"
    elif not facts.makes_files_of_owner:
        missing = "which may not make files that belong to the owner"
    else:
        return None
    return subject.note(
        "owner",
        f"{users}, {missing}: enough for backups, not for a restore in place",
        "restore as root or as the owner, or to a file with --to",
    )


def _check_mount(
    subject: Subject, facts: DatabaseFacts, mount: Mount | None, host: Host, *, is_read_only: bool
) -> Iterator[Finding]:
    unsafe = None
    if mount is None:
        yield subject.note("mount", "this system does not say what the database is mounted from")
    elif (unsafe := _unsafe_mount(subject, mount, host)) is not None:
        yield unsafe
    if is_read_only and facts.is_wal:
        yield subject.warning(
            "mount",
            f"{mount or 'something'}, read-only: a WAL database can then be read only while the application runs",
            "mount it without :ro; backupd opens the database read-only by itself",
        )
    elif is_read_only:
        yield subject.note(
            "mount",
            f"{mount or 'something'}, read-only: enough for backups, not for a restore in place",
            "mount it without :ro to restore",
        )
    elif mount is not None and unsafe is None:
        yield subject.ok("mount", str(mount))


def _unsafe_mount(subject: Subject, mount: Mount, host: Host) -> Finding | None:
    if mount.is_in_memory:
        problem, remedy = "in memory, lost with the next restart", "put the database on a disk or a volume"
    elif host.loses(mount):
        problem = "the container's own file system and not a volume: is this the application's database?"
        remedy = "mount the volume that the application has its database on, at the same path"
    elif mount.is_network:
        problem = (
            "a network file system, on which SQLite's locks are not reliable, and WAL mode works for one machine only"
        )
        remedy = "put the database on a local disk; until then let only one machine use it"
    elif mount.is_virtual:
        problem = "a file system of the host, on which locks and shared memory may not reach the application"
        remedy = "put the database on a named volume, or run backupd where the application runs"
    else:
        return None
    return subject.warning("mount", f"{mount}: {problem}", remedy)


def _check_space(subject: Subject, facts: DatabaseFacts, free_bytes: int) -> Finding:
    # Beside the database: the log of a live restore, or the new file of a replacement.
    free = f"{size(free_bytes)} free beside the database"
    if not free_bytes or not facts.has_free_inodes:
        full = free if not free_bytes else "no inodes free beside the database"
        remedy = "free some: neither the application nor SQLite can write"
        return subject.error("space", full, remedy, ExitCode.SOURCE_UNUSABLE)
    if free_bytes < facts.image_bytes:
        return subject.warning(
            "space",
            f"{free}, and a restore in place needs {size(facts.image_bytes)}",
            "free some space there, or restore to a file on another disk with --to",
        )
    return subject.ok("space", free)
