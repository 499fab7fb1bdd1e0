"""A chain: what is committed to a real database becomes segments in a spool, without a hole or with a gap."""

from __future__ import annotations

import json
import os
import resource
import struct
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.booking import book, connect
from harness.windows import Window, windows_of

from backupd.config import Database
from backupd.follow.chain import Chain, Mark, WindowBegan, WindowEnded
from backupd.follow.spool import PLACE, SEGMENT_SUFFIX, Cut
from backupd.format.segment import Anchor, decode_segment

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator

    from backupd.format import SnapshotId

SNAPSHOT = "20261129T150000000Z-0badcafe"
ROOMY = 64 << 20


class Scene:
    """A database in WAL mode with an open connection, and a spool."""

    def __init__(self, root: Path) -> None:
        self.path = root / "app.db"
        self.spool = root / "spool"
        self.spool.mkdir()
        self.connection: sqlite3.Connection = connect(self.path)
        self.connection.execute("PRAGMA wal_autocheckpoint = 0")
        book(self.connection)

    def chain(self, *, interval: float = 0.0, most_bytes: int = ROOMY, within: Path | None = None) -> Chain:
        """Another process would begin like this."""
        database = Database("app", self.path, within)
        return Chain(database, self.spool, interval=interval, most_bytes=most_bytes, rest=0.0)

    @property
    def files(self) -> list[Path]:
        """The segments in the spool."""
        return sorted(self.spool.glob(f"[!.]*{SEGMENT_SUFFIX}"))

    @property
    def windows(self) -> list[Window]:
        """The windows in the spool."""
        return windows_of(decode_segment(file.read_bytes()) for file in self.files)

    @property
    def ranges(self) -> list[list[tuple[int, int]]]:
        """First and last commits of the segments of each window."""
        return [[(each.first, each.last) for each in window.segments] for window in self.windows]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A database that something was committed to, and an empty spool."""
    found = Scene(tmp_path)
    with closing(found.connection):
        yield found


def marked(chain: Chain) -> tuple[SnapshotId, int] | None:
    """The answer to a mark."""
    return next(((each.window, each.last) for each in chain.mark() if isinstance(each, Mark)), None)


def anchor_now(chain: Chain) -> None:
    """Let a snapshot lie in the window."""
    mark = marked(chain)
    assert mark is not None
    window, last = mark
    chain.anchor(window, Anchor(snapshot=SNAPSHOT, after=last - 1, by=last))


def of_kind(kind: type[object], happened: Iterable[object]) -> list[object]:
    """What happened of one kind."""
    return [each for each in happened if isinstance(each, kind)]


def ends(happened: Iterable[object]) -> list[str]:
    """The reasons why windows have ended."""
    return [each.reason for each in happened if isinstance(each, WindowEnded)]


@contextmanager
def no_room() -> Iterator[None]:
    """No file can grow: the system refuses as it does when a disk is full, with another number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_commits_are_numbered_without_a_hole(scene: Scene):
    """Each poll continues where the one before has ended, and a segment says what it has."""
    chain = scene.chain()
    (began, cut) = chain.poll()
    assert isinstance(began, WindowBegan)
    assert isinstance(cut, Cut)
    for commits in (1, 4, 2):
        book(scene.connection, commits)
        (cut,) = chain.poll()
    assert (cut.window, cut.first, cut.last) == (began.window, 7, 8)
    assert scene.ranges == [[(1, 1), (2, 2), (3, 6), (7, 8)]]
    assert Path(cut.file) == scene.files[-1]
    chain.close()


def test_a_segment_is_cut_when_the_interval_is_over(scene: Scene):
    """Before that, nothing is written; `cut` writes it at once."""
    chain = scene.chain(interval=3600)
    for _ in range(3):
        book(scene.connection)
        assert not [each for each in chain.poll() if isinstance(each, Cut)]
    assert scene.files == []
    assert [(each.first, each.last) for each in chain.cut() if isinstance(each, Cut)] == [(1, 3)]
    assert list(chain.cut()) == []
    chain.close()


def test_a_database_at_rest_is_looked_at_and_no_more(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    """While `stat` shows no change, nothing is read; the next commit is, and waits for the interval as ever."""
    chain = scene.chain(interval=3600)
    list(chain.poll())
    list(chain.cut())
    later = time.time_ns() + 1_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    list(chain.poll())
    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", lambda *_: pytest.fail("the log was read"))
        for _ in range(20):
            assert list(chain.poll()) == []
    assert chain.pause == 1.0
    book(scene.connection)
    assert list(chain.poll()) == []
    assert [(each.first, each.last) for each in chain.cut() if isinstance(each, Cut)] == [(2, 2)]
    chain.close()


def test_a_segment_is_cut_when_it_is_large(scene: Scene):
    """Large commits do not wait for the interval, and a segment has no more than 16 MiB of several commits."""
    chain = scene.chain(interval=3600)
    list(chain.poll())
    for _ in range(5):
        scene.connection.execute("INSERT INTO booking (body) VALUES (zeroblob(7000000))")
    list(chain.poll())
    list(chain.poll())
    list(chain.cut())
    assert [last - first < 3 for first, last in scene.ranges[0]] == [True] * len(scene.ranges[0])
    assert scene.windows[0].reach() == 6
    chain.close()


def test_nothing_committed_is_no_segment(scene: Scene):
    """An idle database, and a transaction that is rolled back, write nothing into the spool."""
    chain = scene.chain()
    list(chain.poll())
    scene.connection.execute("BEGIN")
    book(scene.connection)
    scene.connection.execute("ROLLBACK")
    assert list(chain.poll()) == []
    assert len(scene.files) == 1
    chain.close()


def test_another_process_continues_a_window_that_it_can_prove(scene: Scene):
    """The window goes on at the next number, also with what was committed while no process ran."""
    first = scene.chain()
    list(first.poll())
    first.close()
    book(scene.connection, 3)
    second = scene.chain()
    book(scene.connection)
    list(second.poll())
    second.close()
    assert scene.ranges == [[(1, 1), (2, 5)]]


def test_another_process_begins_a_window_when_something_is_missing(scene: Scene):
    """A log that was written again meanwhile proves nothing: the next window says why it is another one."""
    first = scene.chain()
    list(first.poll())
    first.close()
    for _ in range(2):
        book(scene.connection, 2)
        scene.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    book(scene.connection, 2)
    second = scene.chain()
    assert len(ends(second.poll())) == 1
    second.close()
    assert [window.segments[0].first for window in scene.windows] == [1, 1]
    assert scene.windows[1].gap


@pytest.mark.parametrize("moment", ["segment in part", "segment whole", "place in part", "no place yet"])
def test_a_process_that_dies_while_it_cuts_leaves_no_hole(scene: Scene, moment: str):
    """What was not noted is read again: commits are in two segments then, and in the same window."""
    first = scene.chain()
    if moment != "no place yet":
        list(first.poll())
        book(scene.connection, 2)
    place = scene.spool / PLACE
    before = place.read_bytes() if place.exists() else None
    list(first.poll())
    first.close()
    if before is None:
        place.unlink()
    else:
        place.write_bytes(before)
    newest = scene.files[-1]
    if moment == "segment in part":
        newest.rename(newest.with_name(f".{newest.name}")).write_bytes(newest.name.encode())
    if moment == "place in part":
        place.with_name(f".{PLACE}").write_text("{")
    book(scene.connection)
    second = scene.chain()
    list(second.poll())
    book(scene.connection)
    list(second.poll())
    second.close()
    assert not list(scene.spool.glob(".*"))
    if moment == "no place yet":
        assert scene.ranges in ([[(1, 1)], [(1, 1), (2, 2)]], [[(1, 1), (2, 2)], [(1, 1)]])
    else:
        assert len(scene.windows) == 1
        assert scene.windows[0].reach() == 5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b'{"window": "x", "last": 1, "seen_at_ms": 1, "position": []}',
        b'{"window": 7}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=range(8),
)
def test_a_place_that_cannot_be_read_is_none(scene: Scene, content: bytes):
    """What is in its place never stops a process: it begins a window."""
    (scene.spool / PLACE).write_bytes(content)
    chain = scene.chain()
    assert of_kind(WindowBegan, chain.poll())
    chain.close()


def test_each_wrong_value_in_a_place_is_a_new_window(scene: Scene):
    """A place with another position, or another boot, is not taken up."""
    chain = scene.chain()
    list(chain.poll())
    chain.close()
    whole = json.loads((scene.spool / PLACE).read_bytes())
    for index in range(len(whole["position"])):
        wrong = json.loads(json.dumps(whole))
        value = wrong["position"][index]
        others = {str: "another", bool: not value, int: 512, list: [1, 2]}
        wrong["position"][index] = others[type(value)]
        (scene.spool / PLACE).write_text(json.dumps(wrong))
        chain = scene.chain()
        happened = [*chain.poll()]
        # The order of bytes is asked for behind a reset only.
        assert ends(happened) or isinstance(value, bool), f"position {index} counts nothing"
        chain.close()


def test_a_clock_that_is_set_back_does_not_turn_commits_around(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    """Times never descend within a window, also not after a restart."""
    clock = iter(range(2_000_000_000_000_000_000, 0, -1_000_000_000))
    chain = scene.chain()
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    for _ in range(4):
        book(scene.connection)
        list(chain.poll())
    chain.close()
    book(scene.connection)
    second = scene.chain()
    list(second.poll())
    second.close()
    (window,) = scene.windows
    seen = [commit.seen_at_ms for segment in window.segments for commit in segment.commits]
    assert seen == sorted(seen)
    assert len(seen) == 5


def test_a_clock_that_was_far_ahead_begins_another_window(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    """Otherwise all times would stand still until the clock is there again, and no commit be found by its time."""
    clock = [2_000_000_000_000_000_000]
    monkeypatch.setattr(time, "time_ns", lambda: clock[0])
    chain = scene.chain()
    list(chain.poll())
    anchor_now(chain)
    clock[0] -= 3_600_000_000_000
    book(scene.connection)
    assert ends(chain.poll()) == ["the clock was set back"]
    chain.close()
    times = [[commit.seen_at_ms for commit in window.segments[-1].commits] for window in scene.windows]
    assert sorted(times) == [[clock[0] // 1_000_000], [2_000_000_000_000]]


def test_a_window_without_a_snapshot_leaves_nothing(scene: Scene):
    """Nothing in it could be restored: an application that closes its connection each time costs no objects."""
    chain = scene.chain(interval=3600)
    list(chain.poll())
    book(scene.connection, 3)
    list(chain.poll())
    scene.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert ends(chain.poll())
    chain.close()
    assert scene.windows == []


def test_a_full_spool_ends_the_window_and_the_next_begins_when_there_is_room(scene: Scene):
    """What does not fit is a gap. Nothing is kept until half of the spool is free again."""
    chain = scene.chain(most_bytes=30_000)
    happened: list[object] = []
    while not ends(happened):
        book(scene.connection, 10)
        happened += chain.poll()
    assert sum(file.stat().st_size for file in scene.files) <= 30_000
    files = scene.files
    book(scene.connection)
    assert list(chain.poll()) == []
    for file in files:
        file.unlink()
    book(scene.connection)
    assert of_kind(WindowBegan, chain.poll())
    (window,) = scene.windows
    assert "wait for the stores" in str(window.gap)
    chain.close()


def test_nothing_of_a_window_that_was_given_up_is_in_the_next(scene: Scene):
    """A gap in the log, and then no room for what came before it: what is behind the gap must not be a beginning.

    The position in the log is lost by then, so that commits would be missing behind it.
    """
    chain = scene.chain(interval=3600, most_bytes=3000)
    list(chain.poll())
    anchor_now(chain)
    book(scene.connection, 20)
    list(chain.poll())
    for _ in range(2):
        scene.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        book(scene.connection)
    assert ends(chain.poll())
    last = book(scene.connection, 5)
    list(chain.poll())
    list(chain.cut())
    (window,) = scene.windows
    assert window.reach() == 1
    assert last == 28
    chain.close()


def test_a_spool_that_takes_nothing_is_a_gap(scene: Scene):
    """A disk that is full ends the window, leaves no part of a file, and the next one begins when it takes files."""
    chain = scene.chain()
    list(chain.poll())
    book(scene.connection)
    with no_room():
        (reason,) = ends(chain.poll())
    assert "the spool cannot be written" in reason
    assert not (scene.spool / PLACE).exists()
    assert not list(scene.spool.glob(".*"))
    book(scene.connection)
    list(chain.poll())
    assert [window.segments[0].first for window in scene.windows] == [1, 1]
    chain.close()


def test_a_window_does_not_begin_again_at_once_when_it_could_not_be_stored(scene: Scene):
    """Each beginning asks for a snapshot: there is a rest between them."""
    chain = Chain(Database("app", scene.path), scene.spool, interval=0.0, most_bytes=ROOMY, rest=3600)
    list(chain.poll())
    book(scene.connection)
    with no_room():
        assert ends(chain.poll())
    book(scene.connection)
    assert list(chain.poll()) == []
    assert marked(chain) is None
    chain.close()


@pytest.mark.parametrize("is_waiting", [False, True])
def test_a_spool_that_is_gone_is_made_again(scene: Scene, *, is_waiting: bool):
    """The directory was removed: no exception, also while there is no room, and the directory is there again."""
    chain = scene.chain(most_bytes=3000 if is_waiting else ROOMY)
    list(chain.poll())
    while is_waiting and not ends(chain.poll()):
        book(scene.connection, 10)
    scene.spool.rename(scene.spool.with_name("elsewhere"))
    for _ in range(3):
        book(scene.connection)
        list(chain.poll())
    if not is_waiting:
        anchor_now(chain)
        book(scene.connection)
        list(chain.poll())
        assert scene.spool.stat().st_mode & 0o777 == 0o700
        assert scene.windows[-1].segments
    chain.close()


def test_segments_that_go_to_the_stores_meanwhile_are_no_failure(scene: Scene):
    """The spool is measured while files disappear from it: that is no gap."""
    listing = scene.spool / f"gone{SEGMENT_SUFFIX}"
    listing.symlink_to("nowhere")  # as a file that was removed after it was listed
    chain = scene.chain()
    for _ in range(3):
        book(scene.connection)
        assert ends(chain.poll()) == []
    chain.close()


def test_segments_in_the_spool_are_reported_to_the_next_process(scene: Scene):
    """In their order, and nothing else that lies there."""
    chain = scene.chain()
    cuts = []
    for _ in range(3):
        book(scene.connection)
        cuts += [each for each in chain.poll() if isinstance(each, Cut)]
    chain.close()
    (scene.spool / f"odd{SEGMENT_SUFFIX}").touch()
    (scene.spool / f"20269929T150000000Z-0badcafe-000000000001-000000000001-1{SEGMENT_SUFFIX}").touch()
    second = scene.chain()
    assert second.found() == cuts
    second.close()


def test_a_mark_is_the_last_commit_by_now(scene: Scene):
    """A mark counts what no poll has read yet; there is none before the first commit of a window."""
    scene.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    chain = scene.chain(interval=3600)
    assert marked(chain) is None
    book(scene.connection, 2)
    first = marked(chain)
    book(scene.connection, 3)
    second = marked(chain)
    assert first is not None
    assert second is not None
    assert (second[0], second[1] - first[1]) == (first[0], 3)
    chain.close()


def test_a_mark_says_nothing_while_the_header_of_the_log_is_not_valid(scene: Scene):
    """What is in the log is not known then: a snapshot might be later than the last commit that was seen."""
    chain = scene.chain()
    list(chain.poll())
    book(scene.connection, 2)
    log = scene.path.with_name("app.db-wal")
    content = log.read_bytes()
    log.write_bytes(content[:16] + b"\0\0" + content[18:])
    assert marked(chain) is None
    chain.close()


def test_an_anchor_is_in_the_next_segment_and_in_no_other(scene: Scene):
    """A snapshot that was taken between two marks is named by the first segment after it, also by another process."""
    for is_restarted in (False, True):
        chain = scene.chain()
        list(chain.poll())
        found = marked(chain)
        assert found is not None
        window, last = found
        anchor = Anchor(snapshot=SNAPSHOT, after=last - 1, by=last)
        chain.anchor(window, anchor)
        if is_restarted:
            chain.close()
            chain = scene.chain()
        for _ in range(2):
            book(scene.connection)
            list(chain.poll())
        assert [each.head.anchors for each in scene.windows[-1].segments[-2:]] == [(anchor,), ()]
        chain.anchor(type(window)(SNAPSHOT), anchor)  # a window that is over
        book(scene.connection)
        list(chain.poll())
        assert scene.windows[-1].segments[-1].head.anchors == ()
        chain.close()


def test_a_window_without_a_snapshot_asks_again_for_one_when_it_is_continued(scene: Scene):
    """The process before may have died before the snapshot was taken; after an anchor, nothing more is asked for."""
    chain = scene.chain()
    (began, _) = chain.poll()
    assert isinstance(began, WindowBegan)
    chain.close()
    chain = scene.chain()
    assert list(chain.poll()) == [began]
    chain.anchor(began.window, Anchor(snapshot=SNAPSHOT, after=0, by=1))
    chain.close()
    chain = scene.chain()
    assert list(chain.poll()) == []
    chain.close()


@pytest.mark.parametrize("kind", ["pipe", "link", "directory", "unreadable"])
def test_what_is_no_log_is_a_gap_and_no_hang(scene: Scene, kind: str):
    """Whatever another user puts in the place of the log, the window ends, and goes on with a log that is one."""
    chain = scene.chain()
    list(chain.poll())
    log = scene.path.with_name("app.db-wal")
    aside = log.with_name("aside")
    log.rename(aside)
    match kind:
        case "pipe":
            os.mkfifo(log)
        case "link":
            log.symlink_to(aside)
        case "directory":
            log.mkdir()
        case _:
            if os.geteuid() == 0:
                pytest.skip("root may read everything")
            aside.rename(log)
            log.chmod(0)
            book(scene.connection)
    began = time.monotonic()
    happened = [each for _ in range(3) for each in chain.poll()]
    assert len(ends(happened)) == 1
    assert marked(chain) is None
    assert time.monotonic() - began < 2
    chain.close()


def test_a_mark_ends_when_the_log_goes_away_with_much_unread(scene: Scene):
    """More than one poll takes is in the log when it is removed: the mark does not wait for it."""
    chain = scene.chain()
    list(chain.poll())
    for _ in range(5):
        scene.connection.execute("INSERT INTO booking (body) VALUES (zeroblob(7000000))")
    list(chain.poll())
    scene.path.with_name("app.db-wal").unlink()
    assert marked(chain) is None
    chain.close()


def test_a_log_that_another_user_made_up_is_a_gap_and_no_end_of_the_process(scene: Scene):
    """A valid log may say what SQLite never writes; one database must not stop the process that follows all."""
    chain = scene.chain()
    list(chain.poll())
    log = scene.path.with_name("app.db-wal")
    for page, page_count in ((0, 1), (9, 1), (1, 0xFFFFFFFF), ((1 << 30) // 4096 + 1, 1 << 20)):
        log.unlink(missing_ok=True)
        log.write_bytes(_made_up_log(page, page_count))
        happened = [each for _ in range(3) for each in chain.poll()]
        assert not of_kind(Cut, happened), (page, page_count)
    log.unlink()
    chain.close()


def _made_up_log(page: int, page_count: int) -> bytes:
    """A log of one frame with right checksums."""

    def summed(data: bytes, s0: int, s1: int) -> tuple[int, int]:
        words = struct.unpack(f"<{len(data) // 4}I", data)
        for x0, x1 in zip(words[::2], words[1::2], strict=True):
            s0 = (s0 + x0 + s1) & 0xFFFFFFFF
            s1 = (s1 + x1 + s0) & 0xFFFFFFFF
        return s0, s1

    head = struct.pack(">6I", 0x377F0682, 3007000, 4096, 0, 7, 8)
    sums = summed(head, 0, 0)
    image, frame = bytes(4096), struct.pack(">2I", page, page_count)
    return b"".join(
        (head, struct.pack(">2I", *sums), frame, struct.pack(">4I", 7, 8, *summed(frame + image, *sums)), image)
    )


def test_a_link_to_the_database_of_another_tenant_is_not_followed(tmp_path: Path):
    """A tenant replaces the directory of a followed database by a link: nothing of the other's database is taken."""
    tenants = tmp_path / "tenants"
    for name in ("mine", "theirs"):
        (tenants / name / "data").mkdir(parents=True)
    (tmp_path / "spool").mkdir()
    database = Database("app", tenants / "mine/data/app.db", tenants / "mine")
    chain = Chain(database, tmp_path / "spool", interval=0, most_bytes=ROOMY, rest=0.0)
    with closing(connect(database.path)) as mine, closing(connect(tenants / "theirs/data/app.db")) as theirs:
        book(mine)
        book(theirs, 3)
        list(chain.poll())
        (tenants / "mine/data").rename(tenants / "mine/aside")
        (tenants / "mine/data").symlink_to(tenants / "theirs/data")
        happened: list[object] = []
        for _ in range(4):
            book(theirs)
            happened += chain.poll()
            assert marked(chain) is None
        assert len(ends(happened)) == 1
        assert not of_kind(Cut, happened)
        (tenants / "mine/data").unlink()
        (tenants / "mine/aside").rename(tenants / "mine/data")
        book(mine)
        assert of_kind(Cut, chain.poll())
    chain.close()


def test_a_path_that_leads_to_another_database_ends_the_window(tmp_path: Path):
    """A link in the path is set to another file, whose snapshots must not lie in the window of the first."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "spool").mkdir()
    current = tmp_path / "current"
    current.symlink_to(tmp_path / "one")
    chain = Chain(Database("app", current / "app.db"), tmp_path / "spool", interval=0, most_bytes=ROOMY, rest=0.0)
    with closing(connect(tmp_path / "one/app.db")) as one, closing(connect(tmp_path / "two/app.db")) as two:
        book(one)
        book(two)
        before = marked(chain)
        current.unlink()
        current.symlink_to(tmp_path / "two")
        after = marked(chain)
        assert before is not None
        assert after is not None
        assert before[0] != after[0]
    chain.close()
