"""What following comes to reaches the status when it changes, and seldom while it changes all the time."""

from __future__ import annotations

from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from harness.statuses import BUCKET, DISK, DOWN, healthy
from msgspec.structs import replace

from backupd.daemon.follow_report import FollowReport, Limits
from backupd.daemon.segment_uploads import Lacking, Lost, SegmentUploads
from backupd.follow.chain import Mark, WindowEnded
from backupd.format import SnapshotId
from backupd.health import StatusFile
from backupd.state import StateDirectory

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.health.values import FollowHealth, StoreHealth

_WINDOW = SnapshotId("20261122T120000000Z-7f3a91c2")
_NEXT = SnapshotId("20261122T130000000Z-7f3a91c2")
_ENDED = WindowEnded("the log was removed")


class _Uploads(SegmentUploads):
    """Uploads that lack and have lost what a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.now: dict[tuple[str, str], Lacking] = {}
        self.lost: dict[tuple[str, str], Lost] = {}

    def lacking(self) -> dict[tuple[str, str], Lacking]:
        return self.now

    def take_lost(self) -> dict[tuple[str, str], Lost]:
        lost, self.lost = self.lost, {}
        return lost


class _Process:
    """A process that answers questions, or does not."""

    def __init__(self) -> None:
        self.questions: list[Future[Mark | None]] = []
        self.answers = True

    def mark(self, name: str) -> Future[Mark | None]:
        assert name == ""
        self.questions.append(Future())
        if self.answers:
            self.questions[-1].set_result(None)
        return self.questions[-1]


class _Bench:
    """A report about `app`, with its status file, and what it looks at."""

    def __init__(self, directory: Path) -> None:
        self.now = 1000.0
        self.file = StatusFile(StateDirectory(directory))
        self.file.update(lambda _: healthy())
        self.uploads = _Uploads()
        self.process = _Process()
        self.report = FollowReport(self.file, clock=lambda: self.now)
        self.report.use(["app"], Limits(max_age=300, interval=1))

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        process: Any = self.process
        self.report.tick(process, self.uploads)

    @property
    def follow(self) -> FollowHealth:
        follow = self.file.read().databases["app"].follow
        assert follow is not None
        return follow

    @property
    def blind_since(self) -> datetime | None:
        daemon = self.file.read().daemon
        assert daemon is not None
        return daemon.blind_since

    def health(self, url: str = BUCKET) -> StoreHealth:
        return self.file.read().databases["app"].stores[url]

    def lack(self, age_seconds: float, *, size_bytes: int = 100, is_failing: bool = False) -> datetime:
        since = datetime.now(UTC) - timedelta(seconds=age_seconds)
        self.uploads.now = {("app", BUCKET): Lacking(since, size_bytes, (since, DOWN) if is_failing else None)}
        return since


@pytest.fixture
def bench(tmp_path: Path) -> _Bench:
    """A report that has said what there is at the start."""
    bench = _Bench(tmp_path / "state")
    bench.tick()
    bench.tick(100)
    return bench


def test_windows_are_in_the_status_with_their_gaps(bench: _Bench) -> None:
    """A window begins and ends; the last gap has its reason."""
    bench.report.window_began("app", _WINDOW)
    bench.tick()
    assert (bench.follow.window, bench.follow.window_since) == (_WINDOW, _WINDOW.taken_at)
    bench.report.window_ended("app", _ENDED)
    bench.tick(100)
    assert (bench.follow.window, bench.follow.gaps_total) == (None, 1)
    assert bench.follow.last_gap is not None
    assert bench.follow.last_gap.reason == "the log was removed"
    assert not bench.follow.last_gap.is_blind


def test_a_window_that_replaces_another_is_a_gap(bench: _Bench) -> None:
    """A process that could not continue the window of the one before has missed commits."""
    bench.report.window_began("app", _WINDOW)
    bench.report.window_began("app", _NEXT)
    bench.tick()
    assert (bench.follow.window, bench.follow.gaps_total) == (_NEXT, 1)


def test_a_window_that_continues_after_a_restart_is_none(bench: _Bench) -> None:
    """The mark of a new process says which window is open, and what the status knew stays."""
    bench.report.window_began("app", _WINDOW)
    bench.tick()
    before = bench.follow
    again = FollowReport(bench.file)
    again.use(["app"], Limits(max_age=300, interval=1))
    mark: Future[Mark | None] = Future()
    mark.set_result(Mark(_WINDOW, 3, 0))
    again.marked("app", mark)
    again.write(bench.uploads)
    assert bench.follow == before


def test_segments_on_their_way_do_not_wait(bench: _Bench) -> None:
    """A segment that was cut a moment ago changes nothing; one that is late does."""
    written_at = bench.file.read().written_at
    bench.lack(2)
    bench.tick()
    assert bench.file.read().written_at == written_at
    since = bench.lack(6)
    bench.tick()
    segments = bench.health().segments
    assert segments is not None
    assert (segments.waiting_since, segments.waiting_bytes, segments.problem) == (since, 100, None)
    assert bench.health(DISK).segments is None


def test_a_store_that_fails_is_reported_at_once_and_until_it_takes_segments(bench: _Bench) -> None:
    """The problem has the message of the store."""
    bench.lack(0, is_failing=True)
    bench.tick()
    segments = bench.health().segments
    assert segments is not None
    assert segments.problem is not None
    assert (segments.problem.message, segments.problem.hint) == (DOWN.message, DOWN.hint)
    bench.uploads.now = {}
    bench.tick(30)
    assert bench.health().segments is None


def test_changes_that_continue_are_written_twice_a_minute(bench: _Bench) -> None:
    """Each change is written at last, and the more rarely the longer there are new ones."""
    times = []
    for second in range(120):
        bench.lack(60, size_bytes=second, is_failing=True)
        before = bench.file.read().written_at
        bench.tick()
        if bench.file.read().written_at != before:
            times.append(second)
    assert times == [0, 1, 3, 7, 15, 31, 61, 91]


def test_what_was_lost_is_reported_when_the_status_can_be_written(bench: _Bench, tmp_path: Path) -> None:
    """A status that cannot be written is no reason to forget it."""
    now = datetime.now(UTC)
    bench.uploads.lost = {("app", BUCKET): Lost(now - timedelta(minutes=2), now)}
    (tmp_path / "state/status.json").rename(tmp_path / "state/elsewhere")
    (tmp_path / "state/status.json").mkdir()
    bench.tick()
    (tmp_path / "state/status.json").rmdir()
    (tmp_path / "state/elsewhere").rename(tmp_path / "state/status.json")
    assert bench.health().segments is None
    bench.tick(30)
    segments = bench.health().segments
    assert segments is not None
    assert (segments.lost_since, segments.lost_until) == (now - timedelta(minutes=2), now)
    assert segments.waiting_since is None


def test_a_process_that_does_not_answer_reads_no_logs(bench: _Bench) -> None:
    """The process is asked every twenty seconds, and blind since the last question that it answered."""
    asked = len(bench.process.questions)
    bench.tick(5)
    assert len(bench.process.questions) == asked
    before = datetime.now(UTC)
    bench.process.answers = False
    bench.tick(20)
    bench.tick(10)
    assert bench.blind_since is None
    bench.tick(11)
    blind_since = bench.blind_since
    assert blind_since is not None
    assert blind_since <= before
    bench.tick(100)
    assert bench.blind_since == blind_since
    bench.process.questions[-1].set_result(None)
    bench.tick(100)
    assert bench.blind_since is None


def test_a_process_that_has_ended_reads_no_logs_until_another_answers(bench: _Bench) -> None:
    """The status says so at once."""
    bench.report.process_ended(bench.uploads)
    assert bench.blind_since is not None
    bench.process = _Process()
    bench.tick()
    bench.tick(100)
    assert bench.blind_since is None


def test_a_database_that_is_not_followed_any_more_leaves_the_status(bench: _Bench) -> None:
    """A late event of it changes nothing."""
    bench.report.use([], Limits(max_age=300, interval=1))
    bench.report.window_began("app", _WINDOW)
    bench.report.write(bench.uploads)
    assert bench.file.read().databases["app"].follow is None


def test_a_database_that_is_not_in_the_status_yet_is_reported_later(bench: _Bench) -> None:
    """A round finds it before the status has a plan for it."""
    bench.report.use(["app", "new"], Limits(max_age=300, interval=1))
    bench.tick()
    bench.file.update(lambda status: replace(status, databases={**status.databases, **healthy("new").databases}))
    bench.tick(30)
    assert bench.file.read().databases["new"].follow is not None


def test_the_same_configuration_again_is_no_news(bench: _Bench) -> None:
    """Each round configures following."""
    bench.report.use(["app"], Limits(max_age=300, interval=1))
    before = bench.file.read()
    bench.tick(100)
    assert bench.file.read() is before
