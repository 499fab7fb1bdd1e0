"""The parent's side of a capture: start the child, follow its events, end it at any moment."""

from __future__ import annotations

import base64
import json
import math
import os
import select
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import TypeAdapter

from backupd.capture.limits import WHOLE_BYTES, died, held_too_long
from backupd.children import child_environment, command_of, end, error_from_json, start
from backupd.errors import BusyError
from backupd.format.manifest import SourceFacts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

_TICK_SECONDS = 0.1
_LOCK_GRACE_SECONDS = 0.5  # the process that holds the lock has its own timer, which comes first
_READ_BYTES = 1 << 16
_SILENT_SECONDS = 30.0
"""After so long without an event, beside a wait for a lock, the capture counts as hanging."""
_LATE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class StreamBase:
    """What one stream of packs is compared with: `hashes` is a file of 16-byte page hashes, or None for "nothing".

    Pages of `relocate` (page numbers) are stored too if anything has changed.
    """

    page_size: int
    hashes: str | None
    relocate: Sequence[int]


@dataclass(frozen=True, slots=True)
class CaptureRequest:
    """`slots` finished packs at most wait in `spool`, a private directory, encrypted to `recipients` if there are any.

    Times are in seconds.
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
    """In rollback mode: up to so much is copied in one step, while writers wait."""
    compare_seconds: float = 0.0
    """In rollback mode: how long writers may wait while what was read without a lock is compared with the API."""
    trusts_file: bool = True
    """In rollback mode: whether reading the file gives what SQLite reads. If not, it is the API that confirms."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """Which committed state it is. In WAL mode nothing is copied yet, in rollback mode everything.

    It was current at `taken_at`, seconds since the epoch. `uid`, `gid` and `mode` are those of the file.
    """

    taken_at: float

    page_size: int
    page_count: int
    facts: SourceFacts
    uid: int
    gid: int
    mode: int
    is_schema_readable: bool = True
    left_out: tuple[str, ...] = ()
    """A sentence about each fact that would have taken too long."""


@dataclass(frozen=True, slots=True)
class PagesCaptured:
    """So many bytes of page images have been read so far, of an image that has so many as far as is known."""

    captured_bytes: int
    image_bytes: int


@dataclass(frozen=True, slots=True)
class PackReady:
    """A finished pack of stream `stream` lies in `file`. Of two packs that hold one page, the higher `order` counts.

    `page_numbers` are those in its index: u32 little-endian, ascending.
    """

    stream: int
    order: int
    file: Path
    sha256: str
    page_numbers: bytes


@dataclass(frozen=True, slots=True)
class HeldUp:
    """Whether the capture waits for packs to be compressed and to leave the spool. In WAL mode the state is pinned."""

    is_waiting: bool


@dataclass(frozen=True, slots=True)
class Captured:
    """The database is no longer in use. Packs may still follow."""


@dataclass(frozen=True, slots=True)
class Locked:
    """In rollback mode: writers wait, since `at` of the monotonic clock."""

    at: float


@dataclass(frozen=True, slots=True)
class Released:
    """They wait no more."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Whether what was read without a lock is what the backup API gives; None: to compare would have taken too long."""

    is_same: bool | None


Event = Pinned | PagesCaptured | PackReady | HeldUp | Captured | Locked | Released | Compared


class Capture:
    """One capture, as a context manager: leaving it ends the child, however far it was.

    The page hashes of the image are in the file `hashes` in the spool when `events` has ended.
    """

    def __init__(self) -> None:
        self.packs_in_spool = 0
        self._lock = threading.Lock()
        self._must_end_at = math.inf
        self._heard_at = math.inf
        self._may_be_silent_seconds = math.inf

    def __enter__(self) -> Self:
        """Start the child, which makes itself ready while the caller finds out what to ask for.

        Raises `BusyError` and `UsageError` where none can be started.
        """
        command = command_of("backupd.capture.child")
        # In a process group of its own, because Ctrl-C goes to the whole group and this one decides what becomes of it.
        self._process = start(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment(), process_group=0
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # with it the process that may hold the lock
        with self._lock:
            end(self._process)

    def pack_left_spool(self) -> None:
        """Let the child put another pack into the spool. From any thread."""
        with self._lock:
            self.packs_in_spool -= 1
        self._send("freed")

    def stop_waiting(self) -> None:
        """Have the child finish the copy now: what cannot be compressed in time goes to the spool as it is."""
        self._send("hurry")

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101
        # A broken or closed pipe means that the child has ended; `events` says how.
        with self._lock, suppress(BrokenPipeError, ValueError):
            os.write(self._process.stdin.fileno(), line.encode() + b"\n")

    def events(
        self, request: CaptureRequest, *, deadline: float, patience: float = _SILENT_SECONDS
    ) -> Iterator[Event | None]:
        """Capture, once: what the child reports, and None ten times a second while it reports nothing.

        `deadline` is the most seconds that everything may take, `patience` how long the child may be silent beside its
        waiting for a lock. Raises `SourceUnusableError`, `BusyError` (locked, held for too long, silent, or past the
        deadline) and `TargetUnwritableError` (spool).
        """
        self._may_be_silent_seconds = patience + request.lock_timeout
        self._send(json.dumps(asdict(request)))
        is_done = False
        for line in self._lines(request.path, deadline):
            if line is None:
                # Only now: the event that the lock was released may have waited to be read.
                if time.monotonic() > self._must_end_at:
                    raise held_too_long(request.path, request.max_lock)
                self._reject_silence(request)
                yield None
                continue
            values = json.loads(line)
            kind = values.pop("event")
            self._expect(kind, values, patience + request.lock_timeout)
            if kind == "failed":
                raise error_from_json(values)
            is_done = is_done or kind == "done"
            event = _event(kind, values)
            self._watch(event, request.max_lock)
            if event is not None:
                yield event
        status = self._process.wait()
        if not is_done or status:
            raise died(request.path, status, request.max_lock)

    def _expect(self, kind: str, values: dict[str, Any], usual_seconds: float) -> None:
        """Find out from an event how long it may take until the next one."""
        match kind:
            case "expect":
                self._may_be_silent_seconds = values["seconds"] + _LATE_SECONDS
            case "held" | "captured":  # it waits for packs, and not for the database
                self._may_be_silent_seconds = math.inf
            case "pack":
                pass
            case _:
                self._may_be_silent_seconds = usual_seconds

    def _reject_silence(self, request: CaptureRequest) -> None:
        silent_seconds = time.monotonic() - self._heard_at
        is_spool_full = self.packs_in_spool >= request.slots
        if silent_seconds > self._may_be_silent_seconds and not is_spool_full:
            raise BusyError(
                f"the capture of {request.path} has made no progress for {silent_seconds:.0f} s",
                hint="its disk or file system seems to hang: try `ls -l` on its directory, and look at the system log",
            )

    def _watch(self, event: Event | None, max_lock: float) -> None:
        """Count the spool, and see to it that even a child that hangs gives the application its database back."""
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

    def _lines(self, path: str, deadline: float) -> Iterator[bytes | None]:
        self._heard_at = time.monotonic()
        give_up_at = self._heard_at + deadline
        assert self._process.stdout is not None  # noqa: S101
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        rest = b""
        while True:
            if time.monotonic() > give_up_at:
                raise BusyError(
                    f"the capture of {path} did not finish within {deadline:.0f} s",
                    hint="raise capture.deadline, or find out what slows it down: the disk or a store",
                )
            if not poll.poll(_TICK_SECONDS * 1000):
                yield None
                continue
            chunk = os.read(descriptor, _READ_BYTES)
            if not chunk:
                return
            self._heard_at = time.monotonic()
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines


_PLAIN_EVENTS: dict[str, type[Captured | Locked | Released | Compared]] = {
    "captured": Captured,
    "locked": Locked,
    "released": Released,
    "compared": Compared,
}


def _event(kind: str, values: dict[str, Any]) -> Event | None:
    match kind:
        case "pinned":
            facts = values.pop("facts")
            is_schema_readable, left_out = facts.pop("is_schema_readable"), tuple(facts.pop("left_out"))
            source = TypeAdapter(SourceFacts).validate_python(facts)
            return Pinned(**values, facts=source, is_schema_readable=is_schema_readable, left_out=left_out)
        case "pages":
            return PagesCaptured(*(values[pages] * values["page_size"] for pages in ("captured", "page_count")))
        case "pack":
            page_numbers = base64.b64decode(values["page_numbers"])
            return PackReady(**{**values, "file": Path(values["file"]), "page_numbers": page_numbers})
        case "held" | "resumed":
            return HeldUp(is_waiting=kind == "held")
        case _:
            return _PLAIN_EVENTS[kind](**values) if kind in _PLAIN_EVENTS else None
