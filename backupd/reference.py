"""What people write for a snapshot: an id, `latest~2`, `before-restore`, a time, an age or a tag; `NAME@` before it.

Pure. The first character tells an id, a time or an age, which begin with a digit, from `latest` and tags, which do not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.config import InvalidValueError, check_database_name, parse_duration
from backupd.errors import NoSuchSnapshotError, UsageError
from backupd.format.manifest import SnapshotKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backupd.format.manifest import AnyManifest

_LATEST = re.compile(r"(?P<word>latest|before-restore)(?:~(?P<back>[0-9]{1,9}))?")
_ID_BEGINNING = re.compile(r"[0-9]{4,8}|[0-9]{8}T[0-9]{0,9}|[0-9]{8}T[0-9]{9}Z(?:-[0-9a-f]{0,8})?")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}.*")
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9._+-]{0,99}")
_CANDIDATES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference; `database` is the name before `@`, if there was one."""

    text: str
    database: str | None

    @property
    def names_one_moment(self) -> bool:
        """Whether it means another snapshot in every database: `latest`, a time or an age."""
        return not (self.is_id or self.is_tag)

    @property
    def is_id(self) -> bool:
        """Whether it is an id or the beginning of one."""
        return _ID_BEGINNING.fullmatch(self.text) is not None

    @property
    def is_tag(self) -> bool:
        """Whether only a tag can look like this."""
        return is_tag(self.text)


def is_tag(text: str) -> bool:
    """Whether `text` may be a tag: a letter, then letters, digits, `.`, `_`, `+`, `-`; but no word such as `latest`."""
    return _TAG.fullmatch(text) is not None and _LATEST.fullmatch(text) is None


def parse_reference(text: str) -> Reference:
    """The reference in `text`. Raises `UsageError` when it can be none."""
    database, separator, rest = text.rpartition("@")
    if database:
        check_database_name(database)
    reference = Reference(rest, database if separator else None)
    is_known = reference.is_tag or any(form.fullmatch(rest) for form in (_LATEST, _ID_BEGINNING, _TIME))
    if (separator and not database) or not (is_known or _age_seconds(rest) is not None):
        raise UsageError(
            f"{text!r} is not a snapshot",
            hint="give an id or its beginning, latest, latest~2, a time such as 2026-11-22T08:00, an age such as 2h "
            "or 3d, or a tag; NAME@ before it chooses the database",
        )
    return reference


def resolve(reference: Reference, manifests: Sequence[AnyManifest], now: datetime) -> AnyManifest | None:
    """The snapshot that `reference` means among those of one database, oldest first; None when there is none.

    `now` is aware. A time without an offset is local time, as it was at that date. `latest`, times and ages never mean
    a `before-restore` snapshot; that word means the newest of these. Raises `NoSuchSnapshotError` when several ids
    begin like this.
    """
    text = reference.text
    if reference.is_id:
        return _by_id(text, manifests)
    if reference.is_tag:
        return _newest([manifest for manifest in manifests if text in manifest.tags])
    regular = [manifest for manifest in manifests if manifest.kind is SnapshotKind.REGULAR]
    if match := _LATEST.fullmatch(text):
        meant = regular
        if match["word"] != "latest":
            meant = [manifest for manifest in manifests if manifest.kind is SnapshotKind.BEFORE_RESTORE]
        back = int(match["back"] or 0)
        return meant[-1 - back] if back < len(meant) else None
    moment = _moment(text, now)
    return _newest([manifest for manifest in regular if manifest.id.taken_at <= moment])


def _by_id(text: str, manifests: Sequence[AnyManifest]) -> AnyManifest | None:
    found = [manifest for manifest in manifests if str(manifest.id).startswith(text)]
    if len(found) > 1:
        shown = ", ".join(str(manifest.id) for manifest in found[-_CANDIDATES_SHOWN:])
        raise NoSuchSnapshotError(f"{len(found)} snapshots begin with {text}", hint=f"give more of the id: {shown}")
    return found[0] if found else None


def _newest(manifests: Sequence[AnyManifest]) -> AnyManifest | None:
    return manifests[-1] if manifests else None


def _moment(text: str, now: datetime) -> datetime:
    age = _age_seconds(text)
    try:
        # Through the timestamp, because astimezone() takes a local time that the clocks skipped for an earlier one.
        seconds = datetime.fromisoformat(text).timestamp() if age is None else now.timestamp() - age
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError) as error:
        hint = "write it like 2026-11-22T08:00, with +02:00 behind it if it is not local time"
        raise UsageError(f"{text!r} is not a time: {error}", hint=hint) from error


def _age_seconds(text: str) -> float | None:
    try:
        return parse_duration(text).total_seconds()
    except InvalidValueError:
        return None
