"""Clocks that jump, there and back. Monotonic time goes on."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from faults.fault import Fault, Felt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from faults.world import World


@contextmanager
def _clock(world: World, seconds: float) -> Iterator[Felt]:
    assert world.clock is not None
    began = time.monotonic()
    world.stop_daemon()
    world.start_daemon(world.by_the_clock)
    world.clock.set(seconds)
    yield lambda: True
    world.ahead_until = max(world.ahead_until, time.monotonic() + seconds)
    world.clock.set(0)
    # It has to find its way back by itself, before it is as quick as before.
    world.wait_for_green()
    world.stop_daemon()
    world.start_daemon()
    world.disturbed(began, ahead_seconds=seconds)


@contextmanager
def clock_ahead(world: World, chosen: Random) -> Iterator[Felt]:
    """The host's clock jumps minutes ahead, and back."""
    with _clock(world, chosen.uniform(90, 180)) as felt:
        yield felt


@contextmanager
def clock_behind(world: World, chosen: Random) -> Iterator[Felt]:
    """The host's clock jumps minutes back, and ahead again."""
    with _clock(world, chosen.uniform(-600, -90)) as felt:
        yield felt


@contextmanager
def clock_a_day_behind(world: World, chosen: Random) -> Iterator[Felt]:
    """The host's clock jumps a day back, so that the S3 server refuses its signatures, and ahead again."""
    with _clock(world, -86_400) as felt:
        yield felt


FAULTS = (
    Fault(clock_ahead, needs="clock"),
    Fault(clock_behind, needs="clock"),
    Fault(clock_a_day_behind, stops=("s3",), needs="clock"),
)
