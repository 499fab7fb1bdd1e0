"""`backupd now`: take a snapshot of every database that is meant, into every store that is meant."""

# ruff: noqa: PLC0415  (imports are late: `--help` is to be fast)

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output, quantities
from backupd.cli.options import Invocation, Verb, complete_databases, global_options
from backupd.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backupd.backup import BackupResult, Progress, Wish
    from backupd.cli.session import Session
    from backupd.config import Database
    from backupd.prune import PruneResult
    from backupd.upkeep.stores import RotatedStore


@click.command(
    "now",
    cls=Verb,
    short_help="Take a snapshot of databases now.",
    examples=(
        "backupd now app.db",
        "backupd now app.db --tag before-upgrade",
        "backupd now app.db --store ./other-disk --json",
    ),
)
@click.argument("databases", metavar="[DATABASE]...", nargs=-1, shell_complete=complete_databases)
@click.option(
    "--store",
    "stores",
    metavar="URL",
    multiple=True,
    help="Store only there: s3://bucket/prefix or a directory. May be repeated.",
)
@click.option("--tag", "tags", metavar="TAG", multiple=True, help="A name to find the snapshot by. May be repeated.")
@click.option("--full", is_flag=True, help="Store every page again, whatever the store has already.")
@global_options
@click.pass_obj
def command(
    invocation: Invocation, databases: tuple[str, ...], stores: tuple[str, ...], tags: tuple[str, ...], *, full: bool
) -> int:
    """Take a snapshot of each DATABASE now.

    DATABASE is a name from the configuration, the path of an SQLite file, or NAME=PATH where the file's name can not be
    that of a database; without one, everything that is configured is backed up. The database is only read, and the
    application that uses it goes on.

    Without --store, snapshots go to all configured stores, or into ./backups when none is configured. If nothing has
    changed since the newest snapshot, no new one is made, except with --tag or --full.

    After that, snapshots of configured databases that no rule keeps are removed, as by `backupd prune`, unless
    retention.after_snapshot is false. That never makes a snapshot count as failed.
    """
    from backupd.backup import Wish, exit_code_of
    from backupd.cli.pruned import pruned_values
    from backupd.cli.session import Session

    _reject_odd_tags(tags)
    session = Session(invocation)
    chosen = _chosen_databases(databases, session)
    configured = session.databases()
    rotated = session.rotated(stores)
    wish = Wish(tags=tuple(dict.fromkeys(tags)), is_full=full)
    results: list[BackupResult] = []
    rotating: list[tuple[BackupResult, RotatedStore]] = []
    for database in chosen:
        # A name alone is not enough: another file may be called the same, and has no policy.
        is_rotated = database in configured
        of_database = _results(database, rotated, session, wish, is_configured=is_rotated)
        results += of_database
        if is_rotated:
            rotating += zip(of_database, rotated, strict=True)
        if not session.is_json:
            _print_results(of_database)
    # After the last of them: no snapshot is to wait for old ones to go.
    pruned = _rotate(rotating, session)
    if session.is_json:
        output.print_document(
            {
                "snapshots": [_result_values(result) for result in results],
                "pruned": [pruned_values(result) for result in pruned],
            }
        )
    code = exit_code_of(results)
    # Without arguments, everything is meant: also the files that had to be left out.
    return ExitCode.PARTLY_DONE if code == ExitCode.DONE and not databases and session.problems() else code


def _reject_odd_tags(tags: Sequence[str]) -> None:
    from backupd.reference import is_tag

    for tag in tags:
        if not is_tag(tag):
            raise UsageError(
                f"{tag!r} can not be a tag",
                hint="a tag is a letter, then up to 99 letters, digits, dots, hyphens, underscores or plus signs, "
                "and not `latest`",
            )


def _chosen_databases(texts: Sequence[str], session: Session) -> list[Database]:
    from backupd.config import nothing_found, unmatched_patterns

    if texts:
        return session.selected(texts)
    entries = session.settings.databases
    if not entries:
        raise UsageError(
            "no database is given, and none is configured",
            hint="give the path of one: backupd now app.db; or list them under [[databases]] in backupd.toml",
        )
    unmatched = unmatched_patterns(entries)
    configured = session.databases()
    if not configured:
        for problem in session.problems():
            raise problem
        raise nothing_found(*unmatched)
    for pattern in unmatched:
        output.print_warning(f"{nothing_found(pattern).message}; the other databases are backed up")
    return list(configured)


def _results(
    database: Database, stores: Sequence[RotatedStore], session: Session, wish: Wish, *, is_configured: bool
) -> list[BackupResult]:
    """A result per store, also after a bug: whatever is wrong with one database, the others are backed up."""
    from backupd.backup import BackupResult, Outcome

    try:
        return _back_up(database, stores, session, wish, is_configured=is_configured)
    except Exception as failed:  # noqa: BLE001  (as said)
        error = output.reported(failed)
        urls = [rotated.url for rotated in stores]
        return [BackupResult(database=database.name, store=url, outcome=Outcome.FAILED, error=error) for url in urls]


def _back_up(
    database: Database, stores: Sequence[RotatedStore], session: Session, wish: Wish, *, is_configured: bool
) -> list[BackupResult]:
    from backupd.backup import back_up
    from backupd.cli.progress import shown_progress
    from backupd.upkeep.snapshots import take_snapshot

    with shown_progress(database.name, done="captured", moved="stored", is_quiet=session.is_quiet) as report:

        def on_progress(now: Progress) -> None:
            report(now.captured_bytes, now.image_bytes, now.stored_bytes)

        settings, state = session.settings, session.state
        if not is_configured:
            only_stores = [rotated.repository.store for rotated in stores]
            return back_up(database, only_stores, settings, state, wish=wish, on_progress=on_progress)
        configured = session.configured(database)
        return take_snapshot(configured, stores, settings, state, session.status, wish=wish, on_progress=on_progress)


def _rotate(results: Sequence[tuple[BackupResult, RotatedStore]], session: Session) -> list[PruneResult]:
    """Prune what has just been backed up, in the stores where that succeeded; that is no part of the snapshot."""
    from backupd.cli.pruned import print_after
    from backupd.prune import PruneResult
    from backupd.upkeep.rotation import rotate_after

    pruned = []
    for result, rotated in results:
        outcome: PruneResult | None
        try:
            outcome = rotate_after(result, rotated, session.state, session.status)
        except Exception as failed:  # noqa: BLE001  (the snapshots are made, and their results are still to be shown)
            error = output.reported(failed)
            outcome = PruneResult(database=result.database, store=rotated.url, error=error)
        if outcome is not None:
            pruned.append(outcome)
            if not session.is_json:
                print_after(outcome, session)
    return pruned


def _print_results(results: Sequence[BackupResult]) -> None:
    """A line for each result, and what is to be said about it; an error that all stores share is told once."""
    told: list[BaseException] = []
    for result in results:
        output.print_result(_line(result))
        for warning in result.warnings:
            output.print_warning(f"{result.database}: {warning}")
        if result.error is not None and result.error not in told:
            told.append(result.error)
            output.print_error(result.error, subject=result.database)


def _line(result: BackupResult) -> str:
    image = quantities.size((result.page_size or 0) * (result.page_count or 0))
    duration = quantities.seconds(result.duration_seconds)
    if result.error is not None:
        what = f"no snapshot made, given up after {duration}"
    elif result.outcome == "unchanged":
        what = f"{image}, nothing changed since this snapshot, checked in {duration}"
    else:
        changed = quantities.count(result.changed_pages or 0)
        pages = quantities.count(result.page_count or 0, "page")
        stored = quantities.size(result.stored_bytes)
        what = f"{image}, {changed} of {pages} changed, {stored} stored in {duration}"
        if result.replaced_packs:
            were = "was" if result.replaced_packs == 1 else "were"
            what += f", {quantities.count(result.replaced_packs, 'damaged pack')} {were} stored again"
    if result.receipt is not None:
        shown = quantities.count(result.receipt.packs, "pack")
        what += f"; receipt for {shown}, {quantities.size(result.receipt.stored_bytes)}"
    snapshot = f"  {result.id}" if result.id else ""
    return output.printable(f"{result.database}  {result.outcome}{snapshot}  {what}  -> {result.store}")


def _result_values(result: BackupResult) -> dict[str, Any]:
    return {**result.values(), "error": None if result.error is None else output.error_values(result.error)}
