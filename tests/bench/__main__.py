"""Measure backupd against the usual method and print a table: `make bench`, or with options of its own.

    PYTHONPATH=tests python -m bench --size 1GB --rounds 3
    PYTHONPATH=tests python -m bench --idle-only --databases 1000
    PYTHONPATH=tests python -m bench --locks-only --size 1GB --rounds 3

Every command is a new process. The file cache is warm, for both methods alike; everything is flushed to the disk
before each measured command, so that none pays for what another wrote.
"""

# ruff: noqa: T201  (its report is what it is for)

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from harness.creditrobot import generate, parse_size, update_scattered

from bench.idle import IDLE_DATABASES, idle_lines, time_idle_databases
from bench.live import LiveFigures, live_lines, time_live_restores
from bench.locks import SITUATIONS, LockFigures, lock_lines, time_lock_waits, use_rollback_journal
from bench.machine import describe
from bench.methods import Backupd, Usual
from bench.processes import Series, peak_anonymous_bytes, timed

_UPDATES = 1000
_SNAPSHOTS_OF_HISTORY = 10
_HELP_RUNS = 15
_LEVELS = (1, 2, 3)
_MEMORY_TARGET_BYTES = 200 * 10**6
_MEMORY_TARGET_BYTES_PER_PAGE = 40


@dataclass(slots=True)
class Figures:
    """All that was measured."""

    usual: Series = field(default_factory=Series)
    usual_beside_levels: Series = field(default_factory=Series)
    first: Series = field(default_factory=Series)
    unchanged: Series = field(default_factory=Series)
    changed: Series = field(default_factory=Series)
    changed_in_history: Series = field(default_factory=Series)
    restored: Series = field(default_factory=Series)
    restored_from_history: Series = field(default_factory=Series)
    decompressed: Series = field(default_factory=Series)
    decompressed_after_history: Series = field(default_factory=Series)
    help: Series = field(default_factory=Series)
    by_level: dict[int, Series] = field(default_factory=dict)
    stored_by_level: dict[int, int] = field(default_factory=dict)
    peak_by_level: dict[int, int] = field(default_factory=dict)
    changed_bytes: list[int] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)
    live: dict[str, LiveFigures] = field(default_factory=dict)
    locks: dict[str, LockFigures] = field(default_factory=dict)
    page_count: int = 0
    usual_bytes: int = 0


class Bench:
    """One database in a scratch directory, and what is done to it again and again."""

    def __init__(self, scratch: Path, size_bytes: int, rounds: int) -> None:
        self.figures = Figures()
        self._scratch = scratch
        self._size_bytes = size_bytes
        self._rounds = rounds
        self._database = scratch / "creditrobot.db"
        self._target = scratch / "restored.db"
        self._usual = Usual(scratch / "usual")
        self._has_usual = Usual.has_zstd()
        self._updates = 0
        _tell(f"making a database of {size_bytes / 1e6:.0f} MB")
        generate(self._database, size_bytes=size_bytes)

    def run(self) -> None:
        """Measure everything."""
        self._time_help()
        for number in range(1, self._rounds + 1):
            _tell(f"round {number} of {self._rounds}")
            backupd = Backupd(self._scratch / "backupd")
            backupd.remove()
            self._time_round(backupd, usual_goes_first=number % 2 == 0)
        self._time_history(backupd)
        self._measure_memory(backupd)
        self._compare_levels()
        self._time_live_restores()
        self.time_lock_waits()

    def time_lock_waits(self) -> None:
        """Measure how long writers wait for a snapshot; leaves the database in rollback-journal mode."""
        use_rollback_journal(self._database)
        backupd = Backupd(self._scratch / "backupd")
        for situation in SITUATIONS:
            _tell(f"snapshots in rollback-journal mode, {situation.name}")
            self.figures.locks |= time_lock_waits(self._database, backupd, situation, self._rounds)
        backupd.remove()

    def _time_help(self) -> None:
        backupd = Backupd(self._scratch / "backupd")
        for _ in range(_HELP_RUNS):
            self.figures.help.runs.append(timed([backupd.program, "--help"], backupd.environment))

    def _time_round(self, backupd: Backupd, *, usual_goes_first: bool) -> None:
        """The first snapshot, a restore, nothing new, and 1,000 updates; the usual method before or after."""
        if usual_goes_first:
            self._time_usual(self.figures.usual)
        self.figures.first.runs.append(timed(backupd.backup(self._database), backupd.environment))
        if not usual_goes_first:
            self._time_usual(self.figures.usual)
        self.figures.restored.runs.append(timed(backupd.restore(self._target), backupd.environment))
        self._time_decompression(self.figures.decompressed)
        self.figures.unchanged.runs.append(timed(backupd.backup(self._database), backupd.environment))
        self._snapshot_after_updates(backupd, self.figures.changed)

    def _time_history(self, backupd: Backupd) -> None:
        """Ten snapshots of 1,000 updates, the last round's included; then restores of the newest."""
        _tell(f"{_SNAPSHOTS_OF_HISTORY} snapshots of {_UPDATES} updates each")
        for _ in range(_SNAPSHOTS_OF_HISTORY - 1):
            self._snapshot_after_updates(backupd, self.figures.changed_in_history)
        self._time_usual(Series())
        for _ in range(self._rounds):
            self.figures.restored_from_history.runs.append(timed(backupd.restore(self._target), backupd.environment))
            self._time_decompression(self.figures.decompressed_after_history)

    def _measure_memory(self, backupd: Backupd) -> None:
        """In runs of their own: looking at /proc all the time slows a command down."""
        _tell("memory")
        peaks = self.figures.peaks
        peaks["restore after ten snapshots"] = self._peak(backupd.restore(self._target), backupd)
        update_scattered(self._database, _UPDATES, seed=self._next_seed())
        peaks["snapshot after 1,000 updates"] = self._peak(backupd.backup(self._database), backupd)
        backupd.remove()
        peaks["first snapshot"] = self._peak(backupd.backup(self._database), backupd)
        peaks["restore"] = self._peak(backupd.restore(self._target), backupd)
        self._target.unlink()
        self.figures.page_count = backupd.snapshots()[-1]["page_count"]
        backupd.remove()

    def _compare_levels(self) -> None:
        """First snapshots at several compression levels, each round beside the usual method."""
        figures = self.figures
        figures.by_level = {level: Series() for level in _LEVELS}
        for number in range(1, self._rounds + 1):
            _tell(f"compression levels, round {number} of {self._rounds}")
            self._time_usual(figures.usual_beside_levels)
            for level, series in figures.by_level.items():
                backupd = Backupd(self._scratch / "backupd", level)
                series.runs.append(timed(backupd.backup(self._database), backupd.environment))
                figures.stored_by_level[level] = backupd.snapshots()[-1]["stored_bytes"]
                backupd.remove()
        for level in _LEVELS:
            backupd = Backupd(self._scratch / "backupd", level)
            figures.peak_by_level[level] = self._peak(backupd.backup(self._database), backupd)
            backupd.remove()

    def _time_live_restores(self) -> None:
        """How long an application waits."""
        _tell("live restores")
        backupd = Backupd(self._scratch / "backupd")
        self.figures.live = time_live_restores(self._scratch, backupd, self._size_bytes, self._rounds)
        backupd.remove()

    def _snapshot_after_updates(self, backupd: Backupd, series: Series) -> None:
        update_scattered(self._database, _UPDATES, seed=self._next_seed())
        series.runs.append(timed(backupd.backup(self._database), backupd.environment))
        self.figures.changed_bytes.append(backupd.snapshots()[-1]["stored_bytes"])

    def _time_usual(self, series: Series) -> None:
        if self._has_usual:
            series.runs.append(timed(self._usual.backup(self._database), Backupd(self._scratch).environment))
            self.figures.usual_bytes = self._usual.archive.stat().st_size

    def _time_decompression(self, series: Series) -> None:
        if self._has_usual:
            self._target.unlink(missing_ok=True)
            series.runs.append(timed(self._usual.restore(self._target), Backupd(self._scratch).environment))

    def _next_seed(self) -> int:
        self._updates += 1
        return self._updates

    @staticmethod
    def _peak(command: list[str | Path], backupd: Backupd) -> int:
        return peak_anonymous_bytes(command, backupd.environment)


def _print_report(figures: Figures, size_bytes: int, rounds: int) -> None:
    print(f"\nA database of {size_bytes / 1e6:.0f} MB, {rounds} rounds: medians with their range; ratios pair by pair.")
    print("The file cache is warm; everything written is flushed to the disk.")
    if figures.usual.runs:
        print(f"The usual method: {Usual.description()}: {figures.usual}, {figures.usual_bytes / 1e6:.0f} MB kept.")
    else:
        print("No comparison with the usual method: the program zstd is missing (Debian: apt install zstd sqlite3).")
    print("\n| what | backupd | CPU | compared with | ratio | at most | |")
    print("|---|---|---|---|---|---|---|")
    usual, unpacked, after = figures.usual, figures.decompressed, figures.decompressed_after_history
    _print_ratio("first snapshot", figures.first, usual, "the usual method", 0.6)
    _print_ratio("snapshot after 1,000 scattered updates", figures.changed, usual, "the usual method", 0.2)
    _print_ratio("snapshot of nothing new", figures.unchanged, usual, "the usual method", None)
    _print_ratio("restore", figures.restored, unpacked, "`zstd -d`", 1.1)
    _print_ratio("restore after ten snapshots", figures.restored_from_history, after, "`zstd -d`", 1.1)
    _print_bound("`backupd --help`", figures.help.seconds, "s", 0.3, str(figures.help))
    stored = max(figures.changed_bytes) / 1e6
    spread = f"{min(figures.changed_bytes) / 1e6:.2f}-{stored:.2f} MB"
    _print_bound("stored after 1,000 scattered updates", stored, "MB", 4, spread)
    target = (_MEMORY_TARGET_BYTES + _MEMORY_TARGET_BYTES_PER_PAGE * figures.page_count) / 1e6
    for what, peak in figures.peaks.items():
        _print_bound(f"anonymous memory, {what}", peak / 1e6, "MB", target, f"{peak / 1e6:.0f} MB")
    print("\n| first snapshot at zstd level | time | CPU | ratio to the usual method | stored | memory |")
    print("|---|---|---|---|---|---|")
    for level, series in figures.by_level.items():
        ratio = f"{series.ratio_to(figures.usual_beside_levels):.2f}" if usual.runs else ""
        stored, peak = figures.stored_by_level[level] / 1e6, figures.peak_by_level[level] / 1e6
        print(f"| {level} | {series} | {series.cpu_seconds:.2f} s | {ratio} | {stored:.0f} MB | {peak:.0f} MB |")
    print("\n" + "\n".join(live_lines(figures.live, size_bytes)))
    print("\n" + "\n".join(lock_lines(figures.locks, size_bytes)))


def _print_ratio(what: str, ours: Series, theirs: Series, name: str, target: float | None) -> None:
    if not theirs.runs:
        print(f"| {what} | {ours} | {ours.cpu_seconds:.2f} s | | | {target or ''} | |")
        return
    ratio = ours.ratio_to(theirs)
    compared = f"{name}: {theirs}, CPU {theirs.cpu_seconds:.2f} s"
    verdict = f"{ratio:.2f} | {target or ''} | {_verdict(ratio, target)}"
    print(f"| {what} | {ours} | {ours.cpu_seconds:.2f} s | {compared} | {verdict} |")


def _print_bound(what: str, value: float, unit: str, target: float, shown: str) -> None:
    print(f"| {what} | {shown} | | | | {target:.3g} {unit} | {_verdict(value, target)} |")


def _verdict(value: float, target: float | None) -> str:
    if target is None:
        return ""
    return "PASS" if value <= target else "over"


def _tell(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure backupd against the usual method.")
    parser.add_argument("--size", type=parse_size, default="1GB", help="of the database (default: 1GB)")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is done (default: 3)")
    parser.add_argument("--databases", type=int, default=IDLE_DATABASES, help="how many are idle (default: 1000)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--idle-only", action="store_true", help="measure idle databases and nothing else")
    only.add_argument("--locks-only", action="store_true", help="measure waits for the lock and nothing else")
    parser.add_argument("--scratch", type=Path, default=None, help="where to work; needs five times the size")
    arguments = parser.parse_args()
    if arguments.scratch is not None:
        arguments.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="backupd-bench-", dir=arguments.scratch) as name:
        for line in describe(Path(name)):
            print(line, flush=True)
        if arguments.locks_only:
            bench = Bench(Path(name), arguments.size, arguments.rounds)
            bench.time_lock_waits()
            print("\n" + "\n".join(lock_lines(bench.figures.locks, arguments.size)))
            return
        if not arguments.idle_only:
            bench = Bench(Path(name), arguments.size, arguments.rounds)
            bench.run()
            _print_report(bench.figures, arguments.size, arguments.rounds)
        _tell(f"{arguments.databases} idle databases")
        idle = time_idle_databases(Path(name), arguments.databases)
        print("\n" + "\n".join(idle_lines(idle, arguments.databases)))


if __name__ == "__main__":
    main()
