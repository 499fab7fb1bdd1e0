"""`backupd list`: the snapshots in the stores, or what is in their trash."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from backupd.cli import output
from backupd.cli.verbs import Invocation, Verb, complete_databases, global_options, identity_option, store_option
from backupd.errors import BackupdError, ExitCode, NoSuchSnapshotError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from backupd.cli.output import Cells
    from backupd.cli.session import Session
    from backupd.format import SnapshotId
    from backupd.format.manifest import AnySummary
    from backupd.format.records import Continuity
    from backupd.jobs.trash import RemovedSnapshot
    from backupd.repository import Repository
    from backupd.repository.archive import Archive
    from backupd.repository.moments import WindowSpan
    from backupd.repository.proofs import KnownOutcome, Proofs
    from backupd.repository.references import ListedSnapshot, SnapshotList

    _CheckedGroup: TypeAlias = Sequence[tuple[ListedSnapshot, KnownOutcome | None]]
    _WindowsOfArchive: TypeAlias = tuple[Archive, list[WindowSpan]]


@click.command(
    "list",
    cls=Verb,
    short_help="List snapshots, the newest last.",
    examples=(
        "backupd list",
        "backupd list app.db",
        "backupd list app --store ./backups --json",
        "backupd list --trash",
    ),
)
@click.argument("database", required=False, shell_complete=complete_databases)
@click.option("--trash", is_flag=True, help="List removed snapshots that can be undeleted.")
@store_option
@identity_option
@global_options
@click.pass_obj
def command(invocation: Invocation, database: str | None, store: str | None, *, trash: bool) -> int:
    """List the snapshots of DATABASE, or of every database, the newest last.

    DATABASE is a name, or the path of its file. SIZE is that of the database; STORED is what the snapshot added to the
    store; PROVEN is how long ago a test restore succeeded, or `intact`, where every stored byte is right and there was
    no key to restore it, or that the snapshot is damaged. Below are the spans of which any moment can be restored,
    because the log was followed. What cannot be read is reported, and the rest is still listed.

    On a terminal, a timeline under each title shows this from the oldest snapshot to now, and the last hours in most
    detail. Each character stands for a span of time, and says what can be restored from there.

    With --trash, list the snapshots that were removed, by a rule or by hand, and until when `backupd undelete` brings
    each of them back.
    """
    from backupd.cli.session import Session

    session = Session(invocation)
    name = None if database is None else session.database_name(database)
    return _list_trash(session, store, name) if trash else _list_snapshots(session, store, name)


def _list_snapshots(session: Session, store: str | None, name: str | None) -> int:
    from backupd.cli.windows import window_lines, window_values
    from backupd.repository.references import list_snapshots

    repositories = session.repositories(store)
    found = list_snapshots(repositories, name)
    if name and not found.snapshots and not found.problems:
        reject_unknown_database(name, repositories, session)
    checks, windows = _LatestChecks(found), _windows(found)
    if session.is_json:
        output.print_document(
            {
                "snapshots": [_values(snapshot, checks.of(snapshot)) for snapshot in found.snapshots],
                "windows": [window_values(archive, span) for archive, spans in windows for span in spans],
                "problems": [output.error_values(problem) for problem in found.problems],
            }
        )
    else:
        _print(found, checks, name, repositories, windows, session)
        for archive, spans in windows:
            for line in window_lines(archive, spans):
                output.print_line(line)
        _print_odd_values(found, session)
        for problem in found.problems:
            output.print_error(problem)
    return _exit_code(found.problems, is_empty=not found.snapshots)


def _windows(found: SnapshotList) -> list[_WindowsOfArchive]:
    """The recovery windows of each archive with listed snapshots. Errors go to the problems of the list."""
    from backupd.repository.moments import window_spans
    from backupd.repository.windows import read_all_continuity

    snapshots: dict[Archive, set[SnapshotId]] = {}
    for snapshot in found.snapshots:
        snapshots.setdefault(snapshot.archive, set()).add(snapshot.manifest.id)
    checked: dict[str, Mapping[SnapshotId, Continuity]] = {}
    windows = []
    for archive, ids in snapshots.items():
        try:
            listing = found.listings.get(archive) or archive.segments()
            if listing.segments and archive.database not in checked:
                same = {each: found.listings.get(each) for each in snapshots if each.database == archive.database}
                checked[archive.database] = read_all_continuity(same)
            windows.append((archive, window_spans(archive, listing, ids, checked.get(archive.database, {}))))
        except BackupdError as error:
            found.problems.append(error)
    return windows


def reject_unknown_database(name: str, repositories: Sequence[Repository], session: Session) -> None:
    """Raise `NoSuchSnapshotError` for a database without snapshots, unless it is configured and so will have some."""
    if any(database.name == name for database in session.databases()):
        return
    known = sorted({other for repository in repositories if repository.exists() for other in repository.databases()})
    raise NoSuchSnapshotError(
        f"no snapshots of a database {name} in {_places(repositories)}",
        hint=f"there are some of: {', '.join(known)}" if known else "take one with: backupd now",
    )


class _LatestChecks:
    """The latest check results of the snapshots in a list. The records of an archive are read once, when needed.

    Errors go to the problems of the list: records that cannot be read hide no snapshot.
    """

    def __init__(self, found: SnapshotList) -> None:
        self._list = found
        self._known: dict[Archive, Proofs | None] = {}

    def of(self, snapshot: ListedSnapshot) -> KnownOutcome | None:
        archive = snapshot.archive
        if archive not in self._known:
            try:
                self._known[archive] = archive.proofs(self._list.listings.get(archive))
            except BackupdError as error:
                self._list.problems.append(error)
                self._known[archive] = None
        proofs = self._known[archive]
        return None if proofs is None else proofs.known(snapshot.manifest)


def _values(snapshot: ListedSnapshot, check: KnownOutcome | None) -> dict[str, Any]:
    """The values of a snapshot in JSON documents; `check` is what was found last of it."""
    manifest = snapshot.manifest
    return {
        "id": str(manifest.id),
        "database": manifest.database,
        "store": snapshot.archive.url,
        "taken_at": output.utc_time(manifest.id.taken_at),
        "kind": str(manifest.kind),
        "tags": list(manifest.tags),
        "sequence": manifest.sequence,
        "base": None if manifest.base is None else str(manifest.base),
        "page_size": manifest.page_size,
        "page_count": manifest.page_count,
        "changed_pages": manifest.changed_pages,
        "image_bytes": manifest.image_bytes,
        "stored_bytes": manifest.stored_bytes,
        **check_values(check),
        "is_replayed": manifest.replayed is not None,
        "is_encrypted": any(pack.encryption for pack in manifest.packs),
        **_private_values(manifest),
    }


def _private_values(manifest: AnySummary) -> dict[str, Any]:
    """The values that an encrypted manifest shows only with a key: null without one."""
    from backupd.format.manifest import SealedSummary

    if isinstance(manifest, SealedSummary):
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


def check_values(check: KnownOutcome | None) -> dict[str, Any]:
    """What was found last of a snapshot, in JSON documents."""
    from backupd.format.records import CheckOutcome

    outcome, at = (check.outcome, output.utc_time(check.at)) if check else (None, None)
    damage = {CheckOutcome.DAMAGED_STORE: "store", CheckOutcome.DAMAGED_SOURCE: "source"}
    return {
        "proven_at": at if outcome is CheckOutcome.PROVEN else None,
        "intact_at": at if outcome is CheckOutcome.INTACT else None,
        "damage": None if outcome is None else damage.get(outcome),
    }


def _print(
    found: SnapshotList,
    checks: _LatestChecks,
    name: str | None,
    repositories: Iterable[Repository],
    windows: Iterable[_WindowsOfArchive],
    session: Session,
) -> None:
    if not found.snapshots and not found.problems:
        whose = f" of {name}" if name else ""
        output.print_line(f"no snapshots{whose} in {_places(repositories)}")
        output.print_hint("take one with: backupd now")
        return
    checked = [
        [(snapshot, checks.of(snapshot)) for snapshot in group] for _, group in groupby(found.snapshots, key=_group)
    ]
    if not checked:
        return
    groups = [
        (f"{database} in {url}", [_cells(snapshot, check) for snapshot, check in group])
        for group in checked
        for database, url in [_group(group[0][0])]
    ]
    headings = ("ID", "TAKEN", "AGE", ">SIZE", ">STORED", "PROVEN", "TAGS", "ALEMBIC")
    if session.is_quiet or not output.is_terminal():
        output.print_result(output.table(headings, groups))
        return
    lines, colours = _timelines(found, checked, dict(windows), session)
    output.print_result(output.table(headings, groups, lines=lines, colours=colours))


def _timelines(
    found: SnapshotList,
    checked: Iterable[_CheckedGroup],
    windows: Mapping[Archive, Sequence[WindowSpan]],
    session: Session,
) -> tuple[list[list[str]], dict[str, str]]:
    """The timeline of each group, the first one with the legend; and the characters that have each colour."""
    from backupd.cli.timeline import COLOURS, draw, legend, past_of
    from backupd.state import UNUSABLE_STATE
    from backupd.state.runs import failed_runs

    now, columns, is_unicode = datetime.now(UTC), output.columns(), output.is_unicode()
    timelines = []
    for group in checked:
        archive = group[0][0].archive
        failed: list[datetime] = []
        with suppress(*UNUSABLE_STATE):  # what failed here is known here only, and explains nothing of what is stored
            failed = failed_runs(session.state, archive.database, archive.url)
        past = past_of(
            [(snapshot.manifest.id, None if check is None else check.outcome) for snapshot, check in group],
            windows.get(archive, ()),
            unreadable=[unreadable.taken_at for unreadable in found.unreadable.get(archive, ())],
            failed=failed,
        )
        timelines.append(draw(past, now=now, columns=columns, is_unicode=is_unicode))
    lines = [[timeline.text] for timeline in timelines]
    lines[0].append(legend(timelines, columns=columns, is_unicode=is_unicode))
    colours = {
        colour: "".join(symbol.character(is_unicode=is_unicode) for symbol in symbols)
        for colour, symbols in COLOURS.items()
    }
    return lines, colours


def _print_odd_values(found: SnapshotList, session: Session) -> None:
    """Print what test restores on this machine found of the listed snapshots that is no damage."""
    if session.is_quiet:
        return
    known = session.status.read().databases
    for snapshot in found.snapshots:
        manifest, url = snapshot.manifest, snapshot.archive.url
        database = known.get(manifest.database)
        health = database.stores.get(url) if database else None
        if health is not None and health.odd_values is not None and health.proven_id == str(manifest.id):
            output.print_note(f"note: {manifest.database}@{manifest.id} in {url} has {health.odd_values}")


def _group(snapshot: ListedSnapshot) -> tuple[str, str]:
    return snapshot.manifest.database, snapshot.archive.url


def _cells(snapshot: ListedSnapshot, check: KnownOutcome | None) -> Cells:
    from backupd.format.manifest import SnapshotKind

    manifest = snapshot.manifest
    tags = [*manifest.tags, *([str(manifest.kind)] if manifest.kind is not SnapshotKind.REGULAR else [])]
    return (
        str(manifest.id),
        output.local_time(manifest.id.taken_at),
        output.age(manifest.id.taken_at, datetime.now(UTC)),
        output.size(manifest.image_bytes),
        output.size(manifest.stored_bytes),
        _check_cell(check),
        ", ".join(tags) or "-",
        _alembic(manifest),
    )


def _check_cell(check: KnownOutcome | None) -> str:
    """The cell of a table for what was found last of a snapshot: `3 h ago`, `intact 3 h ago`, `DAMAGED`."""
    from backupd.format.records import CheckOutcome

    if check is None:
        return "-"
    age = output.age(check.at, datetime.now(UTC))
    return {
        CheckOutcome.PROVEN: age,
        CheckOutcome.INTACT: f"intact {age}",
        CheckOutcome.DAMAGED_STORE: "DAMAGED",
        CheckOutcome.DAMAGED_SOURCE: "damaged source",
    }[check.outcome]


def _alembic(manifest: AnySummary) -> str:
    from backupd.format.manifest import SealedSummary

    if isinstance(manifest, SealedSummary):
        return "encrypted"
    return ", ".join(manifest.source.alembic_revisions or ()) or "-"


def _places(repositories: Iterable[Repository]) -> str:
    return ", ".join(repository.url for repository in repositories)


def _exit_code(problems: Sequence[BackupdError], *, is_empty: bool) -> int:
    """The code of the first problem if it left nothing to list; otherwise damage found, or partly done."""
    codes = [problem.exit_code for problem in problems]
    if not codes:
        return ExitCode.DONE
    if is_empty:
        return codes[0]
    return ExitCode.DAMAGE_FOUND if ExitCode.DAMAGE_FOUND in codes else ExitCode.PARTLY_DONE


def removed_values(removed: RemovedSnapshot) -> dict[str, Any]:
    """A removed snapshot in JSON documents."""
    manifest = removed.manifest
    return {
        "id": str(manifest.id),
        "database": removed.database,
        "store": removed.store.url,
        "taken_at": output.utc_time(manifest.id.taken_at),
        "removed_at": output.utc_time(removed.entry.removed_at),
        "gone_after": output.utc_time(removed.gone_after),
        "kind": str(manifest.kind),
        "tags": list(manifest.tags),
        "image_bytes": manifest.image_bytes,
        "reason": removed.entry.reason,
    }


def _removed_cells(removed: RemovedSnapshot) -> Cells:
    return (
        str(removed.manifest.id),
        output.local_time(removed.manifest.id.taken_at),
        output.local_time(removed.entry.removed_at),
        output.local_time(removed.gone_after),
        output.size(removed.manifest.image_bytes),
        removed.entry.reason,
    )


def _list_trash(session: Session, store: str | None, database: str | None) -> int:
    from backupd.jobs.trash import read_trash

    stores = session.configured_stores([store] if store else [])
    trash = read_trash(stores, database)
    found, problems = trash.found, [*trash.damaged, *trash.problems]
    if session.is_json:
        output.print_document(
            {
                "trash": [removed_values(removed) for removed in found],
                "problems": [output.error_values(problem) for problem in problems],
            }
        )
        return _exit_code(problems, is_empty=not found)
    groups = [
        (f"removed from {name} in {url}", [_removed_cells(removed) for removed in group])
        for (name, url), group in groupby(found, key=lambda removed: (removed.database, removed.store.url))
    ]
    if groups:
        output.print_result(output.table(("SNAPSHOT", "TAKEN", "REMOVED", "GONE AFTER", ">SIZE", "WHY"), groups))
    elif not problems:
        whose = f" of {database}" if database else ""
        output.print_line(f"nothing{whose} is in the trash of {_places(each.repository for each in stores)}")
    for problem in problems:
        output.print_error(problem)
    return _exit_code(problems, is_empty=not found)
