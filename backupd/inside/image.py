"""A read-only SQLite connection over the pages of a restore point."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import apsw

from backupd.errors import BackupdError, DamageError, LimitReachedError, UsageError
from backupd.inside.live import FilePages, copy_live
from backupd.inside.pages import opened_pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backupd.inside.pages import PageSource, StoredPages
    from backupd.repository.moments import RestorePoint
    from backupd.state import StateDirectory

_PAGE_CACHE_KIB = 4096
_HEAP_BYTES = 64 << 20
_STEPS_BETWEEN_LOOKS = 10_000
_SECTOR_BYTES = 4096
_VERSIONS = slice(18, 20)
"""Where page 1 says by which journal it is written and read. Source: https://www.sqlite.org/fileformat2.html, 1.3.3."""

_ROLLBACK = b"\x01\x01"
_numbers = count(1)


class _Image:
    """The one file of a `_ImageVFS`: what SQLite asks of the main database, which no other connection has open."""

    def __init__(self, source: PageSource) -> None:
        self._source = source
        self._page = source.page
        self._page_size = source.page_size
        self.failure: BackupdError | None = None

    def xRead(self, amount: int, offset: int) -> bytes | memoryview:
        number, start = divmod(offset, self._page_size)
        number += 1
        if number > self._source.page_count:
            return b""
        try:
            page = self._page(number)
        except BackupdError as error:
            self.failure = error
            raise apsw.IOError(error.message) from error
        if number == 1:  # a log, or its index, is no part of it
            page = bytes(page[: _VERSIONS.start]) + _ROLLBACK + bytes(page[_VERSIONS.stop :])
        return page if amount == self._page_size else page[start : start + amount]

    def xFileSize(self) -> int:
        return self._source.page_count * self._page_size

    def xSectorSize(self) -> int:
        return _SECTOR_BYTES

    def xDeviceCharacteristics(self) -> int:
        return apsw.SQLITE_IOCAP_IMMUTABLE

    def xLock(self, level: int) -> None:
        pass

    def xUnlock(self, level: int) -> None:
        pass

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, op: int, pointer: int) -> bool:
        return False

    def xClose(self) -> None:
        pass


class _ImageVFS(apsw.VFS):
    """A file system with an image in it, which cannot be written, and with the files that SQLite sorts in."""

    def __init__(self, name: str, image: _Image, scratch: Path) -> None:
        super().__init__(name, "", maxpathname=1024)
        self._image = image
        self._scratch = scratch

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        if flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            flags[1] = flags[0]
            return self._image
        if name is not None or not flags[0] & apsw.SQLITE_OPEN_DELETEONCLOSE:
            raise apsw.CantOpenError(f"{name} is no part of a snapshot")
        # The base would make it in /tmp. SQLite removes its name at once.
        return apsw.VFSFile("", os.fspath(self._scratch / f"{os.urandom(8).hex()}.tmp"), flags)

    def xAccess(self, pathname: str, flags: int) -> bool:
        return False

    def xFullPathname(self, name: str) -> str:
        return name

    def xDelete(self, filename: str, syncdir: bool) -> None:
        raise apsw.ReadOnlyError("a snapshot is not changed")


@contextmanager
def opened_point(
    point: RestorePoint, directory: Path, *, seconds: float | None = None
) -> Iterator[tuple[StoredPages, apsw.Connection]]:
    """Give the pages of `point`, and a connection that reads them, as `opened_pages` and `opened_source` do.

    `directory` is private: for what a bucket is asked for, and for large sorts.
    """
    with (
        opened_pages(point, directory) as pages,
        opened_source(pages, directory, seconds=seconds) as connection,
    ):
        yield pages, connection


@contextmanager
def opened_live(
    path: Path, state: StateDirectory, *, lock_timeout: float
) -> Iterator[tuple[FilePages, apsw.Connection]]:
    """Give the pages of the live database as it is now, from a copy in the spool of `state`, as `opened_point` does.

    The next run that has a spool removes the copy of one that was killed. Raises what `copy_live` raises.
    """
    with state.spool() as spool:
        copy = spool / "live.db"
        copy.touch(mode=0o600)
        page_size = copy_live(path, copy, lock_timeout=lock_timeout)
        with opened_file(copy, spool, page_size=page_size) as opened:
            yield opened


@contextmanager
def opened_file(file: Path, directory: Path, *, page_size: int) -> Iterator[tuple[FilePages, apsw.Connection]]:
    """Give the pages of a database that no process changes, without a log, as `opened_point` does."""
    with file.open("rb") as opened:
        pages = FilePages(opened.fileno(), page_size)
        with opened_source(pages, directory) as connection:
            yield pages, connection


@contextmanager
def opened_source(source: PageSource, scratch: Path, *, seconds: float | None = None) -> Iterator[apsw.Connection]:
    """Give a connection that can only read, until the block ends; `scratch` is a private directory for large sorts.

    Nothing of the schema is trusted, and no extension can be loaded. An error of SQLite leaves the block as that of the
    store or of the damage that caused it. After `seconds`, a statement ends with `LimitReachedError`.
    """
    image = _Image(source)
    name = f"backupd-image-{os.getpid()}-{next(_numbers)}"
    vfs = _ImageVFS(name, image, scratch)
    gives_up_at = None if seconds is None else time.monotonic() + seconds
    try:
        with _translated(image, gives_up_at, seconds):
            connection = apsw.Connection(
                "file:image?immutable=1", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI, vfs=name
            )
            try:
                apsw.hard_heap_limit(_HEAP_BYTES)
                connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
                connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
                connection.limit(apsw.SQLITE_LIMIT_ATTACHED, 0)  # a file that is attached would be looked for in here
                connection.pragma("cell_size_check", True)
                connection.pragma("cache_size", -_PAGE_CACHE_KIB)
                connection.pragma("temp_store", "file")
                # Signals, too, are noticed only between two steps of Python.
                connection.set_progress_handler(
                    lambda: gives_up_at is not None and time.monotonic() > gives_up_at, _STEPS_BETWEEN_LOOKS
                )
                yield connection
            finally:
                connection.close(force=True)
    finally:
        vfs.unregister()


@contextmanager
def _translated(image: _Image, gives_up_at: float | None, seconds: float | None) -> Iterator[None]:
    """Raise an error of SQLite as what has caused it."""
    try:
        yield
    except apsw.InterruptError as error:
        if gives_up_at is None or time.monotonic() <= gives_up_at:
            raise
        raise LimitReachedError(
            f"the statement was given up after {seconds:g} s", hint="give it more time: --timeout SECONDS"
        ) from error
    except (apsw.NoMemError, MemoryError) as error:
        raise LimitReachedError(
            f"SQLite needs more than {_HEAP_BYTES >> 20} MiB for it", hint="select fewer rows, or shorter values"
        ) from error
    except apsw.IOError as error:
        if image.failure is None:
            raise
        raise image.failure from error
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise DamageError(
            f"SQLite cannot read it: {error}",
            hint="the database was damaged when the snapshot was taken; try an older one",
        ) from error
    except apsw.SQLError as error:
        raise UsageError(
            f"SQLite refuses it: {error}",
            hint="what only the application knows may be missing: restore it to a file, and look at it there",
        ) from error
