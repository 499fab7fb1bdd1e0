"""What the system gives no more of: threads and processes, open files, memory. Real limits on real processes."""

from __future__ import annotations

import itertools
import os
import resource
import signal
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine, Runner
from harness.confinement import shared_directory
from harness.daemon import wait_until
from harness.extent import in_parts, part_of, sampled, slow
from harness.place import change_rows, create_database
from harness.site import TOKEN, new_site

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.daemon import Daemon
    from harness.place import Place
    from harness.site import Site

_COMMANDS = (
    ("now", "app.db"),
    ("list",),
    ("verify",),
    ("doctor",),
    ("prune",),
    ("restore", "latest", "--to", "out.db"),
)


def _limited(runner: Runner, limit: str) -> Runner:
    return replace(runner, become=(*runner.become, "prlimit", limit, "--"))


@contextmanager
def _lowered(daemon: Daemon, kind: int, most: int) -> Iterator[None]:
    """Limit a resource of the daemon, and of what it starts, to `most` until the block ends."""
    before = resource.prlimit(daemon.process.pid, kind)
    resource.prlimit(daemon.process.pid, kind, (most, before[1]))
    try:
        yield
    finally:
        resource.prlimit(daemon.process.pid, kind, before)


@pytest.mark.parametrize("arguments", sampled(map(list, _COMMANDS), fast=2), ids=lambda arguments: arguments[0])
@pytest.mark.parametrize(
    ("limit", "reported"),
    [("--nofile=6", "limit of open files and connections"), ("--as=30000000", "no memory is left")],
)
def test_a_command_names_the_limit(place: Place, limit: str, reported: str, arguments: Sequence[str]) -> None:
    """A command that reaches a limit names it and says what to raise, and calls it no bug."""
    (place.home / "backupd.toml").write_text('[[databases]]\npath = "app.db"\n[[stores]]\nurl = "backups"\n')
    command = CommandLine(place.home, runner=_limited(Runner(), limit))
    code, said = _end_of(command, *arguments)
    assert code in {10, 11}, said
    assert reported in said
    assert ": raise the" in said
    assert "this is a bug" not in said


def _end_of(command: CommandLine, *arguments: str) -> tuple[int, str]:
    """The exit code of a command within a limit, and all that it printed: doctor prints what it finds to stdout.

    The kernel kills a process whose stack has to grow beyond the limit. That is no answer, so it is asked again.
    """
    for _ in range(3):
        process = command.start(*arguments)
        said = "".join(process.communicate(timeout=60))
        if process.returncode != -signal.SIGSEGV:
            break
    return process.returncode, said


@in_parts
def test_any_amount_of_memory_is_enough_to_report_that_it_is_not(place: Place, part: int) -> None:
    """Wherever the memory of a command ends, it says so: Python itself fails in odd ways, even while it reports."""
    (place.home / "backupd.toml").write_text('[[databases]]\npath = "app.db"\n[[stores]]\nurl = "backups"\n')
    for most in part_of(range(20_003_000, 34_000_000, 71_017), part):
        code, said = _end_of(CommandLine(place.home, runner=_limited(Runner(), f"--as={most}")), "now", "app.db")
        assert code in {10, 11}, (most, said)
        assert "no memory is left" in said or "no thread can be started" in said, (most, said)


@pytest.fixture
def site_of_other_user(other_user: Runner) -> Iterator[Site]:
    """A site of another user, because root has no limit of processes."""
    with shared_directory() as home:
        home.chmod(0o777)
        site = new_site(home, runner=other_user)
        for name in ("app", "users"):
            create_database(home / f"{name}.db", rows=10)
        site.configure("app.db", "users.db", http={"token": TOKEN})
        for file in home.iterdir():
            file.chmod(0o666)
        (home / "backupd.toml").chmod(0o644)  # one that others may write would be refused
        yield site


@slow
def test_a_command_without_threads_names_the_limit(site_of_other_user: Site, other_user: Runner) -> None:
    """A command that can start no process and no thread names the limit."""
    site_of_other_user.backupd.run("now")
    limited = CommandLine(site_of_other_user.home, runner=_limited(other_user, "--nproc=1"))
    for arguments in (("now",), ("list",), ("restore", "app@latest", "--to", "out.db")):
        failed = limited.run(*arguments, code=11)
        assert "can be started: " in failed.stderr
        assert "pids_limit" in failed.stderr


def test_a_daemon_without_files_says_so_and_goes_on(daemon: Daemon) -> None:
    """A request is refused with what is missing, and the same request is carried out when there are files again."""
    change_rows(daemon.site.home / "app.db", "changed")
    used = {int(each.name) for each in Path(f"/proc/{daemon.process.pid}/fd").iterdir()}
    first_free = next(number for number in itertools.count() if number not in used)
    with _lowered(daemon, resource.RLIMIT_NOFILE, first_free + 1):  # one for the connection
        refused = daemon.ask("/snapshots", body="database=app", token=TOKEN)
        assert refused.code == 503
        assert "limit of open files and connections" in refused.text
    assert daemon.ask("/snapshots", body="database=app", token=TOKEN).code == 200
    assert daemon.ask("/healthz").code == 200


@contextmanager
def _no_more_threads(daemon: Daemon) -> Iterator[None]:
    """Let the daemon start no thread and no process until the block ends; skips where there are no cgroups."""
    # With cgroups of version 1, and of version 2.
    parents = [Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")]
    parent = next((each for each in parents if os.access(each / "cgroup.procs", os.W_OK)), None)
    if parent is None:
        pytest.skip("cgroups cannot be changed here")
    group = parent / f"backupd-test-{daemon.process.pid}"
    group.mkdir()
    try:
        if not (group / "pids.max").exists():
            pytest.skip("the cgroups here do not limit processes")
        (group / "pids.max").write_text("1")
        (group / "cgroup.procs").write_text(str(daemon.process.pid))
        yield
    finally:
        (parent / "cgroup.procs").write_text(str(daemon.process.pid))
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_a_daemon_without_threads_says_so_and_goes_on(daemon: Daemon) -> None:
    """Health is answered by threads that are there; what could not begin is done when there are threads again."""
    for name in ("app", "users"):
        change_rows(daemon.site.home / f"{name}.db", "changed")
    with _no_more_threads(daemon):
        waits = daemon.ask("/snapshots", body="database=app", token=TOKEN)
        assert waits.code == 503
        assert "pids_limit" in waits.text
        assert daemon.ask("/snapshots", body="database=app&wait=false", token=TOKEN).code == 503
        assert daemon.metric("backupd_healthy") is not None
        position = daemon.run_again()
        daemon.wait_for("store not asked", after=position)
    for name in ("app", "users"):
        assert daemon.wait_for("snapshot", after=position, database=name, error=None)["outcome"] == "created"
