"""`backupd verify`: check what is stored."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output
from backupd.cli.verbs import (
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
    from collections.abc import Iterable, Iterator, Sequence

    from backupd.cli.session import Session
    from backupd.verify import (
        CheckContext,
        ContinuityResult,
        Finding,
        Progress,
        Verification,
        VerifiedSnapshot,
        VerifyRequest,
    )

_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?) ?%")
_SNAPSHOTS_SHOWN = 3


@click.command(
    "verify",
    cls=Verb,
    short_help="Check what is stored, byte by byte.",
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
    help="How closely to check, see above.",
)
@click.option(
    "--sample",
    metavar="PERCENT",
    help="Check only such a share of the packs (drill: of the snapshots), others each time: 10%.",
)
@click.option("--bandwidth", metavar="SIZE", help="Read no more than this per second: 10MB.")
@click.option(
    "--restart", is_flag=True, help="Start again from the beginning, instead of continuing an interrupted run."
)
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
    """Check that each SNAPSHOT is as it was written, in every store that has it.

    Without SNAPSHOT, the newest of every database in every store. SNAPSHOT is an id or its unique beginning, `latest`,
    `latest~2` (two before it), a time (2026-11-22T08:00: the newest at or before it), an age (2h, 3d) or a tag. NAME@
    before it chooses the database.

    The level `receipt` reads no pack: every object is there, has the right size, and the right checksum where the store
    keeps one. `packs` reads every byte: the SHA-256 of each pack, the checksum of its content, the hash of each page,
    and whether they make up the image. `drill` restores to scratch and has SQLite check the database, as every night.
    What is encrypted, and no key here decrypts, is compared with its SHA-256 at both of these levels. Of a database
    that is followed, `drill` also adds commits to one snapshot, which must give a later one.

    A pack that several snapshots need is read once. Interrupted at the level `packs`, the same command continues within
    7 days. Damage is recorded in the store, so that the next snapshot stores it again, and is an alarm until then;
    the exit code is 20.
    """
    from backupd.cli.session import Session
    from backupd.jobs.checks import record_verification
    from backupd.system.processes import use_one_heap
    from backupd.verify import Level, VerifyRequest, verify

    use_one_heap()
    if wants_all and snapshots:
        raise UsageError("both --all and snapshots are given", hint="leave one of them out")
    share, rate = _parsed_share(sample), _parsed_rate(bandwidth)
    if share is not None and level == Level.UPLOAD_CHECK:
        raise UsageError("--sample has no use with --level receipt, which reads no pack", hint="leave one of them out")
    session = Session(invocation)
    request = VerifyRequest(
        references=tuple(session.reference(text, database) for text in snapshots),
        wants_all=wants_all,
        database=None if database is None else session.database_name(database),
        level=Level(level),
        sample=share,
        restart=restart,
        most_bytes_per_second=rate,
    )
    repositories = session.repositories(store)
    with _context(session, request) as context:
        found = verify(repositories, request, context)
    found = record_verification(
        found,
        session,
        configured=lambda: {each.name: session.configured(each) for each in session.databases()},
        stores=lambda: session.configured_stores([]),
        is_drill=request.level is Level.DRILL,
    )
    if session.is_json:
        output.print_document(_values(found))
    else:
        _print(found, session)
    return found.exit_code


def _parsed_share(text: str | None) -> float | None:
    if text is None:
        return None
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
        raise UsageError("a bandwidth of 0 reads nothing", hint="write it like 10MB, which is 10 MB per second")
    return rate


@contextmanager
def _context(session: Session, request: VerifyRequest) -> Iterator[CheckContext]:
    """Give the context of the verification, and show its progress; an interrupted run says how to continue."""
    from backupd.verify import CheckContext

    reached: list[Progress] = []
    with output.shown_progress("verify", done="read", moved="of pages checked", is_quiet=session.is_quiet) as report:

        def on_progress(now: Progress) -> None:
            reached[:] = [now]
            report(now.read_bytes, now.whole_bytes, now.page_bytes)

        def on_note(line: str) -> None:
            if not session.is_quiet:
                output.print_note(line)

        try:
            yield CheckContext(
                now=datetime.now().astimezone(),
                examination_limit=session.settings.capture.deadline,
                on_progress=on_progress,
                on_note=on_note,
            )
        except KeyboardInterrupt:
            raise _interrupted(request, reached) from None


def _interrupted(request: VerifyRequest, reached: Sequence[Progress]) -> InterruptedByUserError:
    from backupd.verify import Level

    if request.level is not Level.PACKS or request.sample is not None or not reached or not reached[0].all_packs:
        return InterruptedByUserError("interrupted", hint="the same command starts again")
    packs, all_packs = (output.count(number) for number in (reached[0].packs, reached[0].all_packs))
    return InterruptedByUserError(
        f"interrupted after {packs} of {all_packs} packs",
        hint="the same command continues from there within 7 days; with --restart it starts from the beginning",
    )


def _values(found: Verification) -> dict[str, Any]:
    return {
        "snapshots": [snapshot.values() for snapshot in found.snapshots],
        "findings": [finding.values() for finding in found.findings],
        "problems": [output.error_values(problem) for problem in found.problems],
        "warnings": [*found.warnings],
        "continuity": [each.values() for each in found.continuity],
        "packs_read": found.packs_read,
        "packs_read_before": found.packs_known,
        "read_bytes": found.read_bytes,
        "duration_seconds": round(found.duration_seconds, 3),
    }


def _print(found: Verification, session: Session) -> None:
    """Print a line for each snapshot on stdout; what is wrong, and what to do, on stderr."""
    for snapshot in found.snapshots:
        output.print_line(_line(snapshot))
    _print_continuity(found.continuity)
    if not session.is_quiet:
        output.print_note(_summary(found))
    damage = [finding for finding in found.findings if finding.is_damage]
    for finding in damage:
        output.print_note(f"error: {_described(finding)}")
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
                output.print_note(f"note: {_described(finding)}")


_WORDS = {"right": "verified", "damaged": "damaged", "unknown": "not verified"}


def _line(snapshot: VerifiedSnapshot) -> str:
    packs = output.count(snapshot.packs, "pack")
    how = {
        None: "the check did not come to its end",
        "sizes": f"{packs}, all there with their sizes",
        "checksums": f"{packs}, all there with the checksums that the store keeps",
        "sample": f"{packs}, some of them read",
        "ciphertext": f"{packs}, every byte read, and not decrypted",
        "pages": f"{packs}, every byte and every page read",
        "restored": f"{packs}, restored and checked by SQLite: {_counted(snapshot)}",
    }[snapshot.depth]
    if snapshot.outcome.is_damage:
        how = "does not restore to a sound database from there"
    return f"{snapshot.database}  {_WORDS[snapshot.summary]}  {snapshot.id}  {how}  -> {snapshot.store}"


def _print_continuity(results: Iterable[ContinuityResult]) -> None:
    """Print which commits were proven. What is wrong with others is among the problems."""
    for result in results:
        if result.found is not None and not result.is_broken:
            found = result.found
            commits = f"commits {output.count(found.after + 1)} to {output.count(found.by)}"
            how = f"{commits}, added to {found.base}, give exactly {found.snapshot}"
            output.print_line(f"{result.database}  continuity proven  {how}  -> {result.store}")


def _counted(snapshot: VerifiedSnapshot) -> str:
    counted = [number for number in snapshot.rows.values() if number is not None]
    return f"{output.count(sum(counted), 'row')} in {output.count(len(snapshot.rows), 'table')}"


def _summary(found: Verification) -> str:
    counts = Counter(_WORDS[snapshot.summary] for snapshot in found.snapshots)
    snapshots = output.count(len(found.snapshots), "snapshot")
    if len(counts) == 1:
        what = f"{snapshots} {next(iter(counts))}"
    else:
        what = f"{snapshots}: " + ", ".join(f"{output.count(number)} {word}" for word, number in counts.items())
    return f"{what}; {output.size(found.read_bytes)} read in {output.seconds(found.duration_seconds)}"


def _described(finding: Finding) -> str:
    """Describe a finding, as in `app: pack-missing: app/packs/....zst in /backups: it is not there; affects ...`."""
    subject = f"{finding.database}: {finding.kind}" if finding.database else str(finding.kind)
    is_named = bool(finding.key) and finding.key in finding.reason
    place = f"{finding.key} in {finding.store}" if finding.key else finding.store
    what = finding.reason if is_named else f"{place}: {finding.reason}"
    if not finding.is_damage or not finding.snapshots:
        return f"{subject}: {what}"
    rest = len(finding.snapshots) - _SNAPSHOTS_SHOWN
    shown = ", ".join(str(each) for each in finding.snapshots[-_SNAPSHOTS_SHOWN:])
    return f"{subject}: {what}; affects {shown}{f' and {output.count(rest)} more' if rest > 0 else ''}"


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
