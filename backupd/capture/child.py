"""The process that captures: a request of JSON on stdin, events as lines of JSON on stdout, packs in the spool.

After the request, each line on stdin says that a pack has left the spool (`freed`), or that the copy must not wait for
anything any more (`hurry`). The end of stdin means that the parent is gone, and ends this process at once, so that no
lock on the database outlives whoever asked for it.

`process.Capture` is the only one to start it, as `children.command_of` says, and documents the request and the events.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from backupd.capture import side_files, sink, source
from backupd.capture.checksums import is_sealed, sealed, without_seal
from backupd.capture.facts import FACTS_SECONDS, read_facts
from backupd.capture.files import Header, read_header, unreadable
from backupd.capture.holder import LockHolder
from backupd.capture.limits import BYTES_PER_STEP, let_timers_end_this_process
from backupd.capture.packer import Packer, PackWriter, Stream
from backupd.capture.rollback import ConfirmedCapture, StepwiseCapture
from backupd.capture.table import spool_full
from backupd.children import error_as_json, failure_of
from backupd.encryption import Encryption
from backupd.errors import (
    BackupdError,
    BusyError,
    LimitReachedError,
    SourceUnusableError,
    UsageError,
    limit_reached,
)
from backupd.format import MAX_IMAGE_PAGES
from backupd.threads import start_thread

_BEGINNINGS = 3
_ALIVE_SECONDS = 1.0
_events: SimpleQueue[str | None] = SimpleQueue()


def _emit(event: str, **values: Any) -> None:
    """Report to the parent, in the order of the calls. Never waits: a stopped parent must not prolong a lock."""
    _events.put(json.dumps({"event": event, **values}) + "\n")


def _write_events() -> None:
    while (line := _events.get()) is not None:
        try:
            sys.stdout.write(line)
            sys.stdout.flush()
        except BrokenPipeError:
            os._exit(1)  # the parent has given this up; Python's own end would try once more, and complain


class Output:
    """Where the pages of the image go, whichever way they are captured: to the packer, and events to the parent."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.page_size = 0
        self.page_count = 0
        self._path: str = request["path"]
        self.spool = Path(request["spool"])
        self._request = request
        self._writer: PackWriter | None = None
        self._packer: Packer | None = None
        self._is_locked = False
        self._pages_read = 0
        self._alive_at = 0.0

    @property
    def packer(self) -> Packer:
        """What takes the pages; there is none before `begin`, nor of an image without pages."""
        assert self._packer is not None  # noqa: S101
        return self._packer

    def begin(self, page_size: int, page_count: int) -> None:
        """From now on the image has so many pages. What has come of it before stays, where it is not replaced."""
        source.reject_hollow(self._path, page_size * page_count)
        if page_count > MAX_IMAGE_PAGES:
            raise UsageError(
                f"{self._path} has {page_count} pages, the format holds {MAX_IMAGE_PAGES}",
                hint="give the database larger pages: PRAGMA page_size = 65536; VACUUM",
            )
        if self._packer is not None and (page_size != self.page_size or page_count == 0):
            raise BusyError(
                f"{self._path} was rebuilt by the application while it was captured: it has "
                f"{page_count} pages of {page_size} bytes now, and had pages of {self.page_size} bytes",
                hint="try again",
            )
        self.page_size, self.page_count = page_size, page_count
        if page_count == 0:
            return
        if self._packer is None:
            self._packer = self._new_packer()
        self._packer.resize(page_count)
        self._packer.table.hole_left(page_size)

    def _new_packer(self) -> Packer:
        encryption = Encryption(self._request["recipients"])
        self._writer = PackWriter(
            self.spool,
            page_size=self.page_size,
            level=self._request["level"],
            slots=self._request["slots"],
            encrypt=encryption.encrypt if encryption.is_on else None,
            emit=_emit,
        )
        streams = [self._stream(number) for number in range(len(self._request["streams"]))]
        return Packer(self.page_size, self.page_count, streams, self._writer, self.spool / "hashes")

    def _stream(self, number: int) -> Stream:
        """The stream as requested; a base of another page size is none."""
        request = self._request["streams"][number]
        relocate: frozenset[int] = frozenset()
        expected: bytes | mmap.mmap = b""
        if request["page_size"] == self.page_size and request["hashes"]:
            with open(request["hashes"], "rb") as file:
                if os.fstat(file.fileno()).st_size:
                    expected = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            relocate = frozenset(page for page in request["relocate"] if page <= self.page_count)
        return Stream(number, expected, relocate, self.spool)

    @property
    def pages_written(self) -> sink.PagesWritten:
        """What takes pages: numbers and images."""
        return self.packer.pages_written

    def wait_for_packs(self) -> None:
        """Wait until nothing is being compressed."""
        assert self._writer is not None  # noqa: S101
        self._writer.wait()

    def progress(self, pages: int) -> None:
        """Report that so many pages of the image have been read; those that are read again do not count."""
        self._pages_read = max(self._pages_read, pages)
        _emit("pages", captured=self._pages_read, page_size=self.page_size, page_count=self.page_count)

    def alive(self) -> None:
        """Report, once a second at most, that something of the database has been read."""
        now = time.monotonic()
        if now - self._alive_at > _ALIVE_SECONDS:
            self._alive_at = now
            _emit("alive")

    def expect(self, seconds: float) -> None:
        """Report that the next event comes within `seconds`, or that this process hangs."""
        _emit("expect", seconds=seconds)

    def locked(self, at: float) -> None:
        """Report that writers wait for us, since `at` of the monotonic clock."""
        self._is_locked = True
        _emit("locked", at=at)

    def released(self) -> None:
        """Report that they do not wait any more, if they did."""
        if self._is_locked:
            _emit("released")
        self._is_locked = False

    def compared(self, *, is_same: bool | None) -> None:
        """Report whether the image is that of the backup API; None: to compare would have taken too long."""
        _emit("compared", is_same=is_same)

    def pinned(self, facts: dict[str, Any], taken_at: float) -> None:
        """Report which state is captured; it was current at `taken_at`, seconds since the epoch."""
        status = os.stat(self._path)
        owner = {"uid": status.st_uid, "gid": status.st_gid, "mode": status.st_mode & 0o7777}
        size = {"page_size": self.page_size, "page_count": self.page_count}
        _emit("pinned", **size, facts=facts, taken_at=taken_at, **owner)

    def finish(self, facts: dict[str, Any], first_page: bytes, header: Header) -> None:
        """Everything but page 1 has come, and the database is no longer in use: complete the image and its packs."""
        _emit("captured")
        if self.page_count == 0:
            (self.spool / "hashes").touch(mode=0o600)
        else:
            self.packer.pages_written([1], [_canonical(first_page, facts["schema_version"], header, self.packer)])
            self.packer.finish()
        _emit("done")

    def follow_parent(self) -> None:
        """Read stdin to its end, then end the process, whatever its other threads do."""
        for line in sys.stdin:
            if self._writer is None:
                continue
            if line == "freed\n":
                self._writer.free_slot()
            else:
                self._writer.stop_waiting()
        os._exit(1)


class _Capture:
    """One capture, in the way that the journal mode of the database asks for."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.output = Output(request)
        self.path: str = request["path"]
        self._request = request

    def run(self) -> None:
        for _ in range(_BEGINNINGS):
            header = read_header(self.path)
            try:
                if self._capture_pinned() if header.is_wal else self._capture_between_writes():
                    return
            except source.JournalModeChangedError:
                pass
        raise BusyError(
            f"{self.path} became another file, or changed its journal mode, each time that it was captured",
            hint="try again; if the application does this regularly, back up at another time",
        )

    def _capture_pinned(self) -> bool:
        """In WAL mode, one transaction around everything: writers go on."""
        before, output = os.stat(self.path), self.output
        output.expect(self._request["lock_timeout"] + source.opening_seconds(self.path))
        with source.pinned(self.path, lock_timeout=self._request["lock_timeout"]) as connection:
            output.expect(FACTS_SECONDS)
            header, facts = read_facts(connection, seconds=FACTS_SECONDS)
            source.reject_journal_mode(facts, is_wal=True)
            page_size, page_count = connection.pragma("page_size"), connection.pragma("page_count")
            output.begin(page_size, page_count)
            output.pinned(facts, time.time())
            first_page = sink.stream_pages(
                connection,
                page_size=page_size,
                pages_per_step=BYTES_PER_STEP // page_size,
                pages_written=output.pages_written,
                stepped=lambda remaining: output.progress(page_count - remaining),
            )
        self._reject_changed_file(before)
        output.finish(facts, first_page, header)
        return True

    def _capture_between_writes(self) -> bool:
        """In rollback mode, where writers wait for readers; False when the file became another one meanwhile."""
        request, path, output = self._request, self.path, self.output
        lock_timeout, max_lock = request["lock_timeout"], request["max_lock"]
        stepwise = StepwiseCapture(
            path, output, lock_timeout=lock_timeout, max_lock=max_lock, whole_bytes=request["whole_bytes"]
        )
        if stepwise.run():
            return True
        with LockHolder(path, output.spool, lock_timeout=lock_timeout, max_lock=max_lock) as holder:
            return ConfirmedCapture(
                path,
                output,
                holder,
                max_lock=max_lock,
                compare_seconds=request["compare_seconds"],
                trusts=request["trusts_file"],
            ).run()

    def _reject_changed_file(self, before: os.stat_result) -> None:
        """A truncation in between otherwise looks like success. A checkpoint may cut the file to the pinned size."""
        after = os.stat(self.path)
        if (after.st_dev, after.st_ino) != (before.st_dev, before.st_ino):
            raise SourceUnusableError(
                f"{self.path} was replaced by another file during the capture",
                hint="try again; if the application does this regularly, back up at another time",
            )
        if after.st_size < min(before.st_size, self.output.page_size * self.output.page_count):
            raise SourceUnusableError(
                f"{self.path} was truncated during the capture",
                hint="find out what truncated it, then try again; earlier snapshots are untouched",
            )


def _canonical(first_page: bytes, schema_version: int, header: Header, packer: Packer) -> bytes:
    """Page 1 with a change counter that differs when the content does, so that a cache never trusts the wrong one."""
    version = header.writer_version
    blank = sink.complete_first_page(first_page, schema_version=schema_version, writer_version=version, counter=0)
    # Neither the API's page nor the log tells the counter that the application's checksum was made with.
    if has_checksum := is_sealed(blank):
        blank = without_seal(blank)
    counter = int.from_bytes(packer.table.digest_behind(blank)[:4], "big") or 1
    page = sink.complete_first_page(blank, schema_version=schema_version, writer_version=version, counter=counter)
    return sealed(page) if has_checksum else page


def main() -> None:
    """Take one snapshot's pages and exit 0; failures are events too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    let_timers_end_this_process()
    side_files.keep_sqlite_from_deleting()
    line = sys.stdin.readline()
    if not line:
        return  # the parent found that there is nothing to do
    capture = _Capture(json.loads(line))
    try:
        start_thread(capture.output.follow_parent, name="parent")
        writer = start_thread(_write_events, name="events")
    except LimitReachedError as error:
        _report_failure(error)
        _events.put(None)
        _write_events()
        return
    _capture_and_report(capture)
    _events.put(None)
    writer.join()


def _translated(error: OSError, capture: _Capture) -> BackupdError:
    """Our error for one of the system's, about the spool or the database."""
    if limit := limit_reached(error):
        return limit
    if str(error.filename).startswith(str(capture.output.spool)):
        return spool_full(capture.output.spool, error)
    if isinstance(error, FileNotFoundError):
        return SourceUnusableError(f"{error.filename} vanished during the capture")
    return unreadable(capture.path, error)


def _report_failure(error: BackupdError) -> None:
    _emit("failed", **error_as_json(error))


def _capture_and_report(capture: _Capture) -> None:
    try:
        capture.run()
    except BackupdError as error:
        _report_failure(error)
    except OSError as error:
        _report_failure(_translated(error, capture))
    except Exception as error:  # noqa: BLE001  (a bug; the parent tells it in one line)
        _report_failure(failure_of("the process that captures", error))


if __name__ == "__main__":
    main()
