"""A VFS through which SQLite writes its log, so that a test can act between any two writes, or in the middle of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import apsw

if TYPE_CHECKING:
    from collections.abc import Callable

VFS_NAME = "watched-log"

_logs: dict[str, WatchedLog] = {}


@dataclass
class Moment:
    """When a test wants to act: at the `write`-th write from now on, in one of four ways.

    `before` and `after` it, `torn` when only the first `part` of its bytes are in the file, or `late` when the
    write is withheld while the next `part * 10` writes are made.
    """

    write: int
    kind: str
    part: float


class WatchedLog:
    """What happens to one log file. Every method of a file object that SQLite calls for it comes here first."""

    def __init__(self, path: str) -> None:
        self.truncated = False
        self.refuses_sync = False
        self._moment: Moment | None = None
        self._act: Callable[[], None] = lambda: None
        self.withheld: list[tuple[Callable[[bytes, int], None], bytes, int]] = []
        self._writes_until_release = 0
        _logs[path] = self
        self._path = path

    @property
    def is_quiet(self) -> bool:
        """Whether writes need no attention."""
        return self._moment is None and not self.withheld

    def forget(self) -> None:
        """Watch the file no more."""
        del _logs[self._path]

    def plan(self, moment: Moment, act: Callable[[], None]) -> None:
        """Call `act` at a moment of the writes that follow. It must not raise."""
        self._moment, self._act = moment, act

    def end_plan(self) -> None:
        """Make a write that is still withheld, after a last call, and forget a moment that never came."""
        self.release()
        self._moment = None

    def release(self) -> None:
        """Make the write that was withheld."""
        if self.withheld:
            (put, data, offset) = self.withheld.pop()
            self._act()
            put(data, offset)

    def write(self, put: Callable[[bytes, int], None], data: bytes, offset: int) -> None:
        """Make one write of SQLite."""
        self._continue_withheld(offset, len(data))
        moment = self._moment
        if moment is not None:
            moment.write -= 1
            if moment.write <= 0:
                self._moment = None
                self._write_at_moment(moment, put, bytes(data), offset)
                return
        put(data, offset)

    def _continue_withheld(self, offset: int, size: int) -> None:
        """Release the withheld write when its time has come, or when this write would overlap it."""
        for _, data, start in self.withheld:
            self._writes_until_release -= 1
            if self._writes_until_release < 0 or (start < offset + size and offset < start + len(data)):
                self.release()
                return

    def _write_at_moment(self, moment: Moment, put: Callable[[bytes, int], None], data: bytes, offset: int) -> None:
        cut = max(1, min(len(data) - 1, int(len(data) * moment.part)))
        match moment.kind:
            case "late":
                self.withheld.append((put, data, offset))
                self._writes_until_release = int(moment.part * 10)
            case "torn":
                put(data[:cut], offset)
                self._act()
                put(data[cut:], offset + cut)
            case "before":
                self._act()
                put(data, offset)
            case _:
                put(data, offset)
                self._act()


class _WatchedFile(apsw.VFSFile):
    """A log file of SQLite."""

    def __init__(self, log: WatchedLog, name: str | apsw.URIFilename, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._log = log

    def xRead(self, amount: int, offset: int) -> bytes:
        if self._log.withheld:
            self._log.release()
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._log.is_quiet:
            super().xWrite(data, offset)
        else:
            self._log.write(super().xWrite, data, offset)

    def xTruncate(self, size: int) -> None:
        self._log.release()
        self._log.truncated = True
        super().xTruncate(size)

    def xFileSize(self) -> int:
        self._log.release()
        return super().xFileSize()

    def xSync(self, flags: int) -> None:
        self._log.release()
        if self._log.refuses_sync:
            raise apsw.IOError("refused by the test")
        # Files of a test need not survive a power loss.


class _WatchingVfs(apsw.VFS):
    """The usual VFS of this system, but for logs that are watched; files are never flushed to the disk."""

    def __init__(self) -> None:
        super().__init__(VFS_NAME, base="")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if path in _logs and flags[0] & apsw.SQLITE_OPEN_WAL:
            return _WatchedFile(_logs[path], name, flags)
        return apsw.VFSFile("", name, flags)


_vfs = _WatchingVfs()
