"""`backupd recover`: bring rows of a table back into the live database."""

from __future__ import annotations

from contextlib import ExitStack
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
from backupd.errors import InterruptedByUserError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backupd.cli.session import Session
    from backupd.format import SnapshotId
    from backupd.inside.diff import TablePair
    from backupd.inside.recover import Conflict, Recovery, RecoveryPlan
    from backupd.repository.moments import RestorePoint

_CONFLICTS_SHOWN = 10
_ROWS_SHOWN = 5


@click.command(
    "recover",
    cls=Verb,
    short_help="Bring rows back into the live database.",
    examples=(
        "backupd recover latest users --dry-run",
        'backupd recover app@14:00 users --where "id = 7" --yes',
        "backupd recover app@2h orders --overwrite --yes",
    ),
)
@snapshot_argument
@click.argument("table")
@click.option("--where", metavar="SQL", help="Only rows of the snapshot that meet this condition.")
@click.option("--overwrite", "overwrites", is_flag=True, help="Also overwrite the rows that differ.")
@click.option(
    "--no-safety-snapshot",
    "wants_safety_snapshot",
    flag_value=False,
    default=True,
    type=bool,
    help="Do not first save what is there now: the recovery cannot be undone.",
)
@click.option("--yes", "is_yes", is_flag=True, help="Do it, and do not ask.")
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Show what would be done, and change nothing.")
@database_option
@store_option
@identity_option
@global_options
@click.pass_obj
def command(
    invocation: Invocation,
    /,
    snapshot: str,
    table: str,
    where: str | None,
    database: str | None,
    store: str | None,
    *,
    overwrites: bool,
    wants_safety_snapshot: bool,
    is_yes: bool,
    is_dry_run: bool,
) -> None:
    """Insert the rows of TABLE in SNAPSHOT that the live table lacks, while the application runs. Nothing is deleted.

    Rows are matched by their primary key, or without one by their rowid. First you see which rows come back, and what
    stands against it (unique values that are taken, parents that are missing): then nothing is written. Otherwise a
    safety snapshot is taken, and all rows are written in one transaction; `backupd undo` returns to the safety
    snapshot. Without a terminal, nothing is written unless you say --yes.
    """
    from backupd.cli.plans import can_ask
    from backupd.cli.session import Session
    from backupd.cli.windows import print_gap
    from backupd.inside.diff import Difference, State
    from backupd.inside.image import opened_live, opened_point
    from backupd.inside.query import rejecting_mistakes
    from backupd.inside.recover import Recovery
    from backupd.live.intent import finish_interrupted
    from backupd.restore.placing import resolve_target

    session = Session(invocation)
    if is_yes and is_dry_run:
        raise UsageError("--yes and --dry-run contradict each other", hint="leave one of them out")
    point = session.restore_point(snapshot, database, store)
    print_gap(point)
    path = resolve_target(session.database_to_restore(point, database).file())
    directory, lock_timeout = session.state.reading(), session.settings.capture.lock_timeout.total_seconds()
    finish_interrupted(path, session.state, lock_timeout=lock_timeout)
    with ExitStack() as opened, rejecting_mistakes():
        before = opened.enter_context(opened_point(point, directory))
        pages, connection = opened.enter_context(opened_live(path, session.state, lock_timeout=lock_timeout))
        difference = Difference(State.of(*before), State.of(pages, connection))
        pair = _pair(difference.table_pairs(), table, point)
        recovery = Recovery(difference, pair, where=where, overwrites=overwrites)
        trial = opened.enter_context(session.state.spool()) / "trial.db"
        pages.copy_to(trial)
        plan = recovery.plan(trial)
        if plan.conflicts:
            _print_plan(session, point, pair, plan, overwrites=overwrites)
            raise _refusal(plan.conflicts, pair, point)
        is_done = plan.missing + (plan.different if overwrites else 0) == 0
        if is_dry_run or is_done or not (is_yes or can_ask()):
            _print_plan(session, point, pair, plan, overwrites=overwrites, is_result=True)
            return
        _print_plan(session, point, pair, plan, overwrites=overwrites)
        if not is_yes and not click.confirm(f"Write these rows into {output.printable(str(path))} now?", err=True):
            raise InterruptedByUserError(f"nothing was recovered: {path} stays as it is")
        safety = _carry_out(session, point, recovery, path, lock_timeout, wants_safety_snapshot=wants_safety_snapshot)
    _print_result(session, point, pair, plan, safety, path, overwrites=overwrites)


def _pair(pairs: list[TablePair], name: str, point: RestorePoint) -> TablePair:
    for pair in pairs:
        if pair.before.name.lower() == name.lower():
            return pair
    from backupd.inside.tables import listed

    raise UsageError(
        f"no table {name!r} is both in {point.name} and in the live database",
        hint=f"in both are: {listed(pair.before.name for pair in pairs)}; "
        "a table that is gone: backupd dump SNAPSHOT TABLE, and run the SQL",
    )


def _carry_out(
    session: Session,
    point: RestorePoint,
    recovery: Recovery,
    path: Path,
    lock_timeout: float,
    *,
    wants_safety_snapshot: bool,
) -> SnapshotId | None:
    from backupd.cli.restore import safety_snapshots
    from backupd.restore.undo import last_restore, recorded

    take = safety_snapshots(session, point, path) if wants_safety_snapshot else None
    with recorded(last_restore(session.state, point.manifest.database, path), output.print_warning) as record:
        safety = recovery.carry_out(path, session.state, take, lock_timeout=lock_timeout)
        record(safety, None)
    return safety


def _lines(point: RestorePoint, pair: TablePair, plan: RecoveryPlan, *, overwrites: bool) -> Iterator[str]:
    from backupd.cli.diff import row_line
    from backupd.cli.plans import described

    yield f"recover rows of {pair.before.name} from {described(point)} in {point.archive.url}"
    yield f"  {output.count(plan.missing, 'row')} that the live table lacks: inserted"
    what = "overwritten" if overwrites else "left as they are; --overwrite would replace them"
    yield f"  {output.count(plan.different, 'row')} that {'differs' if plan.different == 1 else 'differ'}: {what}"
    yield f"  {output.count(plan.only_live, 'row')} that only the live table has: left"
    if plan.by_triggers:
        yield f"  {output.count(plan.by_triggers, 'further row')} that triggers write meanwhile"
    for change in plan.samples[:_ROWS_SHOWN]:
        yield f"    {row_line(change, pair, is_back=True)}"
    for conflict in plan.conflicts[:_CONFLICTS_SHOWN]:
        yield f"  conflict: row {', '.join(map(str, conflict.key))}: {conflict.reason}"
    if (rest := len(plan.conflicts) - _CONFLICTS_SHOWN) > 0:
        yield f"  and {rest} more conflicts"


def _print_plan(
    session: Session,
    point: RestorePoint,
    pair: TablePair,
    plan: RecoveryPlan,
    *,
    overwrites: bool,
    is_result: bool = False,
) -> None:
    """Print the plan: to stdout where it is the result, and to stderr before a question or an error."""
    lines = [*_lines(point, pair, plan, overwrites=overwrites)]
    if not is_result:
        if not session.is_quiet:
            output.print_note("\n".join(map(output.printable, lines)), is_verbatim=True)
    elif session.is_json:
        output.print_document({"plan": _values(point, pair, plan)})
    else:
        has_rows = plan.missing or (overwrites and plan.different)
        lines.append(f"nothing was changed{': --yes writes it' if has_rows else ''}")
        output.print_data("\n".join(map(output.printable, lines)))


def _print_result(
    session: Session,
    point: RestorePoint,
    pair: TablePair,
    plan: RecoveryPlan,
    safety: SnapshotId | None,
    path: Path,
    *,
    overwrites: bool,
) -> None:
    if session.is_json:
        values = {**_values(point, pair, plan), "safety_snapshot": None if safety is None else str(safety)}
        output.print_document({"recovered": values})
        return
    rows = f"{output.count(plan.missing, 'row')} inserted"
    if overwrites:
        rows += f" and {output.count(plan.different)} overwritten"
    saved = f"; what was there is in snapshot {safety}" if safety else ""
    output.print_line(f"recovered {pair.after.name} in {path}: {rows}{saved}")
    if safety is not None:
        from backupd.cli.restore import undo_command

        output.print_note(f"hint: to go back: {undo_command(point, path, session)}")


def _values(point: RestorePoint, pair: TablePair, plan: RecoveryPlan) -> dict[str, Any]:
    """A plan in JSON documents."""
    from backupd.cli.plans import point_values
    from backupd.inside.dump import json_value

    return {
        **point_values(point),
        "table": pair.after.name,
        "missing": plan.missing,
        "different": plan.different,
        "only_live": plan.only_live,
        "by_triggers": plan.by_triggers,
        "conflicts": [
            {"key": [json_value(value) for value in each.key], "reason": each.reason} for each in plan.conflicts
        ],
    }


def _refusal(conflicts: list[Conflict], pair: TablePair, point: RestorePoint) -> UsageError:
    first = conflicts[0]
    more = f", and {len(conflicts) - 1} more" if len(conflicts) > 1 else ""
    is_parent = "foreign key" in first.reason
    return UsageError(
        f"row {', '.join(map(str, first.key))} of {pair.after.name} cannot be recovered: {first.reason}{more}; "
        "nothing was changed",
        hint=f"recover the parents first: backupd recover {point.manifest.database}@{point.manifest.id} PARENT"
        if is_parent
        else "leave these rows out with --where, or change what stands against them",
    )
