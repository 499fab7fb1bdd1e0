"""Captures in rollback-journal mode: how long writers wait, what is confirmed, and what happens when that cannot be."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from harness.capturing import Capturing, capture
from harness.command_line import wait_until
from harness.extent import sampled, slow
from harness.kept_workers import children_that_capture

from backupd.capture.confirmed import ConfirmedCapture
from backupd.capture.holder import LockHolder
from backupd.capture.limits import CaptureRequest, StreamBase
from backupd.capture.output import Events, Output
from backupd.capture.process import Compared, Event, Locked, PagesCaptured, Released
from backupd.errors import BackupdError, BusyError, SourceUnusableError
from backupd.format import lock_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

STEP = 64 << 10
COMMIT = "UPDATE t SET b = randomblob(300) WHERE a = abs(random() % 18000)"
_DERIVED = (slice(24, 28), slice(40, 44), slice(92, 96))


def without_derived(image: bytes) -> bytes:
    """The image without the three fields of page 1 that are derived from its content."""
    masked = bytearray(image)
    for part in _DERIVED:
        masked[part] = bytes(4)
    return bytes(masked)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """About 6 MB in SQLite's default journal mode: several steps of the backup API."""
    path = tmp_path / "data" / "app.db"
    path.parent.mkdir()
    fill(path)
    return path


def fill(path: Path, *pragmas: str, rows: int = 18_000) -> None:
    """Make a database of one table."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
        connection.executemany("INSERT INTO t (b) VALUES (?)", ((os.urandom(300),) for _ in range(rows)))


def commit(path: Path, statement: str = COMMIT) -> None:
    """What the application does, in one transaction."""
    with closing(sqlite3.connect(path, timeout=30)) as connection, connection:
        connection.execute(statement)


@contextmanager
def stopped(path: Path) -> Iterator[None]:
    """The process that captures does nothing, and holds no lock, until the block ends."""
    (child,) = children_that_capture()
    wait_until(lambda: _is_stopped_without_lock(child, path))
    try:
        yield
    finally:
        os.killpg(child, signal.SIGCONT)


def _is_stopped_without_lock(child: int, path: Path) -> bool:
    os.killpg(child, signal.SIGSTOP)
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            os.killpg(child, signal.SIGCONT)
            return False
        connection.execute("ROLLBACK")
        return True


class Application:
    """A process that executes the statements that it is given."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def execute(self, *statements: str) -> None:
        """Execute the statements one after the other, and return when all are done."""
        for statement in statements:
            assert self._process.stdin is not None
            self._process.stdin.write(f"{statement}\n")
            self._process.stdin.flush()
            assert self._process.stdout is not None
            assert self._process.stdout.readline() == "done\n"

    def crash(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


@contextmanager
def application(path: Path) -> Iterator[Application]:
    """Run one."""
    code = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)\n"
        "for line in sys.stdin:\n"
        "    connection.execute(line).fetchall()\n"
        "    print('done', flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Application(process)
        finally:
            process.kill()


HOLD = ("PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE", "COMMIT")
RELEASE = ("PRAGMA locking_mode = NORMAL", "SELECT count(*) FROM sqlite_schema")
SPILL = ("PRAGMA cache_size = 5", "BEGIN", "UPDATE t SET b = 'spilled'")


COMMITS_BETWEEN_STEPS = """
import os, subprocess, sys
_stat = os.stat
def stat(path, *arguments, **options):
    if path == {path!r} and not os.path.exists({reading!r}):
        code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute(sys.argv[2])"
        # While a step holds the lock, this fails, as it should.
        subprocess.run([sys.executable, "-I", "-c", code, {path!r}, {commit!r}], stderr=subprocess.DEVNULL)
    return _stat(path, *arguments, **options)
os.stat = stat
"""
GATED_READS = """
import os, time
_gated = os.preadv
def gated(descriptor, buffers, offset):
    open({reading!r}, "a").close()
    while not os.path.exists({gate!r}):
        time.sleep(0.002)
    return _gated(descriptor, buffers, offset)
os.preadv = gated
"""


class BetweenWrites:
    """Has the file read without a lock, and something happen between that and the lock.

    Another process commits between the steps of the backup API, until the file is read without a lock. The application
    keeps the database locked until that is done, does `then` while the capture waits for the lock, and lets it go.
    """

    def __init__(self, path: Path, site: Path, hold: Callable[[], None], then: Callable[[], None]) -> None:
        self._hold = hold
        self._then = then
        self._reading, self._gate = site / "reading", site / "gate"
        self._is_read = False
        self.code = commits_between_steps(path, self._reading) + GATED_READS.format(
            reading=str(self._reading), gate=str(self._gate)
        )
        self.has_done_it = False

    def __call__(self, event: Event | None) -> None:
        if self._reading.exists() and not self._gate.exists():
            self._hold()
            self._gate.touch()
        elif isinstance(event, PagesCaptured):
            self._is_read = self._gate.exists() and event.captured_bytes == event.image_bytes
        elif event is None and self._is_read and not self.has_done_it:
            self.has_done_it = True
            self._then()


def commits_between_steps(path: Path, reading: Path, commit: str = COMMIT) -> str:
    """Code that has another process commit whenever a capture looks at the file, until `reading` exists."""
    return COMMITS_BETWEEN_STEPS.format(path=str(path), reading=str(reading), commit=commit)


def captured_between_writes(
    path: Path,
    spool: Path,
    *statements: str,
    then: Callable[[Application], None] = lambda _: None,
    hold: Sequence[str] = HOLD,
    release: Sequence[str] = RELEASE,
    on_event: Callable[[Event | None], None] = lambda _: None,
    code: str = "",
    **options: Any,
) -> Capturing:
    """What is captured when `statements` are executed, and `then` is called, between the reading and the lock."""
    with application(path) as writer:

        def act() -> None:
            writer.execute(*statements)
            then(writer)
            writer.execute(*release)

        site = spool.with_name(f"{spool.name}-site")
        between_writes = BetweenWrites(path, site, lambda: writer.execute(*hold), act)

        def follow(event: Event | None) -> None:
            on_event(event)
            between_writes(event)

        with started_with(site, between_writes.code + code):
            captured = capture(path, spool, **{"whole_bytes": STEP, "lock_timeout": 30, **options}, on_event=follow)
        assert between_writes.has_done_it
        return captured


@contextmanager
def started_with(site: Path, code: str) -> Iterator[None]:
    """Have every process that captures execute `code` first: it stands for a system that behaves so."""
    site.mkdir()
    (site / "sitecustomize.py").write_text(code)
    with patch.dict(os.environ, PYTHONPATH=str(site)):
        yield


def test_small_database_is_copied_in_one_step(database: Path, tmp_path: Path) -> None:
    """A small database is copied under one lock, so that its writers wait once."""
    events: list[Event | None] = []
    capture(database, tmp_path / "spool", on_event=events.append)
    assert [type(event) for event in events if isinstance(event, Locked | Released)] == [Locked, Released]


def test_lock_is_released_between_the_steps(database: Path, tmp_path: Path) -> None:
    """Each step takes the lock for itself, and the lock is free after each of them."""
    events: list[Event | None] = []

    def on_event(event: Event | None) -> None:
        events.append(event)
        if isinstance(event, Released):
            with stopped(database):
                pass

    captured = capture(database, tmp_path / "spool", whole_bytes=STEP, on_event=on_event)
    steps = len([event for event in events if isinstance(event, Locked)])
    assert steps == -(-captured.page_count // 512)
    assert without_derived(captured.image()) == without_derived(database.read_bytes())


def test_commit_between_two_steps_begins_the_copy_again(database: Path, tmp_path: Path) -> None:
    """A commit between two steps begins the copy again, and the image is all of the later state."""
    marker = tmp_path / "marker"

    def on_event(event: Event | None) -> None:
        if isinstance(event, Released):
            marker.touch()

    with started_with(tmp_path / "site", commits_between_steps(database, marker)):
        captured = capture(database, tmp_path / "spool", whole_bytes=STEP, on_event=on_event)
    assert without_derived(captured.image()) == without_derived(database.read_bytes())


CRASHES_BEFORE_LAST_STEP = """
import os, subprocess, sys
_stat, looks, crashes = os.stat, [], []
def stat(path, *arguments, **options):
    status = _stat(path, *arguments, **options)
    if path == {path!r}:
        looks.append(path)
        if len(looks) >= {when} and not crashes:
            subprocess.run([sys.executable, "-I", "-c", {crash!r}])
            if _stat(path).st_mtime_ns != status.st_mtime_ns:  # while a step has the lock, nothing gets into the file
                crashes.append(True)
    return status
os.stat = stat
"""
CRASH = """
import os, sqlite3
connection = sqlite3.connect({path!r}, timeout=0, isolation_level=None)
for statement in ("PRAGMA journal_mode = MEMORY", "PRAGMA cache_size = 5", "BEGIN", "UPDATE t SET b = 'spilled'"):
    connection.execute(statement)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("when", sampled(range(3, 12), fast=3))
def test_crash_without_a_journal_between_two_steps_is_noticed(database: Path, tmp_path: Path, when: int) -> None:
    """A crash without a journal, which keeps the change counter, never mixes old and new pages in the image."""
    before = database.read_bytes()
    code = CRASHES_BEFORE_LAST_STEP.format(path=str(database), when=when, crash=CRASH.format(path=str(database)))
    wait_until(lambda: time.time() - database.stat().st_mtime > 0.1)
    with started_with(tmp_path / "site", code):
        captured = capture(database, tmp_path / "spool", whole_bytes=STEP)
    after = database.read_bytes()
    assert after != before
    assert without_derived(captured.image()) in {without_derived(before), without_derived(after)}


@pytest.mark.parametrize("page_size", sampled([4096, 512, 65536]))
def test_image_between_writes_is_the_file_under_the_lock(tmp_path: Path, page_size: int) -> None:
    """What was read without a lock and changed afterwards is read again under it; facts are of the same state."""
    database = tmp_path / "app.db"
    fill(database, f"page_size = {page_size}")
    captured = captured_between_writes(
        database,
        tmp_path / "spool",
        COMMIT,
        "PRAGMA user_version = 7",
        "CREATE TABLE late AS SELECT randomblob(300) FROM t LIMIT 100",
    )
    assert without_derived(captured.image()) == without_derived(database.read_bytes())
    assert captured.facts.user_version == 7
    assert captured.facts.tables == ("late", "t")
    assert captured.facts.sqlite_version == sqlite3.sqlite_version


@pytest.mark.parametrize(
    "statement", ["DELETE FROM t WHERE a > 1000", "INSERT INTO t (b) SELECT randomblob(300) FROM t LIMIT 9000"]
)
def test_image_that_shrinks_or_grows_while_it_is_read_is_whole(database: Path, tmp_path: Path, statement: str) -> None:
    """A VACUUM cuts the file, an import makes it longer: no page is left over, and none is missing."""
    captured = captured_between_writes(database, tmp_path / "spool", statement, "VACUUM")
    assert captured.page_count * captured.page_size == database.stat().st_size
    assert without_derived(captured.image()) == without_derived(database.read_bytes())


def test_only_what_changed_is_stored_between_writes(database: Path, tmp_path: Path) -> None:
    """The base counts in this way too."""
    first = capture(database, tmp_path / "first")
    commit(database, "UPDATE t SET b = 'changed' WHERE a = 700")
    base = StreamBase(first.page_size, str(first.hashes), ())
    second = captured_between_writes(database, tmp_path / "second", COMMIT, streams=[base])
    assert 0 < len(second.streams[0]) < 30
    image = bytearray(first.image())
    for number, page in second.streams[0].items():
        image[(number - 1) * first.page_size : number * first.page_size] = page
    assert without_derived(bytes(image)) == without_derived(database.read_bytes())


def test_transaction_that_spills_into_the_file_is_not_captured(database: Path, tmp_path: Path) -> None:
    """What it wrote into the file has the old change counter, is read without a lock, and was never committed."""
    spilled: list[bytes] = []
    captured = captured_between_writes(
        database,
        tmp_path / "spool",
        hold=SPILL,
        then=lambda _: spilled.append(database.read_bytes()),
        release=("ROLLBACK",),
    )
    assert without_derived(captured.image()) == without_derived(database.read_bytes()) != without_derived(spilled[0])


@pytest.mark.parametrize("is_at_rest", sampled([False, True]))
def test_file_at_rest_is_not_read_again_under_the_lock(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_at_rest: bool
) -> None:
    """A file that nothing has touched since long before it was read is not read again under the lock."""
    read_bytes: list[int] = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *where: read_bytes.append(preadv(*where)) or read_bytes[-1])
    request = CaptureRequest(str(database), str(tmp_path), streams=(), level=1, slots=9, lock_timeout=5, max_lock=3)
    with LockHolder(request) as holder:
        confirmed = ConfirmedCapture(request, Output(request, Events()), holder)
        if is_at_rest:
            confirmed._watch.begin()
            began_at = time.monotonic()
            wait_until(lambda: time.monotonic() - began_at > 3.1)
        assert confirmed.run()
    in_passes = sum(size for size in read_bytes if size >= STEP)
    assert in_passes == database.stat().st_size * (1 if is_at_rest else 2)


SLOW_READS = """
import os, time
_quick = os.preadv
def slow(descriptor, buffers, offset):
    time.sleep(0.12 * (len(buffers[0]) >= 65536))
    return _quick(descriptor, buffers, offset)
os.preadv = slow
"""


@slow
def test_database_that_is_too_large_for_max_lock_is_refused_with_a_remedy(database: Path, tmp_path: Path) -> None:
    """The capture ends before writers wait for longer, and the message says what would help."""
    with pytest.raises(BusyError, match=r"capture\.max_lock allows") as caught:
        # The API is expected to take four times as long as the slow reading, which is more than the lock may be held.
        captured_between_writes(database, tmp_path / "spool", max_lock=1, trusts_file=False, code=SLOW_READS)
    assert "WAL mode" in str(caught.value.hint)


@contextmanager
def writing(path: Path, statement: str = COMMIT) -> Iterator[Callable[[], float]]:
    """A process that commits all the time; yields a function that ends it and returns its longest wait."""
    code = (
        "import sqlite3, sys, threading, time\n"
        "connection = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)\n"
        "ended = []\n"
        "threading.Thread(target=lambda: ended.append(sys.stdin.read()), daemon=True).start()\n"
        "longest = 0.0\n"
        "while not ended:\n"
        "    at = time.monotonic()\n"
        "    connection.execute(sys.argv[2])\n"
        "    longest = max(longest, time.monotonic() - at)\n"
        "    time.sleep(0.002)\n"
        "print(longest)\n"
    )
    command = [sys.executable, "-c", code, str(path), statement]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield lambda: float(process.communicate("")[0])
        finally:
            process.kill()


@slow
def test_writer_of_scattered_pages_does_not_keep_a_capture_from_finishing(tmp_path: Path) -> None:
    """A capture finishes although each commit changes scattered pages, because only those pages are copied again."""
    database = tmp_path / "app.db"
    fill(database, rows=300_000)
    rows = ", ".join(["abs(random() % 300000)"] * 200)
    with writing(database, f"UPDATE t SET b = randomblob(300) WHERE a IN ({rows})") as end:
        captured = capture(database, tmp_path / "spool", max_lock=3.0)
        assert end() < 3.0
    image = tmp_path / "image.db"
    image.write_bytes(captured.image())
    with closing(sqlite3.connect(image)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@slow
def test_steady_writer_does_not_keep_a_capture_from_finishing(database: Path, tmp_path: Path) -> None:
    """Hundreds of commits a second, and a snapshot each time."""
    with writing(database) as writer:
        for number in range(5):
            captured = capture(database, tmp_path / f"spool-{number}", whole_bytes=STEP, max_lock=3.0)
            image = tmp_path / f"image-{number}.db"
            image.write_bytes(captured.image())
            with closing(sqlite3.connect(image)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert writer() < 3.0


def test_image_is_compared_with_the_api(database: Path, tmp_path: Path) -> None:
    """A comparison of the image with the backup API, if asked for and quick enough, finds no difference."""
    events: list[Event | None] = []
    captured = captured_between_writes(
        database, tmp_path / "spool", COMMIT, compare_seconds=3.0, on_event=events.append
    )
    assert [event for event in events if isinstance(event, Compared)] == [Compared(is_same=True)]
    assert without_derived(captured.image()) == without_derived(database.read_bytes())


def test_comparison_that_would_take_too_long_is_left_out_and_reported(database: Path, tmp_path: Path) -> None:
    """The application comes first; the event says that the comparison is still due."""
    events: list[Event | None] = []
    captured_between_writes(database, tmp_path / "spool", COMMIT, compare_seconds=1e-9, on_event=events.append)
    assert [event for event in events if isinstance(event, Compared)] == [Compared(is_same=None)]


HANGING_COMPARISON = """
import mmap, sys, time
if "backupd.capture.holder" in sys.orig_argv:
    class mapped(mmap.mmap):
        def __new__(cls, *arguments, **options):
            time.sleep(1000)
    mmap.mmap = mapped
"""


def test_comparison_that_does_not_end_in_time_does_not_fail_the_capture(database: Path, tmp_path: Path) -> None:
    """The lock is let go, the application writes again, and what was confirmed before that counts."""
    events: list[Event | None] = []
    with started_with(tmp_path / "site", HANGING_COMPARISON), writing(database) as end:
        captured = capture(database, tmp_path / "spool", whole_bytes=STEP, compare_seconds=0.5, on_event=events.append)
        assert end() < 3.0
    assert [event for event in events if isinstance(event, Compared)] == [Compared(is_same=None)]
    image = tmp_path / "image.db"
    image.write_bytes(captured.image())
    with closing(sqlite3.connect(image)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


LYING_READS = """
import os
_lying = os.preadv
def lying(descriptor, buffers, offset):
    filled = _lying(descriptor, buffers, offset)
    if offset <= 1_000_000 < offset + filled:
        buffers[0][1_000_000 - offset] ^= 1
    return filled
os.preadv = lying
"""


def test_file_that_reads_differently_is_captured_through_the_api(database: Path, tmp_path: Path) -> None:
    """A file system that shows stale pages is detected and reported; the image is what SQLite reads."""
    events: list[Event | None] = []
    captured = captured_between_writes(
        database, tmp_path / "spool", COMMIT, compare_seconds=3.0, on_event=events.append, code=LYING_READS
    )
    assert [event for event in events if isinstance(event, Compared)] == [Compared(is_same=False)]
    assert without_derived(captured.image()) == without_derived(database.read_bytes())


LYING_FIRST_PAGE = """
import os
_lying = os.preadv
def lying(descriptor, buffers, offset):
    filled = _lying(descriptor, buffers, offset)
    if offset == 0 and 200 < filled < 65536:
        buffers[0][200] ^= 1
    return filled
os.preadv = lying
"""


def test_first_page_that_reads_differently_is_that_of_the_api(database: Path, tmp_path: Path) -> None:
    """A comparison finds a first page that was read wrongly, and the image gets the page of the backup API."""
    events: list[Event | None] = []
    captured = captured_between_writes(
        database, tmp_path / "spool", COMMIT, compare_seconds=3.0, on_event=events.append, code=LYING_FIRST_PAGE
    )
    assert [event for event in events if isinstance(event, Compared)] == [Compared(is_same=False)]
    assert without_derived(captured.image()) == without_derived(database.read_bytes())


def test_file_that_is_not_trusted_is_captured_through_the_api(database: Path, tmp_path: Path) -> None:
    """A file that is not trusted is captured through the backup API, and a writer does not keep it from finishing."""
    with started_with(tmp_path / "site", LYING_READS):
        with writing(database) as end:
            capture(database, tmp_path / "first", whole_bytes=STEP, trusts_file=False)
            end()
        captured = capture(database, tmp_path / "second", whole_bytes=STEP, trusts_file=False)
    assert without_derived(captured.image()) == without_derived(database.read_bytes())


SHORT_READS = """
import os
_short = os.preadv
os.preadv = lambda descriptor, buffers, offset: _short(descriptor, [buffers[0][:150_000]], offset)
"""


def test_reads_that_give_less_than_was_asked_for_are_continued(database: Path, tmp_path: Path) -> None:
    """A read ends before a page that cannot be read, and on some file systems at any place."""
    captured = captured_between_writes(database, tmp_path / "spool", COMMIT, code=SHORT_READS)
    assert without_derived(captured.image()) == without_derived(database.read_bytes())


HANGING_READS = """
import os, time
_hanging, seen = os.preadv, []
def hanging(descriptor, buffers, offset):
    seen.extend([offset] * (len(buffers[0]) >= 65536))
    if seen.count(0) > 1:
        time.sleep(1000)
    return _hanging(descriptor, buffers, offset)
os.preadv = hanging
"""


@slow
def test_application_gets_its_database_back_when_reading_it_hangs(database: Path, tmp_path: Path) -> None:
    """The parent watches the lock too, and ends the process that holds it, when a disk stalls."""
    with pytest.raises(BusyError, match="held up its writers"):
        captured_between_writes(database, tmp_path / "spool", COMMIT, max_lock=1, code=HANGING_READS)
    commit(database, "DELETE FROM t")


@slow
def test_lock_ends_by_itself_when_all_others_hang(database: Path, tmp_path: Path) -> None:
    """The process that holds it has its own timer, so it does not matter which others are stopped, or how long."""
    has_read: list[bool] = []

    def on_event(event: Event | None) -> None:
        if has_read and isinstance(event, Locked):
            (child,) = children_that_capture()
            os.kill(child, signal.SIGSTOP)  # and this process reads no events meanwhile
            commit(database, "DELETE FROM t")
            os.kill(child, signal.SIGCONT)
            has_read.clear()

    with pytest.raises(BusyError, match="held up its writers"):
        captured_between_writes(
            database, tmp_path / "spool", then=lambda _: has_read.append(True), max_lock=1.5, on_event=on_event
        )
    assert not has_read


HANGING_FACTS = """
import hashlib, sys, time
if "backupd.capture.holder" in sys.orig_argv:
    hashlib.sha256 = lambda *_: time.sleep(1000)
"""


def test_lock_ends_by_itself_when_its_holder_hangs(database: Path, tmp_path: Path) -> None:
    """The timer runs before the holder has reported that it has the lock."""
    with pytest.raises(BusyError, match="held up its writers"):
        captured_between_writes(database, tmp_path / "spool", COMMIT, max_lock=1, code=HANGING_FACTS)
    commit(database, "DELETE FROM t")


@slow
def test_stall_of_the_parent_is_not_taken_for_a_long_lock(database: Path, tmp_path: Path) -> None:
    """The events of a lock that was short may be read late."""
    stalled_until: list[float] = []

    def stall(event: Event | None) -> None:
        if isinstance(event, Locked) and not stalled_until:
            stalled_until.append(time.monotonic() + 1.5)
            wait_until(lambda: time.monotonic() > stalled_until[0])

    captured = capture(database, tmp_path / "spool", whole_bytes=STEP, max_lock=0.2, on_event=stall)
    assert without_derived(captured.image()) == without_derived(database.read_bytes())


def test_application_gets_its_database_back_from_a_step_that_hangs(tmp_path: Path) -> None:
    """A step that hangs while it holds the lock is ended after `max_lock`, and the application can write again."""
    database = tmp_path / "app.db"
    fill(database, rows=150_000)

    def stop(event: Event | None) -> None:
        if isinstance(event, Locked):
            (child,) = children_that_capture()
            os.killpg(child, signal.SIGSTOP)

    with pytest.raises(BusyError, match="held up its writers"):
        capture(database, tmp_path / "spool", whole_bytes=1 << 30, max_lock=0.3, on_event=stop)
    commit(database, "DELETE FROM t")


@pytest.mark.parametrize("when", ["seen.count(0) == 1", "seen.count(0) > 1"], ids=["without lock", "under lock"])
def test_failing_disk_is_reported_as_such(database: Path, tmp_path: Path, when: str) -> None:
    """A disk that fails is reported as such and not as a bug, and the lock is released."""
    code = HANGING_READS.replace("time.sleep(1000)", "raise OSError(5, 'Input/output error')")
    code = code.replace("seen.count(0) > 1", when)
    with pytest.raises(SourceUnusableError, match="cannot be read: Input/output error"):
        captured_between_writes(database, tmp_path / "spool", COMMIT, code=code)
    commit(database, "DELETE FROM t")


def test_killed_capture_leaves_no_lock(database: Path, tmp_path: Path) -> None:
    """The process that holds the lock ends with the one that asked for it, however that ends."""
    has_read: list[bool] = []

    def kill(event: Event | None) -> None:
        if has_read and isinstance(event, Locked):
            for child in children_that_capture():
                os.kill(child, signal.SIGKILL)

    with pytest.raises(BackupdError, match="was killed"):
        captured_between_writes(database, tmp_path / "spool", then=lambda _: has_read.append(True), on_event=kill)
    commit(database, "DELETE FROM t")


def test_database_that_goes_over_to_wal_is_captured_in_that_way(database: Path, tmp_path: Path) -> None:
    """An operator follows the advice while a capture runs."""
    with application(database) as writer:
        code = commits_between_steps(database, tmp_path / "reading", "PRAGMA journal_mode = WAL")
        with started_with(tmp_path / "site", code):
            captured = capture(database, tmp_path / "spool", whole_bytes=STEP)
        assert captured.facts.journal_mode == "wal"
        writer.execute(COMMIT, "PRAGMA journal_mode = DELETE")
    assert captured.page_count * captured.page_size == database.stat().st_size


def test_page_size_changed_before_the_lock_is_reported(database: Path, tmp_path: Path) -> None:
    """VACUUM may change it: packs that were written before hold nothing of the new file."""
    with pytest.raises(BusyError, match="was rebuilt by the application"):
        captured_between_writes(database, tmp_path / "spool", "PRAGMA page_size = 8192", "VACUUM")


def test_file_that_is_replaced_in_between_is_captured_again(database: Path, tmp_path: Path) -> None:
    """A deployment puts another file in place: the image is that of the new one, whole."""

    def replace(_: Application) -> None:
        other = database.with_name("other.db")
        fill(other, rows=17_000)
        other.rename(database)

    captured = captured_between_writes(database, tmp_path / "spool", then=replace)
    assert without_derived(captured.image()) == without_derived(database.read_bytes())


def test_hot_journal_that_appears_in_between_is_refused(database: Path, tmp_path: Path) -> None:
    """A program crashed inside a transaction: what is in the file is no committed state, and is left alone."""
    with pytest.raises(BackupdError, match="hot rollback journal"):
        captured_between_writes(
            database, tmp_path / "spool", hold=SPILL, then=lambda writer: writer.crash(), release=()
        )
    assert database.with_name("app.db-journal").exists()


@slow
def test_lock_byte_page_is_left_out_between_writes(tmp_path: Path) -> None:
    """Beyond 1 GiB there is one page that belongs to SQLite's locks: it is a hole, whatever the file has there."""
    database = tmp_path / "app.db"
    with closing(sqlite3.connect(database)) as connection:
        for pragma in ("page_size = 65536", "journal_mode = OFF", "synchronous = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
        for _ in range(2):
            connection.execute("INSERT INTO t (b) VALUES (zeroblob(540000000))")
        connection.executemany("INSERT INTO t (b) VALUES (?)", [("small",)] * 18_000)
        connection.commit()
    captured = captured_between_writes(database, tmp_path / "spool", COMMIT)
    lock = lock_page(65536)
    assert set(range(1, captured.page_count + 1)) - set(captured.streams[0]) == {lock}


def test_nothing_is_written_beside_the_database(database: Path, tmp_path: Path) -> None:
    """An observer, in this way too: the file, its times and its directory are as the application left them."""
    seen: list[object] = []

    def look(_: Application | None = None) -> None:
        seen.append((database.read_bytes(), database.stat().st_mtime_ns, sorted(database.parent.iterdir())))

    captured_between_writes(database, tmp_path / "spool", then=look)
    look()
    assert seen[0] == seen[1]
