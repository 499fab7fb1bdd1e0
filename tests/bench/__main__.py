"""Measure, compare, and write down: `make bench` and its like, or with options of its own.

    PYTHONPATH=tests python -m bench run --size 20MB --rounds 1 --rows "updates restore"
    PYTHONPATH=tests python -m bench compare build/bench.json

Every command that is measured is a new process. The file cache is warm, for all tools alike; everything is flushed to
the disk before each command, so that none pays for what another wrote.
"""

# ruff: noqa: T201  (its report is what it is for)

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from harness.creditrobot import parse_size

from bench import pages
from bench.comparing import TOLERANCE, NotComparableError, Verdict, compare, growth, put_together
from bench.machine import current_commit, look_at_machine
from bench.report import change_lines, growth_lines, head, peer_lines, summary, tables
from bench.results import USUAL_SCALE, Result, Scale, committed_file, committed_files
from bench.rows import PEER_ROWS, ROWS
from bench.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.rows import Row

_WORSE, _UNUSABLE = 1, 2


def main() -> int:
    """Do what the command line says; the exit code is 1 when something got worse, and 2 when that cannot be said."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure what backupd costs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="measure, print tables, and write the figures")
    run.add_argument("--size", type=parse_size, default=USUAL_SCALE.size_bytes, help="of the database (default: 1GB)")
    run.add_argument("--rounds", type=int, default=3, help="how often everything is done (default: 3)")
    run.add_argument("--kept", type=int, default=USUAL_SCALE.kept, help="snapshots of a long history (default: 10000)")
    run.add_argument(
        "--databases", type=int, default=USUAL_SCALE.databases, help="how many tenants there are (default: 1000)"
    )
    run.add_argument(
        "--followed",
        type=int,
        default=USUAL_SCALE.followed_seconds,
        help="for how many seconds gaps are waited for at full rate; less than 60 shortens other spans (default: 60)",
    )
    run.add_argument("--rows", default="", help="names or patterns of rows, such as 'first* help' (default: all)")
    run.add_argument("--peers", action="store_true", help="measure other tools beside backupd instead")
    run.add_argument("--scratch", type=Path, default=None, help="where to work; needs eight times the size")
    run.add_argument("--output", type=Path, required=True, help="the file for the figures")
    run.set_defaults(do=_run)
    comparison = commands.add_parser("compare", help="show what got worse")
    comparison.add_argument("new", type=Path, help="figures of a run")
    comparison.add_argument("--committed", type=Path, default=None, help="what to compare with, if not this machine's")
    comparison.set_defaults(do=_compare)
    record = commands.add_parser("record", help="make figures those that are committed, and write the pages")
    record.add_argument("new", type=Path, nargs="+", help="figures of a run, or of several that measured its parts")
    record.set_defaults(do=_record)
    written = commands.add_parser("pages", help="write tables and chart from the committed figures")
    written.set_defaults(do=_write_pages)
    listed = commands.add_parser("rows", help="list the rows")
    listed.set_defaults(do=_list_rows)
    arguments = parser.parse_args()
    # Ended by a signal, it still ends the daemons that it has started, and removes its files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_UNUSABLE))
    return int(arguments.do(arguments))


def _run(arguments: argparse.Namespace) -> int:
    rows = _chosen(PEER_ROWS if arguments.peers else ROWS, arguments.rows)
    if not rows:
        print(f"error: no row is called {arguments.rows}; `python -m bench rows` lists them", file=sys.stderr)
        return _UNUSABLE
    scale = Scale(
        size_bytes=arguments.size,
        kept=arguments.kept,
        databases=arguments.databases,
        followed_seconds=arguments.followed,
    )
    if arguments.scratch is not None:
        arguments.scratch.mkdir(parents=True, exist_ok=True)
    commit, date = current_commit(), datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="backupd-bench-", dir=arguments.scratch) as name:
        machine = look_at_machine(Path(name))
        scene = Scene(Path(name).resolve(), scale, arguments.rounds)
        for scenario in dict.fromkeys(row.scenario for row in rows):
            scenario(scene)
            # After each one, because an interrupted run of an hour still says what it has measured.
            figures = {row.name: row.figure(scene.works, scale) for row in rows}
            measured = {row: figure for row, figure in figures.items() if figure is not None}
            result = Result(
                machine=machine, scale=scale, rounds=arguments.rounds, date=date, commit=commit, rows=measured
            )
            result.write(arguments.output)
    result = Result.read(arguments.output)  # as it is compared and quoted, with rounded numbers
    print(head(result))
    print("\n".join(["", *peer_lines(result)] if arguments.peers else tables(result)))
    if left_out := [name for name, figure in figures.items() if figure is None and not arguments.peers]:
        print(f"\nnot measured, because a program is missing (Debian: apt install zstd sqlite3): {', '.join(left_out)}")
    if not arguments.peers:
        print(f"\n{summary(result)}")
        _print_growth(result)
    print(f"\nwritten to {arguments.output}", file=sys.stderr)
    return 0


def _is_of_peers(result: Result) -> bool:
    """Whether these are figures of several tools."""
    return any(row.name in result.rows for row in PEER_ROWS)


def _chosen(rows: Sequence[Row], patterns: str) -> list[Row]:
    """The rows that one of the patterns matches, which blanks separate; all without a pattern."""
    return [row for row in rows if not patterns or any(fnmatchcase(row.name, each) for each in patterns.split())]


def _print_growth(result: Result) -> None:
    """Beside the committed figures of a smaller database, if there are some of such a machine."""
    file = committed_file(result.machine, has_peers=False)
    if file.exists() and (small := Result.read(file)).scale.size_bytes < result.scale.size_bytes:
        print("\n".join(["", *growth_lines(growth(small, result, group="One database"), small, result)]))


def _compare(arguments: argparse.Namespace) -> int:
    new = Result.read(arguments.new)
    has_peers = _is_of_peers(new)
    file = arguments.committed or committed_file(new.machine, has_peers=has_peers)
    if not file.exists():
        file = next(iter(committed_files(has_peers=has_peers)), file)
    if not file.exists():
        print("error: no results are committed yet\nhint: make bench-record", file=sys.stderr)
        return _UNUSABLE
    committed = Result.read(file)
    try:
        changes = compare(committed, new)
    except NotComparableError as error:
        print(f"error: {error}\nhint: measure the same amounts, or compare with --committed", file=sys.stderr)
        return _UNUSABLE
    print(f"committed: {file.name}: {head(committed)}\nnow: {head(new)}\n")
    if committed.machine.slug != new.machine.slug:
        print("These are different machines: only bytes, memory and ratios are judged, and times are shown.\n")
    print("\n".join(change_lines(changes)))
    worse = [change.name for change in changes if change.verdict is Verdict.WORSE]
    if worse:
        print(f"\nworse by more than {TOLERANCE:.0%}: {', '.join(worse)}")
    else:
        print(f"\nno row got worse by more than {TOLERANCE:.0%}")
    return _WORSE if worse else 0


def _record(arguments: argparse.Namespace) -> int:
    results = [Result.read(file) for file in arguments.new]
    for has_peers in (False, True):
        of_a_sort = [result for result in results if _is_of_peers(result) is has_peers]
        if not of_a_sort:
            continue
        try:
            result = put_together(of_a_sort, [row.name for row in (PEER_ROWS if has_peers else ROWS)])
        except NotComparableError as error:
            print(f"error: {error}", file=sys.stderr)
            return _UNUSABLE
        missing = [] if has_peers else [row.name for row in ROWS if row.name not in result.rows]
        if missing:
            print(f"warning: these rows are missing, and cannot be compared: {', '.join(missing)}", file=sys.stderr)
        result.write(committed_file(result.machine, has_peers=has_peers))
    return _write_pages(arguments)


def _write_pages(_: argparse.Namespace) -> int:
    for file in pages.write():
        print(f"wrote {file}")
    return 0


def _list_rows(_: argparse.Namespace) -> int:
    for row in (*ROWS, *PEER_ROWS):
        print(f"{row.name:32} {row.title} [{row.unit}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
