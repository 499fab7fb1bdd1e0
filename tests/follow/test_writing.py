"""A chain whose segments are written by a thread: the log is read meanwhile, and nothing is noted too early."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from harness.booking import book

from backupd.config import Database
from backupd.follow.chain import Chain, Mark, WindowBegan, Written
from backupd.follow.spool import PLACE, Cut
from backupd.format.segment import Anchor
from follow.test_chain import ROOMY, SNAPSHOT, Scene, anchor_now, ends, marked, no_room, of_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class HeldWriter:
    """Writes segments when a test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], Written], Future[Written]]] = []
        self.waiting_bytes = 0
        """Of all that was ever to be written."""
        self.is_crowded = False

    def write(self, call: Callable[[], Written], size_bytes: int) -> Future[Written]:
        """Put a call into the queue."""
        future: Future[Written] = Future()
        self.waiting.append((call, future))
        self.waiting_bytes += size_bytes
        return future

    def work(self) -> None:
        """Make all calls that wait."""
        while self.waiting:
            call, future = self.waiting.pop(0)
            future.set_result(call())

    @contextmanager
    def in_thread(self) -> Iterator[None]:
        """Make them in a thread, which the code inside may wait for."""
        has_ended = threading.Event()

        def work() -> None:
            while not has_ended.wait(0.001):
                self.work()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            has_ended.set()
            thread.join()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A database that something was committed to, and an empty spool."""
    found = Scene(tmp_path)
    with closing(found.connection):
        yield found


@pytest.fixture
def writer() -> HeldWriter:
    """What writes the segments."""
    return HeldWriter()


def held_chain(scene: Scene, writer: HeldWriter, *, most_bytes: int = ROOMY) -> Chain:
    """A chain that has a window with a snapshot, and one segment in the spool."""
    database = Database("app", scene.path)
    chain = Chain(
        database,
        scene.spool,
        interval=0.0,
        most_bytes=most_bytes,
        rest=0.0,
        write=writer.write,
        is_crowded=lambda: writer.is_crowded,
    )
    assert of_kind(WindowBegan, chain.poll())
    writer.work()
    assert of_kind(Cut, chain.collect())
    anchor_now(chain)
    return chain


def test_a_log_that_is_written_over_meanwhile_is_no_gap(scene: Scene, writer: HeldWriter):
    """What is committed while a segment is written is read then, and is in the next segment."""
    chain = held_chain(scene, writer)
    book(scene.connection, 2)
    assert [*chain.poll()] == []
    for commits in (3, 2, 1):
        book(scene.connection, commits)
        assert [*chain.poll()] == []
        scene.connection.execute("PRAGMA wal_checkpoint(RESTART)")
    assert len(writer.waiting) == 1
    writer.work()
    (first,) = chain.collect()
    assert [*chain.poll()] == []
    writer.work()
    (second,) = chain.poll()
    assert isinstance(first, Cut)
    assert isinstance(second, Cut)
    assert [(first.first, first.last), (second.first, second.last)] == [(2, 3), (4, 9)]
    assert scene.windows[0].reach() == 9
    chain.close()


def test_no_place_is_noted_before_its_segments_are_there(scene: Scene, writer: HeldWriter):
    """A process that is killed meanwhile leaves an earlier place, from which the next one reads the same again."""
    chain = held_chain(scene, writer)
    before = (scene.spool / PLACE).read_bytes()
    book(scene.connection, 2)
    assert [*chain.poll()] == []
    assert (scene.spool / PLACE).read_bytes() == before
    second = scene.chain()
    (cut,) = second.poll()
    assert (cut.first, cut.last) == (2, 3)
    second.close()
    writer.work()
    assert [(each.first, each.last) for each in chain.collect() if isinstance(each, Cut)] == [(2, 3)]
    chain.close()
    third = scene.chain()
    book(scene.connection)
    (cut,) = third.poll()
    assert (cut.first, cut.last) == (4, 4)
    third.close()


@pytest.mark.parametrize("reason", ["the spool cannot be written", "would wait for the stores"])
def test_what_could_not_be_written_ends_the_window_with_all_behind_it(scene: Scene, writer: HeldWriter, reason: str):
    """Commits that were read meanwhile continue something that is not stored: they are given up, too."""
    chain = held_chain(scene, writer, most_bytes=ROOMY if "written" in reason else 4096)
    book(scene.connection, 2)
    assert [*chain.poll()] == []
    book(scene.connection, 2)
    assert [*chain.poll()] == []
    with no_room():
        writer.work()
    (ended,) = ends(chain.collect())
    assert reason in ended
    assert not (scene.spool / PLACE).exists()
    (window,) = scene.windows
    assert window.reach() == 1
    for file in scene.files:
        file.unlink()
    book(scene.connection)
    assert of_kind(WindowBegan, chain.poll())
    writer.work()
    (cut,) = chain.collect()
    assert isinstance(cut, Cut)
    assert cut.first == 1
    chain.close()


def test_what_is_before_a_gap_is_written_before_the_window_ends(scene: Scene, writer: HeldWriter):
    """The segments of the old window come first, and then its end."""
    chain = held_chain(scene, writer)
    book(scene.connection, 2)
    assert [*chain.poll()] == []
    book(scene.connection)
    assert [*chain.poll()] == []
    scene.path.with_name("app.db-wal").unlink()
    with writer.in_thread():
        happened = [*chain.poll()]
    assert [(each.first, each.last) for each in happened[:-1] if isinstance(each, Cut)] == [(2, 3), (4, 4)]
    assert len(ends(happened)) == 1
    chain.close()


def test_cut_waits_for_all_that_was_read(scene: Scene, writer: HeldWriter):
    """What is being written, and what was read after it, is in the spool when it returns."""
    chain = held_chain(scene, writer)
    for _ in range(2):
        book(scene.connection)
        assert [*chain.poll()] == []
    with writer.in_thread():
        cuts = [(each.first, each.last) for each in chain.cut() if isinstance(each, Cut)]
        chain.close()
    assert cuts == [(2, 2), (3, 3)]
    second = scene.chain()
    assert [*second.poll()] == []
    second.close()


def test_much_that_was_read_waits_for_the_segment_before(scene: Scene, writer: HeldWriter):
    """Not more than a few segments of the largest size are in memory."""
    chain = held_chain(scene, writer)
    for _ in range(4):
        scene.connection.execute("INSERT INTO booking (body) VALUES (zeroblob(14000000))")
        book(scene.connection)
        assert [*chain.poll()] == []
    scene.connection.execute("INSERT INTO booking (body) VALUES (zeroblob(14000000))")
    with writer.in_thread():
        assert of_kind(Cut, chain.poll())
        assert of_kind(Cut, chain.cut())
    assert scene.windows[0].reach() == 10
    chain.close()


def test_the_log_waits_while_the_writer_is_crowded(scene: Scene, writer: HeldWriter):
    """What many busy databases have read is in memory: no more of it than a segment each."""
    chain = held_chain(scene, writer)
    writer.is_crowded = True
    book(scene.connection, 2)
    before = writer.waiting_bytes
    with writer.in_thread():
        assert [(each.first, each.last) for each in of_kind(Cut, chain.poll())] == [(2, 3)]
    assert writer.waiting_bytes > before
    chain.close()


def test_a_mark_does_not_wait_for_the_spool(scene: Scene, writer: HeldWriter):
    """A mark counts what was read; a snapshot that is taken meanwhile is named by the segment after."""
    chain = held_chain(scene, writer)
    book(scene.connection, 2)
    found = marked(chain)
    assert found is not None
    window, last = found
    assert last == 3
    anchor = Anchor(snapshot=SNAPSHOT[:-1] + "f", after=last - 1, by=last)
    chain.anchor(window, anchor)
    assert len(writer.waiting) == 1
    writer.work()
    assert of_kind(Cut, chain.collect())
    chain.close()
    second = scene.chain()
    book(scene.connection)
    assert of_kind(Cut, second.poll())
    assert [len(each.head.anchors) for each in scene.windows[0].segments] == [0, 1, 1]
    assert scene.windows[0].segments[-1].head.anchors == (anchor,)
    assert not of_kind(Mark, second.poll())
    second.close()
