"""Put a restored file in place: a private file beside the target, its owner and name, and SQLite's side files."""

from __future__ import annotations

import itertools
import os
import stat
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.errors import TargetUnwritableError
from backupd.live.files import is_named, make_partial
from backupd.logs import log
from backupd.system.files import copy, flush_directory, free_bytes, set_mode
from backupd.system.trust import status_of, way_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from backupd.format.manifest import Manifest

_PERMISSIONS = 0o777
_PRIVATE_MODE = 0o600


@contextmanager
def partial_file(target: Path) -> Iterator[tuple[Path, int]]:
    """A private file on the file system of `target` and its descriptor; gone at the end unless it was renamed."""
    partial, descriptor = make_partial(target)
    try:
        if not set_mode(descriptor, _PRIVATE_MODE):
            log.warning(
                "the file system gives the restored file permissions of its own: others may be able to read it",
                file=str(target),
                hint="restore to a disk of this machine with --to FILE, if that matters",
            )
        yield partial, descriptor
    finally:
        if is_named(descriptor, partial):
            partial.unlink()
        os.close(descriptor)
        with suppress(OSError):  # another user has moved it away: it is empty
            partial.parent.rmdir()


def give_name(partial: Path, descriptor: int, target: Path) -> None:
    """Rename `partial`, open as `descriptor`, to `target`, durably.

    Raises `TargetUnwritableError` when another user's file got the name: the owner of the directory could do that.
    """
    is_ours = is_named(descriptor, partial)
    partial.rename(target)
    there = status_of(os.fspath(target))
    # Another file of the same owner there is that of another restore, which ended a moment later.
    if not is_ours or there is None or there.st_uid != os.fstat(descriptor).st_uid:
        raise TargetUnwritableError(
            f"another user has put a file in the place of {target}",
            hint=f"look who writes {target.parent}, or restore elsewhere with --to FILE",
        )
    flush_directory(target.parent)


def reject_planted(target: Path) -> None:
    """Raise `TargetUnwritableError` when another user may have made `target` a link to a file that is not theirs."""
    if reason := way_of(target.absolute()).planted():
        raise TargetUnwritableError(f"{target} is not written: {reason}", hint="name the file itself, or another")


@contextmanager
def reporting_errors(target: Path) -> Iterator[None]:
    """Turn each OSError of the block into `TargetUnwritableError`."""
    try:
        yield
    except OSError as error:
        raise TargetUnwritableError(
            f"{target} cannot be written: {error.strerror}",
            hint="check the space and the permissions of its directory, or restore elsewhere with --to FILE",
        ) from error


def reject_no_room(directory: Path, image_bytes: int) -> None:
    """Raise `TargetUnwritableError` when the image has no room in `directory`."""
    free = free_bytes(directory)
    if free is not None and free < image_bytes:
        raise TargetUnwritableError(
            f"{directory} has {free >> 20} MiB free, the restored database needs {image_bytes >> 20} MiB",
            hint="free some space, or restore to another disk with --to FILE",
        )


def give_back_ownership(descriptor: int, manifest: Manifest, directory: Path) -> None:
    """Set owner and mode as the manifest recorded them, or the owner of the directory: the application must open it."""
    writer, around = manifest.writer, directory.stat()
    uids, gids = (writer.uid, around.st_uid), (writer.gid, around.st_gid)
    given = _give_ownership(descriptor, uids, gids, writer.mode)
    if given.st_uid not in uids or given.st_gid not in gids:
        log.warning(
            "the restored file keeps the owner of this process",
            uid=given.st_uid,
            gid=given.st_gid,
            wanted_uid=uids[0],
            wanted_gid=gids[0],
            hint="chown it, or the application may not be able to open it",
        )


def take_over_ownership(descriptor: int, manifest: Manifest, old: Path) -> None:
    """Set owner and mode to those of the file that is replaced, if it exists, or as the manifest recorded them.

    Raises `TargetUnwritableError` where the owner cannot be given.
    """
    if not old.exists():
        give_back_ownership(descriptor, manifest, old.parent)
        return
    status = old.stat()
    given = _give_ownership(descriptor, (status.st_uid,), (status.st_gid,), status.st_mode)
    if given.st_uid != status.st_uid:
        raise foreign_owner(old, status.st_uid)
    if given.st_gid != status.st_gid:
        log.warning("the restored file has another group than the old one", gid=given.st_gid, wanted_gid=status.st_gid)


def foreign_owner(target: Path, owner: int) -> TargetUnwritableError:
    """The error for a file in place of the old one that the application could not write."""
    return TargetUnwritableError(
        f"{target} belongs to uid {owner}, and a file that uid {os.geteuid()} puts in its place would not",
        hint=f"run backupd as uid {owner}, or as a root that may chown there",
    )


def _give_ownership(descriptor: int, uids: Sequence[int], gids: Sequence[int], mode: int) -> os.stat_result:
    """Set the first owner and the first group that the system permits, and the mode; the status of the file then."""
    _change_first_permitted(descriptor, [(uid, -1) for uid in uids])
    _change_first_permitted(descriptor, [(-1, gid) for gid in gids])
    set_mode(descriptor, mode & _PERMISSIONS)
    return os.fstat(descriptor)


def _change_first_permitted(descriptor: int, owners: Sequence[tuple[int, int]]) -> None:
    for uid, gid in owners:
        with suppress(OSError):  # not only EPERM: a user namespace has no such uid, a file system no owners
            os.fchown(descriptor, uid, gid)
            return


def copy_image(image: Path, descriptor: int) -> None:
    """Copy a proven image into an open, empty file, and make it durable."""
    with image.open("rb", buffering=0) as source:
        copy(source.fileno(), descriptor)
    os.fsync(descriptor)


def resolve_target(target: Path) -> Path:
    """The file that `target` leads to: of a symbolic link the application opens the file behind it.

    Raises `TargetUnwritableError` when that is nowhere, or when another user may have led it to what is not theirs.
    """
    reject_planted(target)
    try:
        return target.resolve()
    except (OSError, RuntimeError) as error:
        raise TargetUnwritableError(
            f"{target} is a symbolic link that leads nowhere", hint="remove it, or restore elsewhere with --to FILE"
        ) from error


def free_name(file: Path, suffixes: Sequence[str] = ("",)) -> Path:
    """A dated name for what is kept of `file`, also free with each of `suffixes` behind it."""
    dated = file.with_name(f"{file.name}.before-restore-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    names = itertools.chain([dated], (dated.with_name(f"{dated.name}-{number}") for number in itertools.count(2)))
    return next(name for name in names if not any(os.path.lexists(f"{name}{suffix}") for suffix in suffixes))


def side_files(target: Path) -> list[Path]:
    """Files beside `target` that SQLite would apply to it: an empty log, and a journal that is finished, hold nothing.

    Source: https://www.sqlite.org/fileformat2.html#the_rollback_journal: a journal counts if its header is not zero.
    """
    candidates = [target.with_name(target.name + suffix) for suffix in ("-wal", "-journal")]
    return [file for file in candidates if os.path.lexists(file) and _holds_something(file)]


def _holds_something(file: Path) -> bool:
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        return True  # what is no file is nothing that may be passed over either
    if not file.name.endswith("-journal"):
        return status.st_size > 0
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return any(os.read(descriptor, 1))
    finally:
        os.close(descriptor)
