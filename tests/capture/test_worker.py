"""One process captures databases one after the other: what a crash or a hang costs, and that nothing is left over."""

from __future__ import annotations

import os
import signal
import sqlite3
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from fcntl import F_GETLK, F_UNLCK, F_WRLCK, fcntl, ioctl
from pathlib import Path
from termios import FIONREAD
from typing import TYPE_CHECKING

import pytest
from harness.capturing import NOTHING, capture
from harness.command_line import wait_until
from harness.kept_workers import children_that_capture

from backupd.capture.limits import WHOLE_BYTES, CaptureRequest, StreamBase
from backupd.capture.process import Capture, Captured, Pinned
from backupd.capture.worker import Worker, Workers
from backupd.errors import BackupdError, BusyError, LimitReachedError, NotADatabaseError, SourceUnusableError
from backupd.system.processes import child_environment, command_of, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.capturing import Capturing

    from backupd.capture.process import Event

SOON_SECONDS = 30.0


def _database(path: Path, journal_mode: str = "wal", *, rows: int = 200) -> Path:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
        connection.executemany("INSERT INTO t (b) VALUES (?)", ((os.urandom(300),) for _ in range(rows)))
    return path


def _rows(image: bytes) -> int:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(image[:18] + b"\x01\x01" + image[20:])  # no WAL in memory
        (count,) = connection.execute("SELECT count(*) FROM t").fetchone()
    return int(count)


class Run:
    """A run over several databases: its workers, what it captured, and which processes did so."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.workers = Workers()
        self.processes: list[int] = []

    def capture(self, database: Path, meddle: Callable[[int], object] = lambda _: None, **limits: float) -> Capturing:
        """Capture one database; `meddle` gets the id of the process when the state is pinned."""

        def on_event(event: Event | None) -> None:
            if isinstance(event, Pinned):
                (child,) = children_that_capture()
                self.processes.append(child)
                meddle(child)

        spool = self.root / "spools" / f"{database.name}-{time.monotonic_ns()}"
        return capture(database, spool, on_event=on_event, workers=self.workers, **limits)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run, whose workers end with it."""
    made = Run(tmp_path)
    with made.workers:
        yield made
    wait_until(lambda: not children_that_capture())


def _kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)


def _holders(database: Path, child: int) -> list[str]:
    """The descriptors and mappings by which a process has a database or the files beside it open."""
    opened = []
    for link in Path(f"/proc/{child}/fd").iterdir():
        with suppress(FileNotFoundError):  # it opens and closes other files meanwhile
            opened.append(str(link.readlink()))
    mapped = Path(f"/proc/{child}/maps").read_text().splitlines()
    return [each for each in (*opened, *mapped) if str(database) in each]


def _is_locked(database: Path) -> bool:
    """Whether another process has a POSIX lock on the database or on its shared memory."""
    for file in (database, database.with_name(f"{database.name}-shm")):
        if not file.exists():
            continue
        descriptor = os.open(file, os.O_RDWR)
        try:
            asked = struct.pack("@hhqqi4x", F_WRLCK, os.SEEK_SET, 0, 0, 0)
            if struct.unpack("@hhqqi4x", fcntl(descriptor, F_GETLK, asked))[0] != F_UNLCK:
                return True
        finally:
            os.close(descriptor)
    return False


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_databases_of_a_run_are_captured_by_one_process(run: Run, journal_mode: str) -> None:
    """Each image is that of its own database, whatever its size, and whether it has pages at all."""
    for number in range(12):
        database = _database(run.root / f"{number}.db", journal_mode, rows=1 + number * 50)
        assert _rows(run.capture(database).image()) == 1 + number * 50
        empty = run.root / f"empty-{number}.db"
        empty.touch()
        assert run.capture(empty).image() == b""
    assert len(run.processes) == 24
    assert len(set(run.processes)) == 1


def test_later_capture_compares_with_its_own_base(run: Run) -> None:
    """What a capture before was compared with counts for nothing."""
    first, second = (_database(run.root / name) for name in ("first.db", "second.db"))
    before = [run.capture(database) for database in (first, second)]
    with closing(sqlite3.connect(second)) as connection, connection:
        connection.execute("UPDATE t SET b = 1 WHERE a = 100")
    for database, base, is_changed in ((first, before[0], False), (second, before[1], True)):
        bases = [StreamBase(base.page_size, str(base.hashes), ()), NOTHING]
        spool = run.root / f"again-{database.name}"
        again = capture(database, spool, streams=bases, workers=run.workers)
        assert bool(again.streams[0]) == is_changed
        assert len(again.streams[1]) == again.page_count


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_nothing_of_a_database_is_open_or_locked_when_the_next_begins(run: Run, journal_mode: str) -> None:
    """The process has neither its files open nor a lock on them, and an exclusive writer does not wait."""
    # Large enough that the process cannot be through before the look.
    first, second = (_database(run.root / name, journal_mode, rows=40_000) for name in ("first.db", "second.db"))
    # An application that has it open keeps the log and the shared memory, with their locks.
    with closing(sqlite3.connect(first, timeout=0, isolation_level=None)) as application:
        application.execute("SELECT count(*) FROM t").fetchone()
        run.capture(first, lambda child: _require_open(first, child, journal_mode))

        def look(child: int) -> None:
            assert child == run.processes[0]
            assert _holders(first, child) == []
            application.execute("PRAGMA locking_mode = EXCLUSIVE")
            application.execute("BEGIN EXCLUSIVE")
            application.execute("COMMIT")

        run.capture(second, look)
    assert not _is_locked(second)


def _require_open(database: Path, child: int, journal_mode: str) -> None:
    """In WAL mode, the pinned database is open: the look at it afterwards could see that."""
    if journal_mode == "wal":
        assert _is_locked(database)
        assert _holders(database, child)


def test_kill_of_the_process_costs_the_database_that_it_captured(run: Run) -> None:
    """The databases before and after it are captured, by one process each time."""
    good = [_database(run.root / f"{number}.db") for number in range(4)]
    # Large enough that the process cannot be through before the signal.
    victim = _database(run.root / "victim.db", rows=40_000)
    for database in good[:2]:
        run.capture(database)
    with pytest.raises(LimitReachedError, match=r"captured .*victim\.db was killed"):
        run.capture(victim, _kill)
    for database in good[2:]:
        assert _rows(run.capture(database).image()) == 200
    before, killed, after = run.processes[:2], run.processes[2], run.processes[3:]
    assert set(before) == {killed}
    assert len(set(after)) == 1
    assert killed not in after


def test_truncation_of_a_mapped_file_costs_that_database(run: Run) -> None:
    """SIGBUS, or a refusal where SQLite notices first, is the failure of one database."""
    good = [_database(run.root / f"{number}.db") for number in range(2)]
    victim = _database(run.root / "victim.db", rows=60_000)
    with closing(sqlite3.connect(victim)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def truncate(child: int) -> None:
        os.kill(child, signal.SIGSTOP)  # else it may be through before this process has its turn
        os.truncate(victim, 8192)
        os.kill(child, signal.SIGCONT)

    run.capture(good[0])
    with pytest.raises(SourceUnusableError, match="truncated"):
        run.capture(victim, truncate)
    assert _rows(run.capture(good[1]).image()) == 200
    assert run.processes[0] == run.processes[1] != run.processes[2]


def test_hang_costs_one_database_and_the_process_that_hangs_is_ended(run: Run) -> None:
    """A process that is stopped looks like one whose disk hangs."""
    first, second, third = (_database(run.root / f"{number}.db") for number in range(3))
    run.capture(first)
    (child,) = children_that_capture()
    os.kill(child, signal.SIGSTOP)
    began = time.monotonic()
    spool = run.root / "hanging"
    spool.mkdir()
    with Capture(run.workers) as running, pytest.raises(BusyError, match="has made no progress"):
        for _ in running.events(_request(second, spool), deadline=60, patience=1.0):
            pass
    assert time.monotonic() - began < SOON_SECONDS
    assert not children_that_capture()
    assert _rows(run.capture(third).image()) == 200


def _request(database: Path, spool: Path) -> CaptureRequest:
    limits = {"level": 1, "slots": 4, "lock_timeout": 0, "max_lock": 3}
    return CaptureRequest(path=str(database), spool=str(spool), streams=(NOTHING,), **limits)


def test_process_that_cannot_report_ends(tmp_path: Path) -> None:
    """A process whose reports fail ends, and waits for no further request: a full device stands in for the pipe."""
    (tmp_path / "spool").mkdir()
    request = CaptureRequest(
        path=str(_database(tmp_path / "app.db")),
        spool=str(tmp_path / "spool"),
        streams=(NOTHING,),
        level=1,
        slots=4,
        lock_timeout=5.0,
        max_lock=5.0,
    )
    with Path("/dev/full").open("wb") as full:
        process = start(
            command_of("backupd.capture.child"), stdin=subprocess.PIPE, stdout=full, env=child_environment()
        )
        assert process.stdin is not None
        process.stdin.write(request.to_json().encode() + b"\n")
        process.stdin.flush()
        assert process.wait(timeout=20) == 1
        process.stdin.close()


def test_file_that_is_no_database_costs_no_other(run: Run) -> None:
    """Neither does one that is locked, or missing."""
    good = [_database(run.root / f"{number}.db") for number in range(4)]
    text = run.root / "text.db"
    text.write_text("no database\n" * 1000)
    locked = _database(run.root / "locked.db", "delete")
    failures: list[tuple[Path, type[BackupdError]]] = [
        (text, NotADatabaseError),
        (locked, BusyError),
        (run.root / "missing.db", SourceUnusableError),
    ]
    with closing(sqlite3.connect(locked, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        run.capture(good[0])
        for (path, kind), following in zip(failures, good[1:], strict=True):
            with pytest.raises(kind):
                run.capture(path, lock_timeout=0.1)
            assert _rows(run.capture(following).image()) == 200


def test_failure_of_a_capture_leaves_no_process_with_a_lock(run: Run) -> None:
    """A capture that is given up while its state is pinned ends with its process, and its lock ends too."""
    database = _database(run.root / "app.db", rows=40_000)

    def give_up(_: int) -> None:
        assert _is_locked(database)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.capture(database, give_up)
    assert not children_that_capture()
    assert not _is_locked(database)
    assert _rows(run.capture(_database(run.root / "next.db")).image()) == 200


def test_large_database_has_its_process_to_itself(run: Run) -> None:
    """A process that has captured a large database takes no other after it, because it may keep memory."""
    small = [_database(run.root / f"{number}.db", rows=1) for number in range(2)]
    large = _database(run.root / "large.db", rows=1)
    with closing(sqlite3.connect(large)) as connection, connection:
        connection.execute("INSERT INTO t (b) VALUES (zeroblob(?))", (WHOLE_BYTES,))
    for database in (small[0], large, small[1]):
        run.capture(database)
    assert run.processes[0] == run.processes[1] != run.processes[2]


def test_pack_that_leaves_the_spool_late_frees_no_room_of_the_next_capture(run: Run) -> None:
    """An upload may end after its capture has: the process then has another capture's packs to count."""
    first, second = (_database(run.root / f"{number}.db") for number in range(2))
    spool = run.root / "late"
    spool.mkdir()
    with Capture(run.workers) as late:
        for _ in late.events(_request(first, spool), deadline=60):
            pass
    (child,) = children_that_capture()
    worker = run.workers.take()
    os.kill(child, signal.SIGSTOP)
    late.pack_left_spool()
    late.stop_waiting()
    waiting = ioctl(worker._stdin.fileno(), FIONREAD, bytes(4))
    os.kill(child, signal.SIGCONT)
    run.workers.give_back(worker)
    assert waiting == bytes(4)
    run.capture(second)
    assert run.processes == [child]


def test_captures_in_parallel_have_a_process_each(run: Run) -> None:
    """Threads share what is kept, and never a process at the same time."""
    databases = [_database(run.root / f"{number}.db", rows=50 + number) for number in range(8)]
    meeting, lock = threading.Barrier(2, timeout=SOON_SECONDS), threading.Lock()
    most: list[int] = []

    def one(number: int) -> int:
        def on_event(event: Event | None) -> None:
            if isinstance(event, Captured):
                meeting.wait()
                with lock:
                    most.append(len(children_that_capture()))

        spool = run.root / "spools" / str(number)
        return _rows(capture(databases[number], spool, on_event=on_event, workers=run.workers).image())

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(one, range(8))) == [50 + number for number in range(8)]
    assert set(most) == {2}


def test_process_that_died_while_it_waited_is_replaced(run: Run) -> None:
    """The system may end it for memory: that costs no database."""
    run.capture(_database(run.root / "first.db"))
    (child,) = children_that_capture()
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: not children_that_capture())
    assert _rows(run.capture(_database(run.root / "second.db")).image()) == 200
    assert run.processes[0] != run.processes[1]


def test_death_that_is_not_seen_yet_costs_no_database(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends just when it is asked for the next capture is replaced too."""
    run.capture(_database(run.root / "first.db"))
    (child,) = children_that_capture()
    monkeypatch.setattr(Worker, "is_usable", True)
    os.kill(child, signal.SIGKILL)
    assert _rows(run.capture(_database(run.root / "second.db")).image()) == 200
    assert run.processes[0] != run.processes[1]


def test_process_ends_with_its_parent(run: Run) -> None:
    """The end of its input ends it, also between two captures: no process is left behind."""
    run.capture(_database(run.root / "app.db"))
    (child,) = children_that_capture()
    worker = run.workers.take()
    assert worker.pid == child
    worker._stdin.close()
    assert worker.status() == 0
    worker.end()
