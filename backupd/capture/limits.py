"""The request for a capture, and its limits: seconds under a lock, bytes in one step.

Imported by both sides, so it loads neither SQLite nor msgspec.
"""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from backupd.errors import BackupdError, BusyError, LimitReachedError, SourceUnusableError
from backupd.system.processes import NOT_LOADED, answer_of, not_loaded

if TYPE_CHECKING:
    from collections.abc import Sequence

WHOLE_BYTES = 32 << 20
"""A database up to this size is copied under one lock: writers wait about 15 ms on two cores. A larger one in steps."""

BYTES_PER_STEP = 2 << 20
"""How much the backup API copies in one step under a lock, which costs as much for any step."""

BYTES_PER_PINNED_STEP = 256 << 10
"""How much it copies in one step where no writer waits. So much stays in the processor's cache until it is hashed."""

FACTS_SECONDS = 2.0
"""How long reading the facts may take where no writer waits for it. A schema of 10,000 tables takes 0.1 s."""

_GRACE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class StreamBase:
    """The base that one stream of packs is compared with.

    `hashes` is a file of 16-byte page hashes, or None when there is no base. Pages of `relocate` (page numbers) are
    stored too if anything has changed.
    """

    page_size: int
    hashes: str | None
    relocate: Sequence[int]


@dataclass(frozen=True, slots=True)
class LogSource:
    """An image that needs no reading of the database: that of the bases, with commits from its log added.

    `segments` are files with the commits from `after + 1` to `until` of one recovery window, oldest first.
    `page_count` is that of the bases, `first_page` is their page 1 in base64, and `facts` are theirs. Those hold as
    long as no commit has changed the schema, or one of the `revision_pages`, and the database is still the `file`.
    """

    segments: Sequence[str]
    after: int
    until: int
    taken_at: float
    """When the image was current, in seconds since the epoch."""
    page_size: int
    page_count: int
    first_page: str
    facts: dict[str, Any]
    revision_pages: Sequence[int]
    file: Sequence[int]
    """Device and inode."""


@dataclass(frozen=True, slots=True)
class CaptureRequest:
    """Everything that the capturing process needs to know. Times are in seconds.

    At most `slots` finished packs wait in `spool`, a private directory; they are encrypted to `recipients` if any.
    """

    path: str
    spool: str
    streams: Sequence[StreamBase]
    level: int
    slots: int
    lock_timeout: float
    max_lock: float
    recipients: Sequence[str] = ()
    whole_bytes: int = WHOLE_BYTES
    """In rollback mode: a database up to this size is copied in one step, while writers wait."""
    compare_seconds: float = 0.0
    """In rollback mode: how long writers may wait while the unlocked reading is compared with the backup API."""
    trusts_file: bool = True
    """In rollback mode: whether reading the file gives what SQLite reads. If not, only the backup API confirms."""
    log: LogSource | None = None
    """In WAL mode: what the image can be built from. If that turns out impossible, the database is read."""

    def to_json(self) -> str:
        """Serialize the request as one line, for the capturing process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read the line that `to_json` made."""
        values = json.loads(line)
        values["streams"] = [StreamBase(**stream) for stream in values["streams"]]
        values["log"] = values["log"] and LogSource(**values["log"])
        return cls(**values)


class LockTimer:
    """Ends this process by SIGALRM when it holds SQLite's lock for too long, whatever call it hangs in.

    A process has one such timer, and must have called `let_timers_end_this_process`.
    """

    def __init__(self, max_lock_seconds: float) -> None:
        self._seconds = max_lock_seconds + _GRACE_SECONDS
        self.facts_seconds = min(FACTS_SECONDS, max_lock_seconds / 4)
        """The share of that time that reading the facts may take: the pages come after them."""

    def start(self) -> None:
        """Start or restart the timer. Call this before the lock may be granted."""
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def stop(self) -> None:
        """Stop the timer: the lock is released. Repeatable."""
        signal.setitimer(signal.ITIMER_REAL, 0)


def let_timers_end_this_process() -> None:
    """Give SIGALRM its default action, whatever this process has inherited."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})


def run_reader(path: str, command: Sequence[str], *, max_lock: float, deadline: float) -> Any:
    """Run a process that reads the database at `path` under a `LockTimer`, and return the JSON that it prints.

    `max_lock` is what its timer allows; times are in seconds. Raises `BusyError` past the deadline or when the timer
    ended the process, `BackupdError` when the process failed, and what `children.start` raises.
    """
    try:
        answer = answer_of(command, deadline=deadline)
    except TimeoutError as error:
        raise BusyError(
            f"{path} could not be inspected within {deadline:g} s",
            hint="its file system or disk seems to hang: try `ls -l` on its directory, and look at the system log",
        ) from error
    if answer.status == -signal.SIGALRM:
        raise held_too_long(path, max_lock)
    if answer.status:
        raise BackupdError(
            f"the process that inspects {path} failed: {answer.last_words or f'status {answer.status}'}",
            hint="please report it with the line above",
        )
    return json.loads(answer.output)


def held_too_long(path: str, seconds: float) -> BusyError:
    """The error for a copy that was ended so that the application can write again."""
    return BusyError(
        f"{path} is not in WAL mode, and copying it held up its writers for {seconds:.1f} s",
        hint="try again when the machine is less busy, or let the application use WAL mode: PRAGMA journal_mode = WAL",
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
                hint="memory may have run out: allow 128 MB plus 40 bytes a page",
            )
        case _:
            return BackupdError(f"the process that captured {path} ended with status {status}")
