"""`backupd list`: which snapshots there are."""

# ruff: noqa: PLC0415  (imports are late: `--help` is to be fast)

from __future__ import annotations

from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING

import click

from backupd.cli import output, quantities
from backupd.cli.options import Invocation, Verb, complete_databases, global_options, identity_option, store_option
from backupd.errors import ExitCode, NoSuchSnapshotError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backupd.catalog import ListedSnapshot, Listing
    from backupd.cli.session import Session
    from backupd.cli.tables import Cells
    from backupd.cli.verdicts import Verdicts
    from backupd.format.manifest import AnyManifest
    from backupd.proofs import Verdict
    from backupd.repository import Repository


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
@click.option("--trash", is_flag=True, help="List what was removed and can be undeleted.")
@store_option
@identity_option
@global_options
@click.pass_obj
def command(invocation: Invocation, database: str | None, store: str | None, *, trash: bool) -> int:
    """List the snapshots of DATABASE, or of every database, the newest last.

    DATABASE is a name, or the path of its file. SIZE is that of the database; STORED is what the snapshot added to the
    store; PROVEN is how long ago a test restore succeeded, or what else was found of it: `intact`, where every stored
    byte is right and there was no key to restore it, or that it is damaged. What cannot be read is reported, and the
    rest is listed all the same.

    With --trash, list the snapshots that were removed, by whatever way, and until when `backupd undelete` brings each
    of them back.
    """
    from backupd.catalog import list_snapshots
    from backupd.cli.session import Session
    from backupd.cli.snapshot_values import listed_values
    from backupd.cli.verdicts import Verdicts

    session = Session(invocation)
    name = None if database is None else session.name_meant(database)
    if trash:
        from backupd.cli.trash import list_trash

        return list_trash(session, store, name)
    repositories = session.repositories(store)
    listing = list_snapshots(repositories, name)
    if name and not listing.snapshots and not listing.problems:
        reject_unknown_database(name, repositories, session)
    verdicts = Verdicts(listing)
    if session.is_json:
        output.print_document(
            {
                "snapshots": [listed_values(snapshot, verdicts.of(snapshot)) for snapshot in listing.snapshots],
                "problems": [output.error_values(problem) for problem in listing.problems],
            }
        )
        return _exit_code(listing)
    _print(listing, verdicts, name, repositories)
    _print_remarks(listing, session)
    for problem in listing.problems:
        output.print_error(problem)
    return _exit_code(listing)


def reject_unknown_database(name: str, repositories: Sequence[Repository], session: Session) -> None:
    """A name without snapshots is an error, unless the configuration says that it will have some."""
    if any(database.name == name for database in session.databases()):
        return
    known = sorted({other for repository in repositories if repository.exists() for other in repository.databases()})
    raise NoSuchSnapshotError(
        f"no snapshots of a database {name} in {_places(repositories)}",
        hint=f"there are some of: {', '.join(known)}" if known else "take one with: backupd now",
    )


def _print(listing: Listing, verdicts: Verdicts, name: str | None, repositories: Iterable[Repository]) -> None:
    from backupd.cli.tables import render

    if not listing.snapshots and not listing.problems:
        whose = f" of {name}" if name else ""
        output.print_result(output.printable(f"no snapshots{whose} in {_places(repositories)}"))
        output.print_hint("take one with: backupd now")
        return
    groups = [
        (f"{database} in {url}", [_cells(snapshot, verdicts.of(snapshot)) for snapshot in group])
        for (database, url), group in groupby(listing.snapshots, key=_group)
    ]
    if groups:
        output.print_result(render(("ID", "TAKEN", "AGE", ">SIZE", ">STORED", "PROVEN", "TAGS", "ALEMBIC"), groups))


def _print_remarks(listing: Listing, session: Session) -> None:
    """What test restores on this machine found of listed snapshots that is no damage."""
    if session.is_quiet:
        return
    known = session.status.read().databases
    for snapshot in listing.snapshots:
        manifest, url = snapshot.manifest, snapshot.repository.url
        database = known.get(manifest.database)
        health = database.stores.get(url) if database else None
        if health is not None and health.remark is not None and health.proven_id == str(manifest.id):
            output.print_note(output.printable(f"note: {manifest.database}@{manifest.id} in {url} has {health.remark}"))


def _group(snapshot: ListedSnapshot) -> tuple[str, str]:
    return snapshot.manifest.database, snapshot.repository.url


def _cells(snapshot: ListedSnapshot, verdict: Verdict | None) -> Cells:
    from backupd.cli.verdicts import verdict_cell

    manifest = snapshot.manifest
    tags = [*manifest.tags, *([str(manifest.kind)] if manifest.kind != "regular" else [])]
    return (
        str(manifest.id),
        quantities.local_time(manifest.id.taken_at),
        quantities.age(manifest.id.taken_at, datetime.now(UTC)),
        quantities.size(manifest.image_bytes),
        quantities.size(manifest.stored_bytes),
        verdict_cell(verdict),
        ", ".join(tags) or "-",
        _alembic(manifest),
    )


def _alembic(manifest: AnyManifest) -> str:
    from backupd.format.manifest import SealedManifest

    if isinstance(manifest, SealedManifest):
        return "encrypted"
    return ", ".join(manifest.source.alembic_revisions or ()) or "-"


def _places(repositories: Iterable[Repository]) -> str:
    return ", ".join(repository.url for repository in repositories)


def _exit_code(listing: Listing) -> int:
    """That of the first problem if it left nothing to list; damage in any case; else, with a problem, partly done."""
    codes = [problem.exit_code for problem in listing.problems]
    if not codes:
        return ExitCode.DONE
    if not listing.snapshots:
        return codes[0]
    return ExitCode.DAMAGE_FOUND if ExitCode.DAMAGE_FOUND in codes else ExitCode.PARTLY_DONE
