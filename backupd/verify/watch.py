"""Who is told how a verification goes on, and who may end it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Progress:
    """How much was read of what is to be read, in bytes of packs and in packs, and the bytes of the pages in them."""

    read_bytes: int
    whole_bytes: int
    page_bytes: int
    packs: int
    all_packs: int


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told how a verification goes on, and who may end it.

    `on_progress` is called from several threads, one at a time. `on_note` gets lines for people. `should_stop` is
    called often, from several threads; what it raises ends the verification.
    """

    on_progress: Callable[[Progress], None] = lambda _: None
    on_note: Callable[[str], None] = lambda _: None
    should_stop: Callable[[], None] = lambda: None
