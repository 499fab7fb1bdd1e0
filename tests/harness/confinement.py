"""Processes with mounts of their own, and processes of another user."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import backupd
from harness.cli import Runner

if TYPE_CHECKING:
    from collections.abc import Iterator

ANOTHER_UID = 65534
_HOLD = "echo ready; exec cat"
_PROBE = "import backupd, subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"


@dataclass(frozen=True, slots=True)
class Mounts:
    """A mount namespace: what is mounted in it, only processes that run in it see, and it ends with its block."""

    pid: int

    def mount(self, *arguments: str | Path) -> None:
        """Mount something."""
        subprocess.run([*self._enter(), "mount", *map(str, arguments)], check=True)

    def seen(self, path: Path) -> Path:
        """The path at which this process finds what processes in the namespace have at `path`."""
        return Path(f"/proc/{self.pid}/root{path}")

    def runner(self) -> Runner:
        """Runs commands in the namespace."""
        return Runner(enter=self._enter())

    def _enter(self) -> tuple[str, ...]:
        return ("nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "--")


@contextmanager
def private_mounts() -> Iterator[Mounts]:
    """An empty mount namespace; skips the test where none is permitted."""
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", _HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            pytest.skip(f"mounts of one's own are not permitted here: {holder.stderr.read().strip()}")
        try:
            yield Mounts(holder.pid)
        finally:
            holder.kill()


@contextmanager
def another_user() -> Iterator[Runner]:
    """Runs commands as the user `ANOTHER_UID`; skips the test for who may not do that."""
    if os.geteuid() != 0:
        pytest.skip("only root can run a process as another user")
    become = ("setpriv", f"--reuid={ANOTHER_UID}", f"--regid={ANOTHER_UID}", "--clear-groups", "--")
    probe = subprocess.run([*become, sys.executable, "-c", _PROBE], capture_output=True, check=False)
    if probe.returncode == 0:
        yield Runner(become=become)
        return
    # The interpreter is in a directory that no other user may enter: show it to that user at another place.
    with tempfile.TemporaryDirectory() as name, private_mounts() as mounts:
        shown = Path(name)
        shown.chmod(0o755)
        for part, source in _parts().items():
            (shown / part).mkdir()
            mounts.mount("--bind", source, shown / part)
        yield Runner(
            enter=mounts.runner().enter,
            become=become,
            python=str(shown / "python/bin" / Path(sys.executable).resolve().name),
            environ={"PYTHONPATH": f"{shown / 'source'}:{shown / 'site'}", "PYTHONDONTWRITEBYTECODE": "1"},
        )


def _parts() -> dict[str, Path]:
    return {
        "python": Path(sys.base_prefix),
        "site": Path(sysconfig.get_path("purelib")),
        "source": Path(backupd.__file__).parent.parent,
    }


@contextmanager
def shared_directory() -> Iterator[Path]:
    """A directory that other users can reach; pytest's own are private."""
    with tempfile.TemporaryDirectory(prefix="shared-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
