"""What a fault is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from faults.world import World

Felt = Callable[[], bool]
"""Whether the fault has had an effect on something yet."""
Injected = Callable[["World", Random], AbstractContextManager[Felt]]
"""Goes wrong when the block begins, and is right again after it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong. `injected` says in its docstring what it does."""

    injected: Injected
    stops: tuple[str, ...] = ()
    """Where no snapshot can be taken meanwhile, which has to be reported: "disk", "s3", or the name of a database."""
    reported_within_seconds: float = 60.0
    """How long it may take until that is so."""
    loses: str = ""
    """The store ("disk" or "s3") of which segments may be gone afterwards."""
    needs: str = ""
    """What has to be there: "disks" of its own, a "clock" that can be set, or a program."""

    @property
    def name(self) -> str:
        return self.injected.__name__.replace("_", " ")

    @property
    def does(self) -> str:
        """What the fault does, in one sentence."""
        return (self.injected.__doc__ or "").strip()
