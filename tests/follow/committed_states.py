"""The model: every state that was committed, what came from what, and whether what a follower said agrees with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from backupd.follow.log import Gap, LogCommit

if TYPE_CHECKING:
    from collections.abc import Sequence


class FalseContinuityError(AssertionError):
    """A follower said something that is not what was committed."""


@dataclass(eq=False, slots=True)
class State:
    """One committed state of a database: its whole image as readers see it."""

    number: int
    parent: State | None
    page_size: int
    image: bytes
    children: list[State] = field(default_factory=list)

    def after(self, commit: LogCommit) -> bytes:
        """The image that a commit makes of this one."""
        size = commit.page_count * commit.page_size
        image = bytearray(self.image[:size].ljust(size, b"\0"))
        for index, page in enumerate(commit.pages):
            start = (page - 1) * commit.page_size
            image[start : start + commit.page_size] = commit.images[index * commit.page_size :][: commit.page_size]
        return bytes(image[:size])


class Possible(NamedTuple):
    """Which states may be the first of a window: those that were current from one of two times on.

    `visited` grows until the step of the poll is over, because SQLite writes a commit before it says so.
    """

    visited: list[State]
    last_poll: int
    """If the follower was at no commit already: the last poll, because all since then may be returned."""
    step: int
    """After a gap: the step of the poll, because the last commit in the log must come first."""

    def without_gap(self) -> list[State]:
        return self.visited[self.last_poll :]

    def after_gap(self) -> list[State]:
        return self.visited[self.step :]


class CommittedStates:
    """All committed states. They form a tree, because a power loss or a copy that is put back returns to an old one."""

    def __init__(self) -> None:
        self.current = State(0, None, 0, b"")
        self._all = [self.current]
        self._visited = [self.current]
        self._step = self._last_poll = 0
        self._was_polled = False

    def begin_step(self) -> None:
        """Forget which states were current in the step before."""
        self._last_poll = self.polled
        self._step, self._was_polled = self.now, False

    @property
    def now(self) -> int:
        """A time, which counts how often the current state changed."""
        return len(self._visited) - 1

    @property
    def polled(self) -> int:
        """The time at which the step of the last poll began."""
        return self._step if self._was_polled else self._last_poll

    def begin_follower(self, polled: int) -> None:
        """Take a follower that polled last at the time `polled`, or begins then."""
        self._last_poll = polled

    def seen_by_poll(self) -> Possible:
        """Return what may be the first commit of a window in a poll that is made now."""
        self._was_polled = True
        return Possible(self._visited, self._last_poll, self._step)

    def commit(self, image: bytes) -> bool:
        """Note the image after a commit, and return whether it is another one than before."""
        is_other = image != self.current.image
        if is_other:
            self.return_to(self._add(image))
        return is_other

    def take_back(self, image: bytes) -> None:
        """Note a state that stands in the log, but that SQLite dropped because the end of the commit failed."""
        if image == self.current.image:
            return
        self._visited += [self._add(image), self.current]

    def return_to(self, state: State) -> None:
        """Make a state the current one."""
        self.current = state
        self._visited.append(state)

    def recover(self, image: bytes) -> None:
        """Return to whichever state has this image: the newest one, if there are several."""
        if image == self.current.image:
            return
        found = next((state for state in reversed(self._all) if state.image == image), None)
        assert found is not None, "SQLite recovered a state that was never committed: the test is wrong"
        self.return_to(found)

    def _add(self, image: bytes) -> State:
        for child in self.current.children:
            if child.image == image:  # VACUUM makes the same of the same
                return child
        size = int.from_bytes(image[16:18], "big")
        state = State(len(self._all), self.current, 65536 if size == 1 else size, image)
        self.current.children.append(state)
        self._all.append(state)
        return state


class Reconstruction:
    """What a follower's commits make of the database, from one gap to the next."""

    def __init__(self, at: State | None = None) -> None:
        self.at = at
        self.counts: Counter[str] = Counter()

    def take(self, items: Sequence[LogCommit | Gap], possible: Possible) -> None:
        """Apply what a poll returned."""
        states = possible.without_gap()
        for item in items:
            if isinstance(item, Gap):
                assert item.reason
                self.counts["gaps"] += 1
                self.at, states = None, possible.after_gap()
            else:
                _reject_malformed(item)
                self.at = self._next(item) if self.at else self._first(item, states)

    def _first(self, commit: LogCommit, possible: list[State]) -> State:
        """The first commit of a window must be the last in the log."""
        # One that changes nothing was noted as no state of its own, so it may be applied to the state that it left.
        for base, state in [
            *((each.parent, each) for each in reversed(possible)),
            *((each, each) for each in reversed(possible)),
        ]:
            if base is not None and base.after(commit) == state.image:
                self.counts["windows"] += 1
                return state
        raise FalseContinuityError(
            f"the first commit of a window (pages {commit.pages} of {commit.page_count}) makes none of the states "
            f"{[state.number for state in possible]} out of the one before it"
        )

    def _next(self, commit: LogCommit) -> State:
        """Each further commit must make a child of the state out of it."""
        assert self.at is not None
        image = self.at.after(commit)
        for state in self.at.children:
            if state.image == image and state.page_size == commit.page_size:
                self.counts["followed"] += 1
                return state
        if image == self.at.image:
            self.counts["repeated"] += 1
            return self.at
        raise FalseContinuityError(
            f"after state {self.at.number}, a commit of pages {commit.pages} (of {commit.page_count}) makes none of "
            f"its successors {[state.number for state in self.at.children]}"
        )


def _reject_malformed(commit: LogCommit) -> None:
    assert list(commit.pages) == sorted(set(commit.pages))
    assert commit.pages[0] >= 1
    assert len(commit.images) == len(commit.pages) * commit.page_size
    assert commit.page_count >= 1
