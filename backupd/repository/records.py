"""The records of a repository (FORMAT.md, "Records"), from the cache where that has them as they are listed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from backupd.errors import NoSuchObjectError, UnsupportedFormatError
from backupd.format import FormatError, NewerFormatError
from backupd.format.records import MAX_RECORD_BYTES, MAX_TRASH_BYTES, TrashEntry, decode_trash
from backupd.repository.manifests import as_counted, require_own
from backupd.survey import DamagedManifest, Survey, Trash
from backupd.threads import worker_threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backupd.format.ids import SnapshotId
    from backupd.repository import Repository
    from backupd.store import StoredObject

_T = TypeVar("_T")
_READERS = 8
_SUFFIX = ".record"


def read_record(
    repository: Repository,
    database: str,
    stored: StoredObject,
    decode: Callable[[bytes], _T],
    *,
    limit_bytes: int = MAX_RECORD_BYTES,
) -> _T:
    """What the record `stored` says, from the cache when that has it as it was listed.

    Raises the errors of `Store`, `FormatError`, `NoSuchObjectError` and `UnsupportedFormatError`.
    """
    name = _cached_name(stored)
    content = repository.cache.read(database, name)
    if content is not None and len(content) == stored.size_bytes:
        with suppress(FormatError):
            return decode(content)
    content = repository.store.get(stored.key, limit_bytes=limit_bytes)
    try:
        value = decode(content)
    except NewerFormatError as error:
        raise UnsupportedFormatError(
            f"{stored.key} in {repository.url} was written by a newer backupd: {error}",
            hint="install the newer version; nothing was changed",
        ) from error
    repository.cache.write(database, name, content)
    return value


def read_trash(repository: Repository, database: str, survey: Survey) -> Trash:
    """All trash entries that `survey` shows, from the cache where it has them. Raises `UnsupportedFormatError`."""
    now = datetime.now(UTC)

    def read(snapshot_id: SnapshotId) -> TrashEntry | DamagedManifest | None:
        try:
            stored = survey.trash[snapshot_id]
            entry = read_record(repository, database, stored, decode_trash, limit_bytes=MAX_TRASH_BYTES)
            require_own(entry.manifest, database, snapshot_id)
            entry = replace(entry, manifest=as_counted(entry.manifest, stored, now))
        except FormatError as error:
            return DamagedManifest(database, snapshot_id, str(error))
        except NoSuchObjectError:
            return None  # purged or undeleted since the listing
        return entry

    with worker_threads(_READERS) as readers:
        found = list(readers.map(read, survey.trash))
    entries = sorted((each for each in found if isinstance(each, TrashEntry)), key=lambda each: each.manifest.order)
    return Trash(tuple(entries), tuple(each for each in found if isinstance(each, DamagedManifest)))


def forget_records(repository: Repository, database: str, survey: Survey) -> None:
    """Drop what the cache has of records that `survey` does not show."""
    kinds = (survey.trash, survey.drills, survey.findings)
    present = {_cached_name(stored) for kind in kinds for stored in kind.values()}

    def is_of_removed(file: Path) -> bool:
        return file.suffix == _SUFFIX and file.name not in present

    repository.cache.forget(database, is_of_removed)


def _cached_name(stored: StoredObject) -> str:
    """A record may be put again, with other content and the same size: then it has another time."""
    kind, name = stored.key.split("/")[-2:]
    return f"{kind}-{name.removesuffix('.json')}-{int(stored.modified_at.timestamp() * 10**6)}{_SUFFIX}"
