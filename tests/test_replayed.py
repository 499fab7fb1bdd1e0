"""Snapshots that are built from the one before and the log: they are what the backup API would have captured."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from harness.extent import sampled
from harness.following import Followed
from harness.kept_workers import kept_workers

from backupd.backup import BackupResult, Outcome, SnapshotRequest, back_up
from backupd.backup.results import SinceImage
from backupd.config import Database, Settings
from backupd.format.manifest import Replayed, SnapshotKind
from backupd.format.records import Continuity, ContinuityOutcome
from backupd.format.segment import Anchor, SegmentHead, encode_segment
from backupd.repository.moments import find_restore_point
from backupd.restore import restore_to_file
from backupd.store.keys import RecordKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.format.segment import Commit

PAGE_SIZES = (512, 4096, 65536)


class Scene(Followed):
    """A followed database whose commits since the newest snapshot are in files, as a daemon keeps them."""

    def __init__(self, home: Path, *, page_size: int = 4096) -> None:
        super().__init__(home, page_size=page_size)
        self.home = home
        self.after = 0
        self.files: list[str] = []
        self.connection = self._connection
        self._kept: list[Commit] = []
        self._cut_at = 0

    def commit(self, *statements: str) -> None:
        """Make each statement a commit."""
        for statement in statements:
            self.execute(statement)
            self._kept.append(self._pending[-1])

    def keep(self) -> None:
        """Put the commits since the last call into a segment of its own."""
        first = self._cut_at + 1
        head = SegmentHead(database="app", window=self._window, first=first, page_size=self._page_size)
        file = self.home / f"{first:06}.segment"
        file.write_bytes(encode_segment(head, self._kept[self._cut_at :], level=1))
        self.files.append(str(file))
        self._cut_at = len(self._kept)

    def read(self) -> BackupResult:
        """Take a snapshot of the database itself."""
        result = self._taken(None, must_read=True)
        self.after = len(self._kept)
        return result

    def since(self, result: BackupResult, **changes: Any) -> SinceImage:
        """Say what was committed since the snapshot in `result`, up to now."""
        if self._cut_at < len(self._kept):
            self.keep()
        assert result.image is not None
        values = {
            "image": result.image,
            "segments": tuple(self.files),
            "after": self.after,
            "replayed": Replayed(window=self._window, commit=len(self._kept)),
            "at": datetime.now(UTC),
        }
        return SinceImage(**{**values, **changes})

    def build(self, since: SinceImage, **asked: Any) -> BackupResult:
        """Take a snapshot that may be built from the log."""
        result = self._taken(since, **asked)
        if result.image is not None and result.image.replayed is not None:
            self.after = result.image.replayed.commit
        return result

    def _taken(self, since: SinceImage | None, **asked: Any) -> BackupResult:
        self._tick()
        (result,) = back_up(
            Database(name="app", path=self.path),
            [self.repository],
            Settings(),
            request=SnapshotRequest(**asked),
            on_progress=lambda _: None,
            since=since,
            workers=kept_workers(),
        )
        assert result.error is None
        return result

    def manifest(self, result: BackupResult) -> Any:
        """The manifest of a snapshot."""
        assert result.id is not None
        return self.archive.manifest(result.id)

    def restored(self, result: BackupResult) -> bytes:
        """The file that a restore of a snapshot gives."""
        point = find_restore_point([self.repository], str(result.id), database="app", now=datetime.now(UTC))
        target = self.home / f"restored-{result.id}.db"
        restore_to_file(point, target, force=True, as_source=False, on_progress=lambda _: None)
        return target.read_bytes()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A followed database that is empty."""
    with closing(Scene(tmp_path)) as scene:
        yield scene


def _filled(scene: Scene, rows: int = 300) -> BackupResult:
    scene.commit(
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)",
        "INSERT INTO alembic_version VALUES ('6a1f0e3b9c2d')",
        "CREATE TABLE t (a INTEGER PRIMARY KEY, b)",
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) "
        "INSERT INTO t SELECT i, randomblob(200) FROM n",
    )
    return scene.read()


def _equals_a_reading(scene: Scene, built: BackupResult) -> BackupResult:
    """What was built is what the backup API gives now, and so are its facts. Return the snapshot that was read."""
    manifest = scene.manifest(built)
    assert manifest.replayed == Replayed(window=scene._window, commit=len(scene._kept))
    assert scene.restored(built) == scene.states[-1].image
    result = scene.read()
    read = scene.manifest(result)
    assert (read.image_digest, read.page_count, read.source) == (
        manifest.image_digest,
        manifest.page_count,
        manifest.source,
    )
    assert read.replayed is None
    assert read.id != manifest.id  # it confirms the other one
    return result


@pytest.mark.parametrize("page_size", sampled(PAGE_SIZES, fast={512, 4096}))
def test_a_snapshot_is_built_from_the_log(tmp_path: Path, page_size: int) -> None:
    """Rows change, the file grows and is left smaller, over several segments: only what changed is stored."""
    with closing(Scene(tmp_path, page_size=page_size)) as scene:
        before = _filled(scene)
        scene.commit("UPDATE t SET b = randomblob(200) WHERE a = 7", "INSERT INTO t (b) VALUES (randomblob(90000))")
        scene.keep()
        scene.commit("UPDATE t SET b = 'x' WHERE a IN (7, 100)", "PRAGMA user_version = -5")
        built = scene.build(scene.since(before))
        assert (built.outcome, built.was_read) == (Outcome.CREATED, False)
        assert built.changed_pages is not None
        assert built.changed_pages < 90000 // page_size + 20
        read = _equals_a_reading(scene, built)
        scene.commit("DELETE FROM t WHERE a > 150")
        _equals_a_reading(scene, scene.build(scene.since(read)))


def test_snapshots_are_built_one_upon_the_other(scene: Scene) -> None:
    """Each has page 1 of the one before; a state that the log shows as the same makes no snapshot."""
    newest = _filled(scene)
    for number in range(3):
        scene.commit(f"UPDATE t SET b = 'round {number}' WHERE a = {number + 1}")
        newest = scene.build(scene.since(newest))
        assert newest.has_made_snapshot
    again = scene.build(scene.since(newest))
    assert (again.outcome, again.id, again.was_read) == (Outcome.UNCHANGED, newest.id, False)
    _equals_a_reading(scene, newest)


def test_random_histories_give_what_the_api_gives(scene: Scene) -> None:
    """Inserts, updates, deletes and vacuums of random sizes, and snapshots that are built, or read, in between."""
    choose = random.Random(14)
    newest = _filled(scene)
    for _ in range(12):
        for _ in range(choose.randrange(1, 6)):
            scene.commit(
                choose.choice(
                    [
                        f"INSERT INTO t (b) VALUES (randomblob({choose.randrange(1, 30000)}))",
                        f"DELETE FROM t WHERE a % {choose.randrange(2, 9)} = 0",
                        f"UPDATE t SET b = randomblob({choose.randrange(1, 900)}) WHERE a % 5 = 0",
                        f"PRAGMA application_id = {choose.randrange(1 << 31)}",
                    ]
                )
            )
            if choose.random() < 0.4:
                scene.keep()
        built = scene.build(scene.since(newest))
        assert not built.was_read
        assert scene.restored(built) == scene.states[-1].image
        newest = built
    _equals_a_reading(scene, newest)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE other (a)",
        "ALTER TABLE t ADD COLUMN c",
        "UPDATE alembic_version SET version_num = '0f1e2d3c4b5a'",
        "VACUUM",
    ],
)
def test_what_the_log_does_not_tell_is_read(scene: Scene, statement: str) -> None:
    """Tables and revisions are facts of a snapshot: after a migration, the database is read for them."""
    before = _filled(scene)
    scene.commit("UPDATE t SET b = 'x' WHERE a = 1", statement)
    result = scene.build(scene.since(before))
    assert (result.outcome, result.was_read) == (Outcome.CREATED, True)
    with closing(sqlite3.connect(scene.path)) as connection:
        revisions = [row for (row,) in connection.execute("SELECT version_num FROM alembic_version")]
    assert [*scene.manifest(result).source.alembic_revisions] == revisions


def _damaged(scene: Scene) -> None:
    file = Path(scene.files[-1])
    file.write_bytes(file.read_bytes()[:-1])


def _missing(scene: Scene) -> None:
    (Path(scene.files[-1])).unlink()


def _replaced(scene: Scene) -> None:
    copy = scene.path.with_name("copy.db")
    copy.write_bytes(scene.path.read_bytes())
    copy.replace(scene.path)


@pytest.mark.parametrize("harm", [_damaged, _missing, _replaced])
def test_in_doubt_the_database_is_read(scene: Scene, harm: Any) -> None:
    """A segment that is damaged or gone, or another file in the place of the database, costs time and nothing else."""
    before = _filled(scene)
    scene.commit("UPDATE t SET b = 'x' WHERE a = 1")
    since = scene.since(before)
    if harm is _replaced:
        scene.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    harm(scene)
    assert scene.build(since).was_read


@pytest.mark.parametrize(
    "asked",
    [{"must_read": True}, {"is_full": True}, {"kind": SnapshotKind.BEFORE_RESTORE}],
    ids=["must-read", "full", "before-restore"],
)
def test_some_snapshots_are_always_read(scene: Scene, asked: dict[str, Any]) -> None:
    """Those that a person or a drill asks for prove something, and a full one needs every page."""
    before = _filled(scene)
    scene.commit("UPDATE t SET b = 'x' WHERE a = 1")
    assert scene.build(scene.since(before), **asked).was_read


def test_a_store_that_has_another_image_is_given_what_is_read(scene: Scene) -> None:
    """Another machine, or a command beside the daemon, may have taken the newest snapshot."""
    before = _filled(scene)
    scene.commit("UPDATE t SET b = 'x' WHERE a = 1")
    scene.read()
    scene.commit("UPDATE t SET b = 'y' WHERE a = 1")
    scene.after = 4
    assert scene.build(scene.since(before)).was_read


def test_lost_packs_are_stored_again_from_the_database(scene: Scene) -> None:
    """The log has only what changed."""
    before = _filled(scene)
    for pack in (scene.home / "backups/app/packs").rglob("*"):
        if pack.is_file():
            pack.unlink()
    scene.commit("UPDATE t SET b = 'x' WHERE a = 1")
    result = scene.build(scene.since(before))
    assert result.was_read
    assert scene.restored(result) == scene.states[-1].image


def test_a_commit_after_the_mark_is_not_taken_for_a_part_of_the_snapshot(scene: Scene) -> None:
    """A commit may be seen before the snapshot gets its time: the answer of the follower takes a while."""
    before = _filled(scene)
    scene.commit("UPDATE t SET b = 'in it' WHERE a = 1")
    since = scene.since(before)
    scene.commit("UPDATE t SET b = 'after it' WHERE a = 2")
    scene._tick()
    scene._anchors.append(Anchor(snapshot=before.id, after=4, by=4))
    built = scene.build(msgspec.structs.replace(since, at=datetime.now(UTC)))
    assert not built.was_read
    scene.cut()
    point = find_restore_point([scene.repository], "0s", database="app", now=datetime.now(UTC))
    assert (point.replay and point.replay.until) == len(scene._kept)


def test_what_was_built_from_wrong_commits_is_not_restored(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """A time after it means the snapshot before it that was read; by its id, it is restored with a warning."""
    before = _filled(scene)
    scene.commit("UPDATE t SET b = 'x' WHERE a = 1")
    built = scene.build(scene.since(before))
    assert built.id is not None
    assert before.id is not None
    wrong = Continuity(
        database="app",
        window=scene._window,
        outcome=ContinuityOutcome.BROKEN,
        base=before.id,
        after=4,
        snapshot=built.id,
        by=5,
        at=datetime.now(UTC),
    )
    scene.archive.put_record(RecordKind.CONTINUITY, scene._window, wrong.encode())
    repositories, now = [scene.repository], datetime.now(UTC)
    assert find_restore_point(repositories, "0s", database="app", now=now).manifest.id == before.id
    assert find_restore_point(repositories, str(built.id), database="app", now=now).manifest.id == built.id
    assert "built from commits that a check has found wrong" in capsys.readouterr().err
