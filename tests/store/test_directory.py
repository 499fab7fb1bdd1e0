from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backupd.errors import NoSuchObjectError, StoreFullError, StoreRefusedError, StoreUnavailableError
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

_MIB = 1 << 20
_NOBODY = 65534
_HOUR = 3600


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The path of the store, which is not created."""
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    """A store that nothing was put into."""
    return DirectoryStore(root)


def put(store: DirectoryStore, key: str, content: bytes | Path = b"content") -> None:
    """Put with a hash that is not checked."""
    store.put(key, content, sha256=bytes(32))


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.lstat().st_mode)


def temporary_files(root: Path) -> list[Path]:
    """What is in the directory for unfinished files."""
    return list((root / ".incoming").iterdir())


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """A file mode mask for a while."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def mounted(target: Path, *options: str) -> Iterator[None]:
    """A mount for a while; skips the test where it is not permitted."""
    target.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, target], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


def test_relative_root_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A later change of the working directory does not move the store."""
    monkeypatch.chdir(tmp_path)
    store = DirectoryStore(Path("here"))
    monkeypatch.chdir("/")
    put(store, "a")
    assert store.url == str(tmp_path / "here")
    assert (tmp_path / "here" / "a").read_bytes() == b"content"


def test_only_the_owner_may_read(store: DirectoryStore, root: Path):
    """Backups hold what the database holds: 0600 and 0700 whatever the usual mask is."""
    with umask(0o022):
        put(store, "app/packs/a")
    assert mode(root / "app/packs/a") == 0o600
    assert {mode(path) for path in (root, root / "app", root / "app/packs", root / ".incoming")} == {0o700}


def test_modes_of_existing_directories_stay(store: DirectoryStore, root: Path):
    """A directory that its owner opened to a group stays as it is."""
    (root / "app").mkdir(parents=True)
    root.chmod(0o750)
    (root / "app").chmod(0o2770)
    put(store, "app/packs/a")
    assert (mode(root), mode(root / "app"), mode(root / "app/packs") & 0o777) == (0o750, 0o2770, 0o700)


def test_root_may_be_a_link(tmp_path: Path):
    """The root is the user's choice, also by a symbolic link."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    store = DirectoryStore(tmp_path / "link")
    put(store, "app/a")
    assert store.get("app/a", limit_bytes=7) == b"content"
    assert (tmp_path / "disk" / "app" / "a").exists()


def test_no_link_leads_out(store: DirectoryStore, root: Path, tmp_path: Path):
    """Below the root a symbolic link is not followed, neither as a directory nor as an object."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    put(store, "app/a")
    (root / "linked").symlink_to(outside)
    (root / "app" / "link").symlink_to(outside / "secret")
    for key in ["linked/secret", "app/link"]:
        with pytest.raises(NoSuchObjectError):
            store.get(key, limit_bytes=10)
    with pytest.raises(StoreRefusedError, match="in the way"):
        put(store, "linked/new")
    store.delete("linked/secret")
    assert [stored.key for stored in store.list("")] == ["app/a"]
    assert list(store.list("linked/")) == []
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_put_replaces_a_link_itself(store: DirectoryStore, root: Path, tmp_path: Path):
    """A put to a name that is a link changes the name, not what it pointed to."""
    (tmp_path / "outside").write_text("untouched")
    root.mkdir()
    (root / "a").symlink_to(tmp_path / "outside")
    put(store, "a")
    assert (tmp_path / "outside").read_text() == "untouched"
    assert store.get("a", limit_bytes=7) == b"content"


def test_odd_files_are_no_objects(store: DirectoryStore, root: Path):
    """A pipe, a directory and a name that is not UTF-8 are not listed, not read, and do not hang."""
    put(store, "app/a")
    os.mkfifo(root / "app" / "pipe")
    (root / "app" / os.fsdecode(b"\xff")).write_bytes(b"")
    (root / "app" / "directory").mkdir()
    for key in ["app/pipe", "app/directory"]:
        with pytest.raises(NoSuchObjectError):
            store.get(key, limit_bytes=1)
    store.delete("app/directory")
    assert [stored.key for stored in store.list("")] == ["app/a"]


def test_directory_in_the_way_of_an_object(store: DirectoryStore, root: Path):
    """A put that would have to replace a directory, or go below a file, is refused with what to do."""
    put(store, "app/packs/a")
    for key in ["app/packs", "app/packs/a/b"]:
        with pytest.raises(StoreRefusedError, match="in the way") as caught:
            put(store, key)
        assert "move it aside" in (caught.value.hint or "")
    assert temporary_files(root) == []


def test_root_that_is_a_file(root: Path):
    """A file as root is refused by every method."""
    root.write_text("a file")
    store = DirectoryStore(root)
    for call in (
        lambda: put(store, "a"),
        lambda: store.get("a", limit_bytes=1),
        lambda: list(store.list("")),
    ):
        with pytest.raises(StoreRefusedError, match="is not a directory"):
            call()


def test_incoming_is_not_part_of_the_store(store: DirectoryStore, root: Path):
    """The directory for unfinished files is neither listed nor reachable by a key."""
    put(store, "a")
    (root / ".incoming" / "unfinished").write_text("half")
    assert [stored.key for stored in store.list("")] == ["a"]
    assert list(store.list(".incoming/")) == list(store.list(".inc")) == []
    with pytest.raises(ValueError, match="not an object's key"):
        store.get(".incoming/unfinished", limit_bytes=10)


def test_stale_leftovers_are_removed(root: Path):
    """What a killed process left over an hour ago is removed by the next process's first put; younger files stay."""
    put(DirectoryStore(root), "a")
    for name, age_seconds in [("old", _HOUR + 60), ("young", _HOUR - 60)]:
        leftover = root / ".incoming" / name
        leftover.write_text("half")
        os.utime(leftover, (time.time() - age_seconds,) * 2)
    list(DirectoryStore(root).list(""))
    assert len(temporary_files(root)) == 2
    put(DirectoryStore(root), "b")
    assert [path.name for path in temporary_files(root)] == ["young"]


def test_source_of_another_file_system(store: DirectoryStore, root: Path):
    """A file comes over whole from where the kernel cannot clone it."""
    here = root.parent.stat().st_dev
    elsewhere = next(each for each in (Path("/dev/shm"), Path.home()) if each.stat().st_dev != here)
    source = elsewhere / f"{os.getpid()}-source"
    content = os.urandom(3 * _MIB + 17)
    try:
        source.write_bytes(content)
        put(store, "a", source)
    finally:
        source.unlink()
    assert (root / "a").read_bytes() == content


def test_source_that_the_kernel_reports_as_empty(store: DirectoryStore):
    """A file whose size is unknown beforehand (as in /proc) is copied by reading it."""
    put(store, "a", Path("/proc/self/cmdline"))
    assert store.get("a", limit_bytes=_MIB) == Path("/proc/self/cmdline").read_bytes()


@pytest.mark.parametrize("as_file", [False, True])
def test_full_disk_is_reported_and_keeps_the_old_object(tmp_path: Path, *, as_file: bool):
    """A full disk says how much is free, leaves the old object and nothing else, and works again when there is room."""
    root = tmp_path / "disk"
    source = tmp_path / "source"
    source.write_bytes(bytes(8 * _MIB))
    with mounted(root, "-t", "tmpfs", "-o", "size=4m", "none"):
        store = DirectoryStore(root)
        put(store, "app/a", b"old")
        with pytest.raises(StoreFullError, match=r"no space left .*MiB and \d+ files free") as caught:
            put(store, "app/a", source if as_file else source.read_bytes())
        assert "free space" in (caught.value.hint or "")
        assert temporary_files(root) == []
        assert store.get("app/a", limit_bytes=3) == b"old"
        put(store, "app/b", bytes(2 * _MIB))


def test_disk_without_free_inodes_is_reported_as_full(tmp_path: Path):
    """A disk without free inodes is a full disk too."""
    root = tmp_path / "disk"
    with mounted(root, "-t", "tmpfs", "-o", "size=4m,nr_inodes=4", "none"):
        store = DirectoryStore(root)
        put(store, "a", b"takes the last but one; .incoming has one, and the root too")
        put(store, "b", b"takes the last")
        with pytest.raises(StoreFullError, match="0 files free"):
            put(store, "c", b"")
        store.delete("b")
        put(store, "c", b"")


def test_read_only_mount_refuses_changes_and_allows_reads(tmp_path: Path):
    """A read-only mount refuses puts and deletes by name, and reads go on."""
    root = tmp_path / "disk"
    with mounted(root, "-t", "tmpfs", "-o", "size=4m", "none"):
        store = DirectoryStore(root)
        put(store, "a")
        subprocess.run(["mount", "-o", "remount,ro", root], check=True)
        with pytest.raises(StoreRefusedError, match="read-only file system") as caught:
            put(store, "b")
        with pytest.raises(StoreRefusedError, match="read-only file system"):
            store.delete("a")
        assert store.get("a", limit_bytes=7) == b"content"
    assert "read-only" in (caught.value.hint or "")


def as_another_user(code: str, root: Path) -> subprocess.CompletedProcess[str]:
    """Run code with a `store` as a user who owns nothing."""
    if os.geteuid() != 0:
        pytest.skip("changing the user needs root")
    prelude = (
        "import sys; from pathlib import Path; from backupd.store.directory import DirectoryStore;"
        "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534); store = DirectoryStore(Path(sys.argv[1]));"
    )
    return subprocess.run([sys.executable, "-c", prelude + code, root], capture_output=True, text=True, check=False)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that every user may read, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize(
    "call",
    [
        "store.put('a', b'', sha256=b'')",
        "store.get('app/a', limit_bytes=9)",
        "list(store.list(''))",
        "store.delete('b')",
    ],
)
def test_directory_of_another_user_is_refused_with_its_path(reachable: Path, call: str):
    """A directory of another user is refused by its path, with the uid that needs the permission."""
    put(DirectoryStore(reachable), "app/a")
    put(DirectoryStore(reachable), "b")
    done = as_another_user(
        f"from backupd.errors import StoreRefusedError\ntry: {call}\nexcept StoreRefusedError as e: print(e, e.hint)",
        reachable,
    )
    assert f"{reachable}" in done.stdout, done.stderr
    assert "permission denied" in done.stdout
    assert f"uid {_NOBODY}" in done.stdout


_PUT_FOR_EVER = """
import sys
from itertools import count
from pathlib import Path
from backupd.store.directory import DirectoryStore

store = DirectoryStore(Path(sys.argv[1]))
for number in count():
    print("putting", flush=True)
    store.put("app/a", bytes([number % 250 + 1]) * 1_000_000, sha256=bytes(32))
"""


def test_killed_in_the_middle(store: DirectoryStore, root: Path):
    """However a put is killed, the object is a whole one, and nothing half is listed."""
    for round_number in range(12):
        with subprocess.Popen([sys.executable, "-c", _PUT_FOR_EVER, root], stdout=subprocess.PIPE) as process:
            for _ in range(2 + round_number):
                assert process.stdout.readline() == b"putting\n"
            process.send_signal(signal.SIGKILL)
        content = store.get("app/a", limit_bytes=_MIB)
        assert content == content[:1] * 1_000_000
        assert [stored.key for stored in store.list("")] == ["app/a"]


def traced(root: Path, code: str, *options: str) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """The system calls of a put in a process of its own; skips where there is no strace."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    log = root.parent / "trace"
    prelude = (
        "import sys; from pathlib import Path; from backupd.store.directory import DirectoryStore;"
        "store = DirectoryStore(Path(sys.argv[1]));"
    )
    done = subprocess.run(
        [strace, "-qq", "-y", "-o", log, *options, sys.executable, "-c", prelude + code, root],
        capture_output=True,
        text=True,
        check=False,
    )
    if "PTRACE" in done.stderr:
        pytest.skip(f"tracing is not permitted here: {done.stderr.strip()}")
    return log.read_text().splitlines(), done


def test_everything_is_flushed_before_and_after_the_rename(root: Path):
    """The content before it has its name; the name, and those of new directories, before put returns."""
    calls, done = traced(
        root, "store.put('app/packs/a', b'content', sha256=b'')", "-e", "trace=mkdir,mkdirat,fsync,rename,renameat"
    )
    assert done.returncode == 0, done.stderr
    steps = [call.split("(")[0] + " " + call.split(str(root.parent))[1].split(">")[0].split('"')[0] for call in calls]
    assert [step for step in steps if not step.startswith("rename")] == [
        "mkdir /store",
        "fsync ",
        "mkdirat /store",
        "fsync /store",
        "mkdirat /store/app",
        "fsync /store/app",
        "mkdirat /store",
        "fsync /store",
        next(step for step in steps if step.startswith("fsync /store/.incoming/")),
        "fsync /store/app/packs",
    ]
    assert steps[-2].startswith("rename")


@pytest.mark.parametrize(
    ("call", "error", "expected"),
    [
        ("fsync", "EIO", "StoreUnavailableError"),
        ("write", "ENOSPC", "StoreFullError"),
        ("write", "EDQUOT", "StoreFullError"),
        ("renameat", "EIO", "StoreUnavailableError"),
        ("fsync", "ENOSPC", "StoreFullError"),
    ],
)
def test_a_failing_system_call(root: Path, call: str, error: str, expected: str):
    """A put that fails at any step says so, keeps the old object, and leaves no temporary file."""
    put(DirectoryStore(root), "app/a", b"old")
    _, done = traced(
        root,
        "import backupd.errors as e\ntry: store.put('app/a', b'n' * 10, sha256=b'')\n"
        "except e.StoreError as error: sys.exit(type(error).__name__ + ' ' + error.message)",
        # The third flush is that of the file, after those of two directories.
        f"--inject={call}:error={error}:when={3 if call == 'fsync' else 1}",
        f"--trace={call}",
    )
    assert done.stderr.startswith(expected), done.stderr
    assert DirectoryStore(root).get("app/a", limit_bytes=9) == b"old"
    assert temporary_files(root) == []


def test_other_errors_mean_unavailable(store: DirectoryStore):
    """An error that is neither space nor permission (here: a name too long) names the path and the reason."""
    with pytest.raises(StoreUnavailableError, match=os.strerror(errno.ENAMETOOLONG).lower()):
        put(store, "a" * 300)


def test_large_file_arrives_with_its_hash(store: DirectoryStore, root: Path, tmp_path: Path):
    """A pack from a spool file arrives with its hash."""
    source = tmp_path / "pack"
    source.write_bytes(os.urandom(8 * _MIB))
    put(store, "app/packs/a", source)
    assert hashlib.sha256((root / "app/packs/a").read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
