"""What can be found wrong with snapshots. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from backupd.receipt import PackFault

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backupd.format.ids import SnapshotId


class Kind(StrEnum):
    """What is wrong. Those of packs are the values of `PackFault`."""

    MANIFEST_DAMAGED = "manifest-damaged"
    """The snapshot cannot be restored from this store."""
    PAGE_MAP_DAMAGED = "page-map-damaged"
    """As above: the manifest is what was written, and what was written makes no sense."""
    PACK_MISSING = PackFault.MISSING.value
    PACK_WRONG_SIZE = PackFault.WRONG_SIZE.value
    PACK_WRONG_CHECKSUM = PackFault.WRONG_CHECKSUM.value
    PACK_UNREADABLE = PackFault.UNREADABLE.value
    PAGE_WRONG = PackFault.PAGE_WRONG.value
    PACK_DOES_NOT_FIT = PackFault.DOES_NOT_FIT.value
    IMAGE_DIGEST_WRONG = "image-digest-wrong"
    """Every pack is right, and together they are not the image that was captured."""
    SOURCE_DAMAGED = "source-damaged"
    """Every byte is what was captured, and that was a damaged database."""
    NOT_CHECKABLE = "not-checkable"
    """Information: something could not be looked at here, or only in part."""
    ODD_VALUES = "odd-values"
    """Information: values that do not fit the type or constraint of their column, as they were written."""
    ORPHANED_ROWS = "orphaned-rows"
    """Information: foreign keys that lead nowhere. The application may live with it."""
    ORPHAN = "orphan"
    """Information: packs that no snapshot needs."""

    @property
    def is_damage(self) -> bool:
        """Whether a snapshot does not restore to a sound database."""
        return self not in {Kind.NOT_CHECKABLE, Kind.ODD_VALUES, Kind.ORPHANED_ROWS, Kind.ORPHAN}

    @property
    def is_of_store(self) -> bool:
        """Whether stored bytes are not the ones that were written."""
        return self.is_damage and self is not Kind.SOURCE_DAMAGED


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was found in one store. `key` is the object's, or empty for what is about the whole store.

    `snapshots` are all that it touches, also those that nobody asked about, the oldest first; of a pack, all that name
    it. `pack` is its SHA-256 (hex), None when no pack is to blame.
    """

    kind: Kind
    store: str
    database: str | None
    key: str
    reason: str
    snapshots: tuple[SnapshotId, ...] = ()
    pack: str | None = None

    @property
    def is_damage(self) -> bool:
        """Whether a snapshot does not restore to a sound database."""
        return self.kind.is_damage

    def values(self) -> dict[str, object]:
        """As JSON documents show it."""
        return {
            "kind": str(self.kind),
            "is_damage": self.is_damage,
            "store": self.store,
            "database": self.database,
            "key": self.key,
            "reason": self.reason,
            "snapshots": [str(each) for each in self.snapshots],
        }


@dataclass(slots=True)
class Findings:
    """Everything that is found about one database in one store, each thing once."""

    store: str
    database: str
    _found: dict[tuple[Kind, str, str], Finding] = field(default_factory=dict)

    def add(
        self, kind: Kind, key: str, reason: str, snapshots: Iterable[SnapshotId] = (), *, pack: str | None = None
    ) -> None:
        """Take a finding. What was found before of the same object touches these snapshots as well."""
        before = self._found.get((kind, key, reason))
        touched = {*snapshots, *(before.snapshots if before else ())}
        self._found[kind, key, reason] = Finding(
            kind=kind,
            store=self.store,
            database=self.database,
            key=key,
            reason=reason,
            snapshots=tuple(sorted(touched)),
            pack=pack,
        )

    def clear(self) -> None:
        """Forget all: nothing of it can be relied on."""
        self._found.clear()

    @property
    def found(self) -> list[Finding]:
        """All of them, in the order in which they were found."""
        return [*self._found.values()]

    @property
    def damage(self) -> list[Finding]:
        """Those that are damage."""
        return [each for each in self.found if each.is_damage]

    def touched(self) -> set[SnapshotId]:
        """The snapshots that are damaged."""
        return {snapshot for each in self.damage for snapshot in each.snapshots}

    def packs(self) -> set[str]:
        """SHA-256 of the packs that are damaged."""
        return {each.pack for each in self.damage if each.pack is not None}
