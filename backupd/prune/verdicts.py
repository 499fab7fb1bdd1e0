"""Whether a database has shrunk, what people said to that, and what test restores proved of its snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.errors import DamageError, NoSuchObjectError, UnsupportedFormatError
from backupd.format import FormatError, NewerFormatError
from backupd.format.records import (
    MAX_RECORD_BYTES,
    NO_VERDICTS,
    DrillOutcome,
    Verdicts,
    decode_drill,
    decode_verdicts,
    encode_verdicts,
)
from backupd.store.keys import retention_key

if TYPE_CHECKING:
    from backupd.format.ids import SnapshotId
    from backupd.prune.naming import Holdings
    from backupd.repository import Repository


def read_verdicts(repository: Repository, database: str, holdings: Holdings) -> Verdicts:
    """What the store knows of it. Raises `DamageError` and `UnsupportedFormatError`."""
    key = retention_key(database)
    if key not in holdings.survey.single:
        return NO_VERDICTS
    try:
        return decode_verdicts(repository.store.get(key, limit_bytes=MAX_RECORD_BYTES))
    except NewerFormatError as error:
        raise UnsupportedFormatError(
            f"{key} in {repository.url} was written by a newer backupd: {error}",
            hint="install the newer version; nothing was changed",
        ) from error
    except FormatError as error:
        raise DamageError(
            f"{key} in {repository.url} cannot be read: {error}",
            hint="it says whether the database has shrunk, and if that was accepted; when you know, delete it by hand",
        ) from error


def write_verdicts(repository: Repository, database: str, verdicts: Verdicts) -> None:
    """Replace what the store knows of it."""
    repository.put_object(retention_key(database), encode_verdicts(verdicts))


def newest_proven(
    repository: Repository, database: str, holdings: Holdings
) -> tuple[SnapshotId | None, set[SnapshotId]]:
    """The newest snapshot that a test restore proved, and newer ones that may be proven: their records are damaged."""
    damaged: set[SnapshotId] = set()
    for manifest in reversed(holdings.history.manifests):
        stored = holdings.survey.drills.get(manifest.id)
        if stored is None:
            continue
        try:
            drill = repository.record(database, stored, decode_drill)
            if (drill.snapshot, drill.database) != (manifest.id, database):
                damaged.add(manifest.id)
            elif drill.outcome is DrillOutcome.PROVEN:
                return manifest.id, damaged
        except FormatError:
            damaged.add(manifest.id)
        except NoSuchObjectError:
            continue
    return None, damaged
