"""How long a capture may hold SQLite's lock in rollback mode, how much it does meanwhile, and what it fails with."""

from __future__ import annotations

import json
import math
import signal
from typing import TYPE_CHECKING, Any

from backupd.capture.facts import FACTS_SECONDS
from backupd.children import NOT_LOADED, answer_of, not_loaded
from backupd.errors import BackupdError, BusyError, LimitReachedError, SourceUnusableError

if TYPE_CHECKING:
    from collections.abc import Sequence

WHOLE_BYTES = 32 << 20
"""Up to so much is copied under one lock: writers wait for about 15 ms on two cores. More is copied in steps."""

BYTES_PER_STEP = 2 << 20
"""What the backup API copies in one step."""

_GRACE_SECONDS = 0.25


class LockTimer:
    """Ends this process by SIGALRM when it has held SQLite's lock for too long, whatever it hangs in.

    There is one timer in a process, which has called `let_timers_end_this_process`.
    """

    def __init__(self, max_lock_seconds: float) -> None:
        self._seconds = max_lock_seconds + _GRACE_SECONDS
        self.facts_seconds = min(FACTS_SECONDS, max_lock_seconds / 4)
        """What reading the facts may take of that: the pages come after it."""

    def start(self) -> None:
        """The lock is not held, and may be at any moment. Starts again if it runs already."""
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def stop(self) -> None:
        """The lock is not held any more. Repeatable."""
        signal.setitimer(signal.ITIMER_REAL, 0)


def let_timers_end_this_process() -> None:
    """Give SIGALRM its default action, whatever this process has inherited."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})


def looked_at(path: str, command: Sequence[str], *, max_lock: float, deadline: float) -> Any:
    """The JSON that `command` prints of the database at `path`, which it looks at as a capture would.

    Its `LockTimer` allows `max_lock`; times are in seconds. Raises `BusyError` past the deadline, or when writers would
    have waited for longer, and `BackupdError` when the process failed, or as `children.start`.
    """
    try:
        answer = answer_of(command, deadline=deadline)
    except TimeoutError as error:
        raise BusyError(
            f"{path} could not be looked at within {deadline:g} s",
            hint="its file system or disk seems to hang: try `ls -l` on its directory, and look at the system log",
        ) from error
    if answer.status == -signal.SIGALRM:
        raise held_too_long(path, max_lock)
    if answer.status:
        raise BackupdError(
            f"the process that looks at {path} failed: {answer.last_words or f'status {answer.status}'}",
            hint="please report it with the line above",
        )
    return json.loads(answer.output)


def held_too_long(path: str, seconds: float) -> BusyError:
    """The error for a copy that was given up to let the application write again."""
    return BusyError(
        f"{path} is not in WAL mode, and copying it held up its writers for {seconds:.1f} s",
        hint="try again when the machine is less busy, or let the application use WAL mode: PRAGMA journal_mode = WAL",
    )


def never_at_rest(path: str, expected_seconds: float, max_lock_seconds: float) -> BusyError:
    """The error for a database that is written to so much that no state of it could be confirmed in time."""
    if expected_seconds > max_lock_seconds:
        return BusyError(
            f"{path} is not in WAL mode and is written to all the time: to confirm what was read of it would hold its "
            f"writers up for about {expected_seconds:.1f} s, and capture.max_lock allows {max_lock_seconds:g} s",
            hint="let the application use WAL mode (PRAGMA journal_mode = WAL), where writers never wait, "
            f"or raise capture.max_lock to {math.ceil(expected_seconds * 1.5)}s if it can wait that long",
        )
    return BusyError(
        f"{path} is not in WAL mode, and so much of it was written meanwhile that no state of it could be confirmed",
        hint="take the snapshot when less is written, or let the application use WAL mode: PRAGMA journal_mode = WAL",
    )


def written_without_lock(path: str) -> SourceUnusableError:
    """The error for a file that changed while SQLite's lock on it was held."""
    return SourceUnusableError(
        f"{path} was written to while SQLite's lock on it was held: another program writes past SQLite",
        hint="find that program (cp, rsync, another backup tool?) and stop it; then take the snapshot again",
    )


def died(path: str, status: int, max_lock_seconds: float) -> BackupdError:
    """The error for a process that captured `path` and ended with `status`, as `Popen.returncode` gives it."""
    if status == NOT_LOADED:
        return not_loaded(f"the process that captures {path}")
    match -status:
        case signal.SIGALRM:
            return held_too_long(path, max_lock_seconds)
        case signal.SIGBUS:
            return SourceUnusableError(
                f"{path} was truncated during the capture, or its disk failed",
                hint="find out what truncated it, then try again; earlier snapshots are untouched",
            )
        case signal.SIGKILL | signal.SIGABRT:  # by the system, or by a library that got no memory
            return LimitReachedError(
                f"the process that captured {path} was killed",
                hint="memory may have run out: allow 200 MB plus 40 bytes a page",
            )
        case _:
            return BackupdError(f"the process that captured {path} ended with status {status}")
