"""What a store lacks is known as long as it waits, and what it will never get is reported once."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from harness.daemon import wait_until
from harness.statuses import BUCKET, DISK, DOWN, NOON

from backupd.daemon.segment_uploads import SegmentUploads
from backupd.errors import UnreadableObjectError
from backupd.follow.spool import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MINUTE_MS = 60_000


class _Repository:
    """A store that takes segments, refuses them, or finds them damaged."""

    def __init__(self, url: str, error: Exception | None = None) -> None:
        self.url = url
        self.error = error
        self.has_tried = threading.Event()

    def archive(self, _: str) -> _Repository:
        return self

    def put_segment(self, _: bytes) -> None:
        self.has_tried.set()
        if self.error is not None:
            raise self.error


class _Bench:
    """Uploads into a store that works and one that fails, from a spool."""

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        self.disk, self.bucket = _Repository(DISK), _Repository(BUCKET, DOWN)
        self.uploads = SegmentUploads()
        stores: Any = (self.disk, self.bucket)
        self.uploads.use(stores)

    def add(self, number: int, *, most_bytes: int = 10**6) -> Path:
        """Cut a segment of ten bytes, whose first commit was seen so many minutes after noon."""
        seen_at_ms = int(NOON.timestamp() * 1000) + number * _MINUTE_MS
        file = self.spool / f"20261122T120000000Z-7f3a91c2-{number:012}-{number:012}-{seen_at_ms}.segment"
        file.write_bytes(bytes(10))
        self.uploads.add("app", file, [DISK, BUCKET], most_bytes=most_bytes)
        return file


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[_Bench]:
    """Uploads that end after the test."""
    bench = _Bench(tmp_path)
    yield bench
    bench.uploads.stop(within_seconds=5)


def test_a_store_that_is_down_lacks_what_waits_for_it(bench: _Bench) -> None:
    """The oldest commit, all bytes, and the error; nothing for the store that works, and nothing afterwards."""
    file = bench.add(1)
    bench.add(2)
    wait_until(lambda: [each.failure and each.failure[1] for each in bench.uploads.lacking().values()] == [DOWN])
    ((key, lacking),) = bench.uploads.lacking().items()
    assert key == ("app", BUCKET)
    assert lacking.failure is not None
    assert (lacking.since, lacking.size_bytes) == (NOON + timedelta(minutes=1), 2 * BLOCK_BYTES)
    assert abs(datetime.now(UTC) - lacking.failure[0]) < timedelta(minutes=1)
    assert bench.uploads.take_lost() == {}
    bench.bucket.error = None
    wait_until(lambda: bench.uploads.lacking() == {})
    wait_until(lambda: not file.exists())
    assert bench.uploads.take_lost() == {}


def test_segments_that_are_given_up_are_lost(bench: _Bench) -> None:
    """From their first commit on; reported once."""
    before = datetime.now(UTC)
    bench.add(1)
    assert bench.bucket.has_tried.wait(30)
    wait_until(lambda: bench.uploads.lacking().keys() == {("app", BUCKET)})  # the other store has it
    bench.add(2, most_bytes=15)
    ((key, lost),) = bench.uploads.take_lost().items()
    assert (key, lost.since) == (("app", BUCKET), NOON + timedelta(minutes=1))
    assert before <= lost.until <= datetime.now(UTC)
    assert bench.uploads.take_lost() == {}
    assert ("app", BUCKET) not in bench.uploads.lacking()


def test_a_segment_that_cannot_be_stored_is_lost(bench: _Bench) -> None:
    """What is in the spool is damaged: no store will ever have it."""
    bench.bucket.error = UnreadableObjectError("no reader would accept it")
    bench.add(1)
    wait_until(lambda: bench.uploads.lacking() == {})
    assert bench.uploads.take_lost().keys() == {("app", BUCKET)}
