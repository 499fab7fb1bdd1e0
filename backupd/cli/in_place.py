"""A restore into the configured database, as a person goes through it: see the plan, agree, see what was done."""

from __future__ import annotations

import shlex
import socket
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from backupd.backup import Wish, back_up
from backupd.cli import output, quantities
from backupd.cli.plan_values import plan_lines, plan_values
from backupd.cli.progress import shown_progress
from backupd.cli.sought import snapshot_to_restore
from backupd.cli.to_file import described, print_restored_file, restored_to_file
from backupd.config import Database
from backupd.errors import BackupdError, InterruptedByUserError, NoSuchSnapshotError, UsageError
from backupd.format.manifest import SnapshotKind
from backupd.restore import InPlaceRestore, Plan, Way, led_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backupd.catalog import WholeSnapshot
    from backupd.cli.options import InPlaceWish
    from backupd.cli.session import Session
    from backupd.format.ids import SnapshotId
    from backupd.restore import InPlaceResult

_NOTICEABLE_PAUSE_SECONDS = 2.0
_NOTICEABLE_WAIT_SECONDS = 4.0
_WITH_SNAPSHOT = "snapshot "


def database_to_restore(session: Session, found: WholeSnapshot, text: str | None) -> Database:
    """The database to restore `found` into: the file whose path `text` is, or else the configured one of its name."""
    name, writer = found.manifest.database, found.manifest.writer
    database = _known_database(session, name, text)
    if database is None:
        if (problem := session.problem_of(name)) is not None:
            raise problem
        raise UsageError(
            f"where to restore {name} to is not known: it is not configured here",
            hint=f"name the file: --to FILE; it was {writer.path} on {writer.host}",
        )
    return database


def _known_database(session: Session, name: str, text: str | None) -> Database | None:
    if text is not None and text != name:
        return Database(name, session.selected([text])[0].path)
    return next((database for database in session.databases() if database.name == name), None)


def snapshot_to_undo(session: Session, text: str, store: str | None) -> WholeSnapshot:
    """What was there before the last restore into the database that `text` (a name or a path) means.

    That is known on the machine that restored; elsewhere, it is the newest safety snapshot. Raises `UsageError` when
    there is nothing to go back to, and what `snapshot_to_restore` raises.
    """
    name = session.name_meant(text)
    database = _known_database(session, name, text)
    noted = None if database is None else session.state.noted(_subject(name, led_to(database.path)))
    if noted is None:
        found = newest_safety_snapshot(session, text, store)
        _reject_other_file(found, database)
        return found
    if not noted.startswith(_WITH_SNAPSHOT):
        raise UsageError(
            f"the last restore of {name} {noted}",
            hint=f"older states can be restored too: backupd restore {name}@before-restore --dry-run",
        )
    return snapshot_to_restore(session, noted.removeprefix(_WITH_SNAPSHOT), text, store)


def newest_safety_snapshot(session: Session, text: str | None, store: str | None) -> WholeSnapshot:
    """What the last restore saved first. Raises `NoSuchSnapshotError` when no restore is known."""
    try:
        return snapshot_to_restore(session, "before-restore", text, store)
    except NoSuchSnapshotError as error:
        if not error.message.startswith("no snapshot"):
            raise  # several databases have one
        whose = "" if text is None else f" of {session.name_meant(text)}"
        raise NoSuchSnapshotError(
            f"there is no restore to undo: no safety snapshot{whose} is known ({error.message})",
            hint="to go back to an older state: backupd list, then backupd restore NAME@ID",
        ) from error


def _reject_other_file(found: WholeSnapshot, database: Database | None) -> None:
    """A safety snapshot of another file of that name, on this machine, is not what was here."""
    manifest = found.manifest
    here = None if database is None else (socket.gethostname(), str(led_to(database.path)))
    if here is not None and manifest.writer.host == here[0] and manifest.writer.path != here[1]:
        raise UsageError(
            f"the newest safety snapshot of {manifest.database}, {manifest.id}, is of {manifest.writer.path}",
            hint=f"if it is the right one: backupd restore {manifest.database}@{manifest.id}",
        )


def restore_in_place(session: Session, found: WholeSnapshot, database: Database, wish: InPlaceWish) -> None:
    """Plan, ask, restore, and tell. Raises `BackupdError`; `InterruptedByUserError` when the answer is no."""
    target = led_to(database.file())
    if not target.exists() and not target.is_symlink() and not wish.is_dry_run:
        # Nothing is lost, so nothing is asked.
        result = restored_to_file(found, target, session, force=wish.must_replace, as_source=True)
        _note(session, database.name, target, "found nothing in its place")
        print_restored_file(found, result, session)
        output.print_note("hint: the application can be started now, or restarted if it still runs")
        return
    if not (wish.is_dry_run or wish.is_yes or _can_ask()):
        raise UsageError(
            f"the content of {target} would be replaced, and there is no terminal to confirm it on",
            hint="look at it with --dry-run, then say --yes; or restore beside it with --to FILE",
        )
    _restore(session, found, Database(database.name, target), wish)


def _restore(session: Session, found: WholeSnapshot, database: Database, wish: InPlaceWish) -> None:
    restore = InPlaceRestore(
        found.repository,
        found.manifest,
        database.path,
        session.state,
        must_replace=wish.must_replace,
        is_app_stopped=wish.is_app_stopped,
        lock_timeout=session.settings.capture.lock_timeout.total_seconds(),
    )
    with ExitStack() as scratch:
        with shown_progress(database.name, done="fetched", moved="fetched", is_quiet=session.is_quiet) as report:
            plan = scratch.enter_context(
                restore.planned(
                    lambda now: report(now.restored_bytes, now.image_bytes, now.fetched_bytes),
                    is_dry_run=wish.is_dry_run,
                )
            )
        if wish.is_dry_run:
            _print_plan(session, found, plan)
            return
        _agree(session, found, plan, wish)
        safety = _SafetySnapshots(session, found, database) if wish.wants_safety_snapshot else None
        with (
            _remembered(session, database) as remember,
            shown_progress(database.name, done="restored", moved="fetched", is_quiet=session.is_quiet) as report,
        ):
            result = restore.carry_out(plan, safety, lambda done, whole: report(done, whole, plan.fetched_bytes))
            remember(result)
    _print_result(session, found, result)


@contextmanager
def _remembered(session: Session, database: Database) -> Iterator[Callable[[InPlaceResult], None]]:
    """Note what `backupd undo` goes back to, also when the restore fails, which changes nothing, or is killed."""
    subject = _subject(database.name, database.path)
    before = session.state.noted(subject)
    session.state.note(subject, "was interrupted: whether it was done is not known")
    is_done = False

    def remember(result: InPlaceResult) -> None:
        nonlocal is_done
        is_done = True
        _note(session, database.name, database.path, _way_back(result))

    try:
        yield remember
    finally:
        if not is_done:
            _note(session, database.name, database.path, before or "failed, and there was none before it")


def _way_back(result: InPlaceResult) -> str:
    if result.safety_snapshot is not None:
        return f"{_WITH_SNAPSHOT}{result.safety_snapshot}"
    kept = f"; the old file is kept as {result.kept_as}" if result.kept_as else ""
    return output.printable(f"was made without a safety snapshot{kept}")


def _note(session: Session, name: str, path: Path, text: str) -> None:
    """What is done is done: that it cannot be noted is no failure."""
    try:
        session.state.note(_subject(name, path), text)
    except BackupdError as error:
        output.print_warning(error.message)


def _subject(name: str, path: Path) -> str:
    return f"the last restore of {name} to {path}"


class _SafetySnapshots:
    """Takes snapshots of what a restore is about to replace: into every configured store, and at least into one."""

    def __init__(self, session: Session, found: WholeSnapshot, database: Database) -> None:
        self._session = session
        self._database = database
        self._stores = session.stores([]) if session.settings.stores else [found.repository.store]

    def __call__(self) -> SnapshotId:
        """Take one. Raises the error of the first store when none has it."""
        session = self._session
        results = back_up(
            self._database,
            self._stores,
            session.settings,
            session.state,
            wish=Wish(kind=SnapshotKind.BEFORE_RESTORE),
            on_progress=lambda _: None,
        )
        made = [result.id for result in results if result.id is not None]
        errors = [result.error for result in results if result.error is not None]
        if not made:
            raise type(errors[0])(
                f"the safety snapshot failed, so nothing was restored: {errors[0].message}",
                hint=f"{errors[0].hint or 'see above'}; or restore without one: --no-safety-snapshot",
            )
        for error in errors:
            output.print_warning(f"the safety snapshot is not in every store: {error.message}")
        return made[0]


def _can_ask() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _agree(session: Session, found: WholeSnapshot, plan: Plan, wish: InPlaceWish) -> None:
    """Show the plan and ask. Raises `UsageError` where a script has not allowed what needs a person."""
    if not session.is_quiet or not wish.is_yes:
        output.print_note("\n".join(map(output.printable, plan_lines(plan, described(found)))), is_verbatim=True)
    if plan.changes_revision and not wish.allows_revision_change:
        what = f"the Alembic revision changes from {_revisions(plan.now)} to {_revisions(plan.then)}"
        if wish.is_yes or not _can_ask():
            raise UsageError(
                f"{what}: the running code may not fit the restored schema",
                hint="deploy the code of that time, or migrate after the restore; allow it with "
                "--allow-revision-change",
            )
        _ask(f"{what}, and the running code may not fit the restored schema. Go on?", plan)
    if wish.is_yes:
        return
    is_long_for_all = plan.readers_wait and (plan.pause_seconds or 0) > _NOTICEABLE_PAUSE_SECONDS
    if is_long_for_all or plan.writers_wait_seconds > _NOTICEABLE_WAIT_SECONDS:
        who = "The application" if is_long_for_all else "The application's writers"
        pause = quantities.seconds(plan.writers_wait_seconds)
        _ask(f"{who} may wait for about {pause}, longer than some timeouts are. Go on?", plan)
    _ask("Restore this now?", plan)


def _ask(question: str, plan: Plan) -> None:
    if not click.confirm(output.printable(question), err=True):
        raise InterruptedByUserError(f"nothing was restored: {plan.target} stays as it is")


def _revisions(contents: Any) -> str:
    return ", ".join(contents.alembic_revisions or ()) or "none"


def _print_plan(session: Session, found: WholeSnapshot, plan: Plan) -> None:
    if session.is_json:
        output.print_document({"plan": plan_values(plan)})
        return
    lines = plan_lines(plan, described(found))
    output.print_result("\n".join(map(output.printable, [*lines, "nothing was changed: this was a dry run"])))


def _print_result(session: Session, found: WholeSnapshot, result: InPlaceResult) -> None:
    plan, manifest = result.plan, found.manifest
    if session.is_json:
        values = {
            "id": str(manifest.id),
            "database": manifest.database,
            "store": found.repository.url,
            "target": str(plan.target),
            "way": str(plan.way),
            "image_bytes": manifest.image_bytes,
            "fetched_bytes": plan.fetched_bytes,
            "safety_snapshot": None if result.safety_snapshot is None else str(result.safety_snapshot),
            "kept_as": None if result.kept_as is None else str(result.kept_as),
            "pause_seconds": None if result.pause_seconds is None else round(result.pause_seconds, 3),
            "duration_seconds": round(result.duration_seconds, 3),
        }
        output.print_document({"restored": values})
        return
    output.print_result(output.printable(_line(found, result)))
    if result.safety_snapshot is not None:
        output.print_note(f"hint: to go back: {_undo_command(session, found, plan)}")
    if plan.way is Way.REPLACEMENT:
        output.print_note("hint: start the application, or restart it if it still runs: it would write to the old file")


def _undo_command(session: Session, found: WholeSnapshot, plan: Plan) -> str:
    name, store = found.manifest.database, found.repository.url
    is_configured = any(each.name == name and led_to(each.path) == plan.target for each in session.databases())
    command = ["backupd", "undo", name if is_configured else str(plan.target)]
    if not session.settings.stores and store not in {each.url for each in session.settings.stores_or_default}:
        command += ["--store", store]
    return shlex.join(command)


def _line(found: WholeSnapshot, result: InPlaceResult) -> str:
    plan = result.plan
    line = f"restored {described(found)} from {found.repository.url} into {plan.target} "
    line += f"in {quantities.seconds(result.duration_seconds)}"
    if result.pause_seconds is not None:
        who = "its writers and readers" if plan.readers_wait else "its writers"
        line += f", live: {who} waited {result.pause_seconds:.2f} s"
    if result.kept_as is not None:
        line += f"; the old file is kept as {result.kept_as}"
    return line + (f"; what was there is in snapshot {result.safety_snapshot}" if result.safety_snapshot else "")
