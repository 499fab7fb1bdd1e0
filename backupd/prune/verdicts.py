"""Whether a database has shrunk, and what people said to that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.errors import DamageError, UnsupportedFormatError
from backupd.format import FormatError, NewerFormatError
from backupd.format.records import (
    MAX_RECORD_BYTES,
    NO_VERDICTS,
    Verdicts,
    decode_verdicts,
    encode_verdicts,
)
from backupd.store.keys import retention_key

if TYPE_CHECKING:
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
