"""Files on their way into place: a private file beside the target, its owner, and what SQLite keeps around it."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from backupd.errors import BusyError, TargetUnwritableError
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backupd.format.manifest import Manifest

_PRIVATE_MODE = 0o600
_PERMISSIONS = 0o777


@contextmanager
def partial_file(target: Path) -> Iterator[tuple[Path, int]]:
    """A private file beside `target` and its descriptor; gone at the end unless it was renamed.

    Its name is always the same, so that the next restore takes over what a killed one left.
    """
    partial = target.with_name(f".{target.name}.backupd-partial")
    descriptor = _open_locked(partial, target)
    try:
        os.fchmod(descriptor, _PRIVATE_MODE)
        os.truncate(descriptor, 0)
        yield partial, descriptor
    finally:
        # After the rename the name may be another restore's already.
        if _is_named(descriptor, partial):
            partial.unlink()
        os.close(descriptor)


def _open_locked(partial: Path, target: Path) -> int:
    """The partial file, open and locked, and still the one of that name: another restore may just have renamed it."""
    while True:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _PRIVATE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(descriptor, partial):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise BusyError(f"another restore to {target} is running", hint="wait for it, or choose --to") from error
        os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        named = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)


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


def reject_small_disk(directory: Path, image_bytes: int) -> None:
    """Raise `TargetUnwritableError` when the image has no room in `directory`."""
    free = shutil.disk_usage(directory).free
    if free < image_bytes:
        raise TargetUnwritableError(
            f"{directory} has {free >> 20} MiB free, the restored database needs {image_bytes >> 20} MiB",
            hint="free some space, or restore to another disk with --to FILE",
        )


def give_back_ownership(descriptor: int, manifest: Manifest, directory: Path) -> None:
    """Owner and mode as the manifest recorded them, else the owner of the directory: the application must open it."""
    writer, around = manifest.writer, directory.stat()
    _change_first_permitted(descriptor, [(writer.uid, -1), (around.st_uid, -1)])
    _change_first_permitted(descriptor, [(-1, writer.gid), (-1, around.st_gid)])
    os.fchmod(descriptor, writer.mode & _PERMISSIONS)
    if os.fstat(descriptor).st_uid not in {writer.uid, around.st_uid}:
        log.warning(
            "the restored file keeps the owner of this process",
            uid=os.geteuid(),
            wanted_uid=writer.uid,
            hint="chown it, or the application may not be able to open it",
        )


def _change_first_permitted(descriptor: int, owners: list[tuple[int, int]]) -> None:
    for uid, gid in owners:
        with suppress(PermissionError):
            os.fchown(descriptor, uid, gid)
            return


def side_files(target: Path) -> list[Path]:
    """Files beside `target` that SQLite would apply to it: an empty log and its index hold nothing to apply."""
    candidates = [target.with_name(target.name + suffix) for suffix in ("-wal", "-journal")]
    return [file for file in candidates if file.is_symlink() or (file.exists() and file.stat().st_size)]


def fsync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
