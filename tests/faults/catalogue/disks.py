"""Disks that are full or broken below the state, the directory store, and the target of a restore."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.cli import CommandLine

from faults.fault import Fault, Felt
from faults.system_calls import injecting
from faults.world import GRACE_SECONDS, SCHEDULE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from random import Random

    from faults.world import World

_BALLAST = "ballast"
_BLOCK = bytes(1 << 16)
# Not `write`: it is what goes through pipes between processes, too.
_CALLS = ("pwrite64", "copy_file_range", "fsync", "fdatasync", "ftruncate", "fallocate", "rename", "renameat", "link")
_CALLS_OF_A_RESTORE = ("pwrite64", "fsync", "ftruncate", "rename")
_CALLS_OF_A_REMOVAL = ("fsync", "rename", "renameat", "mkdirat")
_LAST_CALL = 5


@contextmanager
def _filled(disk: Path) -> Iterator[None]:
    ballast = disk / _BALLAST
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for block in (_BLOCK, _BLOCK[:4096], _BLOCK[:1]):
            with suppress(OSError):
                while os.write(descriptor, block):
                    pass
        yield
    finally:
        os.close(descriptor)
        ballast.unlink()


@contextmanager
def full_state(world: World, chosen: Random) -> Iterator[Felt]:
    """Not a byte is left on the disk of the state directory, where packs are spooled."""
    with _filled(world.site.state):
        yield lambda: True


@contextmanager
def full_store(world: World, chosen: Random) -> Iterator[Felt]:
    """Not a byte is left on the disk of the directory store."""
    with _filled(world.store.parent):
        yield lambda: True


@contextmanager
def full_target(world: World, chosen: Random) -> Iterator[Felt]:
    """Not a byte is left on the target of a restore: there is no file, or a complete one."""
    with _filled(world.targets):
        world.try_restore(world.disk, chosen)
        yield lambda: True


def _broken(world: World, chosen: Random, error: str, calls: Sequence[str], *arguments: str) -> Felt:
    """Run a command of which one system call that writes fails, in each thread; again if it has fewer of them."""
    log = world.home / "system-calls"
    for last in (_LAST_CALL, 2, 1, 1, 1, 1):
        call, number = chosen.choice(calls), chosen.randint(1, last)
        log.unlink(missing_ok=True)
        runner = replace(world.site.runner, enter=injecting(log, [call], error=error, when=f"{number}"))
        world.run_as(CommandLine(world.home, runner=runner), *arguments)
        if "(INJECTED)" in log.read_text():
            return lambda: True
    return lambda: False


@contextmanager
def write_error_in_now(world: World, chosen: Random) -> Iterator[Felt]:
    """One write, fsync, rename or truncation of a `backupd now` fails with EIO."""
    yield _broken(world, chosen, "EIO", _CALLS, "now", "--full")


@contextmanager
def no_space_in_now(world: World, chosen: Random) -> Iterator[Felt]:
    """One write, fsync, rename or truncation of a `backupd now` fails with ENOSPC."""
    yield _broken(world, chosen, "ENOSPC", _CALLS, "now", "--full")


@contextmanager
def write_error_in_a_removal(world: World, chosen: Random) -> Iterator[Felt]:
    """One system call of a `backupd forget`, which moves a snapshot to the trash, fails with EIO."""
    database = chosen.choice(sorted(world.writers))
    yield _broken(world, chosen, "EIO", _CALLS_OF_A_REMOVAL, "forget", f"{database}@latest~1")


@contextmanager
def write_error_in_a_restore(world: World, chosen: Random) -> Iterator[Felt]:
    """One system call of a `backupd restore` to a file fails with EIO: it is complete, or does not exist."""
    target = world.targets / "broken.db"
    database = chosen.choice(sorted(world.writers))
    felt = _broken(world, chosen, "EIO", _CALLS_OF_A_RESTORE, "restore", f"{database}@latest", "--to", str(target))
    world.take_restored(target)
    yield felt


FAULTS = (
    # The failure cannot be noted there either: health turns red because no database is current in time.
    Fault(
        full_state, stops=("disk", "s3"), reported_within_seconds=SCHEDULE_SECONDS + GRACE_SECONDS + 20, needs="disks"
    ),
    Fault(full_store, stops=("disk",), needs="disks"),
    Fault(full_target, needs="disks"),
    Fault(write_error_in_now, needs="strace"),
    Fault(no_space_in_now, needs="strace"),
    Fault(write_error_in_a_removal, needs="strace"),
    Fault(write_error_in_a_restore, needs="strace"),
)
