"""`backupd prune`: remove what no rule keeps, and free its space."""

# ruff: noqa: PLC0415  (imports are late: `--help` is to be fast)

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backupd.cli import output, quantities
from backupd.cli.options import Invocation, Verb, complete_databases, global_options, store_option
from backupd.errors import BackupdError, ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import timedelta

    from backupd.cli.session import Session
    from backupd.cli.tables import Cells
    from backupd.format.records import TrashEntry
    from backupd.prune import PruneResult
    from backupd.retention import Decision
    from backupd.upkeep.stores import RotatedStore


@click.command(
    "prune",
    cls=Verb,
    short_help="Remove snapshots that no rule keeps, and free space.",
    examples=(
        "backupd prune --dry-run",
        "backupd prune app.db",
        "backupd prune app --accept-shrink",
    ),
)
@click.argument("database", required=False, shell_complete=complete_databases)
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and change nothing.")
@click.option(
    "--accept-shrink", is_flag=True, help="Say that it is right that the newest snapshot is smaller, or lacks tables."
)
@store_option
@global_options
@click.pass_obj
def command(
    invocation: Invocation, database: str | None, store: str | None, *, dry_run: bool, accept_shrink: bool
) -> int:
    """Remove the snapshots of DATABASE, or of every database, that no rule of the configuration keeps.

    What is removed waits in the trash, three days if nothing else is configured, and `backupd undelete` brings it back;
    then its space is freed by the next prune. The newest snapshot always stays, and so does the newest that was proven
    to be restorable. Of a database that is not configured, nothing is removed.

    Nothing is removed either after the newest snapshot was suspiciously smaller than another, or had lost tables, until
    you say with --accept-shrink that this is right; nor while the clock is behind a snapshot, two writers take turns
    under one name, or the last snapshot failed. The warning then says what to do.
    """
    from backupd.cli.session import Session

    session = Session(invocation)
    name = None if database is None else session.name_meant(database)
    pruning = _Pruning(session, is_dry_run=dry_run, accepts_shrink=accept_shrink)
    stores = session.rotated([store] if store else [])
    pairs = [(rotated, each) for rotated in stores for each in pruning.databases(rotated, name)]
    if name and not pairs and not pruning.problems:
        from backupd.cli.listing import reject_unknown_database

        reject_unknown_database(name, [rotated.repository for rotated in stores], session)
    if accept_shrink and len({each for _, each in pairs}) > 1:
        raise UsageError(
            "--accept-shrink is for one database", hint="say which one: backupd prune NAME --accept-shrink"
        )
    for rotated, each in pairs:
        pruning.prune(rotated, each)
    return pruning.finish(", ".join(rotated.repository.url for rotated in stores))


class _Pruning:
    """One run over several databases and stores: prints each result as it comes, or all of them as JSON."""

    def __init__(self, session: Session, *, is_dry_run: bool, accepts_shrink: bool) -> None:
        self._session = session
        self._is_dry_run = is_dry_run
        self._accepts_shrink = accepts_shrink
        self._results: list[PruneResult] = []
        self._strangers: dict[str, list[str]] = {}
        self.problems: list[BackupdError] = []

    def databases(self, rotated: RotatedStore, name: str | None) -> list[str]:
        """The databases to prune in a store; none of one that holds nothing or cannot be asked."""
        try:
            if not rotated.repository.exists():
                return []
            if name is None:
                if strangers := rotated.repository.strangers():
                    self._strangers[rotated.repository.url] = strangers
                return rotated.repository.databases()
            return [name] if rotated.repository.survey(name).manifests else []
        except BackupdError as error:
            self.problems.append(error)
            return []

    def prune(self, rotated: RotatedStore, database: str) -> None:
        """Prune one database in one store."""
        from backupd.prune import prune

        if rotated.is_put_only and not self._is_dry_run:
            self._refuse(rotated)
            return
        now = datetime.now(UTC)
        result = prune(
            rotated.repository,
            database,
            rotated.policy(database),
            self._session.state,
            now=now,
            is_dry_run=self._is_dry_run,
            accepts_shrink=self._accepts_shrink,
            damaged_sources=self._damaged_sources(database),
        )
        if not self._session.is_json:
            self._print(result, rotated)
        if not self._is_dry_run and rotated.policy(database) is not None:
            self._record(result, at=now)
        self._results.append(result)

    def _damaged_sources(self, database: str) -> frozenset[str]:
        from backupd.upkeep.rotation import damaged_sources

        try:
            status = self._session.status.find()
        except BackupdError:
            return frozenset()  # what the stores say is left; and that the prune cannot be recorded is a warning
        return frozenset() if status is None else damaged_sources(status, database)

    def _refuse(self, rotated: RotatedStore) -> None:
        """Say once of a store whose keys may not delete who can prune there."""
        from backupd.errors import PutOnlyError

        refusal = PutOnlyError(
            f"nothing can be removed from {rotated.url} by the keys of this machine, which may only put (put_only)",
            hint="run backupd prune elsewhere: same databases and [retention], no put_only, and keys that may delete "
            "(docs/s3-providers.md)",
        )
        if refusal.message not in [problem.message for problem in self.problems]:
            self.problems.append(refusal)

    def _record(self, result: PruneResult, *, at: datetime) -> None:
        from backupd.upkeep.rotation import record_prune

        try:
            record_prune(result, self._session.status, at=at)
        except BackupdError as error:
            output.print_warning(f"{result.database}: the status does not know of this prune: {error.message}")
            if error.hint is not None:
                output.print_hint(error.hint)

    def _print(self, result: PruneResult, rotated: RotatedStore) -> None:
        from backupd.cli.pruned import print_hold
        from backupd.cli.tables import render

        if result.decisions:
            between = "\n" if self._results else ""
            rows = [_cells(decision, result) for decision in result.decisions]
            title = f"{result.database} in {result.store}"
            table = render(("SNAPSHOT", "TAKEN", ">SIZE", "DECISION", "REASON"), [(title, rows)])
            output.print_result(f"{between}{table}\n")
        prefix = "dry run: " if self._is_dry_run else ""
        told = "; ".join([*self._told(result), *self._trash(result, rotated)])
        output.print_result(output.printable(f"{result.database}: {prefix}{told}"))
        policy = rotated.policy(result.database)
        if policy is None:
            output.print_note(
                f"hint: {result.database} is not configured here, so nothing of it is removed; list it under "
                "[[databases]], and [retention] says what is kept"
            )
        elif policy.is_empty:
            output.print_note("hint: no rule is configured that removes anything: set one under [retention]")
        print_hold(result)
        if result.error is not None:
            output.print_error(result.error, subject=result.database, store=result.store)

    def _told(self, result: PruneResult) -> Iterator[str]:
        from backupd.cli.pruned import done, packs, strangers_told

        nothing = "nothing to remove" if self._is_dry_run else "nothing was removed"
        if self._accepts_shrink and result.error is None:
            yield _accepted(result)
        yield ", ".join(done(result)) or nothing
        if result.waiting_packs:
            yield f"{packs(result.waiting_packs, result.waiting_bytes)} that no snapshot needs are freed later"
        if result.strangers:
            yield strangers_told(result.strangers)

    def _trash(self, result: PruneResult, rotated: RotatedStore) -> Iterator[str]:
        from backupd.prune import trashed

        try:
            entries, _ = ([], []) if result.error else trashed(rotated.repository, result.database)
        except BackupdError as error:
            self.problems.append(error)
            return
        if entries:
            yield _waiting(entries, rotated.grace(result.database))

    def finish(self, places: str) -> int:
        """Print what is left to print; the exit code."""
        from backupd.cli.pruned import pruned_values, strangers_told

        if self._session.is_json:
            output.print_document(
                {
                    "pruned": [pruned_values(result) for result in self._results],
                    "strangers": [{"store": url, "keys": keys} for url, keys in self._strangers.items()],
                    "problems": [output.error_values(problem) for problem in self.problems],
                }
            )
        else:
            if not self._results and not self.problems:
                output.print_result(output.printable(f"no snapshots in {places}"))
            for url, keys in self._strangers.items():
                output.print_result(output.printable(f"{url}: {strangers_told(keys)}"))
            for problem in self.problems:
                output.print_error(problem)
        return self._exit_code()

    def _exit_code(self) -> int:
        errors = [*self.problems, *(result.error for result in self._results if result.error is not None)]
        good = [result for result in self._results if result.error is None]
        if errors:
            return ExitCode.PARTLY_DONE if good else errors[0].exit_code
        return ExitCode.PARTLY_DONE if any(result.hold for result in good) else ExitCode.DONE


def _cells(decision: Decision, result: PruneResult) -> Cells:
    from backupd.cli.pruned import decision_word

    manifest = decision.manifest
    return (
        str(manifest.id),
        quantities.local_time(manifest.id.taken_at),
        quantities.size(manifest.image_bytes),
        decision_word(decision, result),
        ", ".join(decision.reasons),
    )


def _accepted(result: PruneResult) -> str:
    from backupd.holds import used_bytes

    accepted = [each.manifest for each in result.decisions if each.manifest.id == result.accepted]
    if not accepted:
        return "nothing is held, so nothing to accept"
    return f"accepted: {accepted[0].id}, with {quantities.size(used_bytes(accepted[0]))} in use"


def _waiting(entries: Sequence[TrashEntry], grace: timedelta) -> str:
    first = quantities.local_time(min(entry.removed_at for entry in entries) + grace)
    until = f"until {first}" if len(entries) == 1 else f"the first until {first}"
    return f"{quantities.count(len(entries), 'snapshot')} in the trash, {until}"
