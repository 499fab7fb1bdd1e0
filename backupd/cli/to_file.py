"""A restore to a file, as a person sees it: how far it is, and what was restored."""

# ruff: noqa: PLC0415  (imports are late: `--help` is to be fast)

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.cli import output, quantities

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.catalog import WholeSnapshot
    from backupd.cli.session import Session
    from backupd.restore import RestoreResult


def restored_to_file(
    found: WholeSnapshot, target: Path, session: Session, *, force: bool, as_source: bool
) -> RestoreResult:
    """Restore to a file, showing how far it is."""
    from backupd.cli.progress import shown_progress
    from backupd.restore import restore_to_file

    name = found.manifest.database
    with shown_progress(name, done="restored", moved="fetched", is_quiet=session.is_quiet) as report:
        return restore_to_file(
            found.repository,
            found.manifest,
            target,
            force=force,
            as_source=as_source,
            on_progress=lambda now: report(now.restored_bytes, now.image_bytes, now.fetched_bytes),
        )


def print_restored_file(found: WholeSnapshot, result: RestoreResult, session: Session) -> None:
    """Tell of a restored file, as JSON or in a line."""
    manifest = found.manifest
    if session.is_json:
        output.print_document({"restored": _values(found, result)})
    else:
        line = (
            f"restored {described(found)} from {found.repository.url} to {result.target}: "
            f"{quantities.size(manifest.image_bytes)} in {quantities.seconds(result.duration_seconds)}; "
            "every pack and the whole image have their checksums, and SQLite opens it"
        )
        output.print_result(output.printable(line))


def described(found: WholeSnapshot) -> str:
    """Which snapshot, and of when: `app@20261122T085557123Z-7f3a91c2 (2026-11-22 09:55:57+01:00, 3 h ago)`."""
    manifest = found.manifest
    taken_at = manifest.id.taken_at
    when = f"{quantities.local_time(taken_at)}, {quantities.age(taken_at, datetime.now(UTC))}"
    return f"{manifest.database}@{manifest.id} ({when})"


def _values(found: WholeSnapshot, result: RestoreResult) -> dict[str, object]:
    return {
        "id": str(found.manifest.id),
        "database": found.manifest.database,
        "store": found.repository.url,
        "target": str(result.target),
        "way": "file",
        "image_bytes": result.image_bytes,
        "fetched_bytes": result.fetched_bytes,
        "safety_snapshot": None,
        "kept_as": None,
        "pause_seconds": None,
        "duration_seconds": round(result.duration_seconds, 3),
    }
