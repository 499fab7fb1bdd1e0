"""What the next snapshot in one store builds on, and what is stored again whatever the capture finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backupd.base import find_base
from backupd.capture.process import StreamBase
from backupd.cleaning import pages_to_relocate
from backupd.errors import BackupdError, StoreRefusedError
from backupd.format.manifest import Manifest
from backupd.proofs import read_proofs
from backupd.repository.manifests import read_history
from backupd.survey import History

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from backupd.base import BaseSnapshot
    from backupd.repository import Repository
    from backupd.survey import Survey

_ANY_PAGE_SIZE = 512


@dataclass(frozen=True, slots=True)
class Ground:
    """The snapshots that are there, and what of the newest one need not be stored again."""

    is_full: bool
    """Everything is to be stored again."""
    history: History = field(default=History((), ()))
    base: BaseSnapshot | None = None
    relocate: Sequence[int] = ()
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
        return self.is_newest_unreadable or (self.base is not None and self.base.damaged_packs > 0)

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
    newest = history.newest
    if not isinstance(newest, Manifest):
        return Ground(is_full, history, is_newest_unreadable=is_newest_unreadable)
    condemned, unread_drills = _condemned_packs(repository, newest, survey)
    base = find_base(repository, newest, survey, condemned=condemned)
    relocate = pages_to_relocate(newest.packs, base.page_map, newest.page_size)
    return Ground(is_full, history, base, relocate, is_newest_unreadable, unread_drills)


def _condemned_packs(
    repository: Repository, newest: Manifest, survey: Survey
) -> tuple[Collection[str], BackupdError | None]:
    try:
        return read_proofs(repository, newest.database, survey).condemned_packs(newest), None
    except StoreRefusedError as error:
        return (), error  # keys that may do no more than put are enough for a snapshot


def _is_newest_unreadable(history: History, survey: Survey) -> bool:
    """Whether the manifest that the store got last is damaged: what it said of its own place cannot be known."""
    if history.newest is None:
        return bool(history.damaged)
    put_at = survey.manifests[history.newest.id].modified_at
    return any(survey.manifests[damaged.id].modified_at > put_at for damaged in history.damaged)
