"""The process that captures: a request of JSON on stdin, events as lines of JSON on stdout, packs in the spool.

After the request, each line on stdin says that a pack has left the spool (`freed`), or that the copy must not wait for
anything any more (`hurry`). The end of stdin means that the parent is gone, and ends this process at once, so that no
lock on the database outlives whoever asked for it.

`python -m backupd.capture.child` is started by `process.Capture` only, which documents the request and the events.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backupd.capture import sink, source
from backupd.capture.limits import held_too_long
from backupd.capture.packer import Packer, PackWriter, Stream
from backupd.encryption import Encryption
from backupd.errors import BackupdError, SourceUnusableError, UsageError
from backupd.format import MAX_IMAGE_PAGES

if TYPE_CHECKING:
    import apsw

_BYTES_PER_STEP = 2 << 20
_output_lock = threading.Lock()


def _emit(event: str, **values: Any) -> None:
    line = json.dumps({"event": event, **values}) + "\n"
    with _output_lock:
        try:
            sys.stdout.write(line)
            sys.stdout.flush()
        except BrokenPipeError:
            os._exit(1)  # the parent has given this up; Python's own end would try once more, and complain


class _Capture:
    def __init__(self, request: dict[str, Any]) -> None:
        self._path: str = request["path"]
        self._spool = Path(request["spool"])
        self._request = request
        self._writer: PackWriter | None = None
        self._pinned_at = 0.0

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

    def run(self) -> None:
        header = source.read_header(self._path)
        if header.is_wal:
            source.reject_foreign_wal_files(self._path)
        else:
            source.warm_file_cache(self._path)
        self._before = os.stat(self._path)
        with source.pinned(self._path, lock_timeout=self._request["lock_timeout"]) as connection:
            self._pinned_at = time.monotonic()
            packer, first_page = self._copy(connection, source.read_facts(connection, header), header)
        self._reject_changed_file()
        _emit("captured", seconds=time.monotonic() - self._pinned_at)
        if packer is not None:
            packer.pages_written([1], [first_page])
            packer.finish()
        _emit("done")

    def _copy(
        self, connection: apsw.Connection, facts: dict[str, Any], header: source.Header
    ) -> tuple[Packer | None, bytes]:
        """Stream the pinned state; the packer that has all of it but page 1, and the completed page 1."""
        page_size = connection.pragma("page_size")
        page_count = connection.pragma("page_count")
        self._page_bytes = page_size * page_count
        if page_count > MAX_IMAGE_PAGES:
            raise UsageError(
                f"{self._path} has {page_count} pages, the format holds {MAX_IMAGE_PAGES}",
                hint="give the database larger pages: PRAGMA page_size = 65536; VACUUM",
            )
        owner = {"uid": self._before.st_uid, "gid": self._before.st_gid, "mode": self._before.st_mode & 0o7777}
        _emit("pinned", page_size=page_size, page_count=page_count, facts=facts, **owner)
        if page_count == 0:
            (self._spool / "hashes").touch(mode=0o600)
            return None, b""
        is_wal = facts["journal_mode"] == "wal"
        encryption = Encryption(self._request["recipients"])
        self._writer = PackWriter(
            self._spool,
            page_size=page_size,
            level=self._request["level"],
            slots=self._request["slots"],
            encrypt=encryption.encrypt if encryption.is_on else None,
            emit=_emit,
        )
        if not is_wal:
            self._writer.stop_waiting()  # the application waits for the whole copy
        streams = [self._stream(number, page_size, page_count) for number in range(len(self._request["streams"]))]
        packer = Packer(page_size, page_count, streams, self._writer, self._spool / "hashes")

        def stepped(remaining: int) -> None:
            _emit("pages", captured=page_count - remaining)
            if not is_wal:
                self._reject_long_lock()

        first_page = sink.stream_pages(
            connection,
            page_size=page_size,
            pages_per_step=_BYTES_PER_STEP // page_size,
            pages_written=packer.pages_written,
            stepped=stepped,
        )
        packer.hole_left()
        return packer, _canonical(first_page, facts["schema_version"], header.writer_version, packer)

    def _stream(self, number: int, page_size: int, page_count: int) -> Stream:
        """The stream as requested; a base of another page size is none."""
        request = self._request["streams"][number]
        relocate: frozenset[int] = frozenset()
        expected: bytes | mmap.mmap = b""
        if request["page_size"] == page_size and request["hashes"]:
            with open(request["hashes"], "rb") as file:
                if os.fstat(file.fileno()).st_size:
                    expected = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            relocate = frozenset(page for page in request["relocate"] if page <= page_count)
        return Stream(number, expected, relocate, self._spool)

    def _reject_long_lock(self) -> None:
        held = time.monotonic() - self._pinned_at
        if held > self._request["max_lock"]:
            raise held_too_long(self._path, held)

    def _reject_changed_file(self) -> None:
        """A truncation in between otherwise looks like success. A checkpoint may cut the file to the pinned size."""
        before, after = self._before, os.stat(self._path)
        if (after.st_dev, after.st_ino) != (before.st_dev, before.st_ino):
            raise SourceUnusableError(
                f"{self._path} was replaced by another file during the capture",
                hint="try again; if the application does this regularly, back up at another time",
            )
        if after.st_size < min(before.st_size, self._page_bytes):
            raise SourceUnusableError(
                f"{self._path} was truncated during the capture",
                hint="find out what truncated it, then try again; earlier snapshots are untouched",
            )


def _canonical(first_page: bytes, schema_version: int, writer_version: int, packer: Packer) -> bytes:
    """Page 1 with a change counter that differs when the content does, so that a cache never trusts the wrong one."""
    blank = sink.complete_first_page(
        first_page, schema_version=schema_version, writer_version=writer_version, counter=0
    )
    counter = int.from_bytes(packer.table.digest_behind(blank)[:4], "big") or 1
    return sink.complete_first_page(
        first_page, schema_version=schema_version, writer_version=writer_version, counter=counter
    )


def main() -> None:
    """Take one snapshot's pages and exit 0; failures are events too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    line = sys.stdin.readline()
    if not line:
        return  # the parent found that there is nothing to do
    capture = _Capture(json.loads(line))
    threading.Thread(target=capture.follow_parent, daemon=True).start()
    try:
        capture.run()
    except BackupdError as error:
        _emit("failed", error=type(error).__name__, message=error.message, hint=error.hint)
    except FileNotFoundError as error:
        _emit("failed", error="SourceUnusableError", message=f"{error.filename} vanished during the capture", hint=None)
    except Exception as error:  # noqa: BLE001  (a bug; the parent tells it in one line)
        traceback.print_exc()
        message = f"the process that captures failed: {type(error).__name__}: {error}"
        _emit("failed", error="BackupdError", message=message, hint="please report it with the lines above")


if __name__ == "__main__":
    main()
