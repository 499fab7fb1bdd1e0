"""The journal of a verification: what it has read, so that an interrupted one can be continued.

<digest>.journal   a line of JSON for each pack that was found right, after a first line about the run
<digest>.indexes   the indexes of these packs, one after the other

What cannot be checked is not used: a torn line is left out, and so is an index that is not as it was noted.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from blake3 import blake3

from backupd.errors import TargetUnwritableError
from backupd.format import FormatError
from backupd.format.pack import parse_index

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from backupd.format.pack import PackIndex

GOES_ON_FOR = timedelta(days=7)
"""How long after its beginning a run can be continued: what was read longer ago says too little about today."""

_VERSION = 2
_MOST_HEAD_BYTES = 1000


@dataclass(frozen=True, slots=True)
class _Place:
    """The position of an index in the file of indexes."""

    offset: int
    size_bytes: int


class Journal:
    """The packs of one archive that were found right, with their indexes. One process at a time.

    Methods raise `TargetUnwritableError` when the state directory cannot be written.
    """

    def __init__(self, directory: Path, subject: str, *, now: datetime, restart: bool) -> None:
        """Load what an interrupted run about `subject`, free text, has left in `directory`, unless it is too old."""
        name = hashlib.sha256(os.fsencode(subject)).hexdigest()[:32]
        self._lines = directory / f"{name}.journal"
        self._indexes = directory / f"{name}.indexes"
        self._places: dict[str, _Place | None] = {}
        self.begun_at = now.astimezone(UTC)
        with _reporting_errors(self._lines):
            _remove_old(directory, now)
            if restart:
                self.remove()
            whole_bytes = self._load()
            descriptor = os.open(self._lines, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.truncate(descriptor, whole_bytes)
            self._journal = os.fdopen(descriptor, "ab", buffering=0)
            self._data = os.fdopen(
                os.open(self._indexes, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "a+b", buffering=0
            )
            if not whole_bytes:
                self._append({"version": _VERSION, "begun_at": self.begun_at.isoformat()})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()
        self._data.close()

    def remove(self) -> None:
        """Delete the journal."""
        for file in (self._lines, self._indexes):
            file.unlink(missing_ok=True)
        self._places = {}

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._places

    def __len__(self) -> int:
        return len(self._places)

    def note(self, sha256: str, index: PackIndex | None) -> None:
        """Note a pack that was found right. `index` is None for one that could not be decrypted."""
        with _reporting_errors(self._lines):
            if index is None:
                self._append({"pack": sha256})
                self._places[sha256] = None
                return
            place = _Place(os.fstat(self._data.fileno()).st_size, len(index.encoded))
            self._data.write(index.encoded)
            check = blake3(index.encoded).hexdigest()
            self._append({"pack": sha256, "offset": place.offset, "size_bytes": place.size_bytes, "check": check})
            self._places[sha256] = place

    def forget(self, packs: Iterable[str]) -> None:
        """Drop `packs` (SHA-256, hex) from what this run knows."""
        for sha256 in packs:
            self._places.pop(sha256, None)

    def index(self, sha256: str) -> PackIndex | None:
        """Read the index of a noted pack; None for one that could not be decrypted."""
        place = self._places[sha256]
        if place is None:
            return None
        with _reporting_errors(self._indexes):
            return parse_index(os.pread(self._data.fileno(), place.size_bytes, place.offset))

    def _append(self, line: dict[str, object]) -> None:
        self._journal.write(json.dumps(line).encode("ascii") + b"\n")

    def _load(self) -> int:
        """Load the lines that can be used; returns how many bytes of their file to keep."""
        with suppress(FileNotFoundError):
            content = self._lines.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            head, *lines = [*map(_parsed, whole.splitlines())] or [None]
            if (begun_at := _begun_at(head)) is not None:
                self.begun_at = begun_at
                with self._indexes.open("rb") as indexes:
                    for line in lines:
                        self._load_line(line, indexes.fileno())
                return len(whole)
        self.remove()
        return 0

    def _load_line(self, line: dict[str, Any] | None, indexes: int) -> None:
        with suppress(LookupError, TypeError, ValueError, OverflowError, OSError, MemoryError):
            if line is None or "offset" not in line:
                self._places[line["pack"]] = None  # type: ignore[index]
                return
            place = _Place(line["offset"], line["size_bytes"])
            if blake3(os.pread(indexes, place.size_bytes, place.offset)).hexdigest() == line["check"]:
                self._places[line["pack"]] = place


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _remove_old(directory: Path, now: datetime) -> None:
    for lines in directory.glob("*.journal"):
        try:
            with lines.open("rb") as file:
                begun_at = _begun_at(_parsed(file.readline(_MOST_HEAD_BYTES)))
        except FileNotFoundError:
            continue  # a verification of another database has just ended
        if begun_at is None or begun_at < now - GOES_ON_FOR:
            lines.with_suffix(".indexes").unlink(missing_ok=True)
            lines.unlink(missing_ok=True)


def _begun_at(head: dict[str, Any] | None) -> datetime | None:
    """Read when the run began from the first line of a journal; None when this version did not write it."""
    if head is None or head.get("version") != _VERSION:
        return None
    try:
        return datetime.fromisoformat(head["begun_at"]).astimezone(UTC)
    except (LookupError, TypeError, ValueError, OverflowError):
        return None


@contextmanager
def _reporting_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except FormatError as error:
        raise TargetUnwritableError(
            f"{file}: what was noted cannot be read again: {error}", hint="check the disk of state_dir, and repeat"
        ) from error
    except OSError as error:
        raise TargetUnwritableError(
            f"{error.filename or file}: {(error.strerror or str(error)).lower()}",
            hint="what was read cannot be noted: check the space and the permissions of state_dir",
        ) from error
