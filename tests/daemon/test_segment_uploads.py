"""Segments on their way into stores that are down, slow, refusing, back again, or not configured any more."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from harness.daemon import wait_until

from backupd.daemon.segment_uploads import SegmentUploads
from backupd.errors import StoreRefusedError, StoreUnavailableError
from backupd.follow.spool import BLOCK_BYTES
from backupd.format import SnapshotId
from backupd.format.segment import Commit, SegmentHead, encode_segment
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store import StoreWrapper
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WINDOW = SnapshotId("20261129T140000000Z-0badcafe")
ROOMY = 1 << 20


class MoodyStore(StoreWrapper):
    """Fails or holds back every segment whose key has a part in it, until the test says otherwise."""

    def __init__(self, root: Path) -> None:
        super().__init__(DirectoryStore(root))
        self.error: Exception | None = None
        self.fails = ""
        self.tried = 0
        self.flowing = threading.Event()
        self.flowing.set()

    @contextmanager
    def _around(self, verb: str, key: str) -> Iterator[None]:
        if verb == "put" and "/segments/" in key:
            self.tried += 1
            self.flowing.wait(60)
            if self.error is not None and self.fails in key:
                raise self.error
        yield


class Scene:
    """A spool, and two stores."""

    def __init__(self, root: Path) -> None:
        self.spool = root / "spool"
        self.spool.mkdir()
        state = StateDirectory(root / "state")
        self.stores = [MoodyStore(root / name) for name in ("one", "two")]
        self.repositories = [Repository(store, state) for store in self.stores]
        self.urls = [store.url for store in self.stores]
        self.uploads = SegmentUploads()
        self.uploads.use(self.repositories)

    def cut(self, number: int, *, database: str = "app", most_bytes: int = ROOMY) -> Path:
        """Add a segment of one commit."""
        file = self.spool / f"{database}-{number}.segment"
        head = SegmentHead(database=database, window=WINDOW, first=number, page_size=512)
        file.write_bytes(encode_segment(head, [Commit(7, 3, (1,), bytes(512))], level=1))
        self.uploads.add(database, file, self.urls, most_bytes=most_bytes)
        return file

    def stored(self, place: int, database: str = "app") -> list[int]:
        """The numbers of the commits in a store."""
        listed = self.repositories[place].archive(database).listing().segments.values()
        return [segment.key.first for segments in listed for segment in segments]

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits in the spool any more."""
        return not [*self.spool.iterdir()]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Two stores that take everything."""
    found = Scene(tmp_path)
    yield found
    for store in found.stores:
        store.flowing.set()
    found.uploads.stop(within_seconds=5)


def test_a_segment_leaves_the_spool_when_all_stores_have_it(scene: Scene):
    """A segment stays in the spool as long as one store lacks it."""
    scene.stores[1].flowing.clear()
    file = scene.cut(1)
    wait_until(lambda: scene.stored(0) == [1] and scene.stores[1].tried)
    assert file.exists()
    scene.stores[1].flowing.set()
    wait_until(lambda: scene.is_empty)
    assert scene.stored(1) == [1]


@pytest.mark.parametrize("error", [StoreUnavailableError("down"), StoreRefusedError("no"), OSError("odd")], ids=repr)
def test_a_store_that_fails_holds_up_no_other_and_gets_all_when_it_is_back(scene: Scene, error: Exception):
    """Whatever it answers, its segments wait, and go to it in their order."""
    scene.stores[0].error = error
    for number in range(1, 6):
        scene.cut(number)
    wait_until(lambda: scene.stored(1) == [1, 2, 3, 4, 5] and scene.stores[0].tried)
    assert not scene.is_empty
    scene.stores[0].error = None
    wait_until(lambda: scene.is_empty)
    assert scene.stored(0) == [1, 2, 3, 4, 5]


def test_a_database_that_a_store_refuses_holds_up_no_other(scene: Scene):
    """The segments of the others go first, and those of the refused one wait."""
    scene.stores[0].error, scene.stores[0].fails = StoreRefusedError("no"), "bad/"
    scene.cut(1, database="bad")
    wait_until(lambda: scene.stores[0].tried)
    for number in range(1, 4):
        scene.cut(number, database="good")
    wait_until(lambda: scene.stored(0, "good") == [1, 2, 3])
    scene.stores[0].error = None
    wait_until(lambda: scene.is_empty)
    assert scene.stored(0, "bad") == [1]


def test_what_waits_too_long_is_given_up_in_that_store_alone(scene: Scene):
    """The spool is free again, the other store has all, and the first one gets what comes later."""
    scene.stores[0].error = StoreUnavailableError("down")
    scene.cut(1)
    most_bytes = 5 * BLOCK_BYTES // 2
    wait_until(lambda: scene.stored(1) == [1])
    for number in range(2, 4):
        scene.cut(number, most_bytes=most_bytes)
        wait_until(lambda last=number: scene.stored(1)[-1:] == [last])
    wait_until(lambda: scene.is_empty)
    scene.stores[0].error = None
    scene.cut(4, most_bytes=most_bytes)
    wait_until(lambda: scene.stored(0) == [4] and scene.stored(1) == [1, 2, 3, 4])


def test_a_segment_larger_than_half_of_the_spool_is_put(scene: Scene):
    """Nothing else waits for the store, so that there is no reason to give it up."""
    scene.cut(1, most_bytes=1)
    wait_until(lambda: scene.is_empty)
    assert scene.stored(0) == scene.stored(1) == [1]


def test_what_is_removed_from_the_spool_by_hand_stops_nothing(scene: Scene):
    """What comes after it is put."""
    scene.stores[0].flowing.clear()
    scene.cut(1)
    wait_until(lambda: scene.stores[0].tried)
    scene.cut(2).unlink()
    scene.uploads.add("app", scene.spool / "never-there-1.segment", scene.urls, most_bytes=ROOMY)
    scene.cut(3)
    scene.stores[0].flowing.set()
    wait_until(lambda: scene.is_empty)
    assert scene.stored(0) == [1, 3]


def test_what_is_no_segment_is_left_out(scene: Scene):
    """A damaged file would be refused for ever: it is reported, removed, and what comes after it is put."""
    file = scene.spool / "damaged-1.segment"
    file.write_bytes(b"no segment")
    scene.uploads.add("app", file, scene.urls, most_bytes=ROOMY)
    scene.cut(1)
    wait_until(lambda: scene.is_empty)
    assert scene.stored(0) == [1]


def test_a_store_that_is_configured_no_more_holds_nothing_back(scene: Scene):
    """What waited for it leaves the spool, and nothing is put into it any more."""
    scene.stores[0].error = StoreUnavailableError("down")
    scene.cut(1)
    wait_until(lambda: scene.stores[0].tried)
    scene.uploads.use(scene.repositories[1:])
    wait_until(lambda: scene.is_empty)
    scene.stores[0].error = None
    scene.cut(2)
    wait_until(lambda: scene.is_empty)
    assert (scene.stored(0), scene.stored(1)) == ([], [1, 2])


def test_a_segment_that_is_added_twice_is_put_once(scene: Scene):
    """The process reports again what is in the spool when it begins to follow."""
    scene.stores[0].flowing.clear()
    file = scene.cut(1)
    scene.uploads.add("app", file, scene.urls, most_bytes=ROOMY)
    scene.stores[0].flowing.set()
    wait_until(lambda: scene.is_empty)
    assert [store.tried for store in scene.stores] == [1, 1]


def test_a_stop_during_an_upload_waits_no_longer_than_it_is_allowed(scene: Scene):
    """What a store that hangs has not taken stays in the spool for the next start."""
    scene.stores[0].flowing.clear()
    file = scene.cut(1)
    wait_until(lambda: scene.stores[0].tried and scene.stored(1) == [1])
    began = time.monotonic()
    scene.uploads.stop(within_seconds=0.2)
    assert time.monotonic() - began < 2
    assert file.exists()
