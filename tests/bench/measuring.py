"""Commands measured from outside: time, processor time, and the memory of all their processes together."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
import zlib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_SAMPLED_EVERY_SECONDS = 0.01
_PACE_CONTENT = bytes(range(256)) * 2048
_PACE_TRIES = 3
_LIBC = ctypes.CDLL(None, use_errno=True)
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# It looks now and then whether its parent still lives, so that it does not outlive a parent that was killed.
_BUSY_LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    for _ in range(10**6): pass"


class Quantity(StrEnum):
    """The quantities of a piece of work; less is better for each. The value is the unit in results and tables."""

    SECONDS = "s"
    CPU = "s of CPU"
    """User and system, of all processes."""
    WAIT = "s of waiting"
    STORED = "bytes stored"
    WRITTEN = "bytes written"
    """By system calls, wherever that went."""
    MEMORY = "bytes of memory"
    """Anonymous: what the kernel cannot take back. All processes together."""
    SHARE = "% of a core"
    FAILURES = "failures"
    GAPS = "gaps"
    """Times at which commits were missed."""

    @property
    def is_time(self) -> bool:
        """Whether a slower machine has more of it."""
        return self in {Quantity.SECONDS, Quantity.CPU, Quantity.WAIT, Quantity.SHARE}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one command: seconds on the clock, and of the processors (user and system, all its processes)."""

    seconds: float
    cpu_seconds: float
    exit_code: int = 0


def timed(command: Sequence[str | Path], environment: Mapping[str, str], directory: Path) -> Run:
    """Run `command` in `directory` when everything written there before is on the disk. Raises when it fails."""
    run = tried(command, environment, directory)
    _reject_failure(run.exit_code, command)
    return run


def tried(command: Sequence[str | Path], environment: Mapping[str, str], directory: Path) -> Run:
    """Run `command` as `timed` does, and return also a run that failed, with its exit code."""
    flush(directory)
    started = time.perf_counter()
    process = _start(command, environment, directory)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    return Run(seconds, usage.ru_utime + usage.ru_stime, process.returncode)


def flush(directory: Path) -> None:
    """Wait until the file system of `directory` is on its disk, so that a command pays for what it writes only.

    Not os.sync(): other programs write to other disks of this machine.
    """
    file = os.open(directory, os.O_RDONLY)
    try:
        if _LIBC.syncfs(file):
            raise OSError(ctypes.get_errno(), f"{directory} cannot be flushed")
    finally:
        os.close(file)


def peak_anonymous_bytes(command: Sequence[str | Path], environment: Mapping[str, str], directory: Path) -> int:
    """The most anonymous memory that `command` and all its descendants held together, as seen every 10 ms.

    Linux only. Looking at /proc all the time slows the command down: its time is worth nothing.
    """
    process = _start(command, environment, directory)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(_SAMPLED_EVERY_SECONDS)
    _reject_failure(process.returncode, command)
    return peak


def anonymous_bytes(root: int) -> int:
    """The anonymous memory that the process `root` and its descendants hold together now."""
    return sum(map(_anonymous_bytes, _tree(root)))


def cpu_seconds(root: int) -> float:
    """The processor time of `root` and its descendants up to now, with that of children whose end they have seen.

    A clock tick, usually 10 ms, is the smallest step for each process.
    """
    ticks = 0
    for pid in _tree(root):
        # The name of the program stands in parentheses, and may hold blanks and parentheses itself.
        fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime: proc_pid_stat(5)
    return ticks / _TICKS_PER_SECOND


def descendant(root: int, module: str) -> int:
    """The process that runs `module` of Python, among those that `root` has started. Raises when there is none."""
    for pid in _tree(root):
        if module in _read(Path(f"/proc/{pid}/cmdline")).split("\0"):
            return pid
    raise RuntimeError(f"process {root} has started no {module}")


def written_bytes(root: int) -> int:
    """What `root` and its descendants that run now have handed to `write` so far, wherever that went."""
    lines = [line for pid in _tree(root) for line in _read(Path(f"/proc/{pid}/io")).splitlines()]
    return sum(int(line.partition(":")[2]) for line in lines if line.startswith("wchar"))


def pace() -> float:
    """Seconds that a fixed computation takes now. Other guests of a machine change its speed from minute to minute."""
    tries = []
    for _ in range(_PACE_TRIES):
        started = time.perf_counter()
        zlib.compress(_PACE_CONTENT, 1)
        sum(range(200_000))
        tries.append(time.perf_counter() - started)
    return min(tries)


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Run `count` processes that compute without a pause until the block ends."""
    command = [sys.executable, "-c", _BUSY_LOOP, str(os.getpid())]
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.DEVNULL))
            stack.callback(process.kill)
        yield


def directory_bytes(root: Path) -> int:
    """The size of all files in `root`, 0 when there is no such directory."""
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file())


def _start(command: Sequence[str | Path], environment: Mapping[str, str], directory: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=directory,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def _reject_failure(exit_code: int, command: Sequence[str | Path]) -> None:
    if exit_code:
        raise subprocess.CalledProcessError(exit_code, [str(part) for part in command])


def _tree(root: int) -> Iterator[int]:
    """The process `root` and its descendants."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and (status := _read(process / "stat")):
            parent = int(status.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(process.name))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, [])


def _anonymous_bytes(pid: int) -> int:
    for line in _read(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def _read(file: Path) -> str:
    """The text of a file of /proc, empty when its process has ended."""
    try:
        return file.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
