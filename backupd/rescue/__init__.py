"""The objects in each repository for a restore without backupd: `rescue.py`, and RESTORE.md, which explains it."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING, ClassVar

import msgspec

from backupd.errors import StoreError, StoreRefusedError
from backupd.logs import log
from backupd.state import UNUSABLE_STATE, Note
from backupd.store import canonical_url
from backupd.store.keys import RESCUE_KEY, RESTORE_KEY

if TYPE_CHECKING:
    from backupd.state import StateDirectory
    from backupd.store import Store


class _RescueObjects(msgspec.Struct, frozen=True):
    """The rescue objects that were put into a repository, by the SHA-256 of their content."""

    kind: ClassVar[str] = "rescue-objects"

    sha256: str


def rescue_objects() -> dict[str, bytes]:
    """Return the objects that every repository has beside `backupd.json`, by key."""
    here = files(__package__)
    return {key: here.joinpath(key).read_bytes() for key in (RESTORE_KEY, RESCUE_KEY)}


def put_rescue_objects(store: Store, state: StateDirectory, repository_id: str) -> bool:
    """Put the rescue objects into a repository, unless this state directory notes that it has exactly these.

    Gives whether there is nothing left to try: they are there, or the store refuses them. Raises nothing that a store
    or a full disk does: a snapshot counts without them too.
    """
    objects = rescue_objects()
    note = Note(state, _RescueObjects, repository_id, canonical_url(store.url))
    current = _RescueObjects(hashlib.sha256(b"".join(objects.values())).hexdigest())
    with suppress(*UNUSABLE_STATE):
        if note.read() == current:
            return True
    try:
        for key, content in objects.items():
            store.put(key, content, sha256=hashlib.sha256(content).digest())
    except StoreError as error:
        log.warning(
            "rescue.py and RESTORE.md could not be put into the store",
            store=store.url,
            reason=error.message,
            hint=error.hint,
        )
        return isinstance(error, StoreRefusedError)
    with suppress(*UNUSABLE_STATE):
        note.write(current)
    return True
