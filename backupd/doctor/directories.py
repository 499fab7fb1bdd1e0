"""Whether a directory of backupd lasts and has room: the stores' and the state directory, and what is mounted where.

Source: proc_pid_mountinfo(5). Reading the mounts touches no other file system, which may hang.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backupd.doctor.findings import Subject, listed, size
from backupd.errors import ExitCode
from backupd.system.files import free_bytes, try_lock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backupd.config import Settings
    from backupd.doctor.databases import DatabaseFacts
    from backupd.doctor.findings import Finding
    from backupd.system.mounts import Host

STATE = Subject("state directory")


@dataclass(frozen=True, slots=True)
class DirectoryFacts:
    """The kernel's facts about a directory. `real_path` has no symbolic links.

    Of one that does not exist yet, `device` and the free space are those of the directory that will hold it.
    """

    real_path: Path
    is_empty: bool
    device: int | None
    free_bytes: int | None
    free_inodes: int | None


def inspect_directory(directory: Path) -> DirectoryFacts:
    """Ask the kernel about `directory`. Changes nothing; may hang where its file system does."""
    real_path, existing = _existing_part(directory)
    try:
        device, status, free = existing.stat().st_dev, os.statvfs(existing), free_bytes(existing)
        is_empty = existing != real_path or not any(real_path.iterdir())
    except OSError:
        # Not a directory, for example: the error of writing there says what is wrong.
        return DirectoryFacts(real_path, is_empty=False, device=None, free_bytes=None, free_inodes=None)
    # Some file systems have no fixed number of inodes, and say 0.
    free_inodes = status.f_favail if status.f_files else None
    return DirectoryFacts(real_path, is_empty, device, free, free_inodes)


def _existing_part(directory: Path) -> tuple[Path, Path]:
    """The path without symbolic links, and the longest part of it that exists."""
    real_path = Path(os.path.realpath(directory))
    return real_path, next(each for each in (real_path, *real_path.parents) if os.path.lexists(each))


def check_store_directory(
    subject: Subject,
    facts: DirectoryFacts,
    host: Host,
    databases: Mapping[str, DatabaseFacts],
    *,
    has_other_place: bool,
) -> Iterator[Finding]:
    """Check whether a store's directory lasts, is on another disk than the databases (by name), and has room. Pure.

    `has_other_place` says that another store is on another disk.
    """
    yield _check_store_mount(subject, facts, host)
    if facts.device is not None:
        beside = sorted(name for name, database in databases.items() if database.device == facts.device)
        yield _check_disk(subject, beside, has_other_place=has_other_place)
    if facts.free_bytes is not None:
        largest_bytes = max((database.image_bytes for database in databases.values()), default=0)
        yield _check_store_space(subject, facts.free_bytes, facts.free_inodes, largest_bytes)


def shared_place(subject: Subject, first: str) -> Finding:
    """The finding for a store that is, through symbolic links, the directory of another store, `first`."""
    return subject.warning(
        "place", f"is the same directory as {first}: the two count as one copy", "take one of them out of [[stores]]"
    )


def _check_disk(subject: Subject, beside: Sequence[str], *, has_other_place: bool) -> Finding:
    if not beside:
        return subject.ok("disk", "is not on the file system of a database")
    message = f"is on the same file system as {listed(beside)}: one broken disk, or one mistake, takes both"
    if has_other_place:
        return subject.note("disk", f"{message}; another store is on another disk")
    return subject.warning(
        "disk", message, "add a store on another disk, or better in another building: an s3:// bucket"
    )


def _check_store_mount(subject: Subject, facts: DirectoryFacts, host: Host) -> Finding:
    mount = host.mount_of(facts.real_path)
    if mount is None:
        return subject.note("mount", "this system does not say what the directory is mounted from")
    if host.loses(mount):
        state = "it is empty, so perhaps nothing is mounted there" if facts.is_empty else "it has content already"
        return subject.warning(
            "mount",
            f"{mount}: the container's own file system, which is removed with the container; {state}",
            "mount a volume or a directory of the host there, and start the container again",
        )
    if mount.is_in_memory:
        return subject.warning("mount", f"{mount}: in memory, lost with the next restart", "use a disk or a volume")
    return subject.ok("mount", str(mount))


def _check_store_space(subject: Subject, free_bytes: int, free_inodes: int | None, largest_bytes: int) -> Finding:
    free = f"{size(free_bytes)} free"
    if not free_bytes or free_inodes == 0:
        problem = free if not free_bytes else "no inodes free"
        return subject.error("space", problem, "free some, or enlarge it", ExitCode.STORE_UNAVAILABLE)
    if free_bytes < largest_bytes:
        return subject.warning(
            "space",
            f"{free}, less than the size of the largest database ({size(largest_bytes)})",
            "free some space, or enlarge it: a first snapshot may need nearly that much",
        )
    return subject.ok("space", free)


@dataclass(frozen=True, slots=True)
class StateFacts:
    """The facts about the state directory. `problem` says why it cannot be used, or is None."""

    path: Path
    real_path: Path
    exists: bool
    problem: str | None
    free_bytes: int | None


def inspect_state(directory: Path) -> StateFacts:
    """Check by writing whether the state directory can be written. Creates no directory, leaves nothing.

    When root runs doctor, it must not create what the daemon of another user then cannot use.
    """
    real_path, existing = _existing_part(directory)
    problem = None
    try:
        room = free_bytes(existing)
        if existing == real_path:
            with tempfile.NamedTemporaryFile(dir=existing, prefix=".doctor-") as opened:
                try_lock(opened.fileno(), Path(opened.name))
        elif not os.access(existing, os.W_OK | os.X_OK):
            problem = f"{existing} cannot be written by uid {os.geteuid()}"
    except OSError as error:
        problem, room = (error.strerror or str(error)).lower(), None
    return StateFacts(directory, real_path, existing == real_path, problem, room)


def check_state(facts: StateFacts, settings: Settings, host: Host, *, largest_bytes: int) -> Iterator[Finding]:
    """Check whether the state directory can be used, lasts, and has room for packs and for a restore. Pure."""
    if facts.problem is not None:
        yield STATE.error(
            "writable",
            f"{facts.path} cannot be used: {facts.problem}",
            "set state_dir (or BACKUPD_STATE_DIR) to a directory that backupd may write",
            ExitCode.USAGE,
        )
        return
    yield STATE.ok("writable", f"{facts.path}" if facts.exists else f"{facts.path} will be made when it is needed")
    mount = host.mount_of(facts.real_path)
    unreadable = _why_packs_cannot_be_read(settings)
    if mount is not None and (mount.is_in_memory or host.loses(mount)):
        lost = f"{mount}: lost with the {'container' if host.loses(mount) else 'next restart'}; "
        if unreadable:
            yield STATE.warning(
                "mount", f"{lost}after that, every page is stored again, because {unreadable}", "put it on a volume"
            )
        else:
            yield STATE.note(
                "mount",
                f"{lost}backups do not need it, but alarms are sent again, and `undo` knows less",
                "put it on a volume",
            )
    elif unreadable:
        yield STATE.note(
            "lasts",
            f"without {facts.path}, the next snapshot stores every page again, because {unreadable}",
            "keep it: it alone knows the hashes of the pages that the stores have",
        )
    if facts.free_bytes is not None:
        yield _check_state_space(facts.free_bytes, settings.packs.spool_limit, largest_bytes)


def _why_packs_cannot_be_read(settings: Settings) -> str | None:
    """Why lost state cannot be rebuilt from the packs of a store; None when it can, from all of them."""
    if settings.encryption.recipients and settings.identity_file is None:
        return "packs are encrypted, and there is no key here to read what is in them"
    put_only = [store.url for store in settings.stores if store.put_only]
    return f"the keys for {', '.join(put_only)} may not read packs (put_only)" if put_only else None


def _check_state_space(free_bytes: int, spool_bytes: int, largest_bytes: int) -> Finding:
    free = f"{size(free_bytes)} free"
    if not free_bytes:
        return STATE.error("space", free, "free some, or set state_dir to another disk", ExitCode.USAGE)
    if free_bytes < spool_bytes:
        return STATE.warning(
            "space",
            f"{free}, and packs on their way to a store may need {size(spool_bytes)} (packs.spool_limit)",
            "free some, lower packs.spool_limit, or set state_dir to another disk",
        )
    if free_bytes < largest_bytes:
        return STATE.warning(
            "space",
            f"{free}, and a restore in place needs {size(largest_bytes)} there",
            "free some, or set state_dir to another disk; a restore to a file with --to needs nothing here",
        )
    return STATE.ok("space", free)
