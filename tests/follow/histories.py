"""Random histories of a log: made from a seed, taken step by step, and made shorter when they show a fault."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from follow.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

STEPS_PER_HISTORY = 100

EVERYTHING: Mapping[str, float] = {
    "poll": 30,
    "poll_when_quiet": 0.3,
    "poll_meanwhile": 10,
    "restart_follower": 4,
    "commit": 20,
    "commits": 10,
    "spill": 3,
    "rollback": 5,
    "savepoint": 2,
    "shrink": 3,
    "vacuum": 1,
    "settings": 3,
    "begin_reading": 3,
    "end_reading": 3,
    "checkpoint_passive": 6,
    "checkpoint_full": 4,
    "checkpoint_restart": 4,
    "checkpoint_truncate": 1,
    "reset": 8,
    "refused_sync": 2,
    "close_one": 2,
    "close_all": 1,
    "kill": 2,
    "copy": 4,
    "put_back": 2,
    "rename_in": 1,
    "lose_power": 3,
    "journal_mode": 1,
    "rewrite_log": 1,
}
"""How often each kind of step comes, in proportion."""

CALM: Mapping[str, float] = {
    "poll": 12,
    "commit": 10,
    "commits": 5,
    "checkpoint_passive": 1,
    "begin_reading": 1,
    "end_reading": 1,
}
"""What an ordinary application does, with a follower that keeps up."""

RESETS: Mapping[str, float] = {"poll": 15, "commit": 10, "reset": 7}
"""One reset of the log after the other, and a poll soon after each."""


class Step(NamedTuple):
    """One step: what it is, and the seed of its own choices."""

    name: str
    seed: int


@dataclass
class Found:
    """A history that shows a fault, as it was found and as short as it could be made."""

    seed: str
    message: str
    steps: list[Step]
    shortest: list[Step] = field(default_factory=list)

    def __str__(self) -> str:
        """All that is needed to see it again."""
        text = ",".join(f"{step.name}:{step.seed}" for step in self.shortest)
        return (
            f"seed {self.seed!r}, step {len(self.steps)}: {self.message}\n"
            f"all steps: {','.join(f'{step.name}:{step.seed}' for step in self.steps)}\n"
            f"again: PYTHONPATH=tests python -m follow --history {self.seed!r} --take {text}"
        )


def steps_of(seed: str, *, kinds: Mapping[str, float] = EVERYTHING, count: int = STEPS_PER_HISTORY) -> Iterator[Step]:
    """The steps of the history with this seed. Each history leaves out some kinds, and prefers others."""
    chosen = Random(seed)
    weights = {
        kind: weight
        * (1 if kinds is not EVERYTHING else chosen.choice((0.3, 1) if kind == "poll" else (0, 0.3, 1, 1, 3)))
        for kind, weight in kinds.items()
    }
    for _ in range(count):
        (name,) = chosen.choices(list(weights), list(weights.values()))
        yield Step(name, chosen.getrandbits(32))


def run_history(seed: str, steps: Iterator[Step] | Sequence[Step], counts: Counter[str]) -> Found | None:
    """Take the steps, and a last poll; return what was found."""
    directory = Path(tempfile.mkdtemp(prefix="follow-", dir=_scratch()))
    taken: list[Step] = []
    scene = Scene(directory, Random(f"{seed} scene"))
    try:
        for step in (*steps, Step("poll", 0)):
            taken.append(step)
            scene.take(step.name, Random(step.seed))
            counts[f"step {step.name}"] += 1
    except Exception as error:  # noqa: BLE001  (an error of the follower is a fault too)
        return Found(seed, f"{type(error).__name__}: {error}", taken)
    else:
        return None
    finally:
        counts += scene.counts + scene.reconstruction.counts
        scene.close()
        shutil.rmtree(directory, ignore_errors=True)


def run(
    seed: int, steps: int, *, kinds: Mapping[str, float] = EVERYTHING, counts: Counter[str] | None = None
) -> Found | None:
    """Run histories with at least so many steps in all; return the first fault, as short as it could be made."""
    counts = Counter() if counts is None else counts
    for number in range(-(-steps // STEPS_PER_HISTORY)):
        name = f"{seed}/{number}"
        found = run_history(name, steps_of(name, kinds=kinds), counts)
        if found is not None:
            found.shortest = shorten(found)
            return found
    return None


def shorten(found: Found, *, seconds: float = 20.0) -> list[Step]:
    """Leave out steps as long as the fault stays. Salts are random, so a step is left out only if it fails twice."""
    until = time.monotonic() + seconds
    steps = found.steps

    def still_fails(fewer: Sequence[Step]) -> bool:
        return all(run_history(found.seed, fewer, Counter()) is not None for _ in range(2))

    size = len(steps) // 2
    while size and time.monotonic() < until:
        start = 0
        while start < len(steps) and time.monotonic() < until:
            fewer = steps[:start] + steps[start + size :]
            if still_fails(fewer):
                steps = fewer
            else:
                start += size
        size //= 2
    return steps


def _scratch() -> str | None:
    """Memory, where there is some: nothing here depends on a disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
