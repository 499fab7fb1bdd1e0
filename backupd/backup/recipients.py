"""Who can read a snapshot as a whole: it may take packs over that were written for other keys, or for none."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

from backupd.errors import TargetUnwritableError
from backupd.store import canonical_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backupd.format.manifest import Manifest
    from backupd.state import StateDirectory


def remark_on_recipients(
    manifest: Manifest, base: Manifest | None, url: str, recipients: Sequence[str], state: StateDirectory
) -> str | None:
    """What to say when the newest snapshot, `manifest`, needs packs of `base` that are not for `recipients`.

    For whom the packs were written is noted in the state directory whenever nothing was taken over; without such a
    note, it counts whether they are encrypted at all.
    """
    subject = f"recipients of {manifest.database} in {canonical_url(url)}"
    now = json.dumps(sorted(recipients))
    with suppress(TargetUnwritableError):  # who has lost the note hears less, and has the same snapshot
        taken_over = () if base is None else set(manifest.packs).intersection(base.packs)
        if not taken_over:
            state.note(subject, now)
            return None
        noted = state.noted(subject)
        if noted is not None and noted != now:
            return _remark(manifest, url, was_encrypted=noted != "[]", is_encrypted=bool(recipients))
        if noted is None and any((pack.encryption is not None) != bool(recipients) for pack in taken_over):
            return _remark(manifest, url, was_encrypted=not recipients, is_encrypted=bool(recipients))
    return None


def _remark(manifest: Manifest, url: str, *, was_encrypted: bool, is_encrypted: bool) -> str:
    full = f"backupd now {manifest.database} --full"
    if not is_encrypted:
        return (
            f"encryption was switched off: what is stored in {url} from now on can be read by everybody who reads "
            "the store, and the newest snapshot still needs packs that only the older keys decrypt; if that is meant: "
            f"{full}"
        )
    if not was_encrypted:
        return (
            f"encryption was switched on, and the newest snapshot in {url} still needs packs from before, which "
            f"everybody can read; this stores all of it encrypted: {full}"
        )
    return (
        f"the recipients have changed, and the newest snapshot in {url} still needs packs for the older ones: a key "
        f"that was added does not open it; this makes it readable for all that are configured: {full}"
    )
