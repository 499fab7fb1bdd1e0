"""Checks of stored packs without reading them: their presence, size, and the store's own checksums."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING

from backupd.concurrency import worker_threads
from backupd.errors import NoSuchObjectError, StoreRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from backupd.format.manifest import PackEntry
    from backupd.repository.archive import Archive
    from backupd.repository.history import Listing

_QUESTIONS_AT_ONCE = 8


class PackFault(StrEnum):
    """The faults that a stored pack can have."""

    MISSING = "pack-missing"
    WRONG_SIZE = "pack-wrong-size"
    WRONG_CHECKSUM = "pack-wrong-checksum"
    """Its bytes do not have the SHA-256 that names it."""
    UNREADABLE = "pack-unreadable"
    """Its bytes are the ones that were written, and are no pack."""
    PAGE_WRONG = "page-wrong"
    """It holds other pages than its index says."""
    DOES_NOT_FIT = "pack-does-not-fit"
    """It is whole, but has pages of another size than the manifest says, or lacks some that the page map has in it."""


def faults_in_listing(packs: Iterable[PackEntry], listing: Listing) -> dict[PackEntry, tuple[PackFault, str]]:
    """Return the entries in `packs` that `listing` does not show, or shows with another size, each with the reason."""
    faults = {}
    for pack in listing.missing(packs):
        found = listing.packs.get(pack.sha256)
        if found is None:
            faults[pack] = (PackFault.MISSING, "it is not there")
        else:
            reason = f"it has {found.size_bytes} bytes instead of {pack.stored_bytes}"
            faults[pack] = (PackFault.WRONG_SIZE, reason)
    return faults


@dataclass(frozen=True, slots=True)
class Checksums:
    """The result of comparing the store's own checksums: the `compared` packs, and the `faults` among them.

    `why_not` says why other packs were not compared; None when all were.
    """

    compared: frozenset[PackEntry]
    faults: Mapping[PackEntry, tuple[PackFault, str]]
    why_not: str | None


def compare_checksums(archive: Archive, packs: Iterable[PackEntry], should_stop: Callable[[], None]) -> Checksums:
    """Ask the store for the checksum that it keeps of each of `packs`, several at once.

    Ends when it has none of the first few, or refuses to give them: that is no error, many keys may not ask. Raises
    `StoreUnavailableError`, and what `should_stop` raises, which is called before each question, from several threads.
    """
    compared: set[PackEntry] = set()
    faults: dict[PackEntry, tuple[PackFault, str]] = {}
    lacking = 0
    left = iter(packs)

    def ask(pack: PackEntry) -> tuple[PackFault, str] | bool:
        should_stop()
        return _compared(archive, pack)

    with worker_threads(_QUESTIONS_AT_ONCE, name="ask") as threads:
        while some := [*islice(left, _QUESTIONS_AT_ONCE)]:
            try:
                answers = dict(zip(some, threads.map(ask, some), strict=True))
            except StoreRefusedError as error:
                return Checksums(frozenset(compared), faults, f"the store does not give its checksums: {error.message}")
            faults |= {pack: answer for pack, answer in answers.items() if isinstance(answer, tuple)}
            compared |= {pack for pack, answer in answers.items() if answer}
            lacking += sum(not answer for answer in answers.values())
            if not compared:
                return Checksums(frozenset(), {}, "the store keeps no checksum of packs")
    why_not = f"the store keeps no checksum of {lacking} packs" if lacking else None
    return Checksums(frozenset(compared), faults, why_not)


def _compared(archive: Archive, pack: PackEntry) -> tuple[PackFault, str] | bool:
    """The fault of a pack by the store's own facts; without one, whether the store keeps its checksum."""
    try:
        facts = archive.repository.store.facts(archive.pack_key(pack))
    except NoSuchObjectError:
        return PackFault.MISSING, "it has gone since the listing"
    if facts.size_bytes != pack.stored_bytes:
        return PackFault.WRONG_SIZE, f"it has {facts.size_bytes} bytes instead of {pack.stored_bytes}"
    if facts.sha256 is not None and facts.sha256.hex() != pack.sha256:
        return PackFault.WRONG_CHECKSUM, f"the store keeps the SHA-256 {facts.sha256.hex()} of it"
    return facts.sha256 is not None
