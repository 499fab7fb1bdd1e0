"""The request for a snapshot, its progress, its outcome, and the warnings about it."""

from __future__ import annotations

import base64
from contextlib import suppress
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

import msgspec

from backupd.capture.limits import LogSource
from backupd.errors import ExitCode
from backupd.format.manifest import Replayed, SnapshotKind, SourceFacts, Summary
from backupd.state import UNUSABLE_STATE, Note
from backupd.store import canonical_url
from backupd.store.keys import SnapshotKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from backupd.backup.baseline import Baseline
    from backupd.backup.hang_detection import Patience
    from backupd.capture.process import Pinned
    from backupd.config import Database, Settings
    from backupd.errors import BackupdError
    from backupd.format import SnapshotId
    from backupd.format.manifest import AnySummary, Manifest, Writer
    from backupd.repository.archive import Archive

_CLOCK_TOLERANCE = timedelta(minutes=1)


class SnapshotRequest(msgspec.Struct, frozen=True):
    """The properties asked of a new snapshot."""

    tags: tuple[str, ...] = ()
    is_full: bool = False
    must_read: bool = False
    """Whether the database is read where its files have changed, even if its log shows how."""
    kind: SnapshotKind = SnapshotKind.REGULAR

    @property
    def needs_snapshot(self) -> bool:
        """Whether an unchanged database gets a new snapshot anyway."""
        return bool(self.tags) or self.is_full or self.kind is not SnapshotKind.REGULAR


class KnownImage(msgspec.Struct, frozen=True):
    """An image, as far as later ones can be built from it with what the log of the database shows."""

    read_at: datetime
    """When the database itself was read last: for this image, or for one that this one was built from."""
    digest: str
    page_size: int
    page_count: int
    first_page: bytes
    facts: SourceFacts
    revision_pages: tuple[int, ...]
    file: tuple[int, int]
    """Device and inode of the database."""
    replayed: Replayed | None = None

    @property
    def size_bytes(self) -> int:
        """The size of the image."""
        return self.page_size * self.page_count


class SinceImage(msgspec.Struct, frozen=True):
    """An image that stores have, and the commits since, in segments: together, the present state of a database."""

    image: KnownImage
    segments: tuple[str, ...]
    """Files, oldest first."""
    after: int
    """The segments have all commits after this one that the image may lack."""
    replayed: Replayed
    """The commit after which the present state is."""
    at: datetime
    """When it was current."""

    def log_source(self) -> LogSource:
        """Say so to the capturing process."""
        image = self.image
        return LogSource(
            segments=self.segments,
            after=self.after,
            until=self.replayed.commit,
            taken_at=self.at.timestamp(),
            page_size=image.page_size,
            page_count=image.page_count,
            first_page=base64.b64encode(image.first_page).decode(),
            facts=msgspec.to_builtins(image.facts),
            revision_pages=image.revision_pages,
            file=image.file,
        )


class KnownState(msgspec.Struct, frozen=True):
    """A state of a database that a store has: what `stat` said of its files then, and the snapshot that holds it."""

    fingerprint: str
    snapshot_id: str


class SnapshotJob(msgspec.Struct, frozen=True):
    """One database, and how a snapshot of it is taken in every store."""

    database: Database
    settings: Settings
    request: SnapshotRequest
    known: Mapping[str, KnownState]
    """By store (URL), the state that a run before this one has left there."""
    since: SinceImage | None
    """The present state, where the log shows it."""
    patience: Patience
    on_progress: Callable[[Progress], None]


class Progress(msgspec.Struct, frozen=True):
    """Progress of a capture, in bytes of page images, and the bytes of packs that all stores have taken."""

    captured_bytes: int
    image_bytes: int
    stored_bytes: int


class Outcome(StrEnum):
    """The outcome of a snapshot of one database in one store."""

    CREATED = "created"
    UNCHANGED = "unchanged"
    FAILED = "failed"


class UploadCheck(msgspec.Struct, frozen=True):
    """Proof that a store showed all `packs` of a snapshot, `stored_bytes` together, and its manifest as written."""

    packs: int
    stored_bytes: int

    @classmethod
    def of(cls, manifest: AnySummary) -> UploadCheck:
        """The check of a snapshot of which a listing has shown every pack with its size."""
        return cls(len(manifest.packs), sum(pack.stored_bytes for pack in manifest.packs))

    def values(self) -> dict[str, object]:
        """The check as JSON documents and logs show it."""
        return {"packs": self.packs, "stored_bytes": self.stored_bytes}


class BackupResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a snapshot of one database in one store.

    `id` is that of the new snapshot, of the newest one when nothing changed, and None when it failed.
    """

    database: str
    store: str
    outcome: Outcome
    id: SnapshotId | None = None
    page_size: int | None = None
    page_count: int | None = None
    changed_pages: int | None = None
    stored_bytes: int = 0
    upload_check: UploadCheck | None = None
    """What the store showed of the snapshot at the end of the run; None when it failed."""
    replaced_packs: int = 0
    """Damaged packs of the previous snapshot whose pages were stored again, so that this one needs none of them."""
    was_read: bool = True
    """False when the database was not read: the times of its files showed that it has not changed, or its log how."""
    image: KnownImage | None = None
    """The image in the snapshot, where later ones can be built from it."""
    is_schema_readable: bool = True
    """False when the database is so damaged that SQLite cannot list its tables. It is captured anyway."""
    journal_mode: str | None = None
    """SQLite's word for the journal mode of the database; None when it is not known."""
    api_differs: bool = False
    """Whether reading the database's file gave something else than SQLite reads, so that only SQLite's API was used."""
    passed_over: PassedOver | None = None
    """Manifests in the store that no snapshot builds on."""
    duration_seconds: float = 0.0
    error: BackupdError | None = None
    warnings: tuple[str, ...] = ()

    @property
    def has_made_snapshot(self) -> bool:
        """Whether there is a new snapshot."""
        return self.outcome is Outcome.CREATED

    def values(self) -> dict[str, object]:
        """The result as JSON documents and logs show it."""
        return {
            "id": None if self.id is None else str(self.id),
            "database": self.database,
            "store": self.store,
            "outcome": str(self.outcome),
            "page_size": self.page_size,
            "page_count": self.page_count,
            "changed_pages": self.changed_pages,
            "stored_bytes": self.stored_bytes,
            "receipt": None if self.upload_check is None else self.upload_check.values(),
            "replaced_packs": self.replaced_packs,
            "was_read": self.was_read,
            "duration_seconds": round(self.duration_seconds, 3),
            "error": None if self.error is None else self.error.values(),
            "warnings": list(self.warnings),
        }


def exit_code_of(results: Sequence[BackupResult]) -> ExitCode:
    """The exit code of a run with these results: the first error's code, or partly done when some succeeded."""
    errors = [result.error for result in results if result.error is not None]
    if not errors:
        return ExitCode.DONE
    return errors[0].exit_code if len(errors) == len(results) else ExitCode.PARTLY_DONE


def source_warnings(pinned: Pinned, path: Path) -> Iterator[str]:
    """Warnings about the database itself, at `path`, in the state that was captured."""
    yield from pinned.left_out
    if not pinned.is_schema_readable:
        yield (
            "its schema cannot be read: the database is damaged, and was captured as it is; "
            f"check it with: sqlite3 {path} 'PRAGMA integrity_check'"
        )


def history_warnings(store: str, baseline: Baseline, me: Writer, taken: SnapshotId) -> Iterator[str]:
    """Warnings from comparing a snapshot that `me` took in `store`, a URL, with those before it."""
    history = baseline.history
    newest = history.newest
    if newest is None:
        return
    writer = newest.writer if isinstance(newest, Summary) else None
    where = f"{writer.path} on {writer.host}" if writer else f"installation {newest.writer_id}"
    if writer and writer.id == me.id and writer.path != me.path:
        yield (
            f"the snapshot before this one was taken from {where}; if that is another database, "
            "give each its own name or store"
        )
    elif _take_turns(history.manifests, me):
        yield (
            f"two writers take turns in {store}: {newest.database} was last written "
            f"from {where}; give each its own store or database name"
        )
    if newest.id.taken_at > taken.taken_at + _CLOCK_TOLERANCE and newest.id not in history.implausible:
        yield f"this machine's clock is behind the newest snapshot, {newest.id}: check the time"
    if writer is None and baseline.base is None:
        yield (
            f"every page was stored again in {store}: the snapshot before this one is encrypted, and this machine has "
            "no note of what is in it; keep state_dir, which holds such notes"
        )


def _take_turns(manifests: Sequence[AnySummary], me: Writer) -> bool:
    """Whether another writer wrote last, after `me` had written before. A host that takes over for good does not count.

    Writers are compared by id and by place: hosts can have one name, and one without a lasting state directory has
    many ids.
    """
    by_id = [manifest.writer_id == me.id for manifest in manifests]
    known = [manifest.writer for manifest in manifests if isinstance(manifest, Summary)]
    by_place = [(writer.host, writer.path) == (me.host, me.path) for writer in known]
    return any(any(is_me) and not is_me[-1] for is_me in (by_id, by_place))


class _Recipients(msgspec.Struct, frozen=True):
    """The public keys that all packs of a database's newest snapshot were written for; none if not encrypted."""

    kind: ClassVar[str] = "recipients"

    keys: tuple[str, ...]


def recipients_warning(archive: Archive, manifest: Manifest, base: Manifest | None) -> Iterator[str]:
    """Warn when the newest snapshot, `manifest`, needs packs of `base` that are not for the current recipients.

    For whom the packs were written is noted in the state directory whenever nothing was taken over; without such a
    note, it counts whether they are encrypted at all.
    """
    recipients = archive.repository.encryption.recipients
    note = Note(archive.repository.state, _Recipients, archive.database, canonical_url(archive.url))
    now = _Recipients(tuple(sorted(recipients)))
    with suppress(*UNUSABLE_STATE):  # without the note there are fewer warnings, and the same snapshot
        taken_over = () if base is None else set(manifest.packs).intersection(base.packs)
        if not taken_over:
            note.write(now)
            return
        before = note.read()
        if before is not None and before != now:
            yield _recipients_text(
                manifest, archive.url, was_encrypted=bool(before.keys), is_encrypted=bool(recipients)
            )
        elif before is None and any((pack.encryption is not None) != bool(recipients) for pack in taken_over):
            yield _recipients_text(manifest, archive.url, was_encrypted=not recipients, is_encrypted=bool(recipients))


def _recipients_text(manifest: Manifest, url: str, *, was_encrypted: bool, is_encrypted: bool) -> str:
    full = f"backupd now {manifest.database} --full"
    if not is_encrypted:
        return (
            f"encryption was switched off: what is stored in {url} from now on can be read by all who can read "
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


class _ReportedManifests(msgspec.Struct, frozen=True):
    """The manifests of a database in a store that were reported as passed over: why, by their snapshots' ids."""

    kind: ClassVar[str] = "passed-over-manifests"

    reasons: dict[str, str]


class PassedOver(msgspec.Struct, frozen=True):
    """Manifests in a store that no snapshot builds on: what was found, and what to do about it.

    `news` is a warning for each that was not reported before.
    """

    message: str
    hint: str
    news: tuple[str, ...]


def find_passed_over(archive: Archive, baseline: Baseline) -> PassedOver | None:
    """Find the manifests that no snapshot builds on, as long as they are there.

    What was reported is noted in the state directory; without that note, it is reported again.
    """
    database, store = archive.database, archive.url
    history = baseline.history
    unreadable = {damaged.id: f"it cannot be read: {damaged.reason}" for damaged in history.damaged}
    found = {str(each): why for each, why in {**history.implausible, **unreadable, **baseline.unusable}.items()}
    note = Note(archive.repository.state, _ReportedManifests, database, canonical_url(store))
    reported: dict[str, str] = {}
    with suppress(*UNUSABLE_STATE):
        noted = note.read()
        reported = {} if noted is None else noted.reasons
        # Those that are older than the base were not looked at again.
        base = None if baseline.base is None else baseline.base.manifest.id
        there = {str(manifest.id) for manifest in history.manifests if manifest.id != base} if reported else ()
        found = {each: why for each, why in reported.items() if each in there} | found
        if found and found != reported:
            note.write(_ReportedManifests(found))
        elif not found and reported:
            note.remove()
    if not found:
        return None
    ways = {each: _way_to_remove(database, each, is_readable=each not in map(str, unreadable)) for each in found}
    last = max(found)
    others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return PassedOver(
        f"{store} holds a manifest that no snapshot builds on, {database}@{last}{others}: {found[last]}",
        ways[last],
        tuple(
            f"{database}@{each} in {store} is passed over, and no snapshot builds on it: {why}; {ways[each]}"
            for each, why in found.items()
            if each not in reported
        ),
    )


def _way_to_remove(database: str, snapshot_id: str, *, is_readable: bool) -> str:
    key = SnapshotKey(database, snapshot_id)
    way = f"backupd forget {database}@{snapshot_id}" if is_readable else f"delete {key} by hand"
    return f"look at it: backupd verify {database}@{snapshot_id}; if no machine of yours took it: {way}"
