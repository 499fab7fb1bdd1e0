"""`backupd now`: take a snapshot of each database into each store, and prune after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output, reported
from backupd.cli.verbs import Invocation, Verb, complete_databases, global_options
from backupd.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backupd.backup import BackupResult, Progress, SnapshotRequest
    from backupd.capture.worker import Workers
    from backupd.cli.session import Session
    from backupd.config import Database
    from backupd.jobs.configured import ConfiguredStore
    from backupd.prune import PruneResult


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
@click.option("--full", is_flag=True, help="Store every page again, even those that the store already has.")
@global_options
@click.pass_obj
def command(
    invocation: Invocation, databases: tuple[str, ...], stores: tuple[str, ...], tags: tuple[str, ...], *, full: bool
) -> int:
    """Take a snapshot of each DATABASE now.

    DATABASE is a name from the configuration, the path of an SQLite file, or NAME=PATH where the file's name cannot be
    that of a database. Without DATABASE, all configured databases are backed up. They are only read, and applications
    continue using them.

    Without --store, snapshots go to all configured stores, or into ./backups when none is configured. If nothing has
    changed since the newest snapshot, no new one is made, except with --tag or --full. A configured database is not
    even read when the times of its files and the store show that.

    After that, snapshots of configured databases that no rule keeps are removed, as by `backupd prune`, unless
    retention.after_snapshot is false. A snapshot does not count as failed when that fails. Where nothing has changed,
    that is done once a day.
    """
    from backupd.backup import SnapshotRequest, exit_code_of
    from backupd.capture.worker import Workers
    from backupd.cli.session import Session

    _reject_odd_tags(tags)
    session = Session(invocation)
    request = SnapshotRequest(tags=tuple(dict.fromkeys(tags)), is_full=full)
    results: dict[Database, list[BackupResult]] = {}
    with Workers() as workers:
        run = _Run(session, session.configured_stores(stores), request, workers)
        for database in _chosen_databases(databases, session):
            results[database] = run.back_up(database)
            if not session.is_json:
                _print_results(results[database])
    # After the last of them: no snapshot may wait for the removal of old ones.
    pruned = [result for database, of_database in results.items() for result in run.prune(database, of_database)]
    all_results = [result for of_database in results.values() for result in of_database]
    if session.is_json:
        from backupd.cli.prune import pruned_values

        output.print_document(
            {
                "snapshots": [_result_values(result) for result in all_results],
                "pruned": [pruned_values(result) for result in pruned],
            }
        )
    code = exit_code_of(all_results)
    # Without arguments, the files that had to be left out are meant too.
    return ExitCode.PARTLY_DONE if code == ExitCode.DONE and not databases and session.problems() else code


def _reject_odd_tags(tags: Sequence[str]) -> None:
    if not tags:
        return
    from backupd.repository.references import is_tag

    for tag in tags:
        if not is_tag(tag):
            raise UsageError(
                f"{tag!r} cannot be a tag",
                hint="a tag is a letter, then up to 99 letters, digits, dots, hyphens, underscores or plus signs, "
                "and not `latest`",
            )


def _chosen_databases(texts: Sequence[str], session: Session) -> list[Database]:
    from backupd.config import no_match_error

    if texts:
        return session.selected(texts)
    if not session.settings.databases:
        raise UsageError(
            "no database is given, and none is configured",
            hint="give the path of one: backupd now app.db; or list them under [[databases]] in backupd.toml",
        )
    unmatched = session.unmatched_patterns()
    configured = session.databases()
    if not configured:
        for problem in session.problems():
            raise problem
        raise no_match_error(*unmatched)
    for pattern in unmatched:
        output.print_warning(f"{no_match_error(pattern).message}; the other databases are backed up")
    return list(configured)


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of the verb: the stores that every database is backed up to, and the snapshots that are requested."""

    session: Session
    stores: list[ConfiguredStore]
    request: SnapshotRequest
    workers: Workers

    def back_up(self, database: Database) -> list[BackupResult]:
        """Back up one database: a result for each store. A bug is a result too, so that other databases continue."""
        from backupd.backup import BackupResult, Outcome

        try:
            return self._back_up(database)
        except Exception as failed:  # noqa: BLE001  (as said)
            error = reported(failed)
            return [
                BackupResult(database=database.name, store=store.url, outcome=Outcome.FAILED, error=error)
                for store in self.stores
            ]

    def _back_up(self, database: Database) -> list[BackupResult]:
        from backupd.backup import back_up

        session, request, workers = self.session, self.request, self.workers
        with output.shown_progress(database.name, done="captured", moved="stored", is_quiet=session.is_quiet) as report:

            def on_progress(now: Progress) -> None:
                report(now.captured_bytes, now.image_bytes, now.stored_bytes)

            if self._is_configured(database):
                from backupd.jobs.snapshots import take_snapshot

                configured = session.configured(database)
                return take_snapshot(
                    configured, self.stores, session, request=request, on_progress=on_progress, workers=workers
                )
            repositories = [store.repository for store in self.stores]
            return back_up(
                database, repositories, session.settings, request=request, on_progress=on_progress, workers=workers
            )

    def _is_configured(self, database: Database) -> bool:
        # A name alone is not enough: another file may be called the same, and has no policy.
        return database in self.session.databases()

    def prune(self, database: Database, results: list[BackupResult]) -> list[PruneResult]:
        """Prune what was backed up, in the stores where that succeeded. A failure changes no snapshot's result."""
        if not self._is_configured(database):
            return []
        from backupd.cli.prune import print_after_snapshot
        from backupd.jobs.prunes import prune_after
        from backupd.prune import PruneResult

        pruned = []
        for result, store in zip(results, self.stores, strict=True):
            outcome: PruneResult | None
            try:
                outcome = prune_after(result, store, self.session.status)
            except Exception as failed:  # noqa: BLE001  (the snapshots exist, and their results must still be printed)
                error = reported(failed)
                outcome = PruneResult(database=result.database, store=store.url, error=error)
            if outcome is not None:
                pruned.append(outcome)
                if not self.session.is_json:
                    print_after_snapshot(outcome, self.session)
        return pruned


def _print_results(results: Sequence[BackupResult]) -> None:
    """Print a line for each result, then its warnings and its error; an error that all stores share is printed once."""
    printed: list[BaseException] = []
    for result in results:
        output.print_result(_line(result))
        for warning in result.warnings:
            output.print_warning(f"{result.database}: {warning}")
        if result.error is not None and result.error not in printed:
            printed.append(result.error)
            output.print_error(result.error, subject=result.database)


def _line(result: BackupResult) -> str:
    image = output.size((result.page_size or 0) * (result.page_count or 0))
    duration = output.seconds(result.duration_seconds)
    if result.error is not None:
        what = f"no snapshot made, given up after {duration}"
    elif not result.has_made_snapshot:
        evidence = "" if result.was_read else ", as the times of its files show"
        what = f"{image}, nothing changed since this snapshot{evidence}, checked in {duration}"
    else:
        changed = output.count(result.changed_pages or 0)
        pages = output.count(result.page_count or 0, "page")
        stored = output.size(result.stored_bytes)
        what = f"{image}, {changed} of {pages} changed, {stored} stored in {duration}"
        if result.replaced_packs:
            were = "was" if result.replaced_packs == 1 else "were"
            what += f", {output.count(result.replaced_packs, 'damaged pack')} {were} stored again"
    if result.upload_check is not None:
        shown = output.count(result.upload_check.packs, "pack")
        what += f"; the store lists {shown}, {output.size(result.upload_check.stored_bytes)}"
    snapshot = f"  {result.id}" if result.id else ""
    return output.printable(f"{result.database}  {result.outcome}{snapshot}  {what}  -> {result.store}")


def _result_values(result: BackupResult) -> dict[str, Any]:
    return {**result.values(), "error": None if result.error is None else output.error_values(result.error)}
