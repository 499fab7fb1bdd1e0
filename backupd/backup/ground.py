"""What the next snapshot in one store builds on, and what is stored again whatever the capture finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backupd.base import find_base, pages_there
from backupd.capture.process import StreamBase
from backupd.cleaning import pages_to_relocate
from backupd.errors import BackupdError, DamageError, StoreRefusedError
from backupd.format.manifest import Manifest
from backupd.proofs import Proofs, read_proofs
from backupd.repository.manifests import read_history
from backupd.survey import History

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from backupd.base import BaseSnapshot
    from backupd.format.ids import SnapshotId
    from backupd.repository import Repository
    from backupd.survey import Survey

_ANY_PAGE_SIZE = 512
_MOSTLY_LOST = "most of its pages are not in the store"


@dataclass(frozen=True, slots=True)
class Ground:
    """The snapshots that are there, and what of the newest one need not be stored again."""

    is_full: bool
    """Everything is to be stored again."""
    history: History = field(default=History((), ()))
    base: BaseSnapshot | None = None
    relocate: Sequence[int] = ()
    unusable: Mapping[SnapshotId, str] = field(default_factory=dict)
    """Why the snapshots that are newer than the base are none."""
    is_newest_unreadable: bool = False
    unread_drills: BackupdError | None = None
    """Why it is not known which packs are condemned."""

    @property
    def builds_on(self) -> BaseSnapshot | None:
        """What the capture is compared with."""
        return None if self.is_full else self.base

    @property
    def needs_snapshot(self) -> bool:
        """Whether there is a new one even of an unchanged database: the last one cannot be restored as it should."""
        if self.base is None or self.is_newest_unreadable:
            return True
        is_of_newest = self.history.newest is not None and self.base.manifest.id == self.history.newest.id
        return self.base.damaged_packs > 0 or not is_of_newest

    def stream_key(self) -> object:
        """Equal for stores that need the same pages stored."""
        base = self.builds_on
        if base is None:
            return None
        return (base.manifest.page_size, base.manifest.image_digest, base.lost.tobytes(), tuple(self.relocate))

    def stream_base(self, expected: Path) -> StreamBase:
        """What the stream of packs is compared with; `expected` is a file that may be written for it."""
        base = self.builds_on
        if base is None:
            return StreamBase(page_size=_ANY_PAGE_SIZE, hashes=None, relocate=())
        file = base.hashes
        if len(base.lost):
            hashes = base.read_hashes().copy()
            hashes[base.lost] = 0
            expected.write_bytes(hashes.tobytes())
            file = expected
        return StreamBase(page_size=base.manifest.page_size, hashes=str(file), relocate=self.relocate)

    def warnings(self, url: str) -> Iterator[str]:
        """What could not be found out about the store at `url`, and what that costs."""
        unread = None if self.builds_on is None else self.builds_on.unread
        if unread is not None:
            yield (
                f"pages that had not changed were stored again in {url}, because the state directory "
                f"does not know the snapshot before this one: {unread.message}; keep state_dir"
            )
        if self.unread_drills is not None:
            yield (
                "what test restores have found cannot be read, so damaged packs are not stored again by themselves: "
                f"{self.unread_drills.message}"
            )


def find_ground(repository: Repository, database: str, *, is_full: bool) -> Ground:
    """Ask the store what there is of `database`. Raises the errors of `Store`, `DamageError`, `UnsupportedFormatError`.

    Puts nothing but a `backupd.json` that somebody removed: the source may turn out to be unusable.
    """
    is_repository = repository.exists()
    survey = repository.survey(database)
    if not survey.manifests:
        return Ground(is_full)
    if not is_repository:
        repository.create_if_missing()
    history = read_history(repository, database, survey)
    if history.lacks_some_of(survey):
        # Another host removes snapshots. It keeps the newest, which may be newer than those that were listed.
        survey = repository.survey(database)
        history = read_history(repository, database, survey)
    is_newest_unreadable = _is_newest_unreadable(history, survey)
    proofs, unread_drills = _readable_proofs(repository, database, survey)
    base, unusable = _find_usable_base(repository, history, survey, proofs)
    relocate = () if base is None else pages_to_relocate(base.manifest.packs, base.page_map, base.manifest.page_size)
    return Ground(is_full, history, base, relocate, unusable, is_newest_unreadable, unread_drills)


def _find_usable_base(
    repository: Repository, history: History, survey: Survey, proofs: Proofs
) -> tuple[BaseSnapshot | None, dict[SnapshotId, str]]:
    """The newest snapshot that can be built upon, and why newer ones cannot: they may be planted.

    Where every one has lost most of its pages, it is the newest: those pages are stored again.
    """
    unusable: dict[SnapshotId, str] = {}

    def find(manifest: Manifest) -> BaseSnapshot | None:
        try:
            return find_base(repository, manifest, survey, condemned=proofs.condemned_packs(manifest))
        except DamageError as error:
            unusable[manifest.id] = error.message
            return None

    candidates = [each for each in reversed(history.manifests) if isinstance(each, Manifest)]
    for manifest in candidates:
        base = find(manifest) if 2 * pages_there(manifest, survey) >= manifest.page_count else None
        # What a drill has condemned was there, and is to be stored again.
        if base and (2 * len(base.lost) <= manifest.page_count or proofs.condemned_packs(manifest)):
            return base, unusable
        unusable.setdefault(manifest.id, _MOSTLY_LOST)
    for position, manifest in enumerate(candidates):
        if unusable[manifest.id] is _MOSTLY_LOST and (base := find(manifest)) is not None:
            return base, {each.id: unusable[each.id] for each in candidates[:position]}
    return None, unusable


def _readable_proofs(repository: Repository, database: str, survey: Survey) -> tuple[Proofs, BackupdError | None]:
    try:
        return read_proofs(repository, database, survey), None
    except StoreRefusedError as error:
        return Proofs(), error  # keys that may do no more than put are enough for a snapshot


def _is_newest_unreadable(history: History, survey: Survey) -> bool:
    """Whether the manifest that the store got last is damaged: what it said of its own place cannot be known."""
    if history.newest is None:
        return bool(history.damaged)
    put_at = survey.manifests[history.newest.id].modified_at
    return any(survey.manifests[damaged.id].modified_at > put_at for damaged in history.damaged)
