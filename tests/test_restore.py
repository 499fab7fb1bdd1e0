from __future__ import annotations

import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backupd.backup import Wish, back_up
from backupd.config import Database, Settings
from backupd.errors import BusyError, TargetExistsError, TargetUnwritableError
from backupd.live.files import make_partial
from backupd.repository import Repository
from backupd.repository.manifests import read_history
from backupd.restore import RestoreResult, reject_unusable_target, restore_to_file
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from backupd.format.manifest import Manifest


class Snapshotted:
    """A repository with one snapshot of a small database."""

    def __init__(self, root: Path) -> None:
        path = root / "app.db"
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("CREATE TABLE t (a)")
            connection.executemany("INSERT INTO t VALUES (?)", ((f"{number:0500}",) for number in range(500)))
        store, state = DirectoryStore(root / "store"), StateDirectory(root / "state")
        back_up(Database(name="app", path=path), [store], Settings(), state, wish=Wish(), on_progress=lambda _: None)
        self.image = path.read_bytes()
        self.repository = Repository(store, state)
        self.manifest: Manifest = read_history(self.repository, "app").manifests[0]

    def restore(
        self, target: Path, *, force: bool = False, look: Callable[[object], None] = lambda _: None
    ) -> RestoreResult:
        return restore_to_file(self.repository, self.manifest, target, force=force, as_source=False, on_progress=look)


@pytest.fixture(scope="module")
def snapshotted(tmp_path_factory: pytest.TempPathFactory) -> Snapshotted:
    """Made once: restoring changes nothing in a store."""
    return Snapshotted(tmp_path_factory.mktemp("snapshotted"))


def test_restores_to_one_file_at_once_leave_it_whole(snapshotted: Snapshotted, tmp_path: Path) -> None:
    """Each of them succeeds or says that another one is running; the file is never empty or partial."""
    target = tmp_path / "restored.db"
    snapshotted.restore(target)

    def restore(_: int) -> str:
        try:
            snapshotted.restore(target, force=True)
        except BusyError:
            return "busy"
        finally:
            assert target.stat().st_size == len(snapshotted.image)
        return "done"

    with ThreadPoolExecutor(4) as threads:
        outcomes = set(threads.map(restore, range(60)))
    assert "done" in outcomes
    assert [path.name for path in tmp_path.iterdir()] == ["restored.db"]


def test_partial_file_of_a_killed_restore_is_taken_over(snapshotted: Snapshotted, tmp_path: Path) -> None:
    """Nobody has to tidy up by hand."""
    (tmp_path / ".restored.db.backupd-partial").mkdir(mode=0o700)
    (tmp_path / ".restored.db.backupd-partial/image").write_bytes(b"x" * 10**6)
    snapshotted.restore(tmp_path / "restored.db")
    assert [path.name for path in tmp_path.iterdir()] == ["restored.db"]


def test_journal_of_a_killed_restore_is_not_applied_to_the_next_image(tmp_path: Path) -> None:
    """What lies beside the image that a killed restore left is removed when the image is taken over."""
    left = tmp_path / ".restored.db.backupd-partial"
    left.mkdir(mode=0o700)
    for name in ("image", "image-journal", "image-link"):
        (left / name).write_bytes(b"x" * 1000)
    image, descriptor = make_partial(tmp_path / "restored.db")
    os.close(descriptor)
    assert image == left / "image"
    assert image.stat().st_size == 0
    assert [path.name for path in left.iterdir()] == ["image"]


@pytest.mark.parametrize("kind", ["nothing", "file", "pipe", "directory", "link"])
def test_no_other_user_can_open_what_has_no_name_yet(snapshotted: Snapshotted, tmp_path: Path, kind: str) -> None:
    """Whatever they put in its place, and kept open: the file is made by this process, where no other can enter."""
    squatted = tmp_path / ".restored.db.backupd-partial"
    match kind:
        case "file":
            squatted.write_bytes(b"theirs")
        case "pipe":
            os.mkfifo(squatted)
        case "directory":
            squatted.mkdir(mode=0o777)
            (squatted / "image").write_bytes(b"theirs")
        case "link":
            (tmp_path / "target").mkdir()
            squatted.symlink_to("target")
    if kind != "nothing":
        if os.geteuid() != 0:
            pytest.skip("only root can give files to others")
        os.chown(squatted, 4711, 4711, follow_symlinks=False)
    before = {*tmp_path.iterdir()}
    seen: list[tuple[int, int]] = []

    def look(_: object) -> None:
        (made,) = {*tmp_path.iterdir()} - before
        (image,) = made.iterdir()
        seen.append((stat.S_IMODE(made.lstat().st_mode), stat.S_IMODE(image.lstat().st_mode)))

    snapshotted.restore(tmp_path / "restored.db", look=look)
    assert set(seen) == {(0o700, 0o600)}
    assert (tmp_path / "restored.db").stat().st_size == len(snapshotted.image)
    assert {*tmp_path.iterdir()} == before | {tmp_path / "restored.db"}


def test_directory_that_was_exchanged_during_a_restore(snapshotted: Snapshotted, tmp_path: Path) -> None:
    """The file of another user may get the name, as they could give it to any; but it does not count as restored."""
    private = tmp_path / ".restored.db.backupd-partial"

    def exchange(_: object) -> None:
        if not (tmp_path / "moved").exists():
            private.rename(tmp_path / "moved")
            private.mkdir()
            (private / "image").write_bytes(snapshotted.image)

    with pytest.raises(TargetUnwritableError, match="another user has put a file of theirs in the place of"):
        snapshotted.restore(tmp_path / "restored.db", look=exchange)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
@pytest.mark.parametrize("is_there", [True, False])
def test_target_that_another_user_leads_elsewhere(snapshotted: Snapshotted, tmp_path: Path, *, is_there: bool) -> None:
    """Neither is a file overwritten through their link, nor one made where only root may."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    if is_there:
        (tmp_path / "ours/file").write_bytes(b"precious")
    for link, to in (("theirs/restored.db", "../ours/file"), ("theirs/sub", "../ours")):
        (tmp_path / link).symlink_to(to)
        os.chown(tmp_path / link, 4711, 4711, follow_symlinks=False)
    for target, force in (("theirs/restored.db", True), ("theirs/sub/file", is_there)):
        with pytest.raises(TargetUnwritableError, match="a symbolic link that uid 4711 made"):
            snapshotted.restore(tmp_path / target, force=force)
    assert [path.read_bytes() for path in (tmp_path / "ours").iterdir()] == [b"precious"] * is_there


@pytest.mark.parametrize(("suffix", "content"), [("-wal", b"rows"), ("-journal", b"rows")])
def test_leftover_that_sqlite_would_apply_is_refused(
    snapshotted: Snapshotted, tmp_path: Path, suffix: str, content: bytes
) -> None:
    """A stale log silently brings old rows back."""
    (tmp_path / f"restored.db{suffix}").write_bytes(content)
    with pytest.raises(TargetExistsError, match="left of a file that is gone"):
        snapshotted.restore(tmp_path / "restored.db")


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_pipe_under_the_name_of_a_log_is_refused(snapshotted: Snapshotted, tmp_path: Path, suffix: str) -> None:
    """At once: who opens a pipe for reading waits for a writer, who may never come."""
    os.mkfifo(tmp_path / f"restored.db{suffix}")
    with pytest.raises(TargetExistsError, match="left of a file that is gone"):
        snapshotted.restore(tmp_path / "restored.db")


def test_empty_log_and_its_index_are_in_nobodys_way(snapshotted: Snapshotted, tmp_path: Path) -> None:
    """A read-only look at an idle database leaves them, and the file may be lost after that."""
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"restored.db{suffix}").touch()
    snapshotted.restore(tmp_path / "restored.db")
    with closing(sqlite3.connect(tmp_path / "restored.db")) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (500,)


def test_database_is_never_parted_from_its_log(snapshotted: Snapshotted, tmp_path: Path) -> None:
    """A crash between moving the log and replacing the file would lose what was committed: refused, even by force."""
    target = tmp_path / "live.db"
    with closing(sqlite3.connect(target)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE only_here (a)")
        with pytest.raises(TargetExistsError, match="holds changes that are not in it yet"):
            snapshotted.restore(target, force=True)
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("only_here",)]
    snapshotted.restore(target, force=True)  # its last connection has moved the log into it


def test_leftover_of_a_lost_file_is_moved_aside_by_force(snapshotted: Snapshotted, tmp_path: Path) -> None:
    """None that was there before is overwritten."""
    target = tmp_path / "restored.db"
    for content in (b"left over", b"left over later"):
        (tmp_path / "restored.db-wal").write_bytes(content)
        snapshotted.restore(target, force=True)
        target.unlink()
    kept = {path.read_bytes() for path in tmp_path.glob("restored.db-wal.before-restore-*")}
    assert kept == {b"left over", b"left over later"}


def test_file_inside_a_store_is_no_target(snapshotted: Snapshotted) -> None:
    """A slip of the keyboard must not replace a pack."""
    pack = next((Path(snapshotted.repository.url) / "app" / "packs").iterdir())
    with pytest.raises(TargetUnwritableError, match="inside the store"):
        snapshotted.restore(pack, force=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_directory_that_may_not_be_looked_into_is_a_clear_refusal(tmp_path: Path) -> None:
    """Even asking whether the target exists is forbidden there."""
    tmp_path.chmod(0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(TargetUnwritableError, match="cannot be written"):
            reject_unusable_target(tmp_path / "closed" / "app.db", force=False)
    finally:
        os.seteuid(0)
