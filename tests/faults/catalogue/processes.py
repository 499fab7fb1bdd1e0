"""Processes that are killed, at any moment."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from harness.killing import kill

from faults.fault import Fault, Felt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from faults.world import World

_LONGEST_SECONDS = 1.2
_WATCHED_SECONDS = 5.0
_FOLLOWS_AGAIN_SECONDS = 5.0


@contextmanager
def kill_of_the_daemon(world: World, chosen: Random) -> Iterator[Felt]:
    """The daemon and all its processes are killed in the middle of a run, and it is started again."""
    world.request_snapshots()
    time.sleep(chosen.uniform(0, _LONGEST_SECONDS))
    world.kill_daemon()
    yield lambda: True
    world.start_daemon()


@contextmanager
def kill_of_a_capture(world: World, chosen: Random) -> Iterator[Felt]:
    """The process that reads the database is killed; the daemon continues."""
    world.request_snapshots()
    time.sleep(chosen.uniform(0, 0.1))
    yield _kill_child(world, "backupd.capture")


@contextmanager
def kill_of_the_follower(world: World, chosen: Random) -> Iterator[Felt]:
    """The process that reads the write-ahead logs is killed; the daemon starts another one."""
    time.sleep(chosen.uniform(0, _LONGEST_SECONDS))
    began = time.monotonic()
    yield _kill_child(world, "backupd.follow")
    time.sleep(_FOLLOWS_AGAIN_SECONDS)
    world.disturbed(began)


def _kill_child(world: World, module: str) -> Felt:
    """Kill a process of the daemon that runs `module`."""
    assert world.daemon is not None
    give_up_at = time.monotonic() + _WATCHED_SECONDS
    while time.monotonic() < give_up_at:
        for child in _children(world.daemon.process.pid):
            with suppress(OSError):
                if module.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(child, signal.SIGKILL)
                    return lambda: True
        time.sleep(0.002)
    return lambda: False


def _children(pid: int) -> list[int]:
    found = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _killed(world: World, chosen: Random, *arguments: str) -> Felt:
    """Start a command and kill it; again when it was quicker."""
    for longest_seconds in (_LONGEST_SECONDS, _LONGEST_SECONDS / 2, _LONGEST_SECONDS / 4, 0.1):
        process = world.backupd.start(*arguments)
        kill(process, after_seconds=chosen.uniform(0.1, longest_seconds))
        if process.returncode == -signal.SIGKILL:
            return lambda: True
    return lambda: False


@contextmanager
def kill_of_now(world: World, chosen: Random) -> Iterator[Felt]:
    """`backupd now --full` is killed at a random moment."""
    yield _killed(world, chosen, "now", "--full", "--tag", "killed")


@contextmanager
def kill_of_a_prune(world: World, chosen: Random) -> Iterator[Felt]:
    """`backupd prune` is killed at a random moment."""
    yield _killed(world, chosen, "prune")


@contextmanager
def kill_of_a_restore(world: World, chosen: Random) -> Iterator[Felt]:
    """`backupd restore` to a file is killed at a random moment: the file is complete, or does not exist."""
    target = world.targets / "killed.db"
    database = chosen.choice(sorted(world.writers))
    felt = _killed(world, chosen, "restore", f"{database}@latest", "--to", str(target))
    world.take_restored(target)
    yield felt


@contextmanager
def kill_of_the_application(world: World, chosen: Random) -> Iterator[Felt]:
    """The application is killed in the middle of its commits, while a capture runs, and started again."""
    writer = world.writers[chosen.choice(sorted(world.writers))]
    world.request_snapshots()
    time.sleep(chosen.uniform(0, _LONGEST_SECONDS))
    writer.kill()
    yield lambda: True
    writer.start()


@contextmanager
def kill_of_the_s3_server(world: World, chosen: Random) -> Iterator[Felt]:
    """The S3 server is killed in the middle of a run, and started again with the content of its disk."""
    world.request_snapshots()
    time.sleep(chosen.uniform(0, _LONGEST_SECONDS))
    world.server.kill()
    yield lambda: True
    world.server.start()


FAULTS = (
    Fault(kill_of_the_daemon),
    Fault(kill_of_a_capture),
    Fault(kill_of_the_follower),
    Fault(kill_of_now),
    Fault(kill_of_a_prune),
    Fault(kill_of_a_restore),
    Fault(kill_of_the_application),
    Fault(kill_of_the_s3_server, stops=("s3",)),
)
