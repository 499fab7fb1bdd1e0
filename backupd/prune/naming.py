"""What a database has, read in full: what may be deleted is only known when nothing is unreadable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd.errors import BusyError, DamageError
from backupd.repository.manifests import read_history, unreadable
from backupd.repository.records import read_trash
from backupd.store.keys import RecordKey, RecordKind, SnapshotKey

if TYPE_CHECKING:
    from backupd.repository import Repository
    from backupd.survey import History, Survey, Trash


@dataclass(frozen=True, slots=True)
class Holdings:
    """One listing of a database with all manifests and trash entries that it shows."""

    survey: Survey
    history: History
    trash: Trash

    @property
    def named_packs(self) -> set[str]:
        """SHA-256 (hex) of every pack that a manifest or a trash entry names."""
        manifests = (*self.history.manifests, *(entry.manifest for entry in self.trash.entries))
        return {pack.sha256 for manifest in manifests for pack in manifest.packs}


def read_holdings(repository: Repository, database: str) -> Holdings:
    """What the store has of `database` now. Raises the errors of `Store` and `UnsupportedFormatError`."""
    survey = repository.survey(database)
    return Holdings(survey, read_history(repository, database, survey), read_trash(repository, database, survey))


def require_readable_manifests(repository: Repository, database: str, holdings: Holdings) -> None:
    """Raise `DamageError` for a manifest that cannot be read, `BusyError` for one that has gone meanwhile."""
    history = holdings.history
    for damaged in history.damaged:
        raise unreadable(
            repository,
            damaged,
            hint="nothing of this database is removed while it is there, because it may need any pack; when you have "
            f"given it up, delete {SnapshotKey(database, str(damaged.id))} by hand",
        )
    if history.lacks_some_of(holdings.survey):
        raise _another_host_is_at_work(repository, database)


def require_readable_trash(repository: Repository, database: str, holdings: Holdings) -> None:
    """The same for trash entries."""
    for damaged in holdings.trash.damaged:
        key = RecordKey(RecordKind.TRASH, database, str(damaged.id))
        raise DamageError(
            f"the removed snapshot {database}@{damaged.id} in the trash of {repository.url} is damaged: "
            f"{damaged.reason}",
            hint="no space is freed while it is there, because it may need any pack; when you have given it up, "
            f"delete {key} by hand",
        )
    if len(holdings.trash.entries) < len(holdings.survey.trash):
        raise _another_host_is_at_work(repository, database)


def _another_host_is_at_work(repository: Repository, database: str) -> BusyError:
    return BusyError(
        f"another host removes or undeletes snapshots of {database} in {repository.url} at this moment",
        hint="let it finish, then try again",
    )
