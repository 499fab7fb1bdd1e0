"""What `make test` runs, and what it leaves to `make test-full`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

slow = pytest.mark.slow
_PARTS = 5


def sampled(values: Iterable[Any], *, fast: int | Collection[Any] = 1) -> list[Any]:
    """Parameters of a test: `make test` takes the first `fast` of the values, or those in it, and leaves the others."""
    found = [*values]
    chosen = found[:fast] if isinstance(fast, int) else fast
    return [value if value in chosen else _later(value) for value in found]


def _later(value: Any) -> Any:
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=slow)


in_parts = pytest.mark.parametrize("part", sampled(range(_PARTS)))
"""For a test that goes through many moments: each run of it takes those that `part_of` gives."""


def part_of(moments: Sequence[Any], part: int, *, every: int = 10) -> list[Any]:
    """The moments that belong to a part: to the first, that of `make test`, one of `every`; the rest to others."""
    few = moments[::every]
    return [*few] if part == 0 else [each for each in moments if each not in few][part - 1 :: _PARTS - 1]


def examples(count: int) -> int:
    """The number of examples of a property that has `count` of them where most have 100."""
    return max(2, count * settings.default.max_examples // 100)
