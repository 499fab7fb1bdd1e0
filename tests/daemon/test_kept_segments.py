"""The segments that are kept for the next snapshot: all since the newest image, or none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from backupd.backup.results import KnownImage
from backupd.daemon.kept_segments import KeptSegments
from backupd.follow.chain import Mark
from backupd.follow.spool import Cut
from backupd.format import SnapshotId
from backupd.format.manifest import Replayed, SourceFacts

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.backup.results import SinceImage

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
WINDOW, OTHER = SnapshotId.new(NOON, 1), SnapshotId.new(NOON, 2)
FACTS = SourceFacts(
    journal_mode="wal",
    encoding="UTF-8",
    free_pages=0,
    schema_version=1,
    user_version=0,
    application_id=0,
    sqlite_version="3.45.1",
    tables=("t",),
    schema_digest="0" * 64,
    alembic_revisions=None,
)
IMAGE = KnownImage(
    read_at=NOON,
    digest="1" * 64,
    page_size=4096,
    page_count=100,
    first_page=bytes(4096),
    facts=FACTS,
    revision_pages=(),
    file=(1, 2),
)


class Scene:
    """A database whose segments are in the spool `directory`, from the first commit on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kept = KeptSegments()
        self.kept.use("app", directory)

    def cut(self, first: int, last: int, *, window: SnapshotId = WINDOW, size_bytes: int = 100) -> Path:
        """Put a segment into the spool and report it, as the follower does; every store has it at once."""
        file = self.directory / f"{window}-{first}.segment"
        file.write_bytes(bytes(size_bytes))
        self.kept.add("app", Cut(str(file), window, first, last, 0))
        file.unlink()
        return file

    def since(self, last: int, *, window: SnapshotId = WINDOW, at: datetime = NOON) -> SinceImage | None:
        """Ask what is known after this commit."""
        return self.kept.since("app", Mark(window, last, round(at.timestamp() * 1000)))

    def files(self) -> list[str]:
        """The segments that are kept."""
        return sorted(file.name.rpartition("-")[2] for file in self.directory.rglob("*.segment"))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A database of which nothing is kept yet."""
    return Scene(tmp_path)


def test_all_since_the_image_is_kept(scene: Scene) -> None:
    """The stores have the segments, and the spool does not any more; those before the image go."""
    scene.cut(1, 5)
    scene.cut(6, 9)
    assert scene.since(9) is None  # there is no image
    scene.kept.continues("app", WINDOW, IMAGE, after=6)
    scene.cut(10, 12)
    found = scene.since(11)
    assert found is not None
    assert (found.after, found.replayed, len(found.segments)) == (6, Replayed(window=WINDOW, commit=11), 2)
    assert scene.files() == ["10.segment", "6.segment"]
    scene.kept.continues("app", WINDOW, IMAGE, after=12)
    assert scene.files() == []
    assert scene.since(12) is not None
    assert scene.since(13) is None  # it is in no segment yet


def test_an_image_may_come_before_the_first_segment(scene: Scene) -> None:
    """A window begins with its first commit, and is asked about before that is in a segment."""
    scene.kept.continues("app", WINDOW, IMAGE, after=0)
    scene.cut(1, 2)
    assert scene.since(2) is not None


@pytest.mark.parametrize(
    "cut",
    [{"first": 5, "last": 9}, {"first": 4, "last": 9, "window": OTHER}],
    ids=["a-hole", "another-window"],
)
def test_nothing_is_known_after_what_is_missing(scene: Scene, cut: dict[str, Any]) -> None:
    """The image is of no use any more, and nothing that is kept stays behind."""
    scene.kept.continues("app", WINDOW, IMAGE, after=0)
    scene.cut(1, 3)
    scene.cut(**cut)
    scene.cut(10, 11, window=cut.get("window", WINDOW))
    assert scene.since(11) is None
    assert scene.since(11, window=OTHER) is None
    assert "1.segment" not in scene.files()


def test_after_too_much_nothing_is_kept_until_the_next_image(scene: Scene) -> None:
    """The database is read then, which costs as little; the segments would be of no use."""
    scene.kept.continues("app", WINDOW, IMAGE, after=0)
    scene.cut(1, 3)
    scene.cut(4, 4, size_bytes=2 << 20)
    scene.cut(5, 6)
    assert scene.files() == []
    assert scene.since(6) is None
    scene.kept.continues("app", WINDOW, IMAGE, after=6)
    scene.cut(7, 8)
    assert scene.since(8) is not None


def test_a_segment_that_is_reported_again_counts_once(scene: Scene) -> None:
    """A following process that takes over reports what is in the spool."""
    scene.kept.continues("app", WINDOW, IMAGE, after=0)
    scene.cut(1, 3)
    scene.cut(1, 3)
    found = scene.since(3)
    assert found is not None
    assert len(found.segments) == 1


@pytest.mark.parametrize("end", ["end_window", "forget", "clear"])
def test_nothing_stays_of_what_is_over(scene: Scene, end: str) -> None:
    """Neither files nor the image."""
    scene.kept.continues("app", WINDOW, IMAGE, after=0)
    scene.cut(1, 3)
    getattr(scene.kept, end)(*["app"] if end != "clear" else [])
    assert scene.files() == []
    assert scene.since(3) is None


def test_what_an_earlier_daemon_kept_goes(scene: Scene) -> None:
    """Which image it continued is not known."""
    scene.cut(1, 3)
    assert scene.files() == ["1.segment"]
    assert Scene(scene.directory).files() == []


@pytest.mark.parametrize("later", [timedelta(days=1), timedelta(seconds=-1)], ids=["a-day", "the-clock-went-back"])
def test_the_database_is_read_once_a_day(scene: Scene, later: timedelta) -> None:
    """However often it was built from the log since."""
    scene.kept.continues("app", WINDOW, IMAGE, after=0)
    scene.cut(1, 3)
    assert scene.since(3, at=NOON + timedelta(hours=23)) is not None
    assert scene.since(3, at=NOON + later) is None
