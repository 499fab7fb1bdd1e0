"""What README, the pages and `--help` tell people to type is typed here, in a place like theirs."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.command_line import CommandLine
from harness.pages import DOCS, PAGES, README, blocks, blocks_of, commands, inline_commands, section

from backupd.cli.verbs import backupd

if TYPE_CHECKING:
    from harness.s3_server import S3Server

_SHELL_BLOCKS = [
    *blocks(README, "sh"),
    *blocks_of(section(DOCS / "configuration.md", "## Rotation"), "sh"),
    *blocks_of(section(DOCS / "operations.md", "## Looking at what is stored"), "sh"),
]
# In the order in which a user may try them: `keygen` makes the key that `verify` shows, `init` what `doctor` needs.
_VERBS = (
    "keygen",
    "now",
    "list",
    "status",
    "show",
    "report",
    "verify",
    "restore",
    "undo",
    "prune",
    "forget",
    "undelete",
    "init",
    "doctor",
    "completion",
)
_MOMENT = re.compile(r"@14:02$")
_CONFIGURATION = """
[[databases]]
path = "instance/creditrobot.db"

[[stores]]
url = "backups"

[[stores]]
url = "s3://my-bucket/creditrobot"
"""


@pytest.fixture
def place(tmp_path: Path, moto: S3Server) -> CommandLine:
    """A directory with app.db, and a service with two snapshots of its database in two stores."""
    client = moto.client()
    if not any(bucket["Name"] == "my-bucket" for bucket in client.list_buckets()["Buckets"]):
        client.create_bucket(Bucket="my-bucket")
    place = CommandLine(tmp_path)
    place.create_database("app.db", rows=20)
    return place


def _aws(moto: S3Server) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": moto.endpoint_url,
        "AWS_ACCESS_KEY_ID": moto.access_key_id,
        "AWS_SECRET_ACCESS_KEY": moto.secret_access_key,
    }


def _prepare_service(place: CommandLine, environ: dict[str, str]) -> None:
    database = place.create_database("instance/creditrobot.db", rows=20)
    (place.directory / "backupd.toml").write_text(_CONFIGURATION)
    place.run("now", "--tag", "before-upgrade", expect=0, environ=environ)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DELETE FROM users")
    place.run("now", expect=0, environ=environ)


def _type(place: CommandLine, command: list[str], environ: dict[str, str]) -> None:
    """Run a command; where it would ask, the answer at a terminal is yes.

    A moment before the rows were lost is that of the snapshot before they were.
    """
    command = [_MOMENT.sub("@before-upgrade", word) for word in command]
    if command[0] in {"restore", "undo", "recover"} and not {"--to", "--yes", "--dry-run"} & set(command):
        finished = place.run_on_terminal(*command, answer="y\n", environ=environ)
        assert finished.code == 0, finished
    else:
        place.run(*command, expect=0, environ=environ)


def _accept(command: list[str]) -> None:
    """Have the command line parsed as `backupd` does it, and nothing done. Raises what click raises."""
    verb, *arguments = command
    with backupd.make_context("backupd", [verb]) as context:
        _, parsed, _ = backupd.resolve_command(context, [verb])
        assert parsed is not None
        with parsed.make_context(verb, arguments):
            pass


@pytest.mark.parametrize("block", [block for block in _SHELL_BLOCKS if commands(block)], ids=lambda block: block[:40])
def test_commands_of_pages_work_in_their_order(place: CommandLine, moto: S3Server, block: str) -> None:
    """The commands of README, and of the sections about what they do to a store, work in their order."""
    environ = _aws(moto)
    if "creditrobot" in block:
        _prepare_service(place, environ)
    for command in commands(block):
        _type(place, command, environ)


def test_examples_of_every_help_work_in_their_order(place: CommandLine) -> None:
    """The examples in the help of each verb, in their order."""
    helps = [place.run(verb, "--help", expect=0).stdout for verb in _VERBS]
    examples = [commands(text) for text in helps]
    assert all(examples)
    for command in (each for of_verb in examples for each in of_verb):
        place.run(*command, expect=0)
    assert commands(place.run("--help", expect=0).stdout)


def test_examples_of_what_does_not_end_are_accepted(place: CommandLine) -> None:
    """`backupd run` goes on until it is stopped: what it is to be given is all that can be tried."""
    examples = commands(place.run("run", "--help", expect=0).stdout)
    assert examples
    for command in examples:
        _accept(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_every_page_are_accepted(page: Path) -> None:
    """Every command on a page, even in Compose and Kubernetes, has options that exist and all its arguments."""
    found = [command for block in blocks(page, "sh") for command in commands(block, anywhere=True)]
    for command in [*found, *inline_commands(page)]:
        _accept(command)


def test_configuration_in_readme_is_valid(tmp_path: Path) -> None:
    """Copied as it stands."""
    (block,) = blocks(README, "toml")
    (tmp_path / "backupd.toml").write_text(block)
    finished = CommandLine(tmp_path).run("now")
    assert finished.code == 13  # it is read, and /app/instance is not on this machine
    assert "/app/instance/creditrobot.db" in finished.stderr


def test_lines_that_switch_sqlalchemy_to_wal_do(tmp_path: Path) -> None:
    """The page's lines for SQLAlchemy switch the file to WAL mode for every program."""
    (code,) = [block for block in blocks(DOCS / "configuration.md", "python") if "journal_mode" in block]
    path = tmp_path / "app.db"
    use = f"import sqlalchemy; sqlalchemy.create_engine('sqlite:///{path}').connect().exec_driver_sql('SELECT 1')"
    subprocess.run([sys.executable, "-c", f"{code}\n{use}"], check=True)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_lines_that_keep_a_connection_open_keep_the_log(tmp_path: Path) -> None:
    """With the page's lines, closing another connection does not remove the log, and without them it does."""
    (code,) = [block for block in blocks(DOCS / "following.md", "python") if "keep_log" in block]
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    others = f"""
import os, sqlite3
connection = sqlite3.connect({str(path)!r})
connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
connection.close()
print(os.path.exists({str(path) + "-wal"!r}))
"""
    engine = f"create_engine('sqlite:///{path}', poolclass=NullPool)"
    kept = f"from sqlalchemy import NullPool, create_engine\nengine = {engine}\n{code}"
    for before, is_kept in (("", "False"), (kept, "True")):
        command = [sys.executable, "-c", f"{before}\n{others}"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{is_kept}\n"


def test_make_targets_of_readme_exist() -> None:
    """`make try` and its like are what the front page promises."""
    listed = subprocess.run(
        ["make", "help"], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )
    promised = set(re.findall(r"`?make ([a-z-]+)", "\n".join(_SHELL_BLOCKS)))
    promised |= set(re.findall(r"`make ([a-z-]+)", README.read_text()))
    assert {"try", "test"} <= promised <= set(re.findall(r"make ([a-z-]+)", listed.stdout))


def test_python_dash_m_is_the_same_program(tmp_path: Path) -> None:
    """The script and `python -m backupd` print the same version."""
    script = Path(sys.executable).with_name("backupd")
    outputs = {
        subprocess.run([*command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for command in ([script], [sys.executable, "-m", "backupd"])
    }
    assert len(outputs) == 1
