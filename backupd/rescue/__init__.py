"""What a repository carries for whoever has nothing else: a program that restores from it, and how to use it."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING

from backupd.errors import StoreError, TargetUnwritableError
from backupd.logs import log
from backupd.store import canonical_url
from backupd.store.keys import RESCUE_KEY, RESTORE_KEY

if TYPE_CHECKING:
    from backupd.state import StateDirectory
    from backupd.store import Store


def rescue_objects() -> dict[str, bytes]:
    """The objects that stand beside `backupd.json` in every repository, by key."""
    here = files(__package__)
    return {key: here.joinpath(key).read_bytes() for key in (RESTORE_KEY, RESCUE_KEY)}


def leave_rescue_objects(store: Store, state: StateDirectory, repository_id: str) -> None:
    """Put them into a repository, unless exactly these have been put there with this state directory before.

    Raises nothing that a store or a full disk does: a snapshot is one without them too.
    """
    objects = rescue_objects()
    subject = f"rescue objects of repository {repository_id} in {canonical_url(store.url)}"
    digest = hashlib.sha256(b"".join(objects.values())).hexdigest()
    with suppress(TargetUnwritableError):
        if state.noted(subject) == digest:
            return
    try:
        for key, content in objects.items():
            store.put(key, content, sha256=hashlib.sha256(content).digest())
    except StoreError as error:
        log.warning(
            "the way to restore without backupd could not be put into the store",
            store=store.url,
            reason=error.message,
            hint=error.hint,
        )
        return
    with suppress(TargetUnwritableError):
        state.note(subject, digest)
