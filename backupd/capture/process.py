"""The parent's side of a capture: asks a worker for it, follows its events, and can end it at any moment."""

from __future__ import annotations

import base64
import json
import math
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from backupd.capture.limits import WHOLE_BYTES, died, held_too_long
from backupd.capture.worker import Worker
from backupd.errors import BusyError
from backupd.format.manifest import SourceFacts
from backupd.system.processes import error_from_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from backupd.capture.limits import CaptureRequest
    from backupd.capture.worker import Workers

_LOCK_GRACE_SECONDS = 0.5  # the process that holds the lock has its own timer, which comes first
_SILENT_SECONDS = 30.0
"""A capture that reports nothing for so long, apart from waiting for a lock, counts as hanging."""
_LATE_SECONDS = 5.0


class Pinned(msgspec.Struct, frozen=True):
    """The committed state that is captured. In WAL mode nothing is copied yet, in rollback mode everything.

    It was current at `taken_at`, seconds since the epoch. `uid`, `gid` and `mode` are those of the file.
    """

    taken_at: float
    page_size: int
    page_count: int
    facts: SourceFacts
    uid: int
    gid: int
    mode: int
    file: tuple[int, int]
    """Device and inode of the database."""
    is_schema_readable: bool = True
    left_out: tuple[str, ...] = ()
    """A sentence about each fact that would have taken too long to read."""
    revision_pages: tuple[int, ...] | None = None
    """The pages that hold Alembic's revisions; None where they are not known."""
    is_replayed: bool = False
    """Whether the image was built from the log, and the database was not read."""


class PagesCaptured(msgspec.Struct, frozen=True):
    """Bytes of page images that have been read so far, and the size of the image as far as it is known."""

    captured_bytes: int
    image_bytes: int


class PackReady(msgspec.Struct, frozen=True):
    """A finished pack of stream `stream`, in `file`. Of two packs that hold one page, the higher `order` counts.

    `page_numbers` are those in its index: u32 little-endian, ascending. `index_bytes` and `index_hash` are what a
    manifest says of the index; None for an encrypted pack.
    """

    stream: int
    order: int
    file: Path
    sha256: str
    page_numbers: bytes
    index_bytes: int | None = None
    index_hash: str | None = None


class HeldUp(msgspec.Struct, frozen=True):
    """Whether the capture waits for packs to be compressed and to leave the spool. In WAL mode the state is pinned."""

    is_waiting: bool


class Captured(msgspec.Struct, frozen=True):
    """The database is no longer in use. Packs may still follow."""


class Locked(msgspec.Struct, frozen=True):
    """In rollback mode: writers wait since `at` on the monotonic clock."""

    at: float


class Released(msgspec.Struct, frozen=True):
    """In rollback mode: writers no longer wait."""


class Compared(msgspec.Struct, frozen=True):
    """Whether the unlocked reading equals what the backup API gives; None when comparing would have taken too long."""

    is_same: bool | None


class NotReplayed(msgspec.Struct, frozen=True):
    """Why the database is read although there was a log to build the image from."""

    reason: str


class Completed(msgspec.Struct, frozen=True):
    """The image is complete, with this page 1; empty for an empty database."""

    first_page: bytes


Event = Pinned | PagesCaptured | PackReady | HeldUp | Captured | Locked | Released | Compared | NotReplayed | Completed


class Capture:
    """One capture, as a context manager: leaving it ends the capture, however far it was.

    Takes a worker at once, which makes itself ready while the caller finds out what to ask for. It comes from `workers`
    if there are any, and returns to them, unless the capture failed or was of a large database: after that, it may keep
    memory, and starting another one is a small part of the cost. When `events` has ended, the page hashes of the image
    are in the file `hashes` in the spool. Raises `LimitReachedError` and `UsageError` when no worker can be started.
    """

    def __init__(self, workers: Workers | None = None) -> None:
        self._workers = workers
        self._lock = threading.Lock()
        self._worker: Worker | None = Worker() if workers is None else workers.take()
        self._is_reusable = True
        self.packs_in_spool = 0
        self._must_end_at = math.inf
        self._may_be_silent_seconds = math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            worker, self._worker = self._worker, None  # what is sent from now on must not reach its next capture
        if worker is None:
            return
        if self._workers is not None and self._is_reusable:
            self._workers.give_back(worker)
        else:
            worker.end()

    def pack_left_spool(self) -> None:
        """Let the child put another pack into the spool. From any thread."""
        with self._lock:
            self.packs_in_spool -= 1
        self._send("freed")

    def stop_waiting(self) -> None:
        """Let the child finish the copy now: pages that cannot be compressed in time go to the spool as they are."""
        self._send("hurry")

    def _send(self, line: str) -> None:
        with self._lock:
            if self._worker is not None:
                self._worker.send(line)

    def events(
        self, request: CaptureRequest, *, deadline: float, patience: float = _SILENT_SECONDS
    ) -> Iterator[Event | None]:
        """Capture, once: yield what the child reports, and None ten times a second while it reports nothing.

        `deadline` is how many seconds everything may take, `patience` how long the child may report nothing, apart from
        waiting for a lock. Raises `SourceUnusableError`, `BusyError` (locked, held for too long, silent, or past the
        deadline) and `TargetUnwritableError` (spool).
        """
        first = self._worker
        if first is None:
            raise RuntimeError("a capture was asked for events after its end")
        give_up_at = time.monotonic() + deadline
        self._may_be_silent_seconds = patience + request.lock_timeout
        self._is_reusable = False
        is_done, is_large = False, False
        for worker, line in self._answers(first, request):
            self._reject_late(request, give_up_at=give_up_at, deadline=deadline)
            if line is None:
                # Only when nothing is left to read: the event that the lock was released may have been waiting.
                self._reject_hang(request, time.monotonic() - worker.heard_at)
                yield None
                continue
            values = json.loads(line)
            kind = values.pop("event")
            if kind == "ready":
                self._is_reusable = not is_large
                return
            self._expect(kind, values, patience + request.lock_timeout)
            if kind == "failed":
                raise error_from_json(values)
            is_done = is_done or kind == "done"
            event = _event(kind, values)
            self._watch(event, request.max_lock)
            if isinstance(event, PagesCaptured):
                is_large = event.image_bytes > WHOLE_BYTES
            if event is not None:
                yield event
        status = (self._worker or first).status()
        if not is_done or status:
            raise died(request.path, status, request.max_lock)

    def _answers(self, worker: Worker, request: CaptureRequest) -> Iterator[tuple[Worker, bytes | None]]:
        """Send `request`, and yield what is answered; a kept worker that ended before it began is replaced."""
        with self._lock:
            worker.send(request.to_json())
        has_answered = False
        for line in worker.lines():
            has_answered = has_answered or line is not None
            yield worker, line
        if worker.was_kept and not has_answered:
            worker.end()
            with self._lock:
                self._worker = worker = Worker()
            yield from self._answers(worker, request)

    def _expect(self, kind: str, values: dict[str, Any], usual_seconds: float) -> None:
        """Set how long the next event may take, by the kind of this one."""
        match kind:
            case "expect":
                self._may_be_silent_seconds = values["seconds"] + _LATE_SECONDS
            case "held" | "captured":  # it waits for packs, and not for the database
                self._may_be_silent_seconds = math.inf
            case "pack":
                pass
            case _:
                self._may_be_silent_seconds = usual_seconds

    def _reject_late(self, request: CaptureRequest, *, give_up_at: float, deadline: float) -> None:
        if time.monotonic() > give_up_at:
            raise BusyError(
                f"the capture of {request.path} did not finish within {deadline:.0f} s",
                hint="raise capture.deadline, or find out what slows it down: the disk or a store",
            )

    def _reject_hang(self, request: CaptureRequest, silent_seconds: float) -> None:
        if time.monotonic() > self._must_end_at:
            raise held_too_long(request.path, request.max_lock)
        is_spool_full = self.packs_in_spool >= request.slots
        if silent_seconds > self._may_be_silent_seconds and not is_spool_full:
            raise BusyError(
                f"the capture of {request.path} has made no progress for {silent_seconds:.0f} s",
                hint="its disk or file system seems to hang: try `ls -l` on its directory, and look at the system log",
            )

    def _watch(self, event: Event | None, max_lock: float) -> None:
        """Count the packs in the spool, and set the time by which even a child that hangs must release the lock."""
        match event:
            case PackReady():
                with self._lock:
                    self.packs_in_spool += 1
            case Locked():
                self._must_end_at = event.at + max_lock + _LOCK_GRACE_SECONDS
            case Released():
                self._must_end_at = math.inf
            case _:
                pass


_PLAIN_EVENTS: dict[str, type[Captured | Locked | Released | Compared | NotReplayed]] = {
    "captured": Captured,
    "locked": Locked,
    "released": Released,
    "compared": Compared,
    "not_replayed": NotReplayed,
}


def _event(kind: str, values: dict[str, Any]) -> Event | None:
    match kind:
        case "pinned":
            facts = values.pop("facts")
            pages = facts.pop("revision_pages")
            return Pinned(
                **{**values, "file": tuple(values["file"])},
                is_schema_readable=facts.pop("is_schema_readable"),
                left_out=tuple(facts.pop("left_out")),
                revision_pages=None if pages is None else tuple(pages),
                facts=msgspec.convert(facts, SourceFacts),
            )
        case "pages":
            return PagesCaptured(*(values[pages] * values["page_size"] for pages in ("captured", "page_count")))
        case "pack":
            page_numbers = base64.b64decode(values["page_numbers"])
            return PackReady(**{**values, "file": Path(values["file"]), "page_numbers": page_numbers})
        case "done":
            return Completed(base64.b64decode(values["first_page"]))
        case "held" | "resumed":
            return HeldUp(is_waiting=kind == "held")
        case _:
            return _PLAIN_EVENTS[kind](**values) if kind in _PLAIN_EVENTS else None
