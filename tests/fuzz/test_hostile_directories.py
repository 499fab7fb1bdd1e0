"""A directory store that another user can write to: nothing outside it is read or written, and no call waits."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backupd.errors import NoSuchObjectError, StoreRefusedError
from backupd.store.directory import DirectoryStore

_KEY = "app/packs/x"
_SECRET = b"not for everybody"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that is no object."""
    file = tmp_path / "outside/secret"
    file.parent.mkdir()
    file.write_bytes(_SECRET)
    return file


@pytest.mark.parametrize("kind", ["link", "link of a directory", "fifo", "device", "directory"])
def test_only_regular_files_are_objects(tmp_path: Path, secret: Path, kind: str) -> None:
    """Links, pipes, devices and directories are neither listed nor read, and none blocks a call."""
    file = tmp_path / "store" / _KEY
    file.parent.mkdir(parents=True)
    match kind:
        case "link":
            file.symlink_to(secret)
        case "link of a directory":
            file.parent.rmdir()
            secret.rename(secret.with_name("x"))
            file.parent.symlink_to(secret.parent)
        case "fifo":
            os.mkfifo(file)
        case "device":
            file.symlink_to("/dev/zero")
        case "directory":
            file.mkdir()
    store = DirectoryStore(tmp_path / "store")
    assert list(store.list("")) == []
    for read in (lambda: store.get(_KEY, limit_bytes=1000), lambda: store.get_range(_KEY, offset=0, length=10)):
        with pytest.raises(NoSuchObjectError):
            read()


@pytest.mark.parametrize("where", ["app", "app/packs", ".incoming"])
def test_nothing_is_written_through_a_link(tmp_path: Path, secret: Path, where: str) -> None:
    """Neither an object nor its temporary file is written through a link."""
    link = tmp_path / "store" / where
    link.parent.mkdir(parents=True)
    link.symlink_to(secret.parent)
    with pytest.raises(StoreRefusedError):
        DirectoryStore(tmp_path / "store").put(_KEY, b"x", sha256=hashlib.sha256(b"x").digest())
    assert [(file.name, file.read_bytes()) for file in secret.parent.iterdir()] == [("secret", _SECRET)]


def test_a_hard_link_is_replaced_and_not_written_to(tmp_path: Path, secret: Path) -> None:
    """What has another name elsewhere keeps its content there."""
    store = DirectoryStore(tmp_path / "store")
    (tmp_path / "store/app/packs").mkdir(parents=True)
    os.link(secret, tmp_path / "store" / _KEY)
    store.put(_KEY, b"x", sha256=hashlib.sha256(b"x").digest())
    assert secret.read_bytes() == _SECRET
    assert store.get(_KEY, limit_bytes=10) == b"x"
    store.delete(_KEY)
    assert secret.read_bytes() == _SECRET


@pytest.mark.parametrize("seconds", [-(1 << 40), -1, 1 << 40, 1 << 62])
def test_a_file_of_an_impossible_time_is_listed(seconds: int) -> None:
    """A file with an impossible time, where one can exist, is listed with a possible one."""
    try:
        root = Path("/dev/shm") / f"backupd-times-{os.getpid()}"
        root.mkdir()
        (root / "a").write_bytes(b"x")
        os.utime(root / "a", (seconds, seconds))
    except (OSError, OverflowError) as error:
        pytest.skip(f"no file can have this time here: {error}")
    try:
        (found,) = DirectoryStore(root).list("")
        assert datetime(1970, 1, 1, tzinfo=UTC) <= found.modified_at <= datetime(9999, 1, 1, tzinfo=UTC)
    finally:
        (root / "a").unlink(missing_ok=True)
        root.rmdir()
