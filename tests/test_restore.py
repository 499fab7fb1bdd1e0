from __future__ import annotations

import os
import sqlite3
import stat
from array import array
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.kept_workers import kept_workers
from harness.packs import decode_pack, entry_of
from harness.place import create_database
from msgspec.structs import replace

from backupd.backup import SnapshotRequest, back_up
from backupd.config import Database, Settings
from backupd.errors import BusyError, DamageError, TargetExistsError, TargetUnwritableError
from backupd.format.pagemap import encode_page_map, image_digest
from backupd.live.files import make_partial
from backupd.repository import Repository
from backupd.repository.moments import RestorePoint
from backupd.restore import RestoreResult, reject_unusable_target, restore_to_file
from backupd.restore.image import fetch_image
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
        back_up(
            Database(name="app", path=path),
            [Repository(store, state)],
            Settings(),
            request=SnapshotRequest(),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
        self.image = path.read_bytes()
        self.repository = Repository(store, state)
        self.manifest: Manifest = self.repository.archive("app").history().manifests[0]

    def restore(
        self, target: Path, *, force: bool = False, look: Callable[[object], None] = lambda _: None
    ) -> RestoreResult:
        return restore_to_file(
            RestorePoint(self.repository.archive(self.manifest.database), self.manifest),
            target,
            force=force,
            as_source=False,
            on_progress=look,
        )


@pytest.fixture(scope="module")
def snapshotted(tmp_path_factory: pytest.TempPathFactory) -> Snapshotted:
    """Made once: restoring changes nothing in a store."""
    return Snapshotted(tmp_path_factory.mktemp("snapshotted"))


def test_simultaneous_restores_to_one_file_leave_it_whole(snapshotted: Snapshotted, tmp_path: Path) -> None:
    """Each of several restores to one file succeeds or is busy, and the file is never partial."""
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
    """Cleaning up takes no person."""
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
def test_no_other_user_can_open_a_restored_file_without_a_name(
    snapshotted: Snapshotted, tmp_path: Path, kind: str
) -> None:
    """The unnamed file is made in a private directory, whatever another user put in its place."""
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


def test_file_of_another_user_does_not_count_as_restored(snapshotted: Snapshotted, tmp_path: Path) -> None:
    """The file of another user may get the name, as they could give it to any; but it does not count as restored."""
    private = tmp_path / ".restored.db.backupd-partial"

    def exchange(_: object) -> None:
        if not (tmp_path / "moved").exists():
            private.rename(tmp_path / "moved")
            private.mkdir()
            (private / "image").write_bytes(snapshotted.image)

    with pytest.raises(TargetUnwritableError, match="another user has put a file in the place of"):
        snapshotted.restore(tmp_path / "restored.db", look=exchange)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
@pytest.mark.parametrize("is_there", [True, False])
def test_target_behind_the_link_of_another_user_is_refused(
    snapshotted: Snapshotted, tmp_path: Path, *, is_there: bool
) -> None:
    """A target behind another user's link is refused, whether it exists or not."""
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
    """A pipe under the name of a log is refused at once, and not opened."""
    os.mkfifo(tmp_path / f"restored.db{suffix}")
    with pytest.raises(TargetExistsError, match="left of a file that is gone"):
        snapshotted.restore(tmp_path / "restored.db")


def test_empty_log_and_its_index_do_not_prevent_a_restore(snapshotted: Snapshotted, tmp_path: Path) -> None:
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
    """With --force the log of a lost file is moved aside, and overwrites none that was kept before."""
    target = tmp_path / "restored.db"
    for content in (b"left over", b"left over later"):
        (tmp_path / "restored.db-wal").write_bytes(content)
        snapshotted.restore(target, force=True)
        target.unlink()
    kept = {path.read_bytes() for path in tmp_path.glob("restored.db-wal.before-restore-*")}
    assert kept == {b"left over", b"left over later"}


def test_target_inside_a_store_is_refused(snapshotted: Snapshotted) -> None:
    """A slip of the keyboard must not replace a pack."""
    pack = next((Path(snapshotted.repository.url) / "app" / "packs").iterdir())
    with pytest.raises(TargetUnwritableError, match="inside the store"):
        snapshotted.restore(pack, force=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_unreadable_directory_is_refused_with_a_reason(tmp_path: Path) -> None:
    """A target in a directory that may not be searched is refused with that reason."""
    tmp_path.chmod(0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(TargetUnwritableError, match="cannot be written"):
            reject_unusable_target(tmp_path / "closed" / "app.db", force=False)
    finally:
        os.seteuid(0)


class _TwoFrames:
    """A repository with one snapshot whose only pack has several frames, and the bytes of that pack."""

    def __init__(self, root: Path) -> None:
        create_database(root / "app.db", rows=2000)
        store = DirectoryStore(root / "store")
        self.archive = Repository(store, StateDirectory(root / "state")).archive("app")
        back_up(
            Database(name="app", path=root / "app.db"),
            [self.archive.repository],
            Settings(),
            request=SnapshotRequest(),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
        (self.manifest,) = (self.archive.opened(each) for each in self.archive.history().manifests)
        (pack,) = self.manifest.packs
        self.pack = (root / "store" / self.archive.pack_key(pack)).read_bytes()
        self.index, self.images = decode_pack(self.pack)

    def forged(self, content: bytes, pages: int) -> Manifest:
        """A manifest of the first pages alone, whose pack has other content, which is put."""
        entry = entry_of(content)
        self.archive.repository.store.put(self.archive.pack_key(entry), content, sha256=bytes.fromhex(entry.sha256))
        return replace(
            self.manifest,
            page_count=pages,
            image_digest=image_digest(self.index.hashes[: 16 * pages]),
            packs=(entry,),
            page_map=encode_page_map(array("I", [1] * pages)),
        )

    def fetched(self, manifest: Manifest, file: Path) -> bytes:
        """The image of `manifest`."""
        with file.open("w+b") as image:
            fetch_image(self.archive, manifest, image.fileno(), lambda _: None)
        return file.read_bytes()


def test_pages_of_all_frames_are_restored(tmp_path: Path) -> None:
    """An image whose pages are in several frames of one pack is that of the pack."""
    several = _TwoFrames(tmp_path)
    assert len(several.index.frames) == 3
    assert several.fetched(several.manifest, tmp_path / "image") == several.images


def test_frames_without_a_page_of_the_image_are_left_out(tmp_path: Path) -> None:
    """A frame that zstd refuses is no damage of an image that needs none of its pages, and is of one that does."""
    several = _TwoFrames(tmp_path)
    damaged = several.pack[:-1] + bytes([several.pack[-1] ^ 1])
    last = several.index.frames[-1]
    within = several.forged(damaged, last.first_page)
    image = several.fetched(within, tmp_path / "image")
    assert image == several.images[: within.image_bytes]
    with pytest.raises(DamageError, match="cannot be read: the compressed pages"):
        several.fetched(several.forged(damaged, last.first_page + 1), tmp_path / "other")
