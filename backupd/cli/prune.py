"""`backupd prune`: remove what no rule keeps, and free its space; and how its outcome is printed, after `now` too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output
from backupd.cli.verbs import Invocation, Verb, complete_databases, global_options, store_option
from backupd.errors import BackupdError, ExitCode, PutOnlyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import timedelta

    from backupd.cli.output import Cells
    from backupd.cli.session import Session
    from backupd.format.records import TrashEntry
    from backupd.jobs.configured import ConfiguredStore
    from backupd.prune import PruneResult
    from backupd.retention import Decision

_KEYS_SHOWN = 3


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
@click.option("--accept-shrink", is_flag=True, help="Accept that the newest snapshot is smaller, or lacks tables.")
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

    Nothing is removed either while the newest snapshot is suspiciously smaller than another, or has lost tables, until
    you accept that with --accept-shrink; nor while the clock is behind a snapshot, two writers take turns under one
    name, or the last snapshot failed. The warning then says what to do.
    """
    from backupd.cli.session import Session
    from backupd.jobs.prunes import find_prunable

    session = Session(invocation)
    name = None if database is None else session.database_name(database)
    stores = session.configured_stores([store] if store else [])
    found = find_prunable(stores, name)
    if name and not found.databases and not found.problems:
        from backupd.cli.listing import reject_unknown_database

        reject_unknown_database(name, [place.repository for place in stores], session)
    if accept_shrink and len({each for _, each in found.databases}) > 1:
        raise UsageError(
            "--accept-shrink is for one database", hint="say which one: backupd prune NAME --accept-shrink"
        )
    pruning = _Pruning(session, found.problems, is_dry_run=dry_run, accepts_shrink=accept_shrink)
    for place, each in found.databases:
        pruning.prune(place, each)
    return pruning.finish(found.foreign_keys, ", ".join(place.url for place in stores))


class _Pruning:
    """One run over several databases and stores: prints each result as it comes, or all of them as JSON."""

    def __init__(
        self, session: Session, problems: list[BackupdError], *, is_dry_run: bool, accepts_shrink: bool
    ) -> None:
        self._session = session
        self._problems = problems
        self._is_dry_run = is_dry_run
        self._accepts_shrink = accepts_shrink
        self._results: list[PruneResult] = []

    def prune(self, store: ConfiguredStore, database: str) -> None:
        """Prune one database in one store. That the keys of a store may not delete is a problem once."""
        from backupd.jobs.prunes import prune_by_hand

        try:
            result, unrecorded = prune_by_hand(
                database,
                store,
                self._session.status,
                is_dry_run=self._is_dry_run,
                accepts_shrink=self._accepts_shrink,
            )
        except PutOnlyError as refusal:
            if refusal.message not in [problem.message for problem in self._problems]:
                self._problems.append(refusal)
            return
        if not self._session.is_json:
            self._print(result, store)
        if unrecorded is not None:
            output.print_warning(f"{database}: the status does not know of this prune: {unrecorded.message}")
            if unrecorded.hint is not None:
                output.print_hint(unrecorded.hint)
        self._results.append(result)

    def _print(self, result: PruneResult, store: ConfiguredStore) -> None:
        if result.decisions:
            between = "\n" if self._results else ""
            rows = [_cells(decision, result) for decision in result.decisions]
            title = f"{result.database} in {result.store}"
            table = output.table(("SNAPSHOT", "TAKEN", ">SIZE", "DECISION", "REASON"), [(title, rows)])
            output.print_result(f"{between}{table}\n")
        prefix = "dry run: " if self._is_dry_run else ""
        summary = "; ".join([*self._summary(result), *self._trash(result, store)])
        output.print_line(f"{result.database}: {prefix}{summary}")
        policy = store.policy(result.database)
        if policy is None:
            output.print_note(
                f"hint: {result.database} is not configured here, so nothing of it is removed; list it under "
                "[[databases]], and [retention] says what is kept"
            )
        elif policy.is_empty:
            output.print_note("hint: no rule is configured that removes anything: set one under [retention]")
        _print_hold(result)
        if result.error is not None:
            output.print_error(result.error, subject=result.database, store=result.store)

    def _summary(self, result: PruneResult) -> Iterator[str]:
        nothing = "nothing to remove" if self._is_dry_run else "nothing was removed"
        if self._accepts_shrink and result.error is None:
            yield _accepted(result)
        yield ", ".join(changes(result)) or nothing
        if result.waiting_packs:
            yield f"{_packs(result.waiting_packs, result.waiting_bytes)} that no snapshot needs are freed later"
        if result.foreign:
            yield foreign_objects(result.foreign)

    def _trash(self, result: PruneResult, store: ConfiguredStore) -> Iterator[str]:
        from backupd.prune import trashed

        try:
            entries, _ = ([], []) if result.error else trashed(store.repository.archive(result.database))
        except BackupdError as error:
            self._problems.append(error)
            return
        if entries:
            yield _waiting(entries, store.grace(result.database))

    def finish(self, foreign_keys: Mapping[str, list[str]], places: str) -> int:
        """Print what is left to print; the exit code."""
        if self._session.is_json:
            output.print_document(
                {
                    "pruned": [pruned_values(result) for result in self._results],
                    "strangers": [{"store": url, "keys": keys} for url, keys in foreign_keys.items()],
                    "problems": [output.error_values(problem) for problem in self._problems],
                }
            )
        else:
            if not self._results and not self._problems:
                output.print_line(f"no snapshots in {places}")
            for url, keys in foreign_keys.items():
                output.print_line(f"{url}: {foreign_objects(keys)}")
            for problem in self._problems:
                output.print_error(problem)
        return self._exit_code()

    def _exit_code(self) -> int:
        errors = [*self._problems, *(result.error for result in self._results if result.error is not None)]
        good = [result for result in self._results if result.error is None]
        if errors:
            return ExitCode.PARTLY_DONE if good else errors[0].exit_code
        return ExitCode.PARTLY_DONE if any(result.hold for result in good) else ExitCode.DONE


def _cells(decision: Decision, result: PruneResult) -> Cells:
    manifest = decision.manifest
    return (
        str(manifest.id),
        output.local_time(manifest.id.taken_at),
        output.size(manifest.image_bytes),
        _decision_word(decision, result),
        ", ".join(decision.reasons),
    )


def _decision_word(decision: Decision, result: PruneResult) -> str:
    """Name the decision about a snapshot: `keep`, `remove`, or `held` if only a hold keeps it."""
    if decision.is_kept:
        return "keep"
    return "remove" if result.hold is None else "held"


def _accepted(result: PruneResult) -> str:
    from backupd.retention.holds import used_bytes

    accepted = [each.manifest for each in result.decisions if each.manifest.id == result.accepted]
    if not accepted:
        return "nothing is held, so nothing to accept"
    return f"accepted: {accepted[0].id}, with {output.size(used_bytes(accepted[0]))} in use"


def _waiting(entries: Sequence[TrashEntry], grace: timedelta) -> str:
    first = output.local_time(min(entry.removed_at for entry in entries) + grace)
    until = f"until {first}" if len(entries) == 1 else f"the first until {first}"
    return f"{output.count(len(entries), 'snapshot')} in the trash, {until}"


def pruned_values(result: PruneResult) -> dict[str, Any]:
    """The outcome for one database in one store, in JSON documents."""
    hold = result.hold and {
        "message": result.hold.message,
        "hint": output.completed_hint(result.hold.hint, store=result.store),
    }
    decisions = [
        {
            "id": str(decision.manifest.id),
            "decision": _decision_word(decision, result),
            "reasons": list(decision.reasons),
        }
        for decision in result.decisions
    ]
    error = None if result.error is None else output.error_values(result.error, store=result.store)
    return {**result.values(), "decisions": decisions, "hold": hold, "error": error}


def changes(result: PruneResult) -> list[str]:
    """Describe what pruning did, or would do, in a few words each; empty when it was nothing."""
    parts = []
    if result.removed:
        parts.append(f"{output.count(len(result.removed), 'snapshot')} to the trash")
    if result.purged:
        parts.append(f"{output.count(len(result.purged), 'snapshot')} gone from the trash")
    if result.deleted_packs:
        parts.append(f"{_packs(result.deleted_packs, result.freed_bytes)} freed")
    if result.removed_segments:
        parts.append(f"{output.count(result.removed_segments, 'segment')} too old")
    if result.unfinished:
        parts.append(f"{output.count(result.unfinished)} more with the next prune")
    return parts


def _packs(number: int, size_bytes: int) -> str:
    return f"{output.count(number, 'pack')} ({output.size(size_bytes)})"


def foreign_objects(keys: Sequence[str]) -> str:
    """Describe foreign objects: `2 objects not of backupd, left alone: a.txt, b.jpg`; and those of another store."""
    from backupd.store.keys import REPOSITORY_KEY

    stores = [key.removesuffix(REPOSITORY_KEY) for key in keys if key.endswith(f"/{REPOSITORY_KEY}")]
    others = [key for key in keys if not key.startswith(tuple(stores))]
    parts = []
    if stores:
        objects = output.count(len(keys) - len(others), "object")
        parts.append(f"{objects} of another backupd store that lies below this one, left alone: {_first_of(stores)}")
    if others:
        parts.append(f"{output.count(len(others), 'object')} not of backupd, left alone: {_first_of(others)}")
    return "; ".join(parts)


def _first_of(keys: Sequence[str]) -> str:
    more = len(keys) - _KEYS_SHOWN
    return ", ".join(keys[:_KEYS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _print_hold(result: PruneResult) -> None:
    """Warn that nothing is removed for now: why, and what to do."""
    if result.hold is not None:
        output.print_warning(f"{result.database}: nothing is removed from {result.store}: {result.hold.message}")
        output.print_hint(result.hold.hint, store=result.store)


def print_after_snapshot(result: PruneResult, session: Session) -> None:
    """Print what a prune after a snapshot did, if it did anything, and what kept it from doing more."""
    from backupd.jobs.prunes import is_worth_reporting

    if done := changes(result):
        output.print_line(f"{result.database}: {', '.join(done)}  -> {result.store}")
    _print_hold(result)
    if is_worth_reporting(result, session.state) and result.error is not None:
        output.print_warning(f"{result.database}: nothing more is removed: {result.error.message}")
        if result.error.hint:
            output.print_hint(result.error.hint, store=result.store)
