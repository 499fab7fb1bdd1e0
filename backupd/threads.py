"""Threads that work for a while, and that Ctrl-C does not wait for. The system may refuse to start one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from backupd.errors import limit_reached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def start_thread(target: Callable[..., object], *arguments: object, name: str) -> threading.Thread:
    """A thread that calls `target`, and that the end of the process does not wait for.

    Raises `LimitReachedError` when the system gives no more threads.
    """
    thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise limit_reached(error) or error from error
    return thread


class WorkerThreads(ThreadPoolExecutor):
    """A pool that makes do with the threads that the system gives, if that is one; else `LimitReachedError`."""

    def _adjust_thread_count(self) -> None:
        # Called with each piece of work, which is in the queue by now: threads that are there already take it from it.
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            if not self._threads:
                raise limit_reached(error) or error from error


@contextmanager
def worker_threads(most: int | None = None, *, name: str = "") -> Iterator[ThreadPoolExecutor]:
    """Up to `most` threads; leaving the block waits for what runs, and after an exception drops what has not begun.

    KeyboardInterrupt waits for nothing: a store that never answers would hold it up, and the process is about to end.
    Neither does a generator that is closed early, which is how the same reaches one that is not being asked just then.
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
