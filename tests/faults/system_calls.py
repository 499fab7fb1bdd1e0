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
    """What a command has to begin with to have its `calls` in `log`, those of its threads and children too."""
    wanted = ",".join(f"?{call}" for call in calls)
    return ("strace", "-f", "-qq", "-y", "--seccomp-bpf", "-o", str(log), "-e", f"trace={wanted}", *options, "--")


def injecting(log: Path, calls: Sequence[str], *, error: str, when: str) -> tuple[str, ...]:
    """The same, where each of `calls` fails with `error` the `when`-th time that a thread makes it."""
    wanted = ",".join(f"?{call}" for call in calls)
    return tracing(log, calls, "-e", f"inject={wanted}:error={error}:when={when}")
