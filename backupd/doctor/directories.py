"""A directory as a store: whether it is where somebody wanted it, and has room."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backupd.doctor import figures
from backupd.errors import ExitCode
from backupd.files import free_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backupd.doctor.findings import Finding, Subject
    from backupd.doctor.look import DatabaseLook
    from backupd.doctor.mounts import Host

_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class DirectoryLook:
    """`real_path` has no symbolic links. Of one that does not exist yet, the rest is of what will hold it."""

    real_path: Path
    is_empty: bool
    device: int | None
    free_bytes: int | None
    free_inodes: int | None


def look_at(directory: Path) -> DirectoryLook:
    """What the kernel says of `directory`. Changes nothing; may hang where its file system does."""
    real_path = Path(os.path.realpath(directory))
    there = next(each for each in (real_path, *real_path.parents) if os.path.lexists(each))
    try:
        device, status, free = there.stat().st_dev, os.statvfs(there), free_bytes(there)
        is_empty = there != real_path or not any(real_path.iterdir())
    except OSError:
        # Not a directory, say: writing into it tells what is wrong.
        return DirectoryLook(real_path, is_empty=False, device=None, free_bytes=None, free_inodes=None)
    # Some file systems have no fixed number of inodes, and say 0.
    free_inodes = status.f_favail if status.f_files else None
    return DirectoryLook(real_path, is_empty, device, free, free_inodes)


def judge(
    subject: Subject,
    look: DirectoryLook,
    host: Host,
    databases: Mapping[str, DatabaseLook],
    *,
    has_other_place: bool,
) -> Iterator[Finding]:
    """Whether the directory is on something that lasts, apart from the databases (by name), and has room. Pure.

    `has_other_place` says that another store is somewhere else.
    """
    yield _mount(subject, look, host)
    beside = sorted(name for name, of_database in databases.items() if look.device in {of_database.device} - {None})
    if look.device is not None:
        yield _disk(subject, beside, has_other_place=has_other_place)
    if look.free_bytes is not None:
        largest_bytes = max((of_database.image_bytes for of_database in databases.values()), default=0)
        yield _space(subject, look.free_bytes, look.free_inodes, largest_bytes)


def twin(subject: Subject, first: str) -> Finding:
    """The finding for a store that is, through symbolic links, the directory of another one, `first`."""
    return subject.warning(
        "place", f"is the same directory as {first}: the two count as one copy", "take one of them out of [[stores]]"
    )


def _disk(subject: Subject, beside: Sequence[str], *, has_other_place: bool) -> Finding:
    if not beside:
        return subject.ok("disk", "is not on the file system of a database")
    told = f"is on the same file system as {_some(beside)}: one broken disk, or one slip, takes both"
    if has_other_place:
        return subject.note("disk", f"{told}; another store is somewhere else")
    return subject.warning("disk", told, "add a store on another disk, or better in another building: an s3:// bucket")


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _mount(subject: Subject, look: DirectoryLook, host: Host) -> Finding:
    mount = host.mount_of(look.real_path)
    if mount is None:
        return subject.note("mount", "this system does not say what the directory is mounted from")
    told = f"{mount.kind} at {mount.point}"
    if host.loses(mount):
        state = "it is empty, so perhaps nothing is mounted there" if look.is_empty else "it has content already"
        return subject.warning(
            "mount",
            f"{told}: the container's own file system, which goes with the container; {state}",
            "mount a volume or a directory of the host there, and start the container again",
        )
    if mount.is_in_memory:
        return subject.warning("mount", f"{told}: in memory, gone with the next restart", "use a disk or a volume")
    return subject.ok("mount", told)


def _space(subject: Subject, free_bytes: int, free_inodes: int | None, largest_bytes: int) -> Finding:
    told = f"{figures.size(free_bytes)} free"
    if not free_bytes or free_inodes == 0:
        return subject.error(
            "space",
            told if not free_bytes else "no inodes free",
            "free some, or enlarge it",
            ExitCode.STORE_UNAVAILABLE,
        )
    if free_bytes < largest_bytes:
        return subject.warning(
            "space",
            f"{told}, less than the largest database has ({figures.size(largest_bytes)})",
            "free some space, or enlarge it: a first snapshot may need nearly that much",
        )
    return subject.ok("space", told)
