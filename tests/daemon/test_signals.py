import os
import signal
import threading
import time

from backupd.daemon.service import _signals

PATIENCE_SECONDS = 30


def test_a_signal_is_noticed_at_once_whichever_thread_gets_it():
    """The system may give it to any; the one that waits must not go on waiting."""

    def get_it():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.1)

    with _signals() as signals:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # so that this thread does not get it
        try:
            began = time.monotonic()
            other = threading.Timer(0.2, get_it)
            other.start()
            assert signals.next(timeout=PATIENCE_SECONDS) == signal.SIGHUP
            assert time.monotonic() - began < PATIENCE_SECONDS / 3
            assert signals.next(timeout=0.01) is None
            other.join()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
