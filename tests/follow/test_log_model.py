"""A follower of a log against a model that knows every committed state: it never continues where it may not."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING

import pytest
from harness.extent import slow

from follow.histories import CALM, EVERYTHING, RESETS, STEPS_PER_HISTORY, run, steps_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_FEW_STEPS = 1_000
_MANY_STEPS, _PARTS = 100_000, 10


def _run(seed: int, steps: int, kinds: Mapping[str, float] = EVERYTHING) -> Counter[str]:
    """Run histories; fail with all that is needed to see a fault again."""
    counts: Counter[str] = Counter()
    found = run(seed, steps, kinds=kinds, counts=counts)
    assert found is None, str(found)
    return counts


@pytest.mark.parametrize("seed", [1, 2])
def test_commits_between_two_gaps_are_all_committed_states(seed):
    """Every commit makes the next committed state out of the one before it, byte for byte; all else follows a gap."""
    counts = _run(seed, _FEW_STEPS)

    assert counts["followed"] > _FEW_STEPS / 10
    assert counts["polls that had to continue"] > _FEW_STEPS / 20


@slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(101, 101 + _PARTS))
def test_commits_between_two_gaps_are_all_committed_states_in_long_histories(seed):
    """The claim holds in many random histories, and each of what they are made of came often."""
    counts = _run(seed, _MANY_STEPS // _PARTS)

    rare = [kind for kind in EVERYTHING if counts[f"step {kind}"] < 3]
    assert rare == []
    assert counts["followed"] > 1000
    assert counts["resets that had to be salvaged"] > 10
    assert counts["logs of big endian order"] > 5


def test_an_ordinary_application_is_followed_without_a_gap():
    """Plain commits, passive checkpoints, resets, and a poll after every few commits: nothing may be lost."""
    counts = _run(3, _FEW_STEPS, CALM)

    assert counts["gaps"] == 0
    assert counts["windows"] == _FEW_STEPS / STEPS_PER_HISTORY
    assert counts["followed"] > _FEW_STEPS / 2
    assert counts["resets that had to be salvaged"] >= 5


def test_what_was_added_before_a_reset_is_returned_while_it_is_in_the_log():
    """A poll after a reset returns all of the old log and of the new one, unless the new one came too far."""
    counts = _run(4, _FEW_STEPS, RESETS)

    assert counts["resets that had to be salvaged"] >= 10
    assert counts["followed"] > _FEW_STEPS / 10


def test_a_history_is_the_same_for_the_same_seed():
    """A seed is enough to see a fault again, and each step has choices of its own."""
    assert [*steps_of("7/1")] == [*steps_of("7/1")]
    assert [*steps_of("7/1")] != [*steps_of("7/2")]
    assert Random(next(steps_of("7/1")).seed).random() == Random(next(steps_of("7/1")).seed).random()
