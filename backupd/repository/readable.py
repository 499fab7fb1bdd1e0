"""Nothing is put that a reader would refuse: the bytes of each object go through the reader of its kind before.

(A pack goes through its reader where it is made, in `backupd.format.pack`: what is put may be encrypted.)
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING

from backupd.errors import UnreadableObjectError
from backupd.format import FormatError
from backupd.format.manifest import (
    MAX_MANIFEST_BYTES,
    SealedManifest,
    decode_manifest,
    encode_manifest,
    encrypt_manifest,
    open_manifest,
)
from backupd.format.records import (
    MAX_RECORD_BYTES,
    MAX_TRASH_BYTES,
    Drill,
    decode_deletion,
    decode_drill,
    decode_finding,
    decode_trash,
    decode_verdicts,
)
from backupd.store.keys import REPOSITORY_KEY, RecordKey, RecordKind, SnapshotKey, retention_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backupd.encryption import Encryption
    from backupd.format.manifest import AnyManifest, Manifest

MAX_REPOSITORY_OBJECT_BYTES = 4096
"""A reader's bound on `backupd.json`."""

_REPOSITORY_ID = re.compile("[0-9A-Za-z]{1,64}")
_LIMITS_BYTES = {RecordKind.TRASH: MAX_TRASH_BYTES}
_RECORDS: dict[RecordKind, Callable[[bytes], object]] = {
    RecordKind.DRILL: lambda content: _of_drill(decode_drill(content)),
    RecordKind.TRASH: lambda content: _of_manifest(decode_trash(content).manifest),
    RecordKind.SWEEP: decode_finding,
    RecordKind.DELETION: decode_deletion,
}


def decode_repository(content: bytes) -> tuple[int, str]:
    """Format version and id in a `backupd.json`; the id can safely name a directory. Raises `FormatError`."""
    try:
        values = json.loads(content)
        version, repository_id = values["format"], values["repository"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError("it is not what backupd writes") from error
    if type(version) is not int or version < 1:
        raise FormatError("it does not say its version")
    if not isinstance(repository_id, str) or not _REPOSITORY_ID.fullmatch(repository_id):
        raise FormatError("it has no repository id")
    return version, repository_id


def require_readable(key: str, content: bytes, *, url: str) -> None:
    """Raise `UnreadableObjectError` unless readers accept `content` as the object `key` of the store at `url`."""
    with _refused(key, url):
        _read(key, content)


def encode_restorable(manifest: Manifest, encryption: Encryption, *, url: str) -> tuple[bytes, bytes | None]:
    """The bytes of a manifest, in which a reader finds exactly that; and the private part as it was before encryption.

    Raises `UnreadableObjectError` when there are none. `url` is that of the store for which they are.
    """
    private: bytes | None = None
    with _refused(str(SnapshotKey(manifest.database, str(manifest.id))), url):
        if encryption.is_on:
            content, private = encrypt_manifest(manifest, encryption.encrypt)
        else:
            content = encode_manifest(manifest)
        found = decode_manifest(content)
        whole = open_manifest(found, private or b"") if isinstance(found, SealedManifest) else found
        whole.decode_map()
        _require_same(manifest, whole)
    return content, private


def _read(key: str, content: bytes) -> None:
    if snapshot := SnapshotKey.parse(key):
        _require_within(MAX_MANIFEST_BYTES, content)
        _require_own((snapshot.database, snapshot.snapshot_id), _of_manifest(decode_manifest(content)))
    elif key == REPOSITORY_KEY:
        _require_within(MAX_REPOSITORY_OBJECT_BYTES, content)
        decode_repository(content)
    elif (record := RecordKey.parse(key)) and (decode := _RECORDS.get(record.kind)):
        _require_within(_LIMITS_BYTES.get(record.kind, MAX_RECORD_BYTES), content)
        found = decode(content)
        if isinstance(found, tuple):
            _require_own((record.database, record.id), found)
    elif key == retention_key(key.partition("/")[0]):
        _require_within(MAX_RECORD_BYTES, content)
        decode_verdicts(content)


def _require_same(manifest: Manifest, found: Manifest) -> None:
    for each in fields(manifest):
        if getattr(found, each.name) != getattr(manifest, each.name):
            raise FormatError(f"{each.name}: a reader finds something else than was to be written")


def _require_within(limit_bytes: int, content: bytes) -> None:
    if len(content) > limit_bytes:
        raise FormatError(f"it has {len(content)} bytes, and readers take at most {limit_bytes}")


def _require_own(wanted: tuple[str, str], found: tuple[str, str]) -> None:
    if wanted != found:
        raise FormatError(f"it is that of {'@'.join(found)}")


def _of_manifest(manifest: AnyManifest) -> tuple[str, str]:
    return manifest.database, str(manifest.id)


def _of_drill(drill: Drill) -> tuple[str, str]:
    return drill.database, str(drill.snapshot)


@contextmanager
def _refused(key: str, url: str) -> Iterator[None]:
    try:
        yield
    except FormatError as error:
        raise UnreadableObjectError(
            f"{key} was not put into {url}, because no reader would accept it: {error}",
            hint="what is stored is as it was, and older snapshots can be restored; please report this as a bug",
        ) from error
