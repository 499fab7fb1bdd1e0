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
    from collections.abc import Iterable

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
    from backupd.page.facts import snapshot_facts
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
    facts = [*snapshot_facts(found.manifest, found.archive.url, check, now=datetime.now(UTC))]
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
