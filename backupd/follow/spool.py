"""The spool of one followed database: segments until every store has them, and how far its log has been followed.

Nothing in it needs to be durable: a machine that lost its power has another boot, and a log is not continued then.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from backupd.follow.log import Position  # noqa: TC001  (msgspec reads it)
from backupd.format import FormatError, SnapshotId
from backupd.format.segment import Anchor  # noqa: TC001  (as above)

PLACE = "place.json"
SEGMENT_SUFFIX = ".segment"
BLOCK_BYTES = 4096
_PARTIAL_PREFIX = "."
_SEGMENT = re.compile(r"(?P<window>[0-9TZ]+-[0-9a-f]+)-(?P<first>\d{12})-(?P<last>\d{12})-(?P<since_ms>\d+)\.segment")


class Place(msgspec.Struct, frozen=True):
    """How far a database has been followed: all commits up to `last` of the window are in segments."""

    window: SnapshotId
    last: int
    seen_at_ms: int
    position: Position
    anchors: tuple[Anchor, ...] = ()
    """Those of snapshots that no segment has named yet."""
    is_anchored: bool = False
    """Whether a snapshot lies in the window."""


class Cut(NamedTuple):
    """A segment that is in the spool."""

    file: str
    window: SnapshotId
    first: int
    last: int
    since_ms: int
    """When its first commit was seen, in milliseconds since 1970."""


class Spool:
    """The files of one database. Methods raise OSError, unless they say otherwise."""

    def __init__(self, directory: Path) -> None:
        """Remove what a process that was killed has not finished."""
        self._directory = directory
        with suppress(OSError):
            for file in directory.glob(f"{_PARTIAL_PREFIX}*"):
                file.unlink(missing_ok=True)

    def segments(self) -> list[Cut]:
        """Return what is there, in its order; nothing when that cannot be read."""
        try:
            found = sorted(os.listdir(self._directory))  # noqa: PTH208  (names are enough)
        except OSError:
            return []
        cuts = []
        for name in found:
            if match := _SEGMENT.fullmatch(name):
                with suppress(FormatError):  # a time that does not exist: not a name of ours
                    cuts.append(self._cut(**match.groupdict()))
        return cuts

    def size_bytes(self) -> int:
        """Return how much its segments take, each at least a block of the file system."""
        total = 0
        try:
            found = os.scandir(self._directory)
        except FileNotFoundError:  # `put` makes it again
            return 0
        with found as files:
            for file in files:
                if file.name.endswith(SEGMENT_SUFFIX):
                    with suppress(FileNotFoundError):  # every store has it now
                        total += max(file.stat().st_size, BLOCK_BYTES)
        return total

    def put(self, content: bytes, *, window: SnapshotId, first: int, last: int, since_ms: int) -> Cut:
        """Write a segment, which appears whole or not at all."""
        cut = self._cut(window=window, first=first, last=last, since_ms=since_ms)
        _put(Path(cut.file), content)
        return cut

    def place(self) -> Place | None:
        """Return how far the process before has come; None when that is not known."""
        try:
            values = json.loads((self._directory / PLACE).read_bytes())
            return msgspec.convert(values, Place, dec_hook=lambda kind, text: kind(text))
        except (OSError, ValueError, TypeError, RecursionError, FormatError):
            return None

    def note(self, place: Place) -> None:
        """Note how far this process has come."""
        _put(self._directory / PLACE, json.dumps(msgspec.to_builtins(place, enc_hook=str)).encode())

    def forget_place(self) -> None:
        """Let the next process begin another window."""
        (self._directory / PLACE).unlink(missing_ok=True)

    def _cut(self, *, window: str, first: int | str, last: int | str, since_ms: int | str) -> Cut:
        name = f"{window}-{int(first):012}-{int(last):012}-{since_ms}{SEGMENT_SUFFIX}"
        return Cut(str(self._directory / name), SnapshotId(window), int(first), int(last), int(since_ms))


def oldest_at(segment: Path) -> datetime:
    """Return when the first commit in a segment of the spool was seen, by its name."""
    return datetime.fromtimestamp(int(segment.stem.rpartition("-")[2]) / 1000, UTC)


def _put(file: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, readable for its owner alone."""
    partial = file.with_name(f"{_PARTIAL_PREFIX}{file.name}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the state may have been removed meanwhile
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as target:
            target.write(content)
        partial.rename(file)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
