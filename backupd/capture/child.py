"""The capturing process: reads requests from stdin, reports events on stdout, and leaves packs in the spool.

Events are lines of JSON. A line of JSON on stdin is the request for a capture. After it, other lines say that a pack
has left the spool (`freed`), or that the copy must not wait for anything any more (`hurry`). The event `ready` says
that the capture is over and nothing of it is left in this process, which then takes the next request. After a capture
that failed, or that left a trace, the process ends instead.

The end of stdin means that the parent is gone, and ends this process at once, so that no lock on the database outlives
the program that asked for it.

Only `worker.Worker` starts it; `process.Capture` defines the events.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from backupd.capture import database_files, source
from backupd.capture.database_files import read_header, unreadable
from backupd.capture.facts import read_facts
from backupd.capture.limits import BYTES_PER_PINNED_STEP, FACTS_SECONDS, CaptureRequest
from backupd.capture.output import Events, Output
from backupd.capture.sink import stream_pages
from backupd.capture.table import spool_full
from backupd.concurrency import start_thread
from backupd.errors import (
    BackupdError,
    BusyError,
    LimitReachedError,
    SourceUnusableError,
    limit_reached,
)
from backupd.system.processes import error_as_json, failure_of

if TYPE_CHECKING:
    from backupd.capture.packer import PackWriter

_BEGINNINGS = 3


def capture(request: CaptureRequest, output: Output) -> None:
    """Capture the database in the way that its journal mode allows, and begin again when that changes meanwhile.

    Where its log was followed, the image is built from that, and the database is not read.
    """
    if request.log is not None:
        from backupd.capture.replayed import capture_from_log  # noqa: PLC0415  (the format of segments: for few of us)

        if capture_from_log(request, request.log, output):
            return
    for _ in range(_BEGINNINGS):
        header = read_header(request.path)
        try:
            if header.is_wal:
                _capture_pinned(request, output)
                return
            from backupd.capture import rollback  # noqa: PLC0415  (most databases of servers are in WAL mode)

            if rollback.capture_between_writes(request, output):
                return
        except source.JournalModeChangedError:
            pass
    raise BusyError(
        f"{request.path} became another file, or changed its journal mode, each time that it was captured",
        hint="try again; if the application does this regularly, back up at another time",
    )


def _capture_pinned(request: CaptureRequest, output: Output) -> None:
    """Capture a database in WAL mode: one transaction spans the whole copy, and writers continue."""
    path, lock_timeout = request.path, request.lock_timeout
    before = os.stat(path)
    output.expect(lock_timeout + database_files.opening_seconds(path))
    with source.pinned(path, lock_timeout=lock_timeout) as connection:
        output.expect(FACTS_SECONDS)
        header, facts = read_facts(connection, seconds=FACTS_SECONDS)
        source.reject_journal_mode(facts, is_wal=True)
        page_size, page_count = connection.pragma("page_size"), connection.pragma("page_count")
        first_page = b""
        if page_count == 0:
            output.begin_empty(page_size)
            output.pinned(facts, time.time())
        else:
            packer = output.begin(page_size, page_count)
            output.pinned(facts, time.time())
            first_page = stream_pages(
                connection,
                page_size=page_size,
                pages_per_step=BYTES_PER_PINNED_STEP // page_size,
                pages_written=packer.add,
                stepped=lambda remaining: output.progress(page_count - remaining),
            )
    _reject_changed_file(path, before, page_size * page_count)
    output.finish(facts["schema_version"], first_page, header)


def _reject_changed_file(path: str, before: os.stat_result, image_bytes: int) -> None:
    """Refuse a file that was replaced or truncated meanwhile: its copy would look like success.

    A checkpoint may cut the file to the pinned size.
    """
    after = os.stat(path)
    if (after.st_dev, after.st_ino) != (before.st_dev, before.st_ino):
        raise SourceUnusableError(
            f"{path} was replaced by another file during the capture",
            hint="try again; if the application does this regularly, back up at another time",
        )
    if after.st_size < min(before.st_size, image_bytes):
        raise SourceUnusableError(
            f"{path} was truncated during the capture",
            hint="find out what truncated it, then try again; earlier snapshots are untouched",
        )


class _Parent:
    """The lines on stdin: requests, and what concerns the capture that is under way."""

    def __init__(self) -> None:
        self._requests: SimpleQueue[CaptureRequest] = SimpleQueue()
        self._writer: PackWriter | None = None
        self._is_waited_for = True

    def read(self) -> None:
        """Read stdin to its end, then end the process, whatever its other threads do."""
        for line in sys.stdin:
            writer = self._writer  # that of the capture before, or none, until the next one has a pack
            if line.startswith("{"):
                self._requests.put(CaptureRequest.from_json(line))
            elif writer is not None and line == "freed\n":
                writer.free_slot()
            elif writer is not None:
                writer.stop_waiting()
        os._exit(0 if self._is_waited_for else 1)

    def next_request(self) -> CaptureRequest:
        """Wait for the next request."""
        self._is_waited_for, self._writer = True, None
        request = self._requests.get()
        self._is_waited_for = False
        return request

    def follow(self, writer: PackWriter) -> None:
        """Pass to `writer` what is said of the capture from now on."""
        self._writer = writer


def _serve(parent: _Parent, events: Events) -> None:
    """Capture one database after the other, up to one that fails, or that leaves anything in this process."""
    before = _traces()
    while True:
        if not _is_captured(parent.next_request(), parent, events) or before is None or _traces() != before:
            return
        events.emit("ready")


def _traces() -> object:
    """What a capture could leave to the next one: open files, with the locks that depend on them, threads, a timer.

    None where that cannot be seen.
    """
    try:
        return sorted(os.listdir("/proc/self/fd")), threading.active_count(), signal.getitimer(signal.ITIMER_REAL)
    except OSError:
        return None


def _is_captured(request: CaptureRequest, parent: _Parent, events: Events) -> bool:
    """Capture, and report how that ends; False after a failure."""
    try:
        output = Output(request, events)
        parent.follow(output.writer)
        capture(request, output)
    except BackupdError as error:
        _report_failure(events, error)
    except OSError as error:
        _report_failure(events, _translated(error, request))
    except Exception as error:  # noqa: BLE001  (a bug; the parent reports it in one line)
        _report_failure(events, failure_of("the process that captures", error))
    else:
        return True
    return False


def _translated(error: OSError, request: CaptureRequest) -> BackupdError:
    """Translate an error of the system about the spool or the database into one of ours."""
    if limit := limit_reached(error):
        return limit
    if str(error.filename).startswith(request.spool):
        return spool_full(Path(request.spool), error)
    if isinstance(error, FileNotFoundError):
        return SourceUnusableError(f"{error.filename} vanished during the capture")
    return unreadable(request.path, error)


def _report_failure(events: Events, error: BackupdError) -> None:
    events.emit("failed", **error_as_json(error))


def main() -> None:
    """Carry out the captures that stdin asks for, and exit 0; failures are events too."""
    source.prepare_process()
    events, parent = Events(), _Parent()
    try:
        writer = start_thread(events.write, name="events")
        start_thread(parent.read, name="parent")
    except LimitReachedError as error:
        _report_failure(events, error)
        events.end()
        events.write()
        return
    _serve(parent, events)
    events.end()
    writer.join()


if __name__ == "__main__":
    main()
