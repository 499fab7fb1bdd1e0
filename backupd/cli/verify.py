"""`backupd verify`: look at what is stored."""

# ruff: noqa: PLC0415  (imports are late: `--help` is to be fast)

from __future__ import annotations

import re
import shlex
from collections import Counter
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output, quantities
from backupd.cli.options import (
    Invocation,
    Verb,
    complete_databases,
    complete_snapshots,
    global_options,
    identity_option,
    store_option,
)
from backupd.errors import InterruptedByUserError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backupd.cli.session import Session
    from backupd.verify import Finding, Progress, Verification, VerifiedSnapshot, VerifyWish, Watch

_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?) ?%")
_SNAPSHOTS_SHOWN = 3


@click.command(
    "verify",
    cls=Verb,
    short_help="Look at what is stored, byte by byte.",
    examples=(
        "backupd verify",
        "backupd verify app@latest --level receipt",
        "backupd verify --all --bandwidth 10MB",
        "backupd verify --all --sample 10% --json",
        "backupd verify latest --level drill --identity backupd.key",
    ),
)
@click.argument("snapshots", metavar="[SNAPSHOT]...", nargs=-1, shell_complete=complete_snapshots)
@click.option("--all", "wants_all", is_flag=True, help="Every snapshot of every database.")
@click.option(
    "--database",
    metavar="NAME",
    shell_complete=complete_databases,
    help="Only snapshots of this database: a name, or the path of its file.",
)
@click.option(
    "--level",
    type=click.Choice(["receipt", "packs", "drill"]),
    default="packs",
    show_default=True,
    help="How closely to look, see above.",
)
@click.option(
    "--sample",
    metavar="PERCENT",
    help="Look only at such a share of the packs (drill: of the snapshots), others each time: 10%.",
)
@click.option("--bandwidth", metavar="SIZE", help="Read no more than this in a second: 10MB.")
@click.option("--restart", is_flag=True, help="Begin anew what was broken off, instead of going on with it.")
@store_option
@identity_option
@global_options
@click.pass_obj
def command(
    invocation: Invocation,
    snapshots: tuple[str, ...],
    database: str | None,
    level: str,
    sample: str | None,
    bandwidth: str | None,
    store: str | None,
    *,
    wants_all: bool,
    restart: bool,
) -> int:
    """Look whether each SNAPSHOT is as it was written, in every store that has it.

    Without SNAPSHOT, the newest of every database in every store. SNAPSHOT is an id or its unique beginning, `latest`,
    `latest~2` (two before it), a time (2026-11-22T08:00: the newest at or before it), an age (2h, 3d) or a tag. NAME@
    before it chooses the database.

    The level `receipt` reads no pack: every object is there, has the right size, and the right checksum where the store
    keeps one. `packs` reads every byte: the SHA-256 of each pack, the checksum of its content, the hash of each page,
    and whether they make up the image. `drill` restores to scratch and has SQLite check the database, as every night.
    What is encrypted, and no key here decrypts, is compared with its SHA-256 at both of them.

    A pack that several snapshots need is read once. Interrupted at the level `packs`, the same command goes on within 7
    days. Damage is recorded in the store, so that the next snapshot stores it again, and is an alarm until then; the
    exit code is 20.
    """
    from backupd.cli.session import Session
    from backupd.verify import verify

    rate = _parsed_rate(bandwidth)
    session = Session(invocation)
    wish = _wish(session, snapshots, database, level, sample, wants_all=wants_all, restart=restart)
    repositories = session.repositories(store)
    with _watching(session, wish) as watch:
        found = verify(
            repositories,
            session.state,
            session.settings,
            wish,
            now=datetime.now().astimezone(),
            rate=rate,
            watch=watch,
        )
    _note(found, session, wish)
    if session.is_json:
        output.print_document(_values(found))
    else:
        _print(found, session)
    return found.exit_code


def _note(found: Verification, session: Session, wish: VerifyWish) -> None:
    """Let `status`, alarms and the daemon know; that it did not work is a warning."""
    from backupd.errors import BackupdError
    from backupd.upkeep.verifications import note_verified, tell_others
    from backupd.verify import Level

    try:
        damaged = [*found.damaged_sources, *(each for each in found.verdicts if each.earlier is not None)]
        told = tell_others(damaged, session.rotated([]) if damaged else [])
        found.warnings += [warning for each in told.values() for warning in each.warnings]
        configured = {each.name: session.configured(each) for each in session.databases()}
        is_drill = wish.level is Level.DRILL
        note_verified(found.verdicts, configured, session.settings, session.status, told=told, is_drill=is_drill)
    except BackupdError as error:
        found.warnings.append(f"the status does not know of this: {error.message}")


def _wish(
    session: Session,
    snapshots: Sequence[str],
    database: str | None,
    level: str,
    sample: str | None,
    *,
    wants_all: bool,
    restart: bool,
) -> VerifyWish:
    from backupd.cli.sought import parsed_reference
    from backupd.verify import Level, VerifyWish

    if wants_all and snapshots:
        raise UsageError("both --all and snapshots are given", hint="leave one of them out")
    share = None if sample is None else _parsed_share(sample)
    if share is not None and level == Level.RECEIPT:
        raise UsageError("--sample has no use with --level receipt, which reads no pack", hint="leave one of them out")
    return VerifyWish(
        references=tuple(parsed_reference(session, text, database) for text in snapshots),
        wants_all=wants_all,
        database=None if database is None else session.name_meant(database),
        level=Level(level),
        sample=share,
        is_anew=restart,
    )


def _parsed_share(text: str) -> float:
    match = _SHARE.fullmatch(text.strip())
    share = float(match[1]) / 100 if match else 0.0
    if not 0 < share <= 1:
        raise UsageError(f"{text!r} is not a share", hint="write it like 10%: above 0%, at most 100%")
    return share


def _parsed_rate(text: str | None) -> int | None:
    from backupd.config import parse_size

    if text is None:
        return None
    rate = parse_size(text.strip().removesuffix("/s"))
    if rate == 0:
        raise UsageError("a bandwidth of 0 reads nothing", hint="write it like 10MB, which is 10 MB in a second")
    return rate


@contextmanager
def _watching(session: Session, wish: VerifyWish) -> Iterator[Watch]:
    """Show how far it is; a run that is broken off says how to go on."""
    from backupd.cli.progress import shown_progress
    from backupd.verify import Watch

    reached: list[Progress] = []
    with shown_progress("verify", done="read", moved="of pages checked", is_quiet=session.is_quiet) as report:

        def on_progress(now: Progress) -> None:
            reached[:] = [now]
            report(now.read_bytes, now.whole_bytes, now.page_bytes)

        def on_note(line: str) -> None:
            if not session.is_quiet:
                output.print_note(line)

        try:
            yield Watch(on_progress=on_progress, on_note=on_note)
        except KeyboardInterrupt:
            raise _interrupted(wish, reached) from None


def _interrupted(wish: VerifyWish, reached: Sequence[Progress]) -> InterruptedByUserError:
    from backupd.verify import Level

    if wish.level is not Level.PACKS or wish.sample is not None or not reached or not reached[0].all_packs:
        return InterruptedByUserError("interrupted", hint="the same command starts again")
    packs, all_packs = (quantities.count(number) for number in (reached[0].packs, reached[0].all_packs))
    return InterruptedByUserError(
        f"interrupted after {packs} of {all_packs} packs",
        hint="the same command goes on from there within 7 days; with --restart it begins anew",
    )


def _values(found: Verification) -> dict[str, Any]:
    return {
        "snapshots": [snapshot.values() for snapshot in found.snapshots],
        "findings": [finding.values() for finding in found.findings],
        "problems": [output.error_values(problem) for problem in found.problems],
        "warnings": found.warnings,
        "packs_read": found.packs_read,
        "packs_read_before": found.packs_known,
        "read_bytes": found.read_bytes,
        "duration_seconds": round(found.duration_seconds, 3),
    }


def _print(found: Verification, session: Session) -> None:
    """A line for each snapshot on stdout; what is wrong, and what to do, on stderr."""
    for snapshot in found.snapshots:
        output.print_result(output.printable(_line(snapshot)))
    if not session.is_quiet:
        output.print_note(_summary(found))
    damage = [finding for finding in found.findings if finding.is_damage]
    for finding in damage:
        output.print_note(f"error: {_told(finding)}")
    for store, database in dict.fromkeys((finding.store, finding.database) for finding in damage):
        of_store = any(each.kind.is_of_store for each in damage if (each.store, each.database) == (store, database))
        output.print_hint(_what_to_do(database or "", store, of_store=of_store), store=store)
    for problem in found.problems:
        output.print_error(problem)
    for warning in found.warnings:
        output.print_warning(warning)
    if not session.is_quiet:
        for finding in found.findings:
            if not finding.is_damage:
                output.print_note(f"note: {_told(finding)}")


def _line(snapshot: VerifiedSnapshot) -> str:
    packs = quantities.count(snapshot.packs, "pack")
    how = {
        None: "not looked at to the end",
        "sizes": f"{packs}, all there with their sizes",
        "checksums": f"{packs}, all there with the checksums that the store keeps",
        "sample": f"{packs}, some of them read",
        "ciphertext": f"{packs}, every byte read, and not decrypted",
        "pages": f"{packs}, every byte and every page read",
        "restored": f"{packs}, restored and looked through by SQLite: {_counted(snapshot)}",
    }[snapshot.looked]
    if snapshot.outcome == "damaged":
        how = "does not restore to a sound database from there"
    return f"{snapshot.database}  {snapshot.outcome}  {snapshot.id}  {how}  -> {snapshot.store}"


def _counted(snapshot: VerifiedSnapshot) -> str:
    counted = [number for number in snapshot.rows.values() if number is not None]
    return f"{quantities.count(sum(counted), 'row')} in {quantities.count(len(snapshot.rows), 'table')}"


def _summary(found: Verification) -> str:
    counts = Counter(str(snapshot.outcome) for snapshot in found.snapshots)
    outcomes = ", ".join(f"{quantities.count(number)} {outcome}" for outcome, number in counts.items())
    read = f"{quantities.size(found.read_bytes)} read in {quantities.seconds(found.duration_seconds)}"
    return f"{quantities.count(len(found.snapshots), 'snapshot')}: {outcomes}; {read}"


def _told(finding: Finding) -> str:
    """Such as `app: pack-missing: app/packs/....zst in /backups: it is not there; needed by ...`."""
    subject = f"{finding.database}: {finding.kind}" if finding.database else str(finding.kind)
    is_named = bool(finding.key) and finding.key in finding.reason
    place = f"{finding.key} in {finding.store}" if finding.key else finding.store
    what = finding.reason if is_named else f"{place}: {finding.reason}"
    if not finding.is_damage or not finding.snapshots:
        return f"{subject}: {what}"
    rest = len(finding.snapshots) - _SNAPSHOTS_SHOWN
    shown = ", ".join(str(each) for each in finding.snapshots[-_SNAPSHOTS_SHOWN:])
    return f"{subject}: {what}; touches {shown}{f' and {quantities.count(rest)} more' if rest > 0 else ''}"


def _what_to_do(database: str, store: str, *, of_store: bool) -> str:
    if of_store:
        return (
            f"the next snapshot stores what the database still has of that again: backupd now {database} "
            f"--store {shlex.quote(store)}; restore what is damaged from another store, or another snapshot: "
            f"backupd list {database}"
        )
    return (
        f"the database was damaged when it was captured: check the live one with PRAGMA integrity_check; "
        f"backupd list {database} shows older snapshots"
    )
