from __future__ import annotations

from pathlib import Path

import pytest

from backupd.system.mounts import Host, Mount, parse_mounts, this_host

_LINES = [
    "22 1 0:30 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/x",
    "23 22 8:1 /volumes/db /app/instance rw,relatime master:2 - ext4 /dev/sda1 rw",
    "24 22 8:1 /backups /backups ro,relatime - ext4 /dev/sda1 rw",
    "25 22 0:40 / /mnt/with\\040space\\134 rw - nfs4 server:/export ro,vers=4.2",
    "26 22 0:41 / /mnt rw - tmpfs tmpfs rw",
    "not a line of this file",
    "",
]


def _mount(point: str, kind: str = "ext4") -> Mount:
    return Mount(point, kind, "device", is_read_only=False)


def test_mountinfo_is_parsed() -> None:
    """Optional fields, escapes and both places of `ro` are understood, and malformed lines are left out."""
    assert parse_mounts(_LINES) == [
        Mount("/", "overlay", "overlay", is_read_only=False),
        Mount("/app/instance", "ext4", "/dev/sda1", is_read_only=False),
        Mount("/backups", "ext4", "/dev/sda1", is_read_only=True),
        Mount("/mnt/with space\\", "nfs4", "server:/export", is_read_only=True),
        Mount("/mnt", "tmpfs", "tmpfs", is_read_only=False),
    ]


@pytest.mark.parametrize(
    ("path", "point"),
    [
        ("/app/instance/app.db", "/app/instance"),
        ("/app/instance", "/app/instance"),
        ("/app/instances/app.db", "/"),
        ("/mnt/other", "/mnt"),
        ("/etc/x", "/"),
    ],
)
def test_the_longest_mount_point_wins(path: str, point: str) -> None:
    """Whole path components count, not prefixes of them."""
    mount = Host(tuple(parse_mounts(_LINES)), is_container=True).mount_of(Path(path))
    assert mount is not None
    assert mount.point == point


def test_a_later_mount_covers_an_earlier_one() -> None:
    """The later of two mounts at one point is the visible one."""
    host = Host((_mount("/data", "ext4"), _mount("/data", "nfs")), is_container=False)
    assert host.mount_of(Path("/data/app.db")) == _mount("/data", "nfs")
    assert host.mount_of(Path("/elsewhere")) is None


@pytest.mark.parametrize(
    ("kind", "traits"),
    [
        ("ext4", set()),
        ("nfs4", {"network"}),
        ("cifs", {"network"}),
        ("9p", {"virtual"}),
        ("virtiofs", {"virtual"}),
        ("fuse.grpcfuse", {"virtual"}),
        ("fuseblk", set()),
        ("tmpfs", {"memory"}),
        ("overlay", {"layer"}),
    ],
)
def test_kinds_of_file_systems_are_classified(kind: str, traits: set[str]) -> None:
    """Each kind of file system is known to be on a network, virtual, in memory or a layer, or none of these."""
    mount = _mount("/data", kind)
    found = {
        "network": mount.is_network,
        "virtual": mount.is_virtual,
        "memory": mount.is_in_memory,
        "layer": mount.is_layer,
    }
    assert {name for name, is_so in found.items() if is_so} == traits


def test_only_a_container_loses_its_root() -> None:
    """The root of a machine stays; that of a container does not, whatever its file system is called."""
    assert not Host((), is_container=False).loses(_mount("/"))
    assert Host((), is_container=True).loses(_mount("/"))
    assert Host((), is_container=True).loses(_mount("/var/lib", "overlay"))
    assert not Host((), is_container=True).loses(_mount("/backups"))


def test_this_host_has_a_root_and_recognizes_kubernetes() -> None:
    """The machine that runs the tests has mounts; a variable of Kubernetes makes it a container."""
    host = this_host({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert host.mount_of(Path("/")) is not None
    assert host.is_container
