"""Single system calls of a command that fail, by strace."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def why_not() -> str | None:
    """Why no system call can be made to fail here; None when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return None if probe.returncode == 0 else f"tracing is not permitted: {probe.stderr.strip()}"


def tracing(log: Path, calls: Sequence[str], *options: str) -> tuple[str, ...]:
    """Give the beginning of a command whose `calls`, those of its threads and children too, go into `log`."""
    wanted = ",".join(f"?{call}" for call in calls)
    return ("strace", "-f", "-qq", "-y", "--seccomp-bpf", "-o", str(log), "-e", f"trace={wanted}", *options, "--")


def injecting(log: Path, calls: Sequence[str], *, error: str, when: str) -> tuple[str, ...]:
    """Give the beginning of a command in which each of `calls` fails with `error` at its `when`-th time in a thread."""
    wanted = ",".join(f"?{call}" for call in calls)
    return tracing(log, calls, "-e", f"inject={wanted}:error={error}:when={when}")
