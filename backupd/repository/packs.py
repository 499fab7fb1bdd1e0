"""The packs of a repository, read and checked."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from backupd.errors import DamageError, NoSuchObjectError
from backupd.format import FormatError
from backupd.format.pack import PackIndex, decode_pack, index_bytes, parse_index
from backupd.store.keys import PackKey

if TYPE_CHECKING:
    from backupd.format.manifest import PackEntry
    from backupd.repository import Repository


def pack_key(database: str, pack: PackEntry) -> str:
    """Where the store holds `pack`."""
    return str(PackKey(database, bytes.fromhex(pack.sha256), is_encrypted=pack.encryption is not None))


def read_pack(repository: Repository, database: str, pack: PackEntry) -> tuple[PackIndex, bytes]:
    """Index and page images of one pack, after its SHA-256 and zstd's checksum were found right.

    Raises the errors of `Store`, `DamageError` when it is gone or is not what was written, and `IdentityNeededError`
    for one that cannot be decrypted here, whose SHA-256 is right then.
    """
    key = pack_key(database, pack)
    try:
        content = repository.store.get(key, limit_bytes=pack.most_bytes)
    except NoSuchObjectError as error:
        raise DamageError(f"pack {key} is missing from {repository.url}") from error
    if hashlib.sha256(content).hexdigest() != pack.sha256:
        raise DamageError(f"pack {key} in {repository.url} does not have the SHA-256 that names it")
    if pack.encryption is not None:
        content = repository.encryption.decrypt(content, what=f"pack {key} in {repository.url}")
    try:
        return decode_pack(content)
    except FormatError as error:
        raise DamageError(f"pack {key} in {repository.url} cannot be read: {error}") from error


def read_index(repository: Repository, database: str, pack: PackEntry) -> PackIndex:
    """The index of one pack, without its images where it can be read alone.

    Raises `FormatError`, `NoSuchObjectError`, and as `read_pack` for a pack that is encrypted as a whole.
    """
    if pack.encryption is not None:
        return read_pack(repository, database, pack)[0]
    head = repository.store.get_range(pack_key(database, pack), offset=0, length=index_bytes(pack.pages))
    return parse_index(head)
