"""Everything that is known of one snapshot, as labels and texts: for `backupd show`, and for its page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.format.manifest import SealedSummary
from backupd.format.records import CheckOutcome
from backupd.quantities import age, count, local_time, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from backupd.format.manifest import AnySummary, Summary
    from backupd.repository.proofs import KnownOutcome


def snapshot_facts(
    manifest: AnySummary, store: str, check: KnownOutcome | None, *, now: datetime, is_public: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield what is known of a snapshot in `store`, a URL, each fact with its label: what `backupd show` prints.

    `is_public` leaves out what encryption hides from the readers of a store, even where it is known on this machine.
    """
    taken_at = manifest.id.taken_at
    yield "snapshot", f"{manifest.database}@{manifest.id}"
    yield "taken", f"{local_time(taken_at)}, {age(taken_at, now)}"
    yield "store", store
    yield "proven", check_text(check, now)
    yield "tags", ", ".join(manifest.tags) or "none"
    yield "kind", str(manifest.kind)
    yield "sequence", f"{count(manifest.sequence)}, after {manifest.base or 'nothing: the first one'}"
    yield from _size_facts(manifest)
    yield "image", _origin(manifest)
    yield "encryption", _encryption(manifest)
    if isinstance(manifest, SealedSummary):
        yield "written by", f"installation {manifest.writer_id}"
        yield "everything else", "is encrypted: give the key with --identity FILE"
        return
    if is_public and is_encrypted(manifest):
        yield "everything else", f"is encrypted: backupd show {manifest.database}@{manifest.id} has it"
        return
    yield from _writer_facts(manifest)
    yield from _database_facts(manifest)
    yield "image digest", manifest.image_digest


def is_encrypted(manifest: AnySummary) -> bool:
    """Whether any of the packs of a snapshot is encrypted."""
    return any(pack.encryption is not None for pack in manifest.packs)


def check_text(check: KnownOutcome | None, now: datetime) -> str:
    """Return a sentence for what was found last of a snapshot."""
    if check is None:
        return "never: no test restore has looked at it"
    when = f"{local_time(check.at)}, {age(check.at, now)}"
    return {
        CheckOutcome.PROVEN: when,
        CheckOutcome.INTACT: f"no, but every stored byte was right ({when})",
        CheckOutcome.DAMAGED_STORE: f"DAMAGED in the store (found {when})",
        CheckOutcome.DAMAGED_SOURCE: f"DAMAGED when it was captured (found {when})",
    }[check.outcome]


def _origin(manifest: AnySummary) -> str:
    if manifest.replayed is None:
        return "read from the database"
    replayed = manifest.replayed
    return f"built from the log: commit {count(replayed.commit)} of recovery window {replayed.window}"


def _encryption(manifest: AnySummary) -> str:
    encrypted = sum(pack.encryption is not None for pack in manifest.packs)
    if encrypted in {0, len(manifest.packs)}:
        return "age" if encrypted else "none"
    return f"age, but for {count(len(manifest.packs) - encrypted, 'pack')} of {len(manifest.packs)}"


def _writer_facts(manifest: Summary) -> Iterator[tuple[str, str]]:
    writer = manifest.writer
    yield "source", f"{writer.path} on {writer.host}"
    yield "owner", f"uid {writer.uid}, gid {writer.gid}, mode {writer.mode:04o}"
    yield "written by", f"backupd {writer.backupd_version}, installation {writer.id}"


def _size_facts(manifest: AnySummary) -> Iterator[tuple[str, str]]:
    pages = count(manifest.page_count, "page")
    yield "size", f"{size(manifest.image_bytes)}, {pages} of {count(manifest.page_size, 'byte')}"
    changed = count(manifest.changed_pages, "page")
    yield "changed", f"{changed} ({_share(manifest.changed_pages, manifest.page_count)}) since the snapshot before"
    packed_bytes = sum(pack.stored_bytes for pack in manifest.packs)
    yield "packs", f"{count(len(manifest.packs), 'pack')}, {size(packed_bytes)} to fetch in all"
    own = size(manifest.stored_bytes)
    yield "stored", f"{own} ({_share(manifest.stored_bytes, packed_bytes)}) were written for this snapshot"


def _database_facts(manifest: Summary) -> Iterator[tuple[str, str]]:
    source = manifest.source
    yield "journal mode", source.journal_mode
    yield "encoding", source.encoding
    yield "free pages", count(source.free_pages)
    yield "user version", str(source.user_version)
    yield "application id", str(source.application_id)
    yield "sqlite version", source.sqlite_version or "none: the database is empty"
    yield "tables", _names(source.tables)
    yield "schema digest", source.schema_digest or "none: the schema could not be read"
    yield "alembic", ", ".join(source.alembic_revisions or ()) or "no revision"


def _names(tables: Sequence[str] | None) -> str:
    if tables is None:
        return "unknown: the schema could not be read"
    return f"{count(len(tables))}: {', '.join(tables)}" if tables else "none"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0%"
