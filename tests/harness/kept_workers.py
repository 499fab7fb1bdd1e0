"""Processes that capture, kept for all snapshots that tests take in their own process.

Starting one takes 0.15 s of CPU, and capturing the database of a test a hundredth of that.
"""

from __future__ import annotations

import atexit
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from backupd.capture.worker import Workers
from backupd.system.processes import child_environment

_kept: defaultdict[frozenset[tuple[str, str]], Workers] = defaultdict(Workers)


def kept_workers() -> Workers:
    """Those that were started with the variables which a new one would get now: a test may have set some."""
    return _kept[frozenset(child_environment().items())]


def children_that_capture() -> list[int]:
    """The processes that capture for this one, but for the kept ones."""
    found = []
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            found += [int(child) for child in (thread / "children").read_text().split()]
    kept = {worker.pid for workers in _kept.values() for worker in workers._idle}
    return [child for child in found if child not in kept and _captures(child)]


def _captures(child: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return b"backupd.capture.child" in Path(f"/proc/{child}/cmdline").read_bytes()
    return False


@atexit.register
def _end() -> None:
    for workers in _kept.values():
        workers.end_idle()
