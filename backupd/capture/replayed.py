"""Build the image of a database in WAL mode from that of the base and the commits since, which its log has shown.

No page of the database is read, and no lock is taken. Only the last version of each page counts, so that this costs
what was changed. Where anything about it is in doubt, the database is read instead.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backupd.capture.header import Header
from backupd.format import FormatError
from backupd.format.segment import decode_segment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.capture.limits import CaptureRequest, LogSource
    from backupd.capture.output import Output
    from backupd.format.segment import Segment

_MOST_BYTES = 32 << 20
"""The last versions of all changed pages are in memory at once. For more, reading the database costs as little."""
_PAGES_AT_ONCE = 64


class _DoubtError(Exception):
    """The image cannot be built, or might be another than that of the database; the message says why."""


def capture_from_log(request: CaptureRequest, log: LogSource, output: Output) -> bool:
    """Capture the image that `log` describes; False, and nothing but the reason is reported, when that is in doubt."""
    try:
        _reject_other_file(request.path, log)
        changes = _Changes(log)
        facts = _facts(changes, log)
        _reject_other_file(request.path, log)
    except _DoubtError as doubt:
        output.not_replayed(str(doubt))
        return False
    packer = output.begin_on_base(log.page_size, changes.page_count)
    output.pinned(facts, log.taken_at, is_replayed=True)
    numbers = sorted(changes.images)
    for at in range(0, len(numbers), _PAGES_AT_ONCE):
        some = numbers[at : at + _PAGES_AT_ONCE]
        packer.add(some, [changes.images[number] for number in some])
    # SQLite does not log a page that it added and freed again in one transaction; it reads as zeros.
    for number in packer.table.unseen():
        packer.add([number], [bytes(log.page_size)])
    output.progress(changes.page_count)
    output.finish(facts["schema_version"], changes.first_page, _header(changes.first_page, log))
    return True


class _Changes:
    """The state after the last commit: how many pages it has, page 1, and the last image of each other changed page."""

    def __init__(self, log: LogSource) -> None:
        """Raises `_DoubtError`."""
        self.page_count = log.page_count
        self.images: dict[int, bytes] = {}
        self.first_page = base64.b64decode(log.first_page)
        size_bytes = 0
        for segment, until in _newest_first(log):
            if until == log.until:
                self.page_count = segment.commits[segment.index_of(until)].page_count
            size_bytes = max(size_bytes, (self.page_count - log.page_count) * log.page_size)  # written, or free
            for number, image in segment.newest(log.after, until):
                if number not in self.images and number <= self.page_count:
                    self.images[number] = bytes(image)
                    size_bytes = max(size_bytes, len(self.images) * log.page_size)
                if size_bytes > _MOST_BYTES:
                    raise _DoubtError(f"more than {_MOST_BYTES >> 20} MiB of its pages have changed")
        self.first_page = self.images.pop(1, self.first_page)
        if changed := self.images.keys() & log.revision_pages:
            raise _DoubtError(f"page {min(changed)} of its table alembic_version was written")


def _newest_first(log: LogSource) -> Iterator[tuple[Segment, int]]:
    """Yield the segments with the last commit of each that counts. Raises `_DoubtError`."""
    until = log.until
    for file in reversed(log.segments):
        if until <= log.after:
            return
        try:
            segment = decode_segment(Path(file).read_bytes())
        except (OSError, FormatError) as error:
            raise _DoubtError(f"a segment of its log cannot be read: {error}") from error
        if segment.is_thinned or segment.head.page_size != log.page_size or not segment.first <= until <= segment.last:
            raise _DoubtError(f"{Path(file).name} does not have commit {until} in pages of {log.page_size} bytes")
        yield segment, until
        until = segment.first - 1
    if until > log.after:
        raise _DoubtError(f"the segments of its log begin after commit {until}")


def _facts(changes: _Changes, log: LogSource) -> dict[str, Any]:
    """Return the facts that `facts.read_facts` would read. Raises `_DoubtError` when the schema may be another one.

    Source of the offsets: https://www.sqlite.org/fileformat2.html#the_database_header.
    """
    first_page = changes.first_page
    facts = {
        **log.facts,
        "free_pages": min(int.from_bytes(first_page[36:40], "big"), changes.page_count),
        "user_version": int.from_bytes(first_page[60:64], "big", signed=True),
        "application_id": int.from_bytes(first_page[68:72], "big", signed=True),
        "sqlite_version": _header(first_page, log).sqlite_version,
    }
    if int.from_bytes(first_page[40:44], "big", signed=True) != log.facts["schema_version"]:
        raise _DoubtError("its schema was changed")
    return {**facts, "is_schema_readable": True, "left_out": [], "revision_pages": [*log.revision_pages]}


def _header(first_page: bytes, log: LogSource) -> Header:
    return Header.in_page(first_page, is_wal=True, page_size=log.page_size)


def _reject_other_file(path: str, log: LogSource) -> None:
    try:
        status = os.stat(path)
    except OSError as error:
        raise _DoubtError(f"its file cannot be found: {error.strerror}") from error
    if [status.st_dev, status.st_ino] != [*log.file]:
        raise _DoubtError("it is another file now")
