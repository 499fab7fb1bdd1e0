"""A database, its applications and one follower of its log, whose every answer is checked against the model."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import apsw

from backupd.follow.log import Gap, LogFollower, Position
from follow.applications import MODES, Applications
from follow.committed_states import FalseContinuityError, Possible, Reconstruction, State
from follow.database import BUSY
from follow.log_files import FRAME_HEADER_BYTES, HEADER_BYTES, committed_frames, frame_offset, header_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from random import Random

    from backupd.follow.log import LogCommit
    from follow.database import Copy

_SAVED_POSITIONS = 6
_TIMESTAMP_SECONDS = 0.012
"""Longer than a file system's clock stands still, so that a later write has a later time."""


@dataclass(frozen=True, slots=True)
class _Saved:
    """What a follower would have written down after some poll."""

    position: Position | None
    state: State | None
    polled: int


class Scene(Applications):
    """A database, its applications, and a follower that is checked."""

    def __init__(self, directory: Path, chosen: Random) -> None:
        self.reconstruction = Reconstruction()
        self._polled: list[tuple[list[LogCommit | Gap], Possible]] = []
        self._is_polling = False
        self._failure: BaseException | None = None
        self._saved: deque[_Saved] = deque(maxlen=_SAVED_POSITIONS)
        self._can_be_held_to_continue = False
        super().__init__(directory, chosen)
        self._follower = LogFollower(self._log)

    def close(self) -> None:
        """Let go of everything."""
        self._watched.forget()
        self._follower.close()
        self._close_all(is_killed=True)

    def take(self, name: str, chosen: Random) -> None:
        """Take one step, and check what the polls in it returned. Raises FalseContinuityError."""
        self.states.begin_step()
        self._step(name, chosen)
        self._check()

    def _step(self, name: str, chosen: Random) -> None:
        self._returned = None
        with suppress(*BUSY):
            getattr(self, f"step_{name}")(chosen)
        self._watched.end_plan()
        self._note_what_is_in_log()

    def step_poll(self, chosen: Random) -> None:
        """Poll while nothing else happens: everything in the log must come, and no gap unless there must be one."""
        must_continue = self._must_continue()
        gaps = self.reconstruction.counts["gaps"]
        is_at_rest, polls = self._follower.is_at_rest(), len(self._polled)
        self._poll()
        if is_at_rest and any(items for items, _ in self._polled[polls:]):
            raise FalseContinuityError("the log was said to be at rest, and a poll found something")
        self.counts["polls at rest"] += is_at_rest
        while self._follower.is_behind or self._ends_with_gap():
            self._poll()
        self._check()
        if must_continue and self.reconstruction.counts["gaps"] != gaps:
            raise FalseContinuityError(f"a gap where the log could be followed ({must_continue})")
        if self._is_in_log and self.reconstruction.at is not self.states.current:
            at = self.reconstruction.at
            raise FalseContinuityError(
                f"the log ends with state {self.states.current.number}, the follower with {at and at.number}"
            )
        if must_continue:
            self.counts[must_continue] += 1
        self._can_be_held_to_continue = True
        if self.reconstruction.counts["gaps"] != gaps:
            self._watched.truncated = False  # a follower may distrust a log that was longer, but not after a gap

    def step_poll_when_quiet(self, chosen: Random) -> None:
        """Poll when nothing was written for a while, so that `stat` may be trusted from then on."""
        time.sleep(_TIMESTAMP_SECONDS)
        later = time.time_ns() + 1_000_000_000
        with patch.object(time, "time_ns", lambda: later):
            self.step_poll(chosen)

    def step_poll_meanwhile(self, chosen: Random) -> None:
        """Poll, and let other things happen between two system calls of the poll."""
        names = ("commit", "commits", "rollback", "shrink", *(f"checkpoint_{mode}" for mode in MODES))
        rare = ("close_all", "vacuum", "kill", "journal_mode", "put_back", "rename_in")
        steps = [chosen.choice(rare if chosen.random() < 0.1 else names) for _ in range(chosen.choice((1, 1, 2, 4, 6)))]

        def act() -> None:
            for name in steps:
                self._step(name, chosen)

        with _at_system_call(chosen.choice((1, 2, 3, 4, 5, 6, 8, 12)), act):
            self._poll()
        self.counts["polls with changes in the middle"] += 1

    def step_restart_follower(self, chosen: Random) -> None:
        """Kill the follower; the next one begins at its last position, an older one, or without one."""
        self._follower.close()
        saved = self._nothing_saved()
        if self._saved and chosen.random() < 0.9:
            saved = self._saved[-1] if chosen.random() < 0.5 else chosen.choice(self._saved)
        self._begin_follower(saved)

    def _begin_follower(self, saved: _Saved) -> None:
        self._follower = LogFollower(self._log, saved.position)
        self.reconstruction.at = saved.state
        self._can_be_held_to_continue = False
        self.states.begin_follower(saved.polled)

    def _nothing_saved(self) -> _Saved:
        return _Saved(None, None, self.states.now)

    def _poll(self) -> None:
        """Poll, and keep what came until the step is over: in its middle, the model does not know the next state."""
        if self._is_polling:
            return
        self._is_polling = True
        try:
            self._polled.append((self._follower.poll(), self.states.seen_by_poll()))
        except FileNotFoundError:
            self.counts["removed while it was opened"] += 1
        except BaseException as error:  # noqa: BLE001  (SQLite must not see it)
            self._failure = self._failure or error
        finally:
            self._is_polling = False

    def _ends_with_gap(self) -> bool:
        """Whether the follower noticed a gap, and leaves what comes after it to the next poll."""
        return bool(self._polled and self._polled[-1][0] and isinstance(self._polled[-1][0][-1], Gap))

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        is_new = bool(self._polled)
        for items, possible in self._polled:
            self.reconstruction.take(items, possible)
        self._polled.clear()
        if is_new:
            position = self._follower.position
            if position is None and self.reconstruction.at is not None:
                raise FalseContinuityError("the follower has no position, and gave no gap")
            self._saved.append(_Saved(_through_json(position), self.reconstruction.at, self.states.polled))

    def _must_continue(self) -> str:
        """Why the follower has to continue without a gap, from what the files and the model say, if it has to."""
        position, found = self._follower.position, self._log.stat() if self._log.exists() else None
        if not (self._can_be_held_to_continue and self.reconstruction.at and position and found):
            return ""
        with self._log.open("rb") as log:
            header = header_of(log.read(HEADER_BYTES))
            log.seek(frame_offset(max(1, position.frame), position.page_size) + 8)
            of_frame = log.read(FRAME_HEADER_BYTES - 8)
        expected = b"".join(each.to_bytes(4, "big") for each in (*position.salts, *position.checksum))
        is_same_file = (found.st_dev, found.st_ino) == (position.device, position.inode)
        if header is None or not is_same_file or (position.frame and of_frame != expected):
            return ""
        if header.salts == position.salts:
            return "polls that had to continue"
        is_next = header.salts[0] == (position.salts[0] + 1) % 2**32 and header.page_size == position.page_size
        is_aligned = (found.st_size - HEADER_BYTES) % (header.page_size + FRAME_HEADER_BYTES) == 0
        is_salvageable = is_aligned and not self._watched.truncated and not self._has_frame_without_salts()
        if position.frame and is_next and is_salvageable:
            return "resets that had to be salvaged"
        return ""

    def _has_frame_without_salts(self) -> bool:
        """Whether an open transaction has left frames that do not say of which log they are."""
        log = self._read_log() or b""
        header = header_of(log)
        step = FRAME_HEADER_BYTES + (header.page_size if header else 512)
        return any(log[start + 8 : start + 16] == bytes(8) for start in range(HEADER_BYTES, len(log), step))

    def step_refused_sync(self, chosen: Random) -> None:
        """Let the sync after a whole commit fail: SQLite takes the commit back, and the next one overwrites it.

        A reset cannot follow at once, and the follower polls before one can: what it may have seen of the commit would
        look like the true end of the log then, to any reader of the log.
        """
        connection = self._connection(chosen)
        self._run(connection, "PRAGMA synchronous = 2", "PRAGMA wal_autocheckpoint = 0")
        if self._mode(connection) != "wal" or not self._transaction(connection, chosen, 1):
            return
        saved = list(self._saved)
        self._watched.refuses_sync = True
        try:
            with suppress(apsw.IOError):
                self._transaction(connection, chosen, chosen.choice((1, 3, 8)))
                return
        finally:
            self._watched.refuses_sync = False
            self._end(connection, "ROLLBACK")
        self.states.take_back(self._image_after_recovery())
        if chosen.random() < 0.7:
            self._poll()
        for _ in range(chosen.randrange(1, 4)):
            self._transaction(connection, chosen, chosen.choice((1, 1, 6)))
        self._poll()
        self._check()
        self._saved.clear()
        self._saved.extend(saved)

    def step_lose_power(self, chosen: Random) -> None:
        """Lose what was not synced since the copy, in any order; the machine and the follower start again."""
        if chosen.random() < 0.7:
            self.step_copy(chosen)
            self.step_commits(chosen)
            self._poll()
            self._check()
        if self._copy is None or self._copy.log is None:
            return
        self._close_all(is_killed=True)
        lost = self._some_writes_lost(self._copy, chosen)
        self._put_back(self._copy.database, lost, is_same_file=True)
        self._restart_machine()
        self.states.return_to(self._copy.state)
        for _ in range(chosen.choice((0, 0, 1, 3))):
            # The applications may start earlier than the follower.
            self._recovered(chosen)
            self._transaction(self._connection(chosen), chosen, 1)
            if chosen.random() < 0.3:
                self._checkpoint("restart", chosen)
        self._recovered(chosen)
        self._returned = (self.states.current, bool(committed_frames(self._read_log() or b"")))

    def _some_writes_lost(self, copy: Copy, chosen: Random) -> bytes:
        """The log as a disk may have it: the copy, and any later writes to it on which no checkpoint depends."""
        assert copy.log is not None
        now, header = self._read_log(), header_of(copy.log)
        if now is None or header is None or self._database.read_bytes() != copy.database or chosen.random() < 0.3:
            return copy.log
        log = bytearray(now[:HEADER_BYTES])  # a new header is synced before any frame follows it
        frame_bytes = FRAME_HEADER_BYTES + header.page_size
        for start in range(HEADER_BYTES, max(len(now), len(copy.log)), frame_bytes):
            part = slice(start, start + frame_bytes)
            kept = now[part] if chosen.random() < 0.6 else copy.log[part]
            log += kept.ljust(max(len(now[part]), len(copy.log[part])), b"\0")
        return bytes(log)

    def _restart_machine(self) -> None:
        """Another boot: what the follower saved says so."""
        self._follower.close()
        kept = [
            replace(each, position=each.position and each.position._replace(boot="the boot before"))
            for each in self._saved
        ]
        self._saved = deque(kept, maxlen=_SAVED_POSITIONS)
        self._begin_follower(kept[-1] if kept else self._nothing_saved())


@contextmanager
def _at_system_call(number: int, act: Callable[[], None]) -> Iterator[None]:
    """Call `act` before the `number`-th system call that the code inside makes through `os`."""
    left = [number]

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                act()
            return call(*args, **options)

        return count

    names = ("pread", "open", "stat", "lstat", "fstat")
    with patch.multiple(os, **{name: watched(getattr(os, name)) for name in names}):
        yield


def _through_json(position: Position | None) -> Position | None:
    """The position as the next process reads it from a file."""
    if position is None:
        return None
    values = [tuple(each) if isinstance(each, list) else each for each in json.loads(json.dumps(position))]
    return Position(*values)
