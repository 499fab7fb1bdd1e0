from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.command_line import wait_until, without_progress
from harness.extent import slow
from harness.loopback import loopback

if TYPE_CHECKING:
    from harness.command_line import CommandLine
    from harness.loopback import Handler, Request

SAYS = "error: interrupted\nhint: nothing half-done is listed or in place; the same command starts again\n"
LISTED_NOTHING = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false</IsTruncated></ListBucketResult>'
PROMPT_SECONDS = 5.0  # twice what cleaning up may take: the machine may be busy


@pytest.fixture
def big(cli: CommandLine) -> Path:
    """A database that takes seconds to compress at the highest level."""
    path = cli.directory / "big.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE blobs (content BLOB)")
        connection.executemany("INSERT INTO blobs VALUES (randomblob(?))", [(1_000_000,)] * 64)
    return path


def interrupt(process: subprocess.Popen[str], number: int, *, whole_group: bool = False) -> tuple[str, str]:
    """Send the signal, as the terminal does to the whole group; what was printed until the prompt end."""
    sent_at = time.monotonic()
    (os.killpg if whole_group else os.kill)(process.pid, number)
    try:
        stdout, stderr = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        pytest.fail(f"it still runs: {process.communicate()}")
    assert process.returncode == 130, (stdout, stderr)
    assert time.monotonic() - sent_at < PROMPT_SECONDS
    return stdout, without_progress(stderr)


def children(process: subprocess.Popen[str]) -> list[int]:
    """Processes that `process` has started."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:  # noqa: PTH123
        return [int(child) for child in file.read().split()]


def is_alive(child: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(child, 0)
    except ProcessLookupError:
        return False
    return True


def has_open(child: int, name: str) -> bool:
    """Whether the process has a file of this name open."""
    with suppress(FileNotFoundError):
        return any(link.readlink().name == name for link in Path(f"/proc/{child}/fd").iterdir())
    return False


def spools(cli: CommandLine) -> list[Path]:
    """What is left in the spool directory."""
    return list((cli.directory / "state/spool").glob("*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_interrupted_capture_leaves_nothing(cli: CommandLine, big: Path, number: signal.Signals) -> None:
    """An interrupted capture leaves no child, no spool and no snapshot, and two lines say so."""
    slow = {"BACKUPD_PACKS__COMPRESSION_LEVEL": "19"}
    with cli.started("now", "big.db", environ=slow) as process:
        wait_until(lambda: list((cli.directory / "state/spool").glob("*/*")))
        (child,) = children(process)
        stdout, stderr = interrupt(process, number, whole_group=True)
    assert (stdout, stderr) == ("", SAYS)
    wait_until(lambda: not is_alive(child))
    assert spools(cli) == []
    assert list(cli.directory.glob("backups/*/snapshots/*")) == []


def test_interrupt_while_the_child_starts_is_reported_once(cli: CommandLine) -> None:
    """Ctrl-C reaches every process of the terminal; only one of them reports it."""
    with closing(sqlite3.connect(cli.directory / "app.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("BEGIN EXCLUSIVE")  # so the child cannot have finished
        with cli.started("now", "app.db") as process:
            wait_until(lambda: children(process))
            assert interrupt(process, signal.SIGINT, whole_group=True) == ("", SAYS)
    assert spools(cli) == []


def test_interrupt_in_a_later_database_keeps_the_snapshots_before_it(cli: CommandLine) -> None:
    """The process that captured the databases before ends with the run, and they are not lost."""
    for name in ("first", "second"):
        cli.create_database(f"{name}.db", rows=2)
    with closing(sqlite3.connect(cli.directory / "locked.db", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (a)")
        connection.execute("BEGIN EXCLUSIVE")  # so the child cannot have finished
        with cli.started("now", "first.db", "second.db", "locked.db") as process:
            wait_until(lambda: any(has_open(child, "locked.db") for child in children(process)))
            (child,) = children(process)
            stdout, stderr = interrupt(process, signal.SIGINT, whole_group=True)
    assert [line.split()[0] for line in stdout.splitlines()] == ["first", "second"]
    assert stderr.endswith(SAYS)
    wait_until(lambda: not is_alive(child))
    assert spools(cli) == []


@slow
def test_interrupted_upload_that_hangs_ends_in_time(cli: CommandLine, big: Path) -> None:
    """Two stores that never answer cannot hold the process longer than one; JSON says the same."""

    def answer(handler: Handler, request: Request) -> None:
        if request.method == "PUT":
            handler.loopback.closing.wait()
        elif request.path.endswith("backupd.json"):
            handler.answer(200, b'{"format": 1, "repository": "0123456789abcdef"}')
        else:
            handler.answer(200, LISTED_NOTHING, Content_Type="application/xml")

    with loopback(answer) as server:
        buckets = {**s3_variables(server.endpoint_url, 0), **s3_variables(server.endpoint_url, 1)}
        with cli.started("now", "big.db", "--json", "--quiet", environ=buckets) as process:
            wait_until(lambda: len({request.path[:9] for request in server.requests if "/packs/" in request.path}) == 2)
            stdout, stderr = interrupt(process, signal.SIGTERM)
    assert '"exit_code": 130' in stdout
    assert stderr == ""
    assert spools(cli) == []


@pytest.mark.parametrize(
    ("arguments", "number"),
    [(("now", "app.db"), signal.SIGINT), (("list",), signal.SIGHUP)],
    ids=["now and Ctrl-C", "list and a closed terminal"],
)
def test_interrupt_ends_a_wait_for_a_store_that_never_answers(
    cli: CommandLine, arguments: tuple[str, ...], number: signal.Signals
) -> None:
    """The very first request hangs."""
    with (
        loopback(lambda handler, _: handler.loopback.closing.wait()) as server,
        cli.started(*arguments, environ=s3_variables(server.endpoint_url)) as process,
    ):
        wait_until(lambda: server.requests)
        assert interrupt(process, number) == ("", SAYS)
    assert spools(cli) == []


def test_interrupted_restore_leaves_no_file(cli: CommandLine, big: Path) -> None:
    """An interrupted restore leaves no file and no part of one."""
    cli.run("now", "big.db", expect=0)
    before = set(cli.directory.iterdir())
    with cli.started("restore", "latest", "--to", "out.db") as process:
        partial = cli.directory / ".out.db.backupd-partial"
        wait_until(lambda: any(file.stat().st_size for file in partial.glob("*")))
        assert interrupt(process, signal.SIGINT, whole_group=True) == ("", SAYS)
    assert set(cli.directory.iterdir()) == before


def s3_variables(endpoint_url: str, number: int = 0) -> dict[str, str]:
    """A configuration of one bucket there, as the store of that number."""
    keys = {"URL": f"s3://bucket-{number}", "ENDPOINT_URL": endpoint_url, "ACCESS_KEY_ID": "id"}
    return {f"BACKUPD_STORES__{number}__{key}": value for key, value in {**keys, "SECRET_ACCESS_KEY": "secret"}.items()}
