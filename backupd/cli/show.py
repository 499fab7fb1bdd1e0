"""`backupd show`: everything that is known about one snapshot."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output
from backupd.cli.verbs import (
    Invocation,
    Verb,
    database_option,
    global_options,
    identity_option,
    snapshot_argument,
    store_option,
)
from backupd.errors import BackupdError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from backupd.format.manifest import AnyManifest, Manifest
    from backupd.repository import Repository
    from backupd.repository.moments import CommitsAround
    from backupd.repository.proofs import KnownOutcome
    from backupd.repository.references import FoundSnapshot

_OWN_WIDTH = 16
_COMMITS_SHOWN = 5


@click.command(
    "show",
    cls=Verb,
    short_help="Show everything that is known about a snapshot.",
    examples=(
        "backupd show latest",
        "backupd show app@latest~1 --json",
    ),
)
@snapshot_argument
@database_option
@store_option
@identity_option
@global_options
@click.pass_obj
def command(invocation: Invocation, snapshot: str, database: str | None, store: str | None) -> None:
    """Show everything that is known about SNAPSHOT.

    SNAPSHOT is an id or its unique beginning, `latest`, `latest~2` (two before it), a time (2026-11-22T08:00: the
    newest at or before it), a time of day (08:00), an age (2h, 3d) or a tag. NAME@ before it chooses the database.
    For a time or an age, the commits around it are shown too, where the log was followed.
    """
    from backupd.cli.session import Session
    from backupd.cli.windows import commit_line, commit_values, gap_text, gap_values
    from backupd.repository.moments import CommitsAround

    session = Session(invocation)
    found = session.snapshot(snapshot, database, store)
    check = found.archive.proofs().known(found.manifest)
    at = session.reference(snapshot, database).moment(datetime.now().astimezone())
    around = CommitsAround(()) if at is None else _commits_around(found, at, session.repositories(store))
    broken = around.broken if any(map(around.is_broken, around.commits)) else None
    if session.is_json:
        commits = [{**commit_values(each), "is_broken": around.is_broken(each)} for each in around.commits]
        gap = None if broken is None else gap_values(broken.gap)
        output.print_document({"snapshot": _values(found, check), "commits": commits, "gap": gap})
        return
    facts = [*_facts(found, check)]
    for each in around.commits:
        label = "commit before" if at and each.seen_at <= at else "commit after"
        facts.append((label, f"{commit_line(each)}{'; BROKEN' if around.is_broken(each) else ''}"))
    output.print_result("\n".join(f"{label:{_OWN_WIDTH}}{output.printable(text)}" for label, text in facts))
    if broken is not None:
        output.print_warning(f"broken commits are not restored: {gap_text(broken.gap)}")
        output.print_hint(f"restore a snapshot of that time: backupd list {found.manifest.database}")


def _commits_around(found: FoundSnapshot, at: datetime, repositories: Iterable[Repository]) -> CommitsAround:
    """The commits around `at`. A segment that cannot be read hides no snapshot."""
    from backupd.repository.moments import CommitsAround, commits_around
    from backupd.repository.windows import read_all_continuity

    try:
        listing = found.archive.segments()
        if not listing.segments:
            return CommitsAround(())
        same = [repository.archive(found.manifest.database) for repository in repositories]
        checked = read_all_continuity(dict.fromkeys([found.archive, *same]))
        return commits_around(found.archive, listing, at, checked, most=_COMMITS_SHOWN)
    except BackupdError as error:
        output.print_warning(f"the commits around that time cannot be shown: {error.message}")
        return CommitsAround(())


def _values(snapshot: FoundSnapshot, check: KnownOutcome | None) -> dict[str, Any]:
    """Every value of the manifest, with the store, the time and the size, and what was found last of the snapshot."""
    from backupd.cli.listing import check_values
    from backupd.format.manifest import manifest_values

    manifest = snapshot.manifest
    return {
        "store": snapshot.archive.url,
        "taken_at": output.utc_time(manifest.id.taken_at),
        "image_bytes": manifest.image_bytes,
        **check_values(check),
        "replayed": None,
        **manifest_values(manifest),
    }


def _facts(found: FoundSnapshot, check: KnownOutcome | None) -> Iterator[tuple[str, str]]:
    from backupd.format.manifest import SealedManifest

    manifest = found.manifest
    taken_at = manifest.id.taken_at
    yield "snapshot", f"{manifest.database}@{manifest.id}"
    yield "taken", f"{output.local_time(taken_at)}, {output.age(taken_at, datetime.now(UTC))}"
    yield "store", found.archive.url
    yield "proven", _check_text(check)
    yield "tags", ", ".join(manifest.tags) or "none"
    yield "kind", str(manifest.kind)
    yield "sequence", f"{output.count(manifest.sequence)}, after {manifest.base or 'nothing: the first one'}"
    yield from _size_facts(manifest)
    yield "image", _origin(manifest)
    yield "encryption", _encryption(manifest)
    if isinstance(manifest, SealedManifest):
        yield "written by", f"installation {manifest.writer_id}"
        yield "everything else", "is encrypted: give the key with --identity FILE"
        return
    yield from _writer_facts(manifest)
    yield from _database_facts(manifest)
    yield "image digest", manifest.image_digest


def _check_text(check: KnownOutcome | None) -> str:
    """A sentence for what was found last of a snapshot."""
    from backupd.format.records import CheckOutcome

    if check is None:
        return "never: no test restore has looked at it"
    when = f"{output.local_time(check.at)}, {output.age(check.at, datetime.now(UTC))}"
    return {
        CheckOutcome.PROVEN: when,
        CheckOutcome.INTACT: f"no, but every stored byte was right ({when})",
        CheckOutcome.DAMAGED_STORE: f"DAMAGED in the store (found {when})",
        CheckOutcome.DAMAGED_SOURCE: f"DAMAGED when it was captured (found {when})",
    }[check.outcome]


def _origin(manifest: AnyManifest) -> str:
    if manifest.replayed is None:
        return "read from the database"
    replayed = manifest.replayed
    return f"built from the log: commit {output.count(replayed.commit)} of recovery window {replayed.window}"


def _encryption(manifest: AnyManifest) -> str:
    encrypted = sum(pack.encryption is not None for pack in manifest.packs)
    if encrypted in {0, len(manifest.packs)}:
        return "age" if encrypted else "none"
    return f"age, but for {output.count(len(manifest.packs) - encrypted, 'pack')} of {len(manifest.packs)}"


def _writer_facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    writer = manifest.writer
    yield "source", f"{writer.path} on {writer.host}"
    yield "owner", f"uid {writer.uid}, gid {writer.gid}, mode {writer.mode:04o}"
    yield "written by", f"backupd {writer.backupd_version}, installation {writer.id}"


def _size_facts(manifest: AnyManifest) -> Iterator[tuple[str, str]]:
    pages = output.count(manifest.page_count, "page")
    size = output.size(manifest.image_bytes)
    yield "size", f"{size}, {pages} of {output.count(manifest.page_size, 'byte')}"
    changed = output.count(manifest.changed_pages, "page")
    yield "changed", f"{changed} ({_share(manifest.changed_pages, manifest.page_count)}) since the snapshot before"
    packed_bytes = sum(pack.stored_bytes for pack in manifest.packs)
    yield "packs", f"{output.count(len(manifest.packs), 'pack')}, {output.size(packed_bytes)} to fetch in all"
    own = output.size(manifest.stored_bytes)
    yield "stored", f"{own} ({_share(manifest.stored_bytes, packed_bytes)}) were written for this snapshot"


def _database_facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    source = manifest.source
    yield "journal mode", source.journal_mode
    yield "encoding", source.encoding
    yield "free pages", output.count(source.free_pages)
    yield "user version", str(source.user_version)
    yield "application id", str(source.application_id)
    yield "sqlite version", source.sqlite_version or "none: the database is empty"
    yield "tables", _names(source.tables)
    yield "schema digest", source.schema_digest or "none: the schema could not be read"
    yield "alembic", ", ".join(source.alembic_revisions or ()) or "no revision"


def _names(tables: Sequence[str] | None) -> str:
    if tables is None:
        return "unknown: the schema could not be read"
    return f"{output.count(len(tables))}: {', '.join(tables)}" if tables else "none"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0%"
