"""A snapshot as JSON shows it, under the names that the manifest has for things."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backupd.cli import quantities
from backupd.cli.verdicts import verdict_values
from backupd.format.manifest import SealedManifest, manifest_values

if TYPE_CHECKING:
    from backupd.catalog import ListedSnapshot
    from backupd.format.manifest import AnyManifest
    from backupd.proofs import Verdict


def listed_values(snapshot: ListedSnapshot, verdict: Verdict | None) -> dict[str, Any]:
    """What a listing tells of a snapshot; `verdict` is what test restores found of it."""
    manifest = snapshot.manifest
    return {
        "id": str(manifest.id),
        "database": manifest.database,
        "store": snapshot.repository.url,
        "taken_at": quantities.utc_time(manifest.id.taken_at),
        "kind": str(manifest.kind),
        "tags": list(manifest.tags),
        "sequence": manifest.sequence,
        "base": None if manifest.base is None else str(manifest.base),
        "page_size": manifest.page_size,
        "page_count": manifest.page_count,
        "changed_pages": manifest.changed_pages,
        "image_bytes": manifest.image_bytes,
        "stored_bytes": manifest.stored_bytes,
        **verdict_values(verdict),
        "is_encrypted": any(pack.encryption for pack in manifest.packs),
        **_private_values(manifest),
    }


def _private_values(manifest: AnyManifest) -> dict[str, Any]:
    """What an encrypted manifest tells only who has a key: null for everybody else."""
    if isinstance(manifest, SealedManifest):
        return dict.fromkeys(
            ("image_digest", "journal_mode", "encoding", "user_version", "application_id", "alembic_revisions")
        )
    source = manifest.source
    return {
        "image_digest": manifest.image_digest,
        "journal_mode": source.journal_mode,
        "encoding": source.encoding,
        "user_version": source.user_version,
        "application_id": source.application_id,
        "alembic_revisions": None if source.alembic_revisions is None else list(source.alembic_revisions),
    }


def all_values(snapshot: ListedSnapshot, verdict: Verdict | None) -> dict[str, Any]:
    """Every value of the manifest, and what follows from it and from where it was found."""
    manifest = snapshot.manifest
    return {
        "store": snapshot.repository.url,
        "taken_at": quantities.utc_time(manifest.id.taken_at),
        "image_bytes": manifest.image_bytes,
        **verdict_values(verdict),
        **manifest_values(manifest),
    }
