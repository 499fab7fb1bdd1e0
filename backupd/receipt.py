"""What one listing, and at most one question for each pack, proves of snapshots without reading a pack.

`backupd now` ends with a receipt, and `backupd verify --level receipt` asks for that of any snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING

from backupd.errors import NoSuchObjectError, StoreRefusedError
from backupd.repository.packs import pack_key
from backupd.threads import worker_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from backupd.format.manifest import AnyManifest, PackEntry
    from backupd.repository import Repository
    from backupd.survey import Survey

_QUESTIONS_AT_ONCE = 8


class PackFault(StrEnum):
    """What can be wrong with a stored pack."""

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


@dataclass(frozen=True, slots=True)
class Receipt:
    """A store has shown all `packs` of a snapshot, with `stored_bytes` together, and its manifest as it was written."""

    packs: int
    stored_bytes: int

    def values(self) -> dict[str, object]:
        """As JSON documents and logs show it."""
        return {"packs": self.packs, "stored_bytes": self.stored_bytes}


def receipt_of(manifest: AnyManifest) -> Receipt:
    """The receipt for a snapshot of which a listing has shown every pack with its size."""
    return Receipt(len(manifest.packs), sum(pack.stored_bytes for pack in manifest.packs))


def faults_in_listing(packs: Iterable[PackEntry], survey: Survey) -> dict[PackEntry, tuple[PackFault, str]]:
    """Those of `packs` that `survey` does not show, or not with their size, each with why."""
    faults = {}
    for pack in survey.missing(packs):
        found = survey.packs.get(pack.sha256)
        if found is None:
            faults[pack] = (PackFault.MISSING, "it is not there")
        else:
            reason = f"it has {found.size_bytes} bytes instead of {pack.stored_bytes}"
            faults[pack] = (PackFault.WRONG_SIZE, reason)
    return faults


@dataclass(frozen=True, slots=True)
class Checksums:
    """What the store's own checksums say: `compared` packs, the `faults` among them, and why others were not compared.

    `why_not` is None when all were.
    """

    compared: frozenset[PackEntry]
    faults: Mapping[PackEntry, tuple[PackFault, str]]
    why_not: str | None


def compare_checksums(
    repository: Repository, database: str, packs: Iterable[PackEntry], should_stop: Callable[[], None]
) -> Checksums:
    """Ask the store for the checksum that it keeps of each of `packs`, several at once.

    Ends when it has none of the first few, or refuses to tell: that is no error, many keys may not ask. Raises
    `StoreUnavailableError`, and what `should_stop` raises, which is called before each question, from several threads.
    """
    compared: set[PackEntry] = set()
    faults: dict[PackEntry, tuple[PackFault, str]] = {}
    lacking = 0
    left = iter(packs)

    def ask(pack: PackEntry) -> tuple[PackFault, str] | bool:
        should_stop()
        return _compared(repository, database, pack)

    with worker_threads(_QUESTIONS_AT_ONCE, name="ask") as threads:
        while some := [*islice(left, _QUESTIONS_AT_ONCE)]:
            try:
                answers = dict(zip(some, threads.map(ask, some), strict=True))
            except StoreRefusedError as error:
                return Checksums(frozenset(compared), faults, f"the store does not tell its checksums: {error.message}")
            faults |= {pack: answer for pack, answer in answers.items() if isinstance(answer, tuple)}
            compared |= {pack for pack, answer in answers.items() if answer}
            lacking += sum(not answer for answer in answers.values())
            if not compared:
                return Checksums(frozenset(), {}, "the store keeps no checksum of packs")
    why_not = f"the store keeps no checksum of {lacking} packs" if lacking else None
    return Checksums(frozenset(compared), faults, why_not)


def _compared(repository: Repository, database: str, pack: PackEntry) -> tuple[PackFault, str] | bool:
    """What is wrong with a pack by what the store tells of it; else whether the store has its checksum."""
    try:
        facts = repository.store.facts(pack_key(database, pack))
    except NoSuchObjectError:
        return PackFault.MISSING, "it has gone since the listing"
    if facts.size_bytes != pack.stored_bytes:
        return PackFault.WRONG_SIZE, f"it has {facts.size_bytes} bytes instead of {pack.stored_bytes}"
    if facts.sha256 is not None and facts.sha256.hex() != pack.sha256:
        return PackFault.WRONG_CHECKSUM, f"the store keeps the SHA-256 {facts.sha256.hex()} of it"
    return facts.sha256 is not None
