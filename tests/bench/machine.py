"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import apsw

_BLOCK = bytes(range(256)) * 4096
_BLOCKS = 512
_FLUSHES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine with its versions, and how fast its disk was before the run."""

    cores: int
    cpu: str
    memory_gb: int
    kernel: str
    python: str
    sqlite: str
    """The version that backupd uses."""
    tools: dict[str, str]
    """Versions of the programs that it is compared with; those that are missing are left out."""
    disk_mb_per_second: int
    """Written and flushed."""
    flush_ms: float
    """For 4 KiB."""
    load: float
    """Processes that wanted a core in the minute before the run."""

    @property
    def slug(self) -> str:
        """A name of this kind of machine: figures of two machines with one name can be compared."""
        return re.sub("[^a-z0-9]+", "-", f"{self.cores} cores {self.cpu}".lower()).strip("-")

    @property
    def text(self) -> str:
        """The machine in one line, for people."""
        tools = "".join(f", {name} {version}" for name, version in self.tools.items())
        return (
            f"{self.cores} cores of an {self.cpu}, {self.memory_gb} GB of memory, Linux {self.kernel}, "
            f"Python {self.python}, SQLite {self.sqlite}{tools}"
        )


def look_at_machine(scratch: Path) -> Machine:
    """Describe this machine; `scratch` is a directory on the disk in question."""
    seconds, flush_seconds = _disk(scratch / "disk-speed")
    commands = {
        "zstd": ["zstd", "--version"],
        "restic": ["restic", "version"],
        "litestream": ["litestream", "version"],
    }
    versions = {name: _version(command) for name, command in commands.items() if shutil.which(name)}
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        cpu=_processor(),
        memory_gb=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        kernel=platform.release(),
        python=platform.python_version(),
        sqlite=apsw.sqlitelibversion(),
        tools=versions,
        disk_mb_per_second=round(len(_BLOCK) * _BLOCKS / seconds / 1e6),
        flush_ms=round(flush_seconds * 1000, 2),
        load=round(os.getloadavg()[0], 2),
    )


def current_commit() -> str:
    """The commit of this directory, with `+` when files differ from it; `unknown` where git does not say."""
    root = Path(__file__).parents[2]
    commands = (["git", "rev-parse", "--short=12", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        commit, changes = [
            subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()
            for command in commands
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+" if changes else commit


def _version(command: list[str]) -> str:
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"\d+\.\d+(\.\d+)?", printed)
    return found[0] if found else "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return re.sub(r"\((?:R|TM)\)", "", line.partition(":")[2]).strip()
    return platform.machine()


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
