"""The memory of commands: what all their processes hold at most, and how they get along with little of it."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_SAMPLED_EVERY_SECONDS = 0.005
_GONE_WITHIN_SECONDS = 10.0
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that a command and all its descendants held together, in bytes.

    `anonymous` memory is what the kernel cannot take back; `mapped` are pages of files, the program's own included.
    """

    anonymous: int
    mapped: int


def peak_of(command: Sequence[str], *, directory: Path, environment: Mapping[str, str]) -> Peak:
    """Run `command`, and look at its processes every 5 ms. Raises `CalledProcessError` when it fails."""
    anonymous = mapped = 0
    with subprocess.Popen(command, cwd=directory, env=dict(environment), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            held = [_held(each) for each in _tree(process.pid)]
            anonymous = max(anonymous, sum(each.anonymous for each in held))
            mapped = max(mapped, sum(each.mapped for each in held))
            time.sleep(_SAMPLED_EVERY_SECONDS)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return Peak(anonymous, mapped)


def _tree(root: int) -> Iterator[int]:
    """The process `root` and its descendants, but for one that has just been forked: its memory is its parent's."""
    yield root
    try:
        children = Path(f"/proc/{root}/task/{root}/children").read_text().split()
        threads = [path.name for path in Path(f"/proc/{root}/task").iterdir() if path.name != str(root)]
        for thread in threads:
            children += Path(f"/proc/{root}/task/{thread}/children").read_text().split()
        command = Path(f"/proc/{root}/cmdline").read_bytes()
        for child in children:
            if Path(f"/proc/{child}/cmdline").read_bytes() != command:
                yield from _tree(int(child))
    except (FileNotFoundError, ProcessLookupError):
        return


def _held(pid: int) -> Peak:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return Peak(0, 0)
    kib = {name: int(value.split()[0]) for name, value in (line.split(":", 1) for line in lines) if "Rss" in name}
    return Peak(kib.get("RssAnon", 0) << 10, (kib.get("RssFile", 0) + kib.get("RssShmem", 0)) << 10)


@contextmanager
def memory_limited_to(most_bytes: int) -> Iterator[Path]:
    """Make a control group in which all memory counts, page cache included; yield its file of processes.

    Skips the test where no group can be made: that takes root, and a file system of control groups that is writable.
    """
    group, limit = _new_group()
    try:
        (group / limit).write_text(str(most_bytes))
        yield group / "cgroup.procs"
    finally:
        give_up_at = time.monotonic() + _GONE_WITHIN_SECONDS
        while True:
            try:
                group.rmdir()
                break
            except OSError:  # a process that was killed is still on its way out
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(0.05)


def _new_group() -> tuple[Path, str]:
    """Make a group; return it and its file for the limit, which is another in version 1 of control groups."""
    name = f"backupd-test-{secrets.token_hex(4)}"
    refused = []
    for parent, limit in ((_CGROUPS, "memory.max"), (_CGROUPS / "memory", "memory.limit_in_bytes")):
        group = parent / name
        try:
            group.mkdir()
        except OSError as error:
            refused.append(f"{parent}: {error.strerror}")
            continue
        if os.access(group / limit, os.W_OK):
            return group, limit
        group.rmdir()
        refused.append(f"{parent} has no {limit}")
    pytest.skip(f"no control group with a limit of memory can be made here ({'; '.join(refused)})")
