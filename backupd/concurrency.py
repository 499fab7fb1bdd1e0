"""Threads: pools, calls that can be left behind when they hang, cancellation, and work within a budget of time.

The system may refuse to start a thread: everything here raises `LimitReachedError` then.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

from backupd.errors import limit_reached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from backupd.errors import BackupdError

_T = TypeVar("_T")
_Key = TypeVar("_Key")
_WORKERS = 8
_BUDGET_SECONDS = 20.0
_SLICE_SECONDS = 0.5


def start_thread(target: Callable[..., object], *arguments: object, name: str) -> threading.Thread:
    """Start a daemon thread that calls `target`; the end of the process does not wait for it.

    Raises `LimitReachedError` when the system gives no more threads.
    """
    thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise limit_reached(error) or error from error
    return thread


def start_call(call: Callable[[], _T], *, name: str) -> Future[_T]:
    """Run `call` in a thread of its own, and return the future of its result or exception.

    The caller may stop waiting at any time: a call that hangs in a store or on a disk is left behind, and
    `Future.done` shows when it has ended after all. Raises `LimitReachedError` when the system gives no more threads.
    """
    outcome: Future[_T] = Future()
    start_thread(_make, call, outcome, name=name)
    return outcome


def start_calls(calls: Mapping[_Key, Callable[[], _T]], *, most: int, name: str) -> dict[_Key, Future[_T]]:
    """Run `calls` in their order, at most `most` at the same time, and return their futures by the same keys.

    Like `start_call`, with a thread for several calls. `Future.cancel` drops a call that has not begun.
    """
    outcomes: dict[_Key, Future[_T]] = {key: Future() for key in calls}
    waiting = deque((calls[key], outcome) for key, outcome in outcomes.items())

    def run() -> None:
        while True:
            try:
                call, outcome = waiting.popleft()
            except IndexError:
                return
            _make(call, outcome)

    for _ in range(min(most, len(outcomes))):
        start_thread(run, name=name)
    return outcomes


def _make(call: Callable[[], _T], outcome: Future[_T]) -> None:
    """Make a call, and give its future what became of it."""
    if not outcome.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001  (raised again where the result is asked for)
        outcome.set_exception(error)
    else:
        outcome.set_result(result)


def has_ended(call: Future[_T], *, within_seconds: float) -> bool:
    """Wait for a call, and return whether it has ended, with whatever result; never raises its exception."""
    ends_at = time.monotonic() + within_seconds
    # In slices: Python notices a signal that comes just before the main thread begins to wait only after the wait.
    while not call.done() and (left := ends_at - time.monotonic()) > 0:
        wait([call], timeout=min(left, _SLICE_SECONDS))
    return call.done()


class PendingCalls(Generic[_T]):
    """At most one running call for each key, such as a store's URL: one that hangs does not pile up threads.

    Threads may share it.
    """

    def __init__(self, name: str) -> None:
        """`name` is that of the threads."""
        self._name = name
        self._lock = threading.Lock()
        self._calls: dict[str, Future[_T]] = {}

    def start(self, key: str, call: Callable[[], _T]) -> Future[_T]:
        """Start `call`, unless one for `key` is still running: then return its future, and do not make this one.

        Raises `LimitReachedError` when no thread can be started.
        """
        with self._lock:
            pending = self._calls.get(key)
            if pending is None or pending.done():
                pending = self._calls[key] = start_call(call, name=self._name)
            return pending


class Cancellation:
    """A request to stop, which running work checks now and then. Threads may share it."""

    def __init__(self) -> None:
        self._reason: BackupdError | None = None

    @property
    def is_requested(self) -> bool:
        """Whether the work has to stop."""
        return self._reason is not None

    def request(self, reason: BackupdError) -> None:
        """Make each later `check` raise `reason`. The first reason is kept."""
        self._reason = self._reason or reason

    def check(self, *_: object) -> None:
        """Raise the reason if the work has to stop. It takes, and ignores, the progress that callbacks are given."""
        if self._reason is not None:
            raise self._reason


class WorkerThreads(ThreadPoolExecutor):
    """A thread pool that works with as many threads as the system gives; `LimitReachedError` when it gives none."""

    def _adjust_thread_count(self) -> None:
        # Called with each piece of work, which is in the queue by now: threads that are there already take it from it.
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            if not self._threads:
                raise limit_reached(error) or error from error


@contextmanager
def worker_threads(most: int | None = None, *, name: str = "") -> Iterator[ThreadPoolExecutor]:
    """Provide a pool of up to `most` threads, whose running work the end of the block waits for.

    After an exception, work that has not begun is dropped. KeyboardInterrupt does not wait at all: a store that never
    answers would delay it, and the process is about to end. Neither does a generator that is closed early: this is how
    KeyboardInterrupt reaches one that is suspended in the block.
    """
    threads = WorkerThreads(most, thread_name_prefix=name)
    try:
        yield threads
    except (KeyboardInterrupt, GeneratorExit):
        threads.shutdown(wait=False, cancel_futures=True)
        raise
    except BaseException:
        threads.shutdown(cancel_futures=True)
        raise
    try:
        threads.shutdown()
    except KeyboardInterrupt:
        threads.shutdown(wait=False, cancel_futures=True)
        raise


class Pace:
    """Does many small things, several at once, until the time for all is up: a snapshot may be waiting for the lock."""

    def __init__(self, *, seconds: float = _BUDGET_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends_at = clock() + seconds

    def each(self, do: Callable[[_T], None], things: Iterable[_T], *, at_once: int = _WORKERS) -> int:
        """Call `do` with each of `things` until the time is up, at least with the first; gives how many were left out.

        At most `at_once` of them are done at the same time: 1 is for what takes much memory. The first one goes alone,
        so that a store that refuses is asked once. After an exception, which is raised, nothing more is begun.
        """
        pending = iter(things)
        for first in pending:
            do(first)
            break
        has_failed = threading.Event()

        def do_in_time(thing: _T) -> bool:
            if has_failed.is_set() or self._clock() >= self._ends_at:
                return False
            try:
                do(thing)
            except BaseException:
                has_failed.set()
                raise
            return True

        with worker_threads(at_once) as threads:
            futures = [threads.submit(do_in_time, thing) for thing in pending]
            return sum(not future.result() for future in futures)
