"""What is to be told goes out in a thread of its own: nobody who has something to tell waits for a network."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from backupd.errors import LimitReachedError
from backupd.logs import log
from backupd.threads import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


class Sender(Generic[_T]):
    """Sends one thing after the other. The thread begins with the first of them, and does not hold up an exit."""

    def __init__(self, name: str, send: Callable[[_T], None], *, most: int) -> None:
        """`send` tells itself of what goes wrong; `most` things may wait for it."""
        self._name = name
        self._send = send
        self._most = most
        self._changed = threading.Condition()
        self._waiting: deque[_T] = deque()
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def put(self, what: _T) -> _T | None:
        """Have it sent. Returns at once; gives what has waited longest, when that has to make room and is not sent."""
        with self._changed:
            dropped = self._waiting.popleft() if len(self._waiting) >= self._most else None
            self._waiting.append(what)
            self._changed.notify_all()
            if self._thread is None:
                try:
                    self._thread = start_thread(self._work, name=self._name)
                except LimitReachedError as error:  # what waits is sent with the next that is put
                    log.error("nothing can be sent now", to=self._name, error=error.values())
        return dropped

    def close(self, timeout: float) -> bool:
        """Send what is waiting, and stop; after `timeout` seconds it is given up. Gives whether all was sent."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if not self._waiting:
                    return
                what = self._waiting.popleft()
            try:
                self._send(what)
            except Exception as error:  # noqa: BLE001  (silence from here on would be worse than any bug)
                log.unexpected(error)


def sendable(text: str) -> str:
    """`text` as UTF-8 can have it: with escapes for those bytes in the name of a file that are no text."""
    return text.encode(errors="backslashreplace").decode()
