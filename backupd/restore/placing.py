"""Files on their way into place: a private file beside the target, its owner, and what SQLite keeps around it."""

from __future__ import annotations

import itertools
import os
import shutil
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.errors import TargetUnwritableError
from backupd.live.files import is_named, open_locked, partial_name
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from backupd.format.manifest import Manifest

_PRIVATE_MODE = 0o600
_PERMISSIONS = 0o777


@contextmanager
def partial_file(target: Path) -> Iterator[tuple[Path, int]]:
    """A private file beside `target` and its descriptor; gone at the end unless it was renamed.

    Its name is always the same, so that the next restore takes over what a killed one left.
    """
    partial = partial_name(target)
    descriptor = open_locked(partial, target)
    try:
        os.fchmod(descriptor, _PRIVATE_MODE)
        os.truncate(descriptor, 0)
        yield partial, descriptor
    finally:
        # After the rename the name may be another restore's already.
        if is_named(descriptor, partial):
            partial.unlink()
        os.close(descriptor)


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
    free = shutil.disk_usage(directory).free
    if free < image_bytes:
        raise TargetUnwritableError(
            f"{directory} has {free >> 20} MiB free, the restored database needs {image_bytes >> 20} MiB",
            hint="free some space, or restore to another disk with --to FILE",
        )


def give_back_ownership(descriptor: int, manifest: Manifest, directory: Path) -> None:
    """Owner and mode as the manifest recorded them, else the owner of the directory: the application must open it."""
    writer, around = manifest.writer, directory.stat()
    _give_ownership(descriptor, (writer.uid, around.st_uid), (writer.gid, around.st_gid), writer.mode)


def take_over_ownership(descriptor: int, manifest: Manifest, old: Path) -> None:
    """Owner and mode of the file that is replaced, else as the manifest recorded them."""
    writer, status = manifest.writer, old.stat()
    _give_ownership(descriptor, (status.st_uid, writer.uid), (status.st_gid, writer.gid), status.st_mode)


def _give_ownership(descriptor: int, uids: tuple[int, int], gids: tuple[int, int], mode: int) -> None:
    _change_first_permitted(descriptor, [(uid, -1) for uid in uids])
    _change_first_permitted(descriptor, [(-1, gid) for gid in gids])
    os.fchmod(descriptor, mode & _PERMISSIONS)
    given = os.fstat(descriptor)
    if given.st_uid not in uids or given.st_gid not in gids:
        log.warning(
            "the restored file keeps the owner of this process",
            uid=given.st_uid,
            gid=given.st_gid,
            wanted_uid=uids[0],
            wanted_gid=gids[0],
            hint="chown it, or the application may not be able to open it",
        )


def _change_first_permitted(descriptor: int, owners: list[tuple[int, int]]) -> None:
    for uid, gid in owners:
        with suppress(PermissionError):
            os.fchown(descriptor, uid, gid)
            return


def copy_image(image: Path, descriptor: int) -> None:
    """Copy a proven image into an open, empty file, and make it durable."""
    with image.open("rb", buffering=0) as source:
        offset, rest = 0, os.fstat(source.fileno()).st_size
        while rest:
            sent = os.sendfile(descriptor, source.fileno(), offset, rest)
            offset, rest = offset + sent, rest - sent
    os.fsync(descriptor)


def led_to(target: Path) -> Path:
    """What a symbolic link leads to, as the application sees it: that is restored to, not the link."""
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
    return [file for file in candidates if file.is_symlink() or (file.exists() and _holds_something(file))]


def _holds_something(file: Path) -> bool:
    if not file.name.endswith("-journal"):
        return file.stat().st_size > 0
    with file.open("rb") as journal:
        return any(journal.read(1))
