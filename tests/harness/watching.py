"""Something looked at all the time, while something else goes on."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def looking_all_the_time(look: Callable[[], None]) -> Iterator[None]:
    """Call `look` again and again in a thread, and once more when the block has ended."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(0.005):
            look()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        look()
