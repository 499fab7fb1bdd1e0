"""`backupd run` as a process, for scenarios that measure it while it works or idles."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.daemon import Daemon
from harness.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.tools import Backupd

_MINUTE_SECONDS = 60


@contextmanager
def running_daemon(backupd: Backupd) -> Iterator[Daemon]:
    """A daemon with the configuration of `backupd`, which has planned its work; killed when the block ends."""
    process = subprocess.Popen(
        [backupd.program, "run"],
        env=backupd.environment,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    daemon = Daemon(Site(backupd.work, port=0), process)
    try:
        daemon.wait_for("backupd has started")
        yield daemon
    finally:
        daemon.kill()


def sleep_until_next_minute(*, but_seconds: float = 0.0) -> None:
    """Sleep until `but_seconds` before the next full minute of the clock, the next one but one when that is closer."""
    rest = _MINUTE_SECONDS - time.time() % _MINUTE_SECONDS - but_seconds
    time.sleep(rest if rest > 0 else rest + _MINUTE_SECONDS)
