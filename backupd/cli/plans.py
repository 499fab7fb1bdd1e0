"""What is restored and the plan of a restore in place, as lines and as JSON, and the questions to agree to it."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output
from backupd.cli.windows import gap_values
from backupd.errors import InterruptedByUserError, UsageError
from backupd.restore.plan import Way

if TYPE_CHECKING:
    from backupd.cli.verbs import InPlaceOptions
    from backupd.live.contents import Contents
    from backupd.repository.moments import RestorePoint
    from backupd.restore.plan import Plan, TableChange

_NOTICEABLE_PAUSE_SECONDS = 2.0
_NOTICEABLE_WAIT_SECONDS = 4.0
_WIDTH = 12
_SHOWN = 20


def can_ask() -> bool:
    """Whether there is a terminal to confirm a plan on."""
    return sys.stdin is not None and sys.stdin.isatty()


def described(point: RestorePoint) -> str:
    """Describe what is restored: a snapshot, or a commit with the snapshot and the segments that it is made of.

    `app@20261122T085557123Z-7f3a91c2 (2026-11-22 09:55:57+01:00, 3 h ago)`, or
    `app, commit of 2026-11-22 09:56:03.512+01:00, 3 h ago (snapshot 20261122T085557123Z-7f3a91c2 + 3 segments)`.
    """
    name, snapshot = point.manifest.database, point.manifest.id
    age = output.age(point.at, datetime.now(UTC))
    if point.replay is None:
        return f"{name}@{snapshot} ({output.local_time(point.at)}, {age})"
    segments = output.count(len(point.replay.segments), "segment")
    commit = f"commit of {output.local_time(point.at, is_exact=True)}, {age}"
    return f"{name}, {commit} (snapshot {snapshot} + {segments})"


def point_values(point: RestorePoint) -> dict[str, Any]:
    """What is restored, in JSON documents: the snapshot, and the commit after it, or null."""
    replay, gap = point.replay, point.gap
    return {
        "id": str(point.manifest.id),
        "database": point.manifest.database,
        "store": point.archive.url,
        "commit_at": None if replay is None else output.utc_time(replay.seen_at),
        "segments": 0 if replay is None else len(replay.segments),
        "gap": None if gap is None else gap_values(gap),
    }


def agree(plan: Plan, snapshot: str, options: InPlaceOptions, *, is_quiet: bool) -> None:
    """Show the plan to restore `snapshot` (a description), and ask.

    Raises `UsageError` where a script has not allowed what needs a person, and `InterruptedByUserError` for a no.
    """
    if not is_quiet or not options.is_yes:
        output.print_note("\n".join(map(output.printable, plan_lines(plan, snapshot))), is_verbatim=True)
    if plan.changes_revision and not options.allows_revision_change:
        now, then = (", ".join(_revisions(contents) or ()) or "none" for contents in (plan.now, plan.then))
        what = f"the Alembic revision changes from {now} to {then}"
        if options.is_yes or not can_ask():
            raise UsageError(
                f"{what}: the running code may not fit the restored schema",
                hint="deploy the code of that time, or migrate after the restore; allow it with "
                "--allow-revision-change",
            )
        _ask(f"{what}, and the running code may not fit the restored schema. Continue?", plan)
    if options.is_yes:
        return
    is_long_for_all = plan.readers_wait and (plan.pause_seconds or 0) > _NOTICEABLE_PAUSE_SECONDS
    if is_long_for_all or plan.writers_wait_seconds > _NOTICEABLE_WAIT_SECONDS:
        who = "The application" if is_long_for_all else "The application's writers"
        pause = output.seconds(plan.writers_wait_seconds)
        _ask(f"{who} may wait for about {pause}, longer than some timeouts are. Continue?", plan)
    _ask("Restore this now?", plan)


def _ask(question: str, plan: Plan) -> None:
    if not click.confirm(output.printable(question), err=True):
        raise InterruptedByUserError(f"nothing was restored: {plan.target} stays as it is")


def plan_lines(plan: Plan, snapshot: str) -> list[str]:
    """The plan to restore `snapshot` (a description), line by line."""
    lines = [f"restore {snapshot} from {plan.point.archive.url}", f"into {plan.target}, {_way(plan)}"]
    lines += _table_lines(plan)
    lines.append(_line("schema", "as it is now" if not plan.schema else "; ".join(_some(plan.schema))))
    lines.append(_line("alembic", _revision_text(plan)))
    sizes = f"{output.size(plan.fetched_bytes)} fetched, {output.size(plan.scratch_bytes)} of scratch space"
    if plan.log_bytes:
        kind = "WAL" if plan.now is not None and plan.now.is_wal else "journal"
        sizes += f", {output.size(plan.log_bytes)} of {kind} beside the database"
    lines.append(_line("needs", sizes))
    lines.append(_line("pause", _pause(plan)))
    return lines


def plan_values(plan: Plan) -> dict[str, Any]:
    """The plan as JSON shows it."""
    return {
        **point_values(plan.point),
        "target": str(plan.target),
        "way": str(plan.way),
        "reason": plan.reason or None,
        "tables": [
            {"table": change.table, "rows_now": change.rows_now, "rows_then": change.rows_then}
            for change in plan.tables
        ],
        "schema_changes": list(plan.schema),
        "alembic_revisions_now": _revisions(plan.now),
        "alembic_revisions_then": _revisions(plan.then),
        "changes_revision": plan.changes_revision,
        "image_bytes": plan.point.image_bytes,
        "fetched_bytes": plan.fetched_bytes,
        "scratch_bytes": plan.scratch_bytes,
        "log_bytes": plan.log_bytes,
        "pause_seconds": None if plan.pause_seconds is None else round(plan.pause_seconds, 2),
        "saving_seconds": None if plan.saving_seconds is None else round(plan.saving_seconds, 2),
        "readers_wait": plan.readers_wait,
    }


def _way(plan: Plan) -> str:
    match plan.way:
        case Way.LIVE:
            return "live: the application continues, and sees the change as one transaction"
        case Way.REPLACEMENT:
            return f"by another file in its place ({plan.reason}): the application must be stopped"
        case Way.NEW_FILE:
            return "as a new file: nothing is there"


def _table_lines(plan: Plan) -> list[str]:
    changed = [change for change in plan.tables if change.rows_now != change.rows_then]
    same = len(plan.tables) - len(changed)
    lines = [_line(f"  {change.table}", _rows(plan, change)) for change in changed[:_SHOWN]]
    if len(changed) > _SHOWN:
        lines.append(f"  and {len(changed) - _SHOWN} more tables with other numbers of rows")
    if same:
        lines.append(_line("tables", f"{output.count(same, 'table')} with as many rows as now"))
    return ["rows now -> then", *lines] if changed else lines


def _rows(plan: Plan, change: TableChange) -> str:
    text = f"{_count(change, plan.now, change.rows_now)} -> {_count(change, plan.then, change.rows_then)}"
    if change.rows_now is None or change.rows_then is None:
        return text
    return f"{text}  ({change.rows_then - change.rows_now:+,})"


def _count(change: TableChange, contents: Contents | None, rows: int | None) -> str:
    if rows is not None:
        return output.count(rows)
    return "not counted" if contents is not None and change.table in contents.rows else "no such table"


def _revision_text(plan: Plan) -> str:
    now, then = _revisions(plan.now), _revisions(plan.then)
    if plan.now is None or now == then:
        return ", ".join(then or ()) or "no revision"
    return f"{', '.join(now or ()) or 'none'} now -> {', '.join(then or ()) or 'none'} then: the code may not fit"


def _revisions(contents: Contents | None) -> list[str] | None:
    return list(contents.alembic_revisions) if contents is not None and contents.alembic_revisions is not None else None


def _pause(plan: Plan) -> str:
    if plan.pause_seconds is None:
        return "none: the application is stopped"
    pause, saving = output.seconds(plan.pause_seconds), output.seconds(plan.saving_seconds or 0)
    who = (
        f"readers and writers wait about {pause}"
        if plan.readers_wait
        else f"writers wait about {pause}, readers do not"
    )
    return f"{who}; those that write during the safety snapshot, about {saving} more"


def _some(changes: tuple[str, ...]) -> list[str]:
    rest = len(changes) - _SHOWN
    return [*changes[:_SHOWN], *([f"and {rest} more"] if rest > 0 else [])]


def _line(label: str, text: str) -> str:
    return f"{label:{_WIDTH}}{' ' if len(label) >= _WIDTH else ''}{text}"
