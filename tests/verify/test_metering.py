"""Reading no faster than allowed, and counting it."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest
from harness.extent import slow
from harness.faults import FaultyStore

from backupd.errors import DamageError, NoSuchObjectError
from backupd.store.directory import DirectoryStore
from backupd.verify.metering import Meter, MeteredStore

if TYPE_CHECKING:
    from pathlib import Path

    from harness.stored import Stored

PACK = f"app/packs/{'0' * 64}.zst"
_MB = 10**6


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def meter(self, rate: float) -> Meter:
        return Meter(rate, clock=lambda: self.now, sleep=self.sleep)


def test_reads_of_any_size_keep_the_rate() -> None:
    """Reads of any size keep the rate."""
    clock = Clock()
    meter = clock.meter(10 * _MB)
    for size in [1, 8 * _MB, 100, 3 * _MB] * 10:
        meter.count(size, is_pack=True)
    assert clock.now - 100 == pytest.approx(110.00101 / 10, rel=0.001)


def test_pause_allows_no_burst() -> None:
    """An hour without a read is not made up for."""
    clock = Clock()
    meter = clock.meter(1 * _MB)
    meter.count(_MB, is_pack=True)
    clock.now += 3600
    before = clock.now
    meter.count(5 * _MB, is_pack=True)
    assert clock.now - before == pytest.approx(5)


def test_threads_share_the_rate(tmp_path: Path) -> None:
    """Four of them together are no faster than one alone may be."""
    store = DirectoryStore(tmp_path)
    content = os.urandom(_MB)
    store.put(PACK, content, sha256=b"")
    metered = MeteredStore(store, Meter(4 * _MB))
    began = time.monotonic()
    threads = [
        threading.Thread(target=lambda: [metered.get(PACK, limit_bytes=20 * _MB) for _ in range(2)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 8 * _MB / (time.monotonic() - began) < 1.1 * 4 * _MB


def test_large_object_is_read_in_pieces(tmp_path: Path) -> None:
    """The network is not full for as long as a pack takes; the content is the same."""
    store = FaultyStore(DirectoryStore(tmp_path))
    metered = MeteredStore(store, Clock().meter(800_000))
    for size in (0, 199_999, 200_000, 200_001, 1_000_000):
        content = os.urandom(size)
        store.put(PACK, content, sha256=b"")
        assert metered.get(PACK, limit_bytes=1_000_000) == content
    assert "get" not in store.calls
    with pytest.raises(DamageError, match="more than"):
        metered.get(PACK, limit_bytes=999_999)
    with pytest.raises(NoSuchObjectError):
        metered.get("other", limit_bytes=1_000_000)


def test_every_read_is_counted(tmp_path: Path) -> None:
    """Packs by themselves, because their total is known before."""
    store = DirectoryStore(tmp_path)
    store.put(PACK, bytes(1000), sha256=b"")
    store.put("backupd.json", bytes(10), sha256=b"")
    reported = []
    meter = Meter(on_read=lambda: reported.append(meter.read_bytes))
    metered = MeteredStore(store, meter)
    metered.get(PACK, limit_bytes=1000)
    metered.get_range(PACK, offset=900, length=500)
    metered.get("backupd.json", limit_bytes=10)
    assert (meter.read_bytes, meter.pack_bytes, reported) == (1110, 1100, [1000, 1100, 1110])


@slow
def test_verification_keeps_the_rate(stored: Stored) -> None:
    """A verification keeps the rate, as measured from outside; a busy machine may be slower."""
    stored.back_up(rows=700)
    found = stored.verify(rate=_MB)
    assert found.duration_seconds > 1.5
    assert found.read_bytes / found.duration_seconds < 1.1 * _MB
