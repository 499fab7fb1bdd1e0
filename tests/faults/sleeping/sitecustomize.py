"""Make `time.sleep` work in processes under a clock of their own.

libfaketime makes an error of it (EINVAL) when monotonic time is left alone. Waiting for a lock goes by that as well.
"""

from __future__ import annotations

import threading
import time


def _sleep(seconds: float) -> None:
    threading.Event().wait(seconds)


time.sleep = _sleep
