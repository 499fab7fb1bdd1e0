"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import apsw

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = bytes(range(256)) * 4096
_BLOCKS = 512
_FLUSHES = 20


def describe(scratch: Path) -> Iterator[str]:
    """Lines about processors, disk and versions; `scratch` is on the disk in question."""
    yield f"{len(os.sched_getaffinity(0))} cores, {_processor()}, {_memory_bytes() / 1e9:.0f} GB of memory"
    seconds, flush_seconds = _disk(scratch / "disk-speed")
    speed = len(_BLOCK) * _BLOCKS / seconds / 1e6
    yield f"disk: {speed:.0f} MB/s written and flushed, {flush_seconds * 1000:.1f} ms to flush 4 KiB"
    versions = f"Python {platform.python_version()}, SQLite {apsw.sqlitelibversion()}"
    yield f"{platform.system()} {platform.release()}, {versions}; load before the run: {os.getloadavg()[0]:.2f}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _disk(file: Path) -> tuple[float, float]:
    """Seconds to write half a gigabyte with one flush, and the median of flushes of 4 KiB."""
    with file.open("wb", buffering=0) as opened:
        started = time.perf_counter()
        for _ in range(_BLOCKS):
            opened.write(_BLOCK)
        os.fsync(opened.fileno())
        seconds = time.perf_counter() - started
        flushes = []
        for _ in range(_FLUSHES):
            opened.write(_BLOCK[:4096])
            started = time.perf_counter()
            os.fsync(opened.fileno())
            flushes.append(time.perf_counter() - started)
    file.unlink()
    return seconds, median(flushes)
