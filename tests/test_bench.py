"""What benchmarks say of their figures: what got worse, what cannot be compared, and what the documentation quotes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from bench import pages
from bench.chart import draw
from bench.commits import committing, slowest_hundredth
from bench.comparing import NotComparableError, Verdict, compare, growth, put_together
from bench.machine import Machine
from bench.measuring import Quantity, cpu_seconds, descendant, directory_bytes
from bench.report import change_lines, figure_text, peer_lines, size_text, summary, tables, value_text
from bench.results import FAILURES, RATIO, USUAL_SCALE, Figure, Result, committed_file
from bench.rows import PEER_ROWS, ROWS
from bench.scene import Scene, Work
from bench.segments import INTERVALS, measure_stored_hour
from harness.checks import check_context
from harness.creditrobot import generate
from harness.long_history import write_long_history

from backupd.repository import Repository
from backupd.repository.moments import RestorePoint
from backupd.restore import restore_to_file
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from backupd.verify import Level, VerifyRequest, verify

if TYPE_CHECKING:
    from collections.abc import Mapping

_TESTS = Path(__file__).parent
_MACHINE = Machine(
    cores=2,
    cpu="AMD EPYC",
    memory_gb=25,
    kernel="6.1",
    python="3.11.7",
    sqlite="3.54.1",
    tools={"zstd": "1.5.4"},
    disk_mb_per_second=300,
    flush_ms=1.5,
    load=0.5,
)
_OTHER_MACHINE = replace(_MACHINE, cpu="Intel Xeon")


def _figure(
    *samples: float, unit: str = Quantity.SECONDS, pace: float | None = None, at_most: float | None = None
) -> Figure:
    return Figure(
        title="a row", group="One database", unit=unit, samples=samples, compared_with="", at_most=at_most, pace=pace
    )


def _result(machine: Machine = _MACHINE, size_bytes: int = 10**9, **rows: Figure) -> Result:
    scale = replace(USUAL_SCALE, size_bytes=size_bytes)
    return Result(machine=machine, scale=scale, rounds=3, date="2026-11-30T08:00:00+00:00", commit="abc", rows=rows)


def _verdict(before: Figure, after: Figure, machine: Machine = _MACHINE) -> Verdict:
    (change,) = compare(_result(row=before), _result(machine, row=after))
    return change.verdict


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (10.0, 11.49, Verdict.SAME),
        (10.0, 11.51, Verdict.WORSE),
        (10.0, 8.49, Verdict.BETTER),
        (10.0, 8.51, Verdict.SAME),
        (0.0, 0.0, Verdict.SAME),
        (0.0, 1.0, Verdict.WORSE),
        (1.0, 0.0, Verdict.BETTER),
    ],
)
def test_a_row_is_worse_from_15_percent_on(before, after, verdict):
    """More is worse for every unit, from a little more than 15 % on; also where there was nothing at all."""
    assert {_verdict(_figure(before, unit=unit), _figure(after, unit=unit)) for unit in _units()} == {verdict}


def _units() -> list[str]:
    """Units in which a difference of 1 counts."""
    too_small = {Quantity.STORED, Quantity.WRITTEN, Quantity.MEMORY}
    return [*(quantity.value for quantity in Quantity if quantity not in too_small), RATIO]


@pytest.mark.parametrize(
    ("unit", "before", "noise", "more"),
    [
        (Quantity.CPU, 0.05, 0.065, 0.08),
        (Quantity.WAIT, 0.001, 0.04, 0.06),
        (Quantity.STORED, 100, 4000, 5000),
        (Quantity.MEMORY, 5e6, 6.9e6, 7.1e6),
        (Quantity.SHARE, 0.1, 0.14, 0.16),
        (RATIO, 0.01, 0.025, 0.035),
    ],
)
def test_what_is_below_the_resolution_is_no_change(unit, before, noise, more):
    """A clock tick or a page is more than 15 % of a small figure, and says nothing."""
    assert _verdict(_figure(before, unit=unit), _figure(noise, unit=unit)) is Verdict.SAME
    assert _verdict(_figure(before, unit=unit), _figure(more, unit=unit)) is Verdict.WORSE


def test_failures_are_shares_and_any_more_of_them_is_worse():
    """One failure in ten is seen, where a median would be zero."""
    none, one = _figure(*[0.0] * 10, unit=FAILURES), _figure(*[0.0] * 9, 1.0, unit=FAILURES)
    assert one.value == pytest.approx(0.1)
    assert (_verdict(none, one), _verdict(one, none)) == (Verdict.WORSE, Verdict.BETTER)


def test_medians_are_compared_and_an_outlier_changes_nothing():
    """One slow sample of three is not the row."""
    assert _verdict(_figure(1.0, 1.0, 1.0), _figure(1.0, 9.0, 1.0)) is Verdict.SAME


def test_times_are_compared_at_one_speed_of_the_machine():
    """A machine that is slower today excuses slower times, and a faster one does not hide them."""
    before = _figure(10.0, pace=0.010)
    assert _verdict(before, _figure(13.0, pace=0.013)) is Verdict.SAME
    assert _verdict(before, _figure(16.0, pace=0.013)) is Verdict.WORSE
    assert _verdict(before, _figure(10.0, pace=0.007)) is Verdict.WORSE
    assert _verdict(before, _figure(10.0)) is Verdict.SAME
    # No such small computation is a reason for ten times as much.
    assert _verdict(before, _figure(100.0, pace=0.100)) is Verdict.WORSE


def test_another_scale_is_refused():
    """Figures of a small database say nothing of those of a large one."""
    with pytest.raises(NotComparableError, match="20000000"):
        compare(_result(row=_figure(1.0)), _result(size_bytes=20_000_000, row=_figure(1.0)))


def test_times_of_another_machine_are_shown_and_not_judged():
    """Bytes, memory and ratios are properties of the program; times belong to the machine."""
    for unit in _units():
        is_time = unit != RATIO and Quantity(unit).is_time
        verdict = _verdict(_figure(1.0, unit=unit), _figure(3.0, unit=unit), _OTHER_MACHINE)
        assert verdict is (Verdict.NOT_JUDGED if is_time else Verdict.WORSE), unit
    stored = _verdict(_figure(1e6, unit=Quantity.STORED), _figure(2e6, unit=Quantity.STORED, pace=9.0), _OTHER_MACHINE)
    assert stored is Verdict.WORSE


def test_rows_of_one_result_only_are_named_and_not_judged():
    """A row that was not measured is reported as that, and so is one that is new or has another unit now."""
    before = _result(gone=_figure(1.0), stays=_figure(1.0), other=_figure(1.0))
    after = _result(stays=_figure(1.0), other=_figure(9.0, unit=Quantity.CPU), fresh=_figure(1.0))
    verdicts = {change.name: change.verdict for change in compare(before, after)}
    assert verdicts == {
        "gone": Verdict.NOT_MEASURED,
        "stays": Verdict.SAME,
        "other": Verdict.NEW,
        "fresh": Verdict.NEW,
    }
    table = "\n".join(change_lines(compare(before, after)))
    assert "not measured now: gone" in table
    assert table.count("(`") == 3


def test_parts_of_a_run_are_put_together():
    """Later figures replace earlier ones, in the order of the report; other amounts or machines are refused."""
    parts = [_result(b=_figure(1.0), c=_figure(1.0)), _result(a=_figure(2.0), c=_figure(2.0))]
    rows = put_together(parts, ["a", "b", "c", "d"]).rows
    assert [(name, row.value) for name, row in rows.items()] == [("a", 2.0), ("b", 1.0), ("c", 2.0)]
    for other in (_result(size_bytes=1, d=_figure(1.0)), _result(_OTHER_MACHINE, d=_figure(1.0))):
        with pytest.raises(NotComparableError):
            put_together([*parts, other], ["a"])


def test_growth_is_allowed_by_size_and_memory_by_pages():
    """Ten times the database may take twelve times as long, and 40 bytes more of memory for each page."""
    small = _result(
        time=_figure(1.0),
        memory=_figure(100e6, unit=Quantity.MEMORY),
        ratio=_figure(0.5, unit=RATIO),
        only=_figure(1.0),
    )
    pages_more = 9 * 10**9 // 4096
    large = _result(
        size_bytes=10 * 10**9,
        time=_figure(12.1),
        memory=_figure(100e6 + 40 * pages_more, unit=Quantity.MEMORY),
        ratio=_figure(9.0, unit=RATIO),
    )
    assert [(each.name, each.is_reached) for each in growth(small, large, group="One database")] == [
        ("time", False),
        ("memory", True),
    ]
    assert growth(small, large, group="Many snapshots") == []


def test_a_result_is_the_same_after_it_was_written(tmp_path):
    """Numbers are rounded to four digits, and nothing else is lost."""
    result = _result(
        time=_figure(1.23456, 2.0, pace=0.0123456, at_most=1.2),
        stored=_figure(2_612_345, unit=Quantity.STORED),
        ratio=replace(_figure(0.5, unit=RATIO), compared_with="`zstd -d`"),
    )
    result.write(tmp_path / "some" / "result.json")
    read = Result.read(tmp_path / "some" / "result.json")
    assert read.rows["time"].samples == (1.235, 2.0)
    assert read.rows["time"].pace == 0.01235
    rows = {**result.rows, "time": read.rows["time"]}
    assert read == replace(result, rows=rows)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (123.4, Quantity.SECONDS, "123 s"),
        (0.00043, Quantity.WAIT, "0.00043 s"),
        (2_612_345, Quantity.STORED, "2.61 MB stored"),
        (0.0, Quantity.CPU, "0.00 s of CPU"),
        (0.024, RATIO, "0.02"),
        (0.1, FAILURES, "10%"),
        (0.0, Quantity.GAPS, "0 gaps"),
    ],
)
def test_figures_are_written_for_people(value, unit, text):
    """Three digits and a unit."""
    assert value_text(value, unit) == text


def test_sizes_are_written_with_three_digits():
    """From bytes to gigabytes."""
    sizes = (0, 999, 1000, 12_340, 398_000_000, 10**9, 10**10)
    assert [size_text(size) for size in sizes] == ["0 B", "999 B", "1 kB", "12.3 kB", "398 MB", "1 GB", "10 GB"]


def test_the_report_shows_ranges_and_which_targets_are_reached():
    """A target is reached up to its very value."""
    result = _result(fast=_figure(1.1, 1.2, 1.3, at_most=1.2), slow=_figure(1.21, at_most=1.2), free=_figure(9.0))
    report = "\n".join(tables(result))
    assert "| a row | 1.20 s (1.10 to 1.30) |  | 1.20 s | reached |" in report
    assert "| a row | 1.21 s |  | 1.20 s | **not reached** |" in report
    assert "| a row | 9.00 s |  |  |  |" in report
    assert summary(result) == "1 of 2 targets reached; not: slow."
    assert figure_text(_figure(1.0, 1.0)) == "1.00 s"


def test_ratios_are_taken_pair_by_pair():
    """The machine's speed changed between the rounds, and cancels."""
    row = next(row for row in ROWS if row.name == "first-ratio")
    works = {
        "first": Work({Quantity.SECONDS: [1.0, 4.0, 2.0]}, [0.01] * 3),
        "usual": Work({Quantity.SECONDS: [2.0, 8.0, 4.0]}),
    }
    figure = row.figure(works, USUAL_SCALE)
    assert (figure.samples, figure.unit, figure.pace) == ((0.5, 0.5, 0.5), RATIO, None)
    assert figure.at_most == 0.55


def test_a_row_whose_other_program_is_missing_is_left_out():
    """Without zstd there is no ratio, and still a time."""
    works = {"first": Work({Quantity.SECONDS: [1.0]}, [0.01])}
    figures = {row.name: row.figure(works, USUAL_SCALE) for row in ROWS if row.work == "first"}
    assert figures["first-ratio"] is None
    assert figures["first"].pace == 0.01


def test_targets_are_those_of_the_usual_amounts():
    """What 20 MB take is no success."""
    row = next(row for row in ROWS if row.name == "updates")
    works: Mapping[str, Work] = {"updates": Work({Quantity.SECONDS: [1.0]}, [0.01])}
    assert row.figure(works, USUAL_SCALE).is_reached is True
    assert row.figure(works, replace(USUAL_SCALE, size_bytes=20_000_000)).is_reached is None
    assert row.figure(works, replace(USUAL_SCALE, kept=10)).is_reached is True


def test_every_row_has_a_name_of_its_own():
    """Results are compared by names."""
    names = [row.name for row in (*ROWS, *PEER_ROWS)]
    assert len(names) == len(set(names))


def _peers() -> Result:
    numbers = {"": 2.0, "-cpu": 1.0, "-stored": 3e6, "-memory": 1e8}
    units = {"": Quantity.SECONDS, "-cpu": Quantity.CPU, "-stored": Quantity.STORED, "-memory": Quantity.MEMORY}
    rows = {}
    for tool, times in {"backupd": 1, "usual": 2, "litestream": 4}.items():
        for suffix, number in numbers.items():
            rows[f"first-{tool}{suffix}"] = _figure(number * times, number * times * 2, unit=units[suffix])
    return _result(**rows)


def test_the_table_of_tools_has_our_share_of_each():
    """Tools that were not installed have no column."""
    table = "\n".join(peer_lines(_peers()))
    assert table.splitlines()[0] == "| | | backupd | `.backup` + zstd -3 | Litestream |"
    assert "| first backup | time | 3.00 s | 6.00 s (0.50) | 12.0 s (0.25) |" in table
    assert "|  | bytes stored | 4.50 MB | 9 MB (0.50) | 18 MB (0.25) |" in table


def test_the_chart_is_the_same_for_the_same_figures_and_has_a_bar_for_each():
    """Well-formed XML, in which the longest bar of a panel is the largest figure."""
    chart = draw(_peers())
    assert chart == draw(_peers())
    bars = [float(bar.get("width")) for bar in ET.fromstring(chart).iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert bars == [37.5, 75.0, 150.0] * 3


def test_pages_and_chart_show_the_committed_figures():
    """`make bench-pages` has nothing left to write."""
    assert {file.name: file.read_text() == text for file, text in pages.contents().items()} == {
        "README.md": True,
        "operations.md": True,
        "benchmark.svg": True,
    }


def test_committed_figures_are_those_of_rows_at_the_usual_amounts():
    """Each file has the name of its machine, and no row that is not measured any more."""
    for rows, has_peers in ((ROWS, False), (PEER_ROWS, True)):
        files = [
            file for file in (_TESTS / "bench/results").glob("*.json") if file.stem.endswith("-peers") is has_peers
        ]
        assert files
        for file in files:
            result = Result.read(file)
            assert file == committed_file(result.machine, has_peers=has_peers)
            assert result.scale == USUAL_SCALE
            assert result.rows.keys() <= {row.name for row in rows}


@pytest.mark.parametrize(
    ("seconds", "size_bytes", "code", "says"),
    [
        (1.0, 10**9, 0, "no row got worse by more than 15%"),
        (2.0, 10**9, 1, "worse by more than 15%: row"),
        (1.0, 10**8, 2, "error: the results are of different amounts"),
    ],
)
def test_the_exit_code_of_a_comparison_says_what_happened(tmp_path, seconds, size_bytes, code, says):
    """0 for nothing worse, 1 for something, 2 for what cannot be compared."""
    _result(row=_figure(1.0)).write(tmp_path / "committed.json")
    _result(size_bytes=size_bytes, row=_figure(seconds)).write(tmp_path / "new.json")
    command = [sys.executable, "-m", "bench", "compare", "new.json", "--committed", "committed.json"]
    finished = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(_TESTS)}, check=False, capture_output=True, text=True
    )
    assert finished.returncode == code, finished
    assert says in finished.stdout + finished.stderr


def test_processor_time_includes_children_that_have_ended():
    """A process that waits for its child has its time too."""
    spin = "import time; end = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}]); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        assert cpu_seconds(process.pid) >= 0.2
        process.communicate("\n")


def test_a_process_is_found_by_its_module_among_the_descendants():
    """The daemon starts several, and the one that follows is measured by itself."""
    with subprocess.Popen(
        [sys.executable, "-c", "input()", "some.module"], stdin=subprocess.PIPE, text=True
    ) as process:
        assert descendant(os.getpid(), "some.module") == process.pid
        with pytest.raises(RuntimeError, match=r"no other\.module"):
            descendant(os.getpid(), "other.module")
        process.communicate("\n")


def test_an_application_commits_at_the_given_rate_and_says_when(tmp_path):
    """Each commit has its time, in their order, and the database is one in WAL mode."""
    database = tmp_path / "app.db"
    generate(database, size_bytes=1_500_000)
    began = time.time()
    with committing(database, 100) as application:
        time.sleep(0.5)
        commits = application.stop()
    times = [at for at, _ in commits]
    assert 1 < len(commits) <= (time.time() - began) * 100 + 10
    assert times == sorted(times)
    assert began <= times[0] <= times[-1] <= time.time()
    assert 0 < slowest_hundredth(commits) < time.time() - began
    assert [each.name for each in tmp_path.iterdir()] == ["app.db"]


def test_commits_of_a_log_are_read_whole_and_cost_little_more_than_their_pages(tmp_path):
    """What is measured as an hour of segments is what was committed, whichever parts the log was read in."""
    scene = Scene(tmp_path, replace(USUAL_SCALE, size_bytes=2_000_000), rounds=1)
    measure_stored_hour(scene)
    for interval in INTERVALS:
        work = f"follow-hour-{interval}s"
        (stored,), (least,) = (scene.works[each].samples[Quantity.STORED] for each in (work, f"{work}-least"))
        assert least < stored < 1.5 * least


def test_a_long_history_is_one_of_real_snapshots(tmp_path):
    """Each of them can be restored and is sound, they are as old as they say, and the database is the newest one."""
    database, ended_at = tmp_path / "app.db", datetime(2026, 11, 1, 12, tzinfo=UTC)
    ids = write_long_history(database, tmp_path / "store", 60, ended_at=ended_at, interval=timedelta(hours=1))
    repository = Repository(DirectoryStore(tmp_path / "store"), StateDirectory(tmp_path / "state"))
    manifests = repository.archive("app").history().manifests
    assert [manifest.id for manifest in manifests] == ids
    assert [manifest.sequence for manifest in manifests] == [*range(1, 61)]
    assert (ids[-1].taken_at, ids[0].taken_at) == (ended_at, ended_at - timedelta(hours=59))
    assert len({manifest.image_digest for manifest in manifests}) == 60
    found = verify([repository], VerifyRequest(wants_all=True, level=Level.PACKS), check_context())
    assert found.exit_code == 0
    for number in (0, 30, 59):
        target = tmp_path / f"restored-{number}.db"
        restore_to_file(
            RestorePoint(repository.archive("app"), repository.archive("app").manifest(ids[number])),
            target,
            force=False,
            as_source=False,
            on_progress=lambda _: None,
        )
        with closing(sqlite3.connect(target)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with closing(sqlite3.connect(database)) as live, closing(sqlite3.connect(target)) as restored:
        assert [*live.execute("SELECT * FROM documents")] == [*restored.execute("SELECT * FROM documents")]


def test_the_size_of_a_directory_is_that_of_its_files(tmp_path):
    """Nothing there is nothing stored."""
    assert directory_bytes(tmp_path / "missing") == 0
    (tmp_path / "some").mkdir()
    (tmp_path / "some/file").write_bytes(bytes(1234))
    assert directory_bytes(tmp_path) == 1234
