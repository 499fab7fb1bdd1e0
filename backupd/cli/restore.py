"""`backupd restore`: bring a snapshot back, into the running service or to a file."""

from __future__ import annotations

import shlex
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output
from backupd.cli.verbs import (
    InPlaceOptions,
    Invocation,
    Verb,
    database_option,
    global_options,
    identity_option,
    in_place_options,
    snapshot_argument,
    store_option,
)
from backupd.errors import BackupdError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backupd.cli.session import Session
    from backupd.config import Database
    from backupd.format import SnapshotId
    from backupd.inside.diff import Difference
    from backupd.repository.moments import RestorePoint
    from backupd.restore import RestoreResult
    from backupd.restore.in_place import InPlaceResult
    from backupd.restore.plan import Plan

_ROWS_SHOWN = 3


@click.command(
    "restore",
    cls=Verb,
    short_help="Bring a snapshot back, into the running service or to a file.",
    examples=(
        "backupd restore latest --to restored.db",
        "backupd restore latest~1 --database app.db --dry-run",
        "backupd restore latest~1 --database app.db --yes",
    ),
)
@snapshot_argument
@database_option
@store_option
@click.option("--to", metavar="FILE", type=click.Path(path_type=Path), help="Restore to this file instead.")
@click.option("--force", is_flag=True, help="With --to: replace the file that is there.")
@in_place_options
@identity_option
@global_options
@click.pass_obj
def command(
    invocation: Invocation,
    /,
    snapshot: str,
    database: str | None,
    store: str | None,
    to: Path | None,
    *,
    force: bool,
    **options: Any,
) -> None:
    """Bring SNAPSHOT back into the configured database, while the application runs; or, with --to, to a file.

    SNAPSHOT is an id or its unique beginning, `latest`, `latest~2` (two before it), a time (2026-11-22T08:00, or 08:00:
    the last state at or before it), an age (90s, 2h, 3d), a tag, or `before-restore` (the newest safety snapshot).
    NAME@ before it chooses the database. A time or an age means the last commit before it where the database is
    followed, and the newest snapshot otherwise.

    First you see what would change, and are asked. Then a safety snapshot is taken, which `backupd undo` restores, and
    the content is replaced in one transaction: open connections stay valid, and the file keeps its owner and mode.
    --replace puts another file in place instead, which needs the application to be stopped.
    """
    from backupd.cli.session import Session
    from backupd.cli.windows import print_gap
    from backupd.restore import reject_unusable_target

    session = Session(invocation)
    in_place = InPlaceOptions(**options)
    if to is None:
        if force:
            raise UsageError("--force goes with --to", hint="to put another file in place: --replace --app-stopped")
        found = session.restore_point(snapshot, database, store)
        print_gap(found)
        restore_in_place(session, found, session.database_to_restore(found, database), in_place)
        return
    if in_place != InPlaceOptions(is_yes=in_place.is_yes):
        raise UsageError(
            "--to cannot be combined with the options of a restore in place", hint="see: backupd restore --help"
        )
    target = given_target(to)
    _reject_configured(target, session)
    reject_unusable_target(target, force=force)
    found = session.restore_point(snapshot, database, store)
    print_gap(found)
    _print_restored_file(found, _restore_file(found, target, session, force=force, as_source=False), session)


def given_target(to: Path) -> Path:
    """The file that --to names, as an absolute path. Raises `UsageError`."""
    if str(to) == "-":
        raise UsageError("a database cannot be restored to standard output", hint="name a file: --to FILE")
    try:
        return to.expanduser().absolute()
    except RuntimeError:
        return to.absolute()


def _reject_configured(target: Path, session: Session) -> None:
    """Refuse to write over a configured database without the plan and the safety snapshot of a restore in place."""
    for database in session.databases():
        if target.exists() and database.path.resolve() == target.resolve():
            raise UsageError(
                f"{target} is the configured database {database.name}",
                hint="leave --to out to restore into it, with a safety snapshot first",
            )


def restore_in_place(session: Session, found: RestorePoint, database: Database, options: InPlaceOptions) -> None:
    """Plan, ask, restore and print. Raises `BackupdError`; `InterruptedByUserError` when the answer is no."""
    from backupd.cli.plans import can_ask
    from backupd.restore.placing import resolve_target
    from backupd.restore.undo import last_restore, record_new_file

    target = resolve_target(database.file())
    if not target.exists() and not target.is_symlink() and not options.is_dry_run:
        # Nothing is lost, so nothing is asked.
        result = _restore_file(found, target, session, force=options.must_replace, as_source=True)
        record_new_file(last_restore(session.state, database.name, target), output.print_warning)
        _print_restored_file(found, result, session)
        output.print_note("hint: the application can be started now, or restarted if it still runs")
        return
    if not (options.is_dry_run or options.is_yes or can_ask()):
        raise UsageError(
            f"the content of {target} would be replaced, and there is no terminal to confirm it on",
            hint="look at it with --dry-run, then say --yes; or restore beside it with --to FILE",
        )
    _restore_database(session, found, target, options)


def _restore_database(session: Session, found: RestorePoint, path: Path, options: InPlaceOptions) -> None:
    from backupd.cli.plans import agree, described
    from backupd.restore.in_place import InPlaceRequest, Target, planned_restore
    from backupd.restore.undo import last_restore, recorded

    name, is_quiet = found.manifest.database, session.is_quiet
    target = Target(path, session.state, session.settings.capture.lock_timeout.total_seconds())
    request = InPlaceRequest(
        is_dry_run=options.is_dry_run, must_replace=options.must_replace, is_app_stopped=options.is_app_stopped
    )
    with ExitStack() as scratch:
        with output.shown_progress(name, done="fetched", moved="fetched", is_quiet=is_quiet) as report:
            restore = scratch.enter_context(
                planned_restore(
                    found, target, request, lambda now: report(now.restored_bytes, now.image_bytes, now.fetched_bytes)
                )
            )
        plan = restore.plan
        if options.is_dry_run:
            _print_plan(plan, restore.image, session)
            return
        agree(plan, described(found), options, is_quiet=is_quiet)
        take_safety_snapshot = safety_snapshots(session, found, path) if options.wants_safety_snapshot else None
        with (
            recorded(last_restore(session.state, name, path), output.print_warning) as record,
            output.shown_progress(name, done="restored", moved="fetched", is_quiet=is_quiet) as report,
        ):
            result = restore.carry_out(
                take_safety_snapshot, lambda done, whole: report(done, whole, plan.fetched_bytes)
            )
            record(result.safety_snapshot, result.kept_as)
    _print_result(result, session)


def safety_snapshots(session: Session, found: RestorePoint, path: Path) -> Callable[[], SnapshotId]:
    """Return what takes a safety snapshot of the database at `path`, into which `found` is brought back."""
    from backupd.config import Database
    from backupd.restore.undo import SafetySnapshots

    repositories = session.repositories(None) if session.settings.stores else [found.archive.repository]
    database = Database(found.manifest.database, path)
    return SafetySnapshots(database, repositories, session.settings, output.print_warning).take


def _restore_file(
    found: RestorePoint, target: Path, session: Session, *, force: bool, as_source: bool
) -> RestoreResult:
    from backupd.restore import restore_to_file

    with output.shown_progress(
        found.manifest.database, done="restored", moved="fetched", is_quiet=session.is_quiet
    ) as report:
        return restore_to_file(
            found,
            target,
            force=force,
            as_source=as_source,
            on_progress=lambda now: report(now.restored_bytes, now.image_bytes, now.fetched_bytes),
        )


def _print_plan(plan: Plan, image: Path, session: Session) -> None:
    """Print the plan, with the rows that it would change."""
    from backupd.cli.diff import table_lines, table_values
    from backupd.cli.plans import described, plan_lines, plan_values

    with _compared(plan, image, session) as difference:
        pairs = [] if difference is None else difference.table_pairs()
        if session.is_json:
            rows = None if difference is None else [table_values(difference, each, _ROWS_SHOWN) for each in pairs]
            output.print_document({"plan": {**plan_values(plan), "rows": rows}})
            return
        lines = plan_lines(plan, described(plan.point))
        if difference is not None:
            lines += ["rows that change", *(f"  {line}" for line in table_lines(difference, pairs, _ROWS_SHOWN))]
        lines.append("nothing was changed: this was a dry run")
        output.print_result("\n".join(map(output.printable, lines)))


@contextmanager
def _compared(plan: Plan, image: Path, session: Session) -> Iterator[Difference | None]:
    """What a restore changes in the rows; None where there is nothing, or a live database that cannot be read now."""
    from backupd.inside.diff import Difference, State
    from backupd.inside.image import opened_file, opened_live

    if plan.now is None or not plan.then.page_count:
        yield None
        return
    directory = session.state.reading()
    lock_timeout = session.settings.capture.lock_timeout.total_seconds()
    with ExitStack() as opened:
        try:
            before = State.of(*opened.enter_context(opened_live(plan.target, session.state, lock_timeout=lock_timeout)))
            pages = opened_file(image, directory, page_size=plan.then.page_size)
            difference = Difference(before, State.of(*opened.enter_context(pages)))
        except BackupdError as error:
            output.print_warning(f"the rows that change are not shown: {error.message}")
            difference = None
        yield difference


def _print_restored_file(found: RestorePoint, result: RestoreResult, session: Session) -> None:
    from backupd.cli.plans import described

    if session.is_json:
        values = _values(found, result.target, "file", result.fetched_bytes, result.duration_seconds)
        output.print_document({"restored": values})
        return
    output.print_line(
        f"restored {described(found)} from {found.archive.url} to {result.target}: "
        f"{output.size(result.image_bytes)} in {output.seconds(result.duration_seconds)}; "
        f"{'every pack and segment' if found.replay else 'every pack and the whole image'} have their checksums, and "
        f"SQLite {'checked all of it' if found.replay else 'opens it'}"
    )


def _print_result(result: InPlaceResult, session: Session) -> None:
    from backupd.restore.plan import Way

    plan = result.plan
    if session.is_json:
        values = _values(plan.point, plan.target, str(plan.way), plan.fetched_bytes, result.duration_seconds)
        values["safety_snapshot"] = None if result.safety_snapshot is None else str(result.safety_snapshot)
        values["kept_as"] = None if result.kept_as is None else str(result.kept_as)
        values["pause_seconds"] = None if result.pause_seconds is None else round(result.pause_seconds, 3)
        output.print_document({"restored": values})
        return
    output.print_line(_line(result))
    if result.safety_snapshot is not None:
        output.print_note(f"hint: to go back: {undo_command(plan.point, plan.target, session)}")
    if plan.way is Way.REPLACEMENT:
        output.print_note("hint: start the application, or restart it if it still runs: it would write to the old file")


def _values(found: RestorePoint, target: Path, way: str, fetched_bytes: int, duration_seconds: float) -> dict[str, Any]:
    """A restore in JSON documents, with null for what only a restore in place has."""
    from backupd.cli.plans import point_values

    return {
        **point_values(found),
        "target": str(target),
        "way": way,
        "image_bytes": found.image_bytes,
        "fetched_bytes": fetched_bytes,
        "safety_snapshot": None,
        "kept_as": None,
        "pause_seconds": None,
        "duration_seconds": round(duration_seconds, 3),
    }


def undo_command(point: RestorePoint, target: Path, session: Session) -> str:
    """Return the command that undoes what was just brought back from `point` into `target`."""
    from backupd.restore.placing import resolve_target

    name, store = point.manifest.database, point.archive.url
    is_configured = any(each.name == name and resolve_target(each.path) == target for each in session.databases())
    command = ["backupd", "undo", name if is_configured else str(target)]
    if not session.settings.stores and store not in {each.url for each in session.settings.stores_or_default}:
        command += ["--store", store]
    return shlex.join(command)


def _line(result: InPlaceResult) -> str:
    from backupd.cli.plans import described

    plan = result.plan
    line = f"restored {described(plan.point)} from {plan.point.archive.url} into {plan.target} "
    line += f"in {output.seconds(result.duration_seconds)}"
    if result.pause_seconds is not None:
        who = "its writers and readers" if plan.readers_wait else "its writers"
        line += f", live: {who} waited {result.pause_seconds:.2f} s"
    if result.kept_as is not None:
        line += f"; the old file is kept as {result.kept_as}"
    return line + (f"; what was there is in snapshot {result.safety_snapshot}" if result.safety_snapshot else "")
