"""`python -m follow`: run random histories of a log against the model, and end with 1 when a fault was found."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections import Counter

from follow.histories import STEPS_PER_HISTORY, Step, run_history, shorten, steps_of


def main() -> int:
    """Run, and give the exit code."""
    parser = argparse.ArgumentParser(prog="follow", description="compare a follower with the model")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--faults", type=int, default=1, help="end after so many")
    parser.add_argument("--history", help="run one history only: the seed that a fault was reported with")
    parser.add_argument("--take", help="the steps of that history to take, as reported")
    options = parser.parse_args()
    if options.history is not None:
        return _one(options.history, options.take)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    counts: Counter[str] = Counter()
    began, faults = time.monotonic(), 0
    for number in range(-(-options.steps // STEPS_PER_HISTORY)):
        name = f"{seed}/{number}"
        found = run_history(name, steps_of(name), counts)
        if found is not None:
            found.shortest = shorten(found)
            _say(str(found))
            faults += 1
            if faults >= options.faults:
                break
        if number % 100 == 99:
            seconds = time.monotonic() - began
            done = (number + 1) * STEPS_PER_HISTORY
            _say(f"{done} steps, {seconds:.0f} s, {counts['followed']} followed, {counts['gaps']} gaps")
    for name, count in sorted(counts.items()):
        _say(f"{count:10} {name}")
    _say(f"seed {seed}: {faults} faults")
    return 1 if faults else 0


def _one(seed: str, take: str | None) -> int:
    steps = list(steps_of(seed))
    if take is not None:
        parts = (part.rpartition(":") for part in take.split(",") if part)
        steps = [Step(name, int(number)) for name, _, number in parts]
    found = run_history(seed, steps, Counter())
    _say(
        "no fault"
        if found is None
        else f"step {len(found.steps)} of {len(steps)}, {found.steps[-1].name}: {found.message}"
    )
    return 0 if found is None else 1


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
