"""Commands measured from outside: time, processor time, and the memory of all their processes together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_SAMPLED_EVERY_SECONDS = 0.01
# It looks now and then whether its parent still lives, so that it does not outlive a parent that was killed.
_BUSY_LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    for _ in range(10**6): pass"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one command: seconds on the clock, and of the processors (user and system, all its processes)."""

    seconds: float
    cpu_seconds: float
    exit_code: int = 0


@dataclass(slots=True)
class Series:
    """All runs of one command."""

    runs: list[Run] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median."""
        return median(run.seconds for run in self.runs)

    def ratio_to(self, others: Series) -> float:
        """The median of the ratios pair by pair, which holds when the machine's speed drifts: they ran in turn."""
        return median(ours.seconds / theirs.seconds for ours, theirs in zip(self.runs, others.runs, strict=True))

    @property
    def cpu_seconds(self) -> float:
        """The median."""
        return median(run.cpu_seconds for run in self.runs)

    @property
    def successes(self) -> int:
        """How many runs ended with exit code 0."""
        return sum(run.exit_code == 0 for run in self.runs)

    def __str__(self) -> str:
        """Median and range, such as `4.31 s (4.20-4.55)`."""
        every = sorted(run.seconds for run in self.runs)
        return f"{self.seconds:.2f} s ({every[0]:.2f}-{every[-1]:.2f})"


def timed(command: Sequence[str | Path], environment: Mapping[str, str]) -> Run:
    """Run `command`, with everything written before on disk, so that it pays for itself only. Raises when it fails."""
    run = tried(command, environment)
    _reject_failure(run.exit_code, command)
    return run


def tried(command: Sequence[str | Path], environment: Mapping[str, str]) -> Run:
    """Run `command` as `timed` does, and return also a run that failed, with its exit code."""
    os.sync()
    started = time.perf_counter()
    process = _start(command, environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    return Run(seconds, usage.ru_utime + usage.ru_stime, process.returncode)


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Run `count` processes that compute without a pause until the block ends."""
    command = [sys.executable, "-c", _BUSY_LOOP, str(os.getpid())]
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.DEVNULL))
            stack.callback(process.kill)
        yield


def peak_anonymous_bytes(command: Sequence[str | Path], environment: Mapping[str, str]) -> int:
    """The most anonymous memory that `command` and all its descendants held together, as seen every 10 ms.

    Anonymous is what the kernel cannot take back: neither mapped files nor the page cache. Linux only.
    """
    process = _start(command, environment)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(_anonymous_bytes, _tree(process.pid))))
        time.sleep(_SAMPLED_EVERY_SECONDS)
    _reject_failure(process.returncode, command)
    return peak


def _start(command: Sequence[str | Path], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(part) for part in command], env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def _reject_failure(exit_code: int, command: Sequence[str | Path]) -> None:
    if exit_code:
        raise subprocess.CalledProcessError(exit_code, [str(part) for part in command])


def _tree(root: int) -> Iterator[int]:
    """The process `root` and its descendants."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and (status := _read(process / "stat")):
            # The name of the program stands in parentheses, and may hold blanks and parentheses itself.
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
