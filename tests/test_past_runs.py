"""The runs that are remembered: each attempt at a snapshot, for 90 days, and fewer of those that are older."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine
from harness.place import change_rows, create_database

from backupd.state import StateDirectory
from backupd.state.runs import Run, failed_runs, read_runs, record_runs

if TYPE_CHECKING:
    from collections.abc import Iterable

_NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
_QUARTER = timedelta(minutes=15)
_DAY = timedelta(days=1)


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    """A state directory that does not exist yet."""
    return StateDirectory(tmp_path / "state")


def run_at(started_at: datetime, outcome: str = "created", *, database: str = "app", store: str = "s3://bucket") -> Run:
    """A run at a time."""
    message = "the store is down" if outcome == "failed" else None
    return Run(database, store, started_at, 1.5, outcome, 3, 100, 4096, 5000, message)


def every_quarter(days: int, outcome: str = "created") -> list[Run]:
    """A run every quarter of an hour, for `days` until now."""
    return [run_at(_NOW - number * _QUARTER, outcome) for number in range(days * 96, -1, -1)]


def test_a_run_is_remembered_as_it_was(state: StateDirectory) -> None:
    """Another process finds every value of a run, and its time to the millisecond."""
    runs = [run_at(_NOW, "failed"), run_at(_NOW + _QUARTER)]
    record_runs(state, runs)
    assert read_runs(StateDirectory(state.root)) == runs


def test_failed_runs_are_those_of_one_database_in_one_store(state: StateDirectory) -> None:
    """The times of what failed come with the newest last, and damaged ones are left out."""
    record_runs(state, [run_at(_NOW, "failed"), run_at(_NOW - _QUARTER, "failed"), run_at(_NOW - _DAY)])
    record_runs(state, [run_at(_NOW, "failed", database="users"), run_at(_NOW, "failed", store="s3://other")])
    damaged = [(json.dumps(["app", "s3://bucket"]), at) for at in ("soon", 2**62, -1)]
    state.database.write(
        lambda connection: connection.executemany("INSERT INTO runs VALUES (?, ?, 'failed', '')", damaged)
    )
    assert failed_runs(state, "app", "s3://bucket") == [_NOW - _QUARTER, _NOW]
    assert failed_runs(state, "other", "s3://bucket") == []


def test_the_latest_runs_are_those_of_each_database_in_each_store(state: StateDirectory) -> None:
    """A limit counts for each database and store by itself, and the newest run comes last."""
    places = [("app", "s3://bucket"), ("app", "s3://other"), ("users", "s3://bucket")]
    times = [_NOW + number * _QUARTER for number in range(4)]
    record_runs(state, [run_at(each, database=name, store=store) for name, store in places for each in times])
    found = read_runs(state, latest=2)
    assert [(run.database, run.store, run.started_at) for run in found] == [
        (*place, each) for place in places for each in times[-2:]
    ]


def test_old_runs_are_thinned_and_forgotten_after_90_days(state: StateDirectory) -> None:
    """All of two days are kept, then the last of each hour, after two weeks that of each day, after 90 days none."""
    record_runs(state, every_quarter(100))
    times = [run.started_at for run in read_runs(state)]
    assert [each for each in times if each > _NOW - 2 * _DAY + timedelta(hours=1)] == [
        run.started_at for run in every_quarter(2)[5:]
    ]
    hourly = [each for each in times if _NOW - 13 * _DAY < each < _NOW - 3 * _DAY]
    assert len(hourly) == len({each.replace(minute=0) for each in hourly}) == 10 * 24
    assert {each.minute for each in hourly} == {45}
    daily = [each for each in times if each < _NOW - 16 * _DAY]
    assert len(daily) == len({each.date() for each in daily})
    assert {(each.hour, each.minute) for each in daily} == {(23, 45)}
    assert _NOW - 91 * _DAY < times[0] <= _NOW - 89 * _DAY


def test_thinning_keeps_the_last_of_each_outcome(state: StateDirectory) -> None:
    """One failure among many runs stays visible for as long as they do."""
    failed_at = _NOW - 30 * _DAY + timedelta(minutes=1)
    runs = sorted([*every_quarter(40), run_at(failed_at, "failed")], key=lambda run: run.started_at)
    record_runs(state, runs)
    assert [run.started_at for run in read_runs(state) if run.outcome == "failed"] == [failed_at]


def test_bytes_that_are_no_text_are_remembered(tmp_path: Path) -> None:
    """Paths of files need not be text, and neither need the errors that name them."""
    home = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff"))
    home.mkdir()
    command_line = configured(home, BACKUPD_STATE_DIR=str(tmp_path / "state"))
    command_line.run("now")
    (home / "app.db").write_bytes(b"no database" * 1000)
    assert "is not an SQLite database" in command_line.run("now", code=13).stderr
    (database,) = tmp_path.rglob(".state.db")
    found = read_runs(StateDirectory(database.parent))
    assert [run.outcome for run in found] == ["created", "failed"]
    assert {run.store for run in found} == {str(home / "backups")}


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE runs SET record = 'x'",
        "UPDATE runs SET record = zeroblob(4)",
        "UPDATE runs SET record = '[]'",
        "UPDATE runs SET record = replace(record, '[', '[[')",
        "UPDATE runs SET started_at = zeroblob(3)",
        "UPDATE runs SET started_at = 'never'",
    ],
)
def test_a_run_that_is_damaged_keeps_no_other_from_being_remembered(state: StateDirectory, damage: str) -> None:
    """The file is local memory: what is wrong in it costs no snapshot."""
    record_runs(state, [run_at(_NOW)])
    with closing(sqlite3.connect(state.root / ".state.db", isolation_level=None)) as connection:
        assert connection.execute(damage).rowcount == 1
    record_runs(state, [run_at(_NOW + 5 * _QUARTER)])
    assert read_runs(state)[-1] == run_at(_NOW + 5 * _QUARTER) or "started_at" in damage


def test_a_clock_that_goes_back_forgets_nothing(state: StateDirectory) -> None:
    """Runs that are dated later than now are kept, and so are those of now."""
    record_runs(state, [run_at(_NOW + 400 * _DAY), run_at(_NOW), run_at(_NOW + _QUARTER)])
    assert [run.started_at for run in read_runs(state)] == [_NOW, _NOW + _QUARTER, _NOW + 400 * _DAY]


def outcomes(command_line: CommandLine) -> list[dict[str, object]]:
    """The runs that `backupd status` shows, as JSON."""
    runs: list[dict[str, object]] = json.loads(command_line.run("status", "--runs", "--json").stdout)["runs"]
    return runs


def configured(tmp_path: Path, **variables: str) -> CommandLine:
    """A command line, with these variables, for one configured database in one directory store."""
    create_database(tmp_path / "app.db", rows=5)
    (tmp_path / "backupd.toml").write_text('[[databases]]\npath = "app.db"\n[[stores]]\nurl = "backups"\n')
    return CommandLine(tmp_path, **variables)


def test_commands_leave_their_runs_and_status_shows_them(tmp_path: Path) -> None:
    """A new snapshot, a run that found nothing new, and a failure with its reason are lines of `status --runs`."""
    command_line = configured(tmp_path)
    command_line.run("now")
    change_rows(tmp_path / "app.db", "changed")
    command_line.run("now")
    command_line.run("now")
    (tmp_path / "app.db").write_bytes(b"no database" * 1000)
    command_line.run("now", code=13)
    runs = outcomes(command_line)
    assert [run["outcome"] for run in runs] == ["created", "created", "unchanged", "failed"]
    first, second, _, failed = runs
    assert first["changed_pages"] == first["page_count"]
    assert 0 < int(str(second["changed_pages"])) < int(str(second["page_count"]))
    assert "app.db" in str(failed["message"])
    shown = command_line.run("status", "--runs").stdout
    assert f"app in {tmp_path / 'backups'}" in shown
    assert [line.split()[2] for line in shown.splitlines()[2:]] == ["created", "created", "unchanged", "failed"]
    assert str(failed["message"]) in shown


def test_runs_are_not_known_where_nothing_ran(tmp_path: Path) -> None:
    """Asking for runs makes no state directory."""
    command_line = configured(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert "no run is remembered" in command_line.run("status", "--runs").stdout
    assert outcomes(command_line) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_snapshot_counts_when_its_run_cannot_be_remembered(tmp_path: Path) -> None:
    """While another process holds the state database, the snapshot is taken, and the command says what is missing."""
    command_line = configured(tmp_path)
    command_line.run("now")
    (database,) = tmp_path.rglob(".state.db")
    change_rows(tmp_path / "app.db", "changed")
    with closing(sqlite3.connect(database, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        finished = command_line.run("now")
    assert "created" in finished.stdout
    assert "another process holds the state database" in finished.stderr
    assert [run["outcome"] for run in outcomes(command_line)] == ["created"]


@pytest.mark.parametrize("options", [("--check", "--runs"), ("--runs", "--check", "--json")])
def test_a_check_lists_no_runs(tmp_path: Path, options: Iterable[str]) -> None:
    """The two options of `status` exclude each other."""
    finished = configured(tmp_path).run("status", *options, code=2)
    assert "exclude each other" in finished.stdout + finished.stderr
