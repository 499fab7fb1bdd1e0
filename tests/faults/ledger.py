"""What an application has committed, kept outside of its database: the truth that every snapshot is held against.

A state of a database is (generation, number): the file that it began as, and how many commits ago that was. Its content
follows from these two alone, and its digest from its content.
"""

from __future__ import annotations

import hashlib
import random
import time
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CELLS = 240
_TOUCHED = 5


class State(NamedTuple):
    """One committed state of a database."""

    generation: str
    number: int


def touched(state: State) -> list[int]:
    """The cells that the commit to `state` writes; the first one writes them all."""
    if state.number == 0:
        return [*range(CELLS)]
    return random.Random(f"touched {state}").sample(range(CELLS), _TOUCHED)


def body(state: State, cell: int) -> bytes:
    """What that commit writes into a cell. It cannot be compressed."""
    chosen = random.Random(f"body {state} {cell}")
    return chosen.randbytes(200 + chosen.randrange(200))


def digest_of(cells: Iterable[tuple[int, int]]) -> int:
    """A digest of (cell, number of its last commit), in any order: xor with that of a cell adds or removes it."""
    digest = 0
    for cell, number in cells:
        digest ^= int.from_bytes(hashlib.sha256(f"{cell} {number}".encode()).digest())
    return digest


@dataclass(slots=True)
class Entry:
    """A time in which a state was the current one: from `begun_at` at the earliest, to `ended_at` at the latest.

    Times are of the monotonic clock, which all processes share. None is not yet.
    """

    state: State
    digest: str
    begun_at: float
    done_at: float | None = None
    ended_at: float | None = None


class Ledger:
    """The ledger of one database, as far as it has been read. One writer at a time appends to it."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._path = path
        self._offset = 0
        self.entries: list[Entry] = []
        self._by_state: dict[State, list[int]] = {}

    def read(self) -> None:
        """Take in what was appended since."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content.rpartition(b"\n")[0]
        self._offset += len(whole) + bool(whole)
        for line in whole.decode().splitlines():
            word, generation, number, digest, at = line.split()
            if word == "begin":
                self._begin(Entry(State(generation, int(number)), digest, float(at)))
            else:
                self._done(State(generation, int(number)), float(at))

    def _begin(self, entry: Entry) -> None:
        self._by_state.setdefault(entry.state, []).append(len(self.entries))
        self.entries.append(entry)

    def _done(self, state: State, at: float) -> None:
        entry = self.entries[self._by_state[state][-1]]
        entry.done_at = at
        for earlier in reversed(self.entries[:-1]):
            if earlier.ended_at is not None:
                break
            earlier.ended_at = at

    def entries_of(self, state: State) -> list[Entry]:
        """The entries in which `state` was the current one; empty for one that never was."""
        return [self.entries[index] for index in self._by_state.get(state, [])]

    def place(self, state: State) -> int:
        """The place in `entries` of the last time in which `state` was the current one; -1 for one that never was."""
        return self._by_state.get(state, [-1])[-1]

    def lacks_since(self, place: int) -> float | None:
        """The time since which a state is acknowledged that comes after `place` in `entries`; None when none is."""
        return next((entry.done_at for entry in self.entries[place + 1 :] if entry.done_at is not None), None)

    def was_current(self, state: State, *, after: float, before: float) -> bool:
        """Whether it was the current state, or may have been, at some time between these."""
        return any(
            entry.begun_at <= before and (entry.ended_at is None or entry.ended_at >= after)
            for entry in self.entries_of(state)
        )

    def outdated_since(self, state: State, now: float) -> float | None:
        """The time since which a newer state than `state` is acknowledged at `now`; None when it is the newest."""
        ended = [entry.ended_at for entry in self.entries_of(state) if entry.begun_at <= now]
        return None if not ended or ended[-1] is None or ended[-1] > now else ended[-1]

    def acknowledged(self, at: float) -> State | None:
        """The last state that was acknowledged by then."""
        done = [entry.done_at for entry in self.entries if entry.done_at is not None]
        number = bisect_right(done, at)
        return [entry.state for entry in self.entries if entry.done_at is not None][number - 1] if number else None


class Scribe:
    """Appends to a ledger: before a state may become the current one, and after it has."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def begin(self, state: State, digest: str) -> None:
        self._write("begin", state, digest)

    def done(self, state: State) -> None:
        self._write("done", state, "-")

    def close(self) -> None:
        self._file.close()

    def _write(self, word: str, state: State, digest: str) -> None:
        self._file.write(f"{word} {state.generation} {state.number} {digest} {time.monotonic()}\n".encode())
