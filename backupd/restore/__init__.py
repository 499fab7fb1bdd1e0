"""Bring a restore point back (a snapshot, or a commit after it): to a file, which is here, or into the database.

A restored file appears complete or not at all: the image is proven beside the target, and put in place in one step.

image        the image out of its packs and segments, proven
replay       the commits after a snapshot
placing      files beside the target, and how they come into place
plan         what a restore into the configured database would change
in_place     that restore: live, beside the running application, or by another file while it is stopped
undo         safety snapshots, the record of the last restore, and the snapshot that undoes it
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd.errors import TargetExistsError, TargetUnwritableError
from backupd.live.intent import finish_interrupted
from backupd.logs import log
from backupd.restore.image import Progress, write_image
from backupd.restore.placing import (
    free_name,
    give_back_ownership,
    give_name,
    partial_file,
    reject_no_room,
    reject_planted,
    reporting_errors,
    resolve_target,
    side_files,
)
from backupd.store.keys import REPOSITORY_KEY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backupd.repository.moments import RestorePoint

__all__ = ["Progress", "RestoreResult", "reject_unusable_target", "restore_to_file"]

_LOCK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """A restored file."""

    target: Path
    image_bytes: int
    fetched_bytes: int
    duration_seconds: float


def reject_unusable_target(target: Path, *, force: bool) -> None:
    """Refuse to overwrite a file, or to write beside a leftover that SQLite would apply to the new one.

    Raises `TargetExistsError`, `TargetUnwritableError`. Changes nothing.
    """
    with reporting_errors(target):  # even asking whether it exists may be forbidden
        _reject_unusable(target, force=force)


def _reject_unusable(target: Path, *, force: bool) -> None:
    reject_planted(target)
    if target.exists() and not target.is_file():
        what = "a directory" if target.is_dir() else "not a regular file"
        raise TargetUnwritableError(f"{target} is {what}", hint="give the file to restore to: --to FILE")
    if not target.parent.is_dir():
        raise TargetUnwritableError(
            f"the directory {target.parent} does not exist", hint="create it first, or use --to"
        )
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise TargetUnwritableError(
            f"the directory {target.parent} cannot be written by uid {os.geteuid()}",
            hint="restore elsewhere with --to FILE, or run as its owner",
        )
    _reject_store(target)
    if force:
        _reject_parting_from_log(target)
        return
    if target.exists() or target.is_symlink():
        raise TargetExistsError(
            f"{target} exists already",
            hint="restore beside it with --to FILE, or replace it with --force after stopping the application",
        )
    for leftover in side_files(target):
        raise TargetExistsError(
            f"{leftover} is left of a file that is gone, and SQLite would apply it to the restored one",
            hint="move it away, or let --force (in place: --replace) do so after stopping the application",
        )


def _reject_store(target: Path) -> None:
    parent = target.parent.resolve()  # `../restored.db`, given in a store, is not in the store
    for directory in (parent, *parent.parents):
        if (directory / REPOSITORY_KEY).is_file():
            raise TargetUnwritableError(
                f"{target} is inside the store {directory}", hint="restore to a file elsewhere: --to FILE"
            )


def _reject_parting_from_log(target: Path) -> None:
    """Refuse to replace a file whose log holds changes: a crash between the two would lose them."""
    leftovers = side_files(target)
    if leftovers and target.exists():
        raise TargetExistsError(
            f"{target} cannot be replaced: {leftovers[0]} holds changes that are not in it yet",
            hint=f"stop the application, move all of it away (mkdir old; mv {target.name}* old/), and restore again",
        )


def restore_to_file(
    point: RestorePoint,
    target: Path,
    *,
    force: bool,
    as_source: bool,
    on_progress: Callable[[Progress], None],
) -> RestoreResult:
    """Write the image of `point` to `target`, which appears complete or not at all.

    It is proven as `write_image` does before it gets its name. Mode 0600, or with `as_source` the owner and mode of the
    file that was backed up. Repeatable. Raises `DamageError`, `StoreError`, `TargetExistsError`,
    `TargetUnwritableError`, and `BusyError` when another restore to the same file is running.
    """
    started = time.monotonic()
    reject_unusable_target(target, force=force)
    if force:
        target = resolve_target(target)
        reject_unusable_target(target, force=force)
    finish_interrupted(target, point.archive.repository.state, lock_timeout=_LOCK_SECONDS)
    reject_no_room(target.parent, point.scratch_bytes)
    with reporting_errors(target), partial_file(target) as (partial, descriptor):
        fetched_bytes = write_image(point, partial, descriptor, on_progress)
        if as_source:
            give_back_ownership(descriptor, point.manifest, target.parent)
        reject_unusable_target(target, force=force)
        _put_in_place(partial, descriptor, target)
    return RestoreResult(target, point.image_bytes, fetched_bytes, time.monotonic() - started)


def _put_in_place(partial: Path, descriptor: int, target: Path) -> None:
    """Give the finished file its name, after leftovers of a file that is gone have moved out of SQLite's sight."""
    for file in side_files(target):
        aside = free_name(file)
        file.rename(aside)
        log.warning("a leftover was moved aside", file=str(aside), hint="remove it when it is not needed any more")
    give_name(partial, descriptor, target)
