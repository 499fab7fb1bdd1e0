"""Mounted file systems of this machine or container, as the kernel lists them.

The source of the format is proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_MOUNTS = Path("/proc/self/mountinfo")
_CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
_CONTAINER_VARIABLES = ("KUBERNETES_SERVICE_HOST", "container")

_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "lustre", "afs", "gfs2", "ocfs2", "beegfs"}
# How virtual machines, Docker Desktop among them, show directories of their host.
_SHARED_BY_HOST = {"9p", "virtiofs", "vboxsf", "vmhgfs", "prl_fs", "fakeowner", "osxfs", "drvfs"}
_IN_MEMORY = {"tmpfs", "ramfs"}
_LAYERED = {"overlay", "aufs", "overlayfs"}


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system. `kind` is its type, such as `ext4`; `source` the device or server."""

    point: str
    kind: str
    source: str
    is_read_only: bool

    def __str__(self) -> str:
        return f"{self.kind} at {self.point}"

    @property
    def is_network(self) -> bool:
        """Whether other machines may use the same files."""
        return self.kind in _NETWORK

    @property
    def is_virtual(self) -> bool:
        """Whether a program, or the host of this virtual machine, stands between SQLite and the disk."""
        return self.kind in _SHARED_BY_HOST or self.kind == "fuse" or self.kind.startswith("fuse.")

    @property
    def is_in_memory(self) -> bool:
        """Whether its content is lost when the machine, or the container, stops."""
        return self.kind in _IN_MEMORY

    @property
    def is_layer(self) -> bool:
        """Whether this is the layered file system of a container, which is removed with it."""
        return self.kind in _LAYERED


@dataclass(frozen=True, slots=True)
class Host:
    """The machine or container of this process. `mounts` are in the kernel's order: a later one covers an earlier."""

    mounts: Sequence[Mount]
    is_container: bool

    def mount_of(self, path: Path) -> Mount | None:
        """The mount that `path`, absolute and without links, is on; None when the kernel does not say."""
        best = None
        for mount in self.mounts:
            if path.is_relative_to(mount.point) and (best is None or len(mount.point) >= len(best.point)):
                best = mount
        return best

    def loses(self, mount: Mount) -> bool:
        """Whether the content of `mount` is removed with this container: it is the container's root, not a volume."""
        return self.is_container and (mount.is_layer or mount.point == "/")


def this_host(environ: Mapping[str, str] = os.environ) -> Host:
    """Read the mounts of this machine or container. Without /proc, there are none."""
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    is_container = any(mark.exists() for mark in _CONTAINER_MARKS) or any(map(environ.get, _CONTAINER_VARIABLES))
    return Host(tuple(parse_mounts(lines)), is_container)


def parse_mounts(lines: Iterable[str]) -> list[Mount]:
    """Parse /proc/self/mountinfo; malformed lines are left out."""
    mounts = []
    for line in lines:
        before, separator, after = line.partition(" - ")
        fields, of_file_system = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(of_file_system) < 3:  # noqa: PLR2004  (proc_pid_mountinfo(5))
            continue
        options = {*fields[5].split(","), *of_file_system[2].split(",")}
        mounts.append(Mount(_unescaped(fields[4]), of_file_system[0], _unescaped(of_file_system[1]), "ro" in options))
    return mounts


def _unescaped(text: str) -> str:
    """Undo the kernel's escapes: space, tab, line feed and backslash as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
