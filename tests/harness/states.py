"""The committed states that an application recorded of its database, and the judge that holds images against them."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

COARSEST_SECONDS = 3
"""A file that has kept its time stamp for longer than this is unchanged, however coarse the time stamps are."""

_HEADER_BYTES = 100
_DERIVED = (24, 40, 92)  # change counter, schema cookie, version-valid-for: a capture completes these itself

_SITECUSTOMIZE = """
import datetime
import os
import time

_stat, _fstat, _lstat, _preadv, _time_ns = os.stat, os.fstat, os.lstat, os.preadv, time.time_ns


def _coarse(status):
    named = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
    values = list(status)
    for place, name in ((8, "st_mtime"), (9, "st_ctime")):
        ns = named[name + "_ns"] // STAMP_NS * STAMP_NS
        named[name + "_ns"], named[name], values[place] = ns, ns / 1e9, ns // 10**9
    return os.stat_result(values, named)


def _jumping():
    # Another offset each second, the same for every process: up to six times JUMP_NS, back or forth.
    return _time_ns() + (int(time.monotonic()) * 7 % 13 - 6) * JUMP_NS


class _Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)


def _slow(descriptor, buffers, offset):
    if len(buffers[0]) >= 1 << 16:  # a page alone is quick
        time.sleep(READ_SECONDS)
    return _preadv(descriptor, buffers, offset)


os.stat = lambda *arguments, **options: _coarse(_stat(*arguments, **options))
os.fstat = lambda *arguments, **options: _coarse(_fstat(*arguments, **options))
os.lstat = lambda *arguments, **options: _coarse(_lstat(*arguments, **options))
os.preadv = _slow
time.time_ns = _jumping
time.time = lambda: _jumping() / 1e9
datetime.datetime = _Datetime
"""


def strange_machine(directory: Path, *, stamp_seconds: int = 0, jump_seconds: int = 0, read_seconds: float = 0) -> str:
    """A value of PYTHONPATH with which Python sees coarse time stamps, a clock that jumps, or a disk that is slow."""
    directory.mkdir()
    values = f"STAMP_NS = {max(1, stamp_seconds * 10**9)}\nJUMP_NS = {jump_seconds * 10**9}\n"
    (directory / "sitecustomize.py").write_text(f"{values}READ_SECONDS = {read_seconds}\n{_SITECUSTOMIZE}")
    return os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))


def page_size_of(image: bytes) -> int:
    """The page size that the header says."""
    (size,) = struct.unpack_from(">H", image, 16)
    return 65536 if size == 1 else size


def facts_of(image: bytes) -> dict[str, int]:
    """What a capture says of a state besides its pages. `image` has a header at least."""
    fields = {"free_pages": 36, "schema_version": 40, "user_version": 60}
    facts = {name: struct.unpack_from(">I", image, offset)[0] for name, offset in fields.items()}
    size = page_size_of(image)
    return facts | {"page_size": size, "page_count": len(image) // max(size, 1), "is_wal": image[19] == 2}


def free_leaves(image: bytes) -> list[int]:
    """The leaf pages of the freelist, whose bytes SQLite never reads. A damaged list ends where it is damaged.

    Source: https://www.sqlite.org/fileformat2.html#the_freelist.
    """
    page_size, leaves, seen = page_size_of(image), [], set()
    (trunk,) = struct.unpack_from(">I", image, 32)
    while page_size and 0 < trunk * page_size <= len(image) and trunk not in seen:
        seen.add(trunk)
        start = (trunk - 1) * page_size
        trunk, count = struct.unpack_from(">II", image, start)
        numbers = struct.unpack_from(f">{min(count, page_size // 4 - 2)}I", image, start + 8)
        leaves += [number for number in numbers if 0 < number * page_size <= len(image)]
    return leaves


def digests(image: bytes) -> tuple[str, str]:
    """A digest of all bytes but the derived fields, and one that also leaves the free leaf pages out."""
    masked = bytearray(image)
    for offset in _DERIVED:
        masked[offset : offset + 4] = bytes(4)
    page_size, leaves = page_size_of(image), free_leaves(image)
    for number in leaves:
        masked[(number - 1) * page_size : number * page_size] = bytes(page_size)
    content = hashlib.sha1(masked)
    exact = content.copy()
    for number in leaves:
        exact.update(image[(number - 1) * page_size : number * page_size])
    return exact.hexdigest(), content.hexdigest()


@dataclass(slots=True)
class State:
    """A committed state, which was the current one from `begun_at` at the earliest to `ended_at` at the latest.

    Times are of the monotonic clock. `done_at` is when it was committed at the latest. Without `is_commit`, a ROLLBACK
    has left other bytes in free leaf pages: SQLite does not put those back.
    """

    step: int
    begun_at: float
    done_at: float
    is_commit: bool
    exact: str
    content: str
    facts: dict[str, int]
    ended_at: float | None = None


@dataclass(slots=True)
class Ledger:
    """What the application has recorded, as far as it was read. At `settled_at` it had written all that had begun."""

    path: Path
    states: list[State] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    step: int = 0
    settled_at: float = 0.0
    _offset: int = 0

    def read(self) -> None:
        """Take in what was appended since."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line))

    def _take(self, line: dict[str, Any]) -> None:
        self.settled_at = line["at"]
        if "step" in line:
            self.step = line["step"]
            self.kinds.update([line["kind"]] if line["kind"] else [])
        elif "violation" in line:
            self.violations.append(f"step {self.step}: {line['violation']}")
        else:
            if self.states:
                self.states[-1].ended_at = line["at"]
            values = {name: line[name] for name in ("is_commit", "exact", "content", "facts")}
            self.states.append(State(self.step, line["begun"], line["at"], **values))

    def current_between(self, began: float, ended: float) -> list[State]:
        """The states that were current at some time between these, or may have been; the last one first."""
        current = []
        for state in reversed(self.states):
            if state.ended_at is not None and state.ended_at < began:
                break
            if state.begun_at <= ended:
                current.append(state)
        return current


@dataclass(frozen=True, slots=True)
class Taken:
    """An image that a capture gave out, with what it said of it, and when it began and ended (monotonic)."""

    image: bytes
    facts: dict[str, int]
    began_at: float
    ended_at: float


@dataclass(slots=True)
class Judge:
    """Holds every image against the ledger, and counts under which conditions images were accepted.

    The last that it refused is `refused.db`, beside the ledger. One difference it lets pass: SQLite's backup does not
    notice a ROLLBACK, so free leaf pages may come from before and from after one that happened meanwhile.
    """

    ledger: Ledger
    accepted: Counter[str] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)
    pending: list[Taken] = field(default_factory=list)

    def take(self, taken: Taken) -> None:
        """Judge this image as soon as the ledger is settled for its time."""
        self.pending.append(taken)
        self.settle()

    def settle(self, *, is_over: bool = False) -> None:
        """Judge what can be judged, which is everything when the application has ended."""
        self.ledger.read()
        later = []
        for taken in self.pending:
            if not is_over and self.ledger.settled_at < taken.ended_at:
                later.append(taken)
            elif reason := self._why_refused(taken):
                self.refusals.append(f"{reason}, up to step {self.ledger.step}")
                self.ledger.path.with_name("refused.db").write_bytes(taken.image)
        self.pending = later

    def _why_refused(self, taken: Taken) -> str | None:
        exact, content = digests(taken.image)
        current = self.ledger.current_between(taken.began_at, taken.ended_at)
        equal = [state for state in current if state.exact == exact]
        if not equal and any(not state.is_commit and state.done_at >= taken.began_at for state in current):
            equal = [state for state in current if state.content == content]
            self.accepted["with the free pages of several states"] += bool(equal)
        if not equal:
            is_known = any(state.exact == exact for state in self.ledger.states)
            return "the image was committed, and not current" if is_known else "the image was never committed"
        facts = [state.facts for state in equal]
        if taken.facts not in facts or facts_of(taken.image) not in facts:
            return f"the facts {taken.facts} are of another state than the pages, {facts}"
        self._count(taken, current)
        return None

    def _count(self, taken: Taken, current: list[State]) -> None:
        commits = sum(taken.began_at < state.begun_at and state.done_at < taken.ended_at for state in current)
        self.accepted["in WAL mode" if taken.facts["is_wal"] else "in rollback mode"] += 1
        self.accepted["while commits went on" if commits else "while nothing was committed"] += 1
        if len(current) == 1 and current[0].done_at < taken.began_at - COARSEST_SECONDS:
            self.accepted["in a long pause"] += 1
