"""A copy of the live database for a comparison, as a program: a process that can be ended whatever it hangs in.

`python -m backupd.inside.live PATH LOCK_TIMEOUT COPY` writes the committed state of PATH into COPY, an empty file.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING

import apsw

from backupd.capture import source
from backupd.capture.database_files import opening_seconds, read_header_to_write
from backupd.capture.limits import LockTimer, run_reader
from backupd.errors import BackupdError
from backupd.format.pack import page_hash
from backupd.system.processes import command_of, error_as_json, error_from_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MOST_LOCK_SECONDS = 3.0
_SECONDS = 600.0
_COPIED_AT_ONCE_BYTES = 1 << 20


class FilePages:
    """The `PageSource` of a file that no process changes."""

    def __init__(self, descriptor: int, page_size: int) -> None:
        self.page_size = page_size
        self.page_count = os.fstat(descriptor).st_size // page_size
        self._descriptor = descriptor

    def copy_to(self, file: Path) -> None:
        """Write all pages into `file`."""
        with open(self._descriptor, "rb", closefd=False) as source, file.open("wb") as target:
            source.seek(0)
            shutil.copyfileobj(source, target, _COPIED_AT_ONCE_BYTES)

    def page(self, number: int) -> bytes:
        """Return the image of a page."""
        return os.pread(self._descriptor, self.page_size, (number - 1) * self.page_size)

    def expect(self, numbers: Sequence[int]) -> None:
        """Do nothing: the system reads ahead."""

    def hash_of(self, number: int) -> bytes:
        """Return the hash of a page."""
        return page_hash(self.page(number))


def copy_live(path: Path, copy: Path, *, lock_timeout: float) -> int:
    """Write the committed state of the live database into `copy`; return its page size.

    In rollback mode, writers wait meanwhile, for 3 s at most. Raises `BusyError` and `SourceUnusableError`.
    """
    text = os.fspath(path)
    command = command_of("backupd.inside.live", text, str(lock_timeout), os.fspath(copy))
    deadline = lock_timeout + opening_seconds(text) + _SECONDS
    values = run_reader(text, command, max_lock=_MOST_LOCK_SECONDS, deadline=deadline)
    if "error" in values:
        raise error_from_json(values)
    return int(values["page_size"])


def _copy(path: str, lock_timeout: float, copy: str) -> int:
    timer = None if read_header_to_write(path).is_wal else LockTimer(_MOST_LOCK_SECONDS)
    with source.pinned(path, lock_timeout=lock_timeout, timer=timer) as connection:
        destination = apsw.Connection(copy)
        try:
            page_size = int(connection.pragma("page_size"))
            destination.pragma("journal_mode", "off")
            destination.pragma("synchronous", "off")
            with destination.backup("main", connection, "main") as backup:
                backup.step(-1)
        finally:
            destination.close()
    return page_size


def main() -> None:
    """Copy the database in the arguments."""
    source.prepare_process()
    path, lock_timeout, copy = sys.argv[1:]
    try:
        values: dict[str, object] = {"page_size": _copy(path, float(lock_timeout), copy)}
    except BackupdError as error:
        values = error_as_json(error)
    sys.stdout.write(json.dumps(values))


if __name__ == "__main__":
    main()
