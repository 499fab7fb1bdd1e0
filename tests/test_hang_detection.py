from __future__ import annotations

import sqlite3
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from harness.command_line import wait_until
from harness.extent import sampled, slow
from harness.faults import FaultyStore
from harness.kept_workers import children_that_capture
from harness.relay import relay

from backupd.backup import BackupResult, Outcome, Patience, Progress, SnapshotRequest, back_up
from backupd.backup.hang_detection import SilentStores, WatchedStore
from backupd.config import Database, Settings, StoreSettings
from backupd.errors import InterruptedByUserError, StoreUnavailableError
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from backupd.store.s3 import S3Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness.s3_server import S3Server

    from backupd.store import Store, StoredObject

_PATIENCE = Patience(longest=4.0, others_wait=1.5, rest=60.0)
_SECONDS = 30  # with a machine that does other things meanwhile


class SilentStore(FaultyStore):
    """Never answers calls of `verb` for keys with `part` in them, from the one numbered `after` (from 0) on."""

    def __init__(self, store: Store, verb: str, part: str = "", *, after: int = 0) -> None:
        super().__init__(store)
        self._verb = verb
        self._part = part
        self._before = after
        self._released = threading.Event()

    def release(self) -> None:
        """Answer from now on."""
        self._released.set()

    def _hang(self, verb: str, key: str) -> None:
        if verb == self._verb and self._part in key:
            self._before -= 1
            if self._before < 0:
                self._released.wait()

    def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:
        self._hang("put", key)
        super().put(key, content, sha256=sha256)

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        self._hang("get", key)
        return super().get(key, limit_bytes=limit_bytes)

    def get_range(self, key: str, *, offset: int, length: int) -> bytes:
        self._hang("get_range", key)
        return super().get_range(key, offset=offset, length=length)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self._hang("list", prefix)
        yield from super().list(prefix)


class Setting:
    """A database of about 2 MB, a store that works, and a state directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.good = DirectoryStore(root / "good")
        self.state = StateDirectory(root / "state")
        self.change("app", "first")

    def change(self, name: str, value: str) -> None:
        with closing(sqlite3.connect(self.root / f"{name}.db")) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY, b, c)")
            connection.execute("INSERT INTO t (b, c) VALUES (?, randomblob(2000000))", (value,))

    def back_up(
        self,
        *stores: Store,
        name: str = "app",
        state: StateDirectory | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> list[BackupResult]:
        return back_up(
            Database(name=name, path=self.root / f"{name}.db"),
            [Repository(store, state or self.state) for store in stores],
            Settings(),
            request=SnapshotRequest(),
            on_progress=on_progress,
            patience=_PATIENCE,
        )

    def snapshots(self, store: Store, name: str = "app") -> int:
        state = StateDirectory(self.root / "another state")
        return len(Repository(store, state).archive(name).listing().manifests)

    def require_only_the_good_one(self, silent: Store, *, before: int = 0) -> BackupResult:
        """Back up: the store that works has the snapshot within seconds, and nothing is left behind. The other result.

        `before` is how many snapshots the good store has.
        """
        started = time.monotonic()
        with ThreadPoolExecutor(1) as threads:
            run = threads.submit(self.back_up, silent, self.good)
            wait_until(lambda: run.done() or self.snapshots(self.good) > before)
            assert time.monotonic() - started < _SECONDS
            failed, created = run.result()
        assert time.monotonic() - started < _SECONDS
        assert (created.error, created.outcome) == (None, Outcome.CREATED)
        assert failed.outcome is Outcome.FAILED
        assert isinstance(failed.error, StoreUnavailableError)
        assert silent.url in failed.error.message
        assert failed.error.hint
        assert list((self.root / "state" / "spool").iterdir()) == []
        assert children_that_capture() == []
        for store in (silent, self.good):
            with self.state.lock(f"app in {store.url}", timeout=0):
                pass
        return failed


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    """A fresh one for each test."""
    return Setting(tmp_path)


@contextmanager
def _silent(setting: Setting, verb: str, part: str = "", *, after: int = 0) -> Iterator[SilentStore]:
    """A store that falls silent; its threads end with the block."""
    store = SilentStore(DirectoryStore(setting.root / "silent"), verb, part, after=after)
    try:
        yield store
    finally:
        store.release()


@pytest.mark.parametrize(
    ("verb", "part", "after"),
    sampled(
        [
            ("get", "backupd.json", 0),
            ("list", "", 0),
            ("get", "/snapshots/", 0),
            ("get_range", "", 0),
            ("put", "/packs/", 0),
            ("list", "", 1),
            ("put", "/snapshots/", 0),
        ],
        fast=[("list", "", 0)],
    ),
    ids=["first look", "listing", "manifest", "index of a pack", "upload", "listing before the commit", "commit"],
)
def test_store_that_never_answers_holds_up_no_other(setting: Setting, verb: str, part: str, after: int) -> None:
    """A store that stops answering at any request fails, and the other one gets its snapshot."""
    setting.back_up(DirectoryStore(setting.root / "silent"), setting.good, state=StateDirectory(setting.root / "first"))
    setting.change("app", "second")
    with _silent(setting, verb, part, after=after) as store:
        failed = setting.require_only_the_good_one(store, before=1)
        assert f"({verb.removesuffix('_range')} " in str(failed.error)
        assert setting.snapshots(DirectoryStore(setting.root / "silent")) == 1


@slow
def test_new_store_that_never_answers_holds_up_no_other(setting: Setting) -> None:
    """A new store that never answers fails, and the other one gets its snapshot."""
    with _silent(setting, "put", "backupd.json") as store:
        setting.require_only_the_good_one(store)


@slow
def test_thread_that_was_left_behind_asks_for_nothing_more(setting: Setting) -> None:
    """A store that wakes up hours later must not be given what was current then."""
    with _silent(setting, "list", after=1) as store:
        setting.require_only_the_good_one(store)
        calls = [*store.calls]
        store.release()
        wait_until(lambda: not [each for each in threading.enumerate() if each.name == "store-snapshot"])
        assert store.calls == [*calls, "list"]
        assert setting.snapshots(store) == 0


@slow
def test_upload_that_hangs_with_a_full_spool_holds_up_no_other(setting: Setting) -> None:
    """The capture waits for room in the spool, and not for ever: the WAL need not grow meanwhile."""
    for number in range(60):
        setting.change("app", str(number))
    with _silent(setting, "put", "/packs/") as store:
        settings = Settings.read({"packs": {"spool_limit": "1MB"}})
        started = time.monotonic()
        failed, created = back_up(
            Database(name="app", path=setting.root / "app.db"),
            [
                Repository(store, setting.state, settings.open_encryption()),
                Repository(setting.good, setting.state, settings.open_encryption()),
            ],
            settings,
            request=SnapshotRequest(),
            on_progress=lambda _: None,
            patience=_PATIENCE,
        )
        assert time.monotonic() - started < 2 * _SECONDS
        assert created.outcome is Outcome.CREATED
        assert "(put app/packs/" in str(failed.error)


@slow
def test_only_store_is_given_up_as_well(setting: Setting) -> None:
    """A run whose only store never answers ends in time, with an error that says so."""
    with _silent(setting, "list") as store:
        started = time.monotonic()
        (failed,) = setting.back_up(store)
        assert time.monotonic() - started < _SECONDS
        assert isinstance(failed.error, StoreUnavailableError)
        assert "has not answered for" in failed.error.message


@slow
def test_other_databases_skip_a_store_that_hangs(setting: Setting) -> None:
    """A thousand databases must not wait for it in turn; nor this one again, while its call still hangs."""
    setting.change("users", "first")
    with _silent(setting, "list") as store:
        setting.require_only_the_good_one(store)
        calls = [*store.calls]
        for name in ("users", "app"):
            setting.change(name, "second")
            failed, created = setting.back_up(store, setting.good, name=name)
            assert created.outcome is Outcome.CREATED
            assert isinstance(failed.error, StoreUnavailableError)
            assert "was not asked, because a snapshot of app gave it up" in failed.error.message
            assert store.url in failed.error.message
        assert store.calls == calls
        store.release()
        wait_until(lambda: not [each for each in threading.enumerate() if each.name == "store-snapshot"])
        again, _ = setting.back_up(store, setting.good)
        assert again.error is None
        for result in setting.back_up(store, setting.good, name="users"):
            assert result.error is None


def test_run_can_be_abandoned_while_a_store_hangs(setting: Setting) -> None:
    """Stopping the daemon does not wait for the store."""

    def stop(_: Progress) -> None:
        raise InterruptedByUserError("stopping")

    with _silent(setting, "list") as store:
        started = time.monotonic()
        results = setting.back_up(store, setting.good, on_progress=stop)
        assert time.monotonic() - started < _PATIENCE.longest
        assert [type(result.error) for result in results] == [InterruptedByUserError] * 2
        assert list((setting.root / "state" / "spool").iterdir()) == []


@slow
@pytest.mark.parametrize(
    "request_line",
    sampled([b"", b"list-type", b"/packs/"], fast=[b"/packs/"]),
    ids=["anything", "listing", "upload"],
)
def test_bucket_behind_a_network_that_swallows_requests(
    setting: Setting, seaweed: S3Server, request_line: bytes
) -> None:
    """Connections come about, and what is sent on them gets no answer: far within the time limit, the other is done."""
    with relay(seaweed.endpoint_url) as network:
        settings = seaweed.settings(endpoint_url=network.url)
        setting.back_up(S3Store(settings), setting.good)
        setting.change("app", "second")
        network._hold(lambda sent: request_line in sent.partition(b"\r\n")[0])
        failed = setting.require_only_the_good_one(S3Store(settings), before=1)
        assert "s3://" in str(failed.error)
        network.flow()
        again, _ = setting.back_up(S3Store(settings), setting.good)
        assert again.error is None


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class AnsweringStore(FaultyStore):
    """Takes ten seconds for each object of a listing, and calls `look` before it answers."""

    def __init__(self, store: Store, clock: Clock, look: Callable[[], None]) -> None:
        super().__init__(store)
        self._clock = clock
        self._look = look

    def list(self, prefix: str) -> Iterator[StoredObject]:
        for stored in super().list(prefix):
            self._clock.now += 10
            self._look()
            yield stored


def test_slow_store_that_answers_is_not_given_up(tmp_path: Path) -> None:
    """A slow store is not given up while a long listing continues, or between requests."""
    directory = DirectoryStore(tmp_path)
    for number in range(20):
        directory.put(f"app/{number}", b"x", sha256=b"")
    clock = Clock()
    seen: list[tuple[float, str]] = []
    watched = WatchedStore(AnsweringStore(directory, clock, lambda: seen.append(watched.unanswered())), clock)
    assert len(list(watched.list("app/"))) == 20
    assert seen == [(10.0, "list app/")] * 20
    clock.now += 1000
    assert watched.unanswered() == (0.0, "")


def test_other_databases_ask_again_after_a_rest(tmp_path: Path) -> None:
    """The one whose call still hangs does not: it would leave a thread behind each time."""
    clock = Clock()
    silent = SilentStores(clock)
    store = DirectoryStore(tmp_path)
    call: Future[None] = Future()
    silent.note(store, "app", [call])
    clock.now += 299
    assert silent.reason_to_spare(store, "users", rest_seconds=300)
    assert silent.reason_to_spare(DirectoryStore(tmp_path), "users", rest_seconds=300) is None
    clock.now += 1
    assert silent.reason_to_spare(store, "users", rest_seconds=300) is None
    assert silent.reason_to_spare(store, "app", rest_seconds=300)
    call.set_result(None)
    assert silent.reason_to_spare(store, "app", rest_seconds=300) is None
    silent.note(store, "app", [])
    silent.forget(store)
    assert silent.reason_to_spare(store, "users", rest_seconds=300) is None


def test_longer_time_limit_is_kept() -> None:
    """A limit of half an hour for one request says that the line is slow."""
    bucket = StoreSettings.read({"url": "s3://bucket/prefix", "time_limit": "30m"})
    assert Patience().longest_for(S3Store(bucket), [bucket]) > 1800
    assert Patience().longest_for(S3Store(bucket), []) == Patience().longest
    brief = StoreSettings.read({"url": "s3://bucket/prefix", "time_limit": "1s"})
    assert Patience().longest_for(S3Store(brief), [brief]) == Patience().longest
