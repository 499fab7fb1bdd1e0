"""Threads that work for a while, and that Ctrl-C does not wait for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def worker_threads(most: int | None = None, *, name: str = "") -> Iterator[ThreadPoolExecutor]:
    """Up to `most` threads; leaving the block waits for what runs, and after an exception drops what has not begun.

    KeyboardInterrupt waits for nothing: a store that never answers would hold it up, and the process is about to end.
    Neither does a generator that is closed early, which is how the same reaches one that is not being asked just then.
    """
    threads = ThreadPoolExecutor(most, thread_name_prefix=name)
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
