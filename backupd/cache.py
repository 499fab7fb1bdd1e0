"""Files of the cache: written in one step, and believed only when they prove themselves."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import numpy as np

from backupd.format.pack import HASH_BYTES
from backupd.format.pagemap import image_digest, page_hashes

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.format.manifest import Manifest
    from backupd.format.pagemap import PageHashes


def map_hashes(file: Path) -> PageHashes:
    """A file of page hashes as an array that stays on disk."""
    if file.stat().st_size == 0:
        return page_hashes(b"")
    return page_hashes(np.memmap(file, dtype=np.uint8, mode="r"))


def is_hashes_file(file: Path, manifest: Manifest) -> bool:
    """Whether `file` holds the page hashes of exactly this snapshot: its image digest is their digest."""
    try:
        if file.stat().st_size != manifest.page_count * HASH_BYTES:
            return False
    except FileNotFoundError:
        return False
    return image_digest(map_hashes(file)) == manifest.image_digest


def write_atomically(file: Path, content: bytes | memoryview) -> None:
    """Write a file of the cache. It needs no fsync: it proves itself when it is read."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        temporary.rename(file)
    finally:
        temporary.unlink(missing_ok=True)


def link_atomically(source: Path, file: Path) -> None:
    """Give `source`, a finished file of the spool, a second name in the cache, in place of what had it."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        os.link(source, temporary)  # one file system: the spool is in the state directory too
        temporary.rename(file)
    finally:
        temporary.unlink(missing_ok=True)
