"""What README and `--help` tell people to type is typed here, in a place like theirs."""

from __future__ import annotations

import re
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.command_line import CommandLine

if TYPE_CHECKING:
    from harness.s3_server import S3Server

_README = (Path(__file__).parent.parent / "README.md").read_text()
_SHELL_BLOCKS = re.findall(r"^```sh\n(.*?)^```$", _README, flags=re.MULTILINE | re.DOTALL)
_VERBS = ("now", "list", "show", "restore", "undo", "prune", "forget", "undelete", "completion")
_CONFIGURATION = """
[[databases]]
path = "instance/creditrobot.db"

[[stores]]
url = "backups"

[[stores]]
url = "s3://my-bucket/creditrobot"
"""


def _commands(text: str) -> list[list[str]]:
    """The lines that begin with `backupd`, split as a shell does, without comments and the name of the program."""
    lines = (line.strip() for line in text.splitlines())
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("backupd ")]


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
    """Run a command; where it would ask, somebody at a terminal says yes."""
    if command[0] in {"restore", "undo"} and not {"--to", "--yes", "--dry-run"} & set(command):
        finished = place.run_on_terminal(*command, answer="y\n", environ=environ)
        assert finished.code == 0, finished
    else:
        place.run(*command, expect=0, environ=environ)


@pytest.mark.parametrize("block", [block for block in _SHELL_BLOCKS if _commands(block)], ids=lambda block: block[:40])
def test_commands_of_readme_work_in_their_order(place: CommandLine, moto: S3Server, block: str) -> None:
    """A newcomer types them one after the other."""
    environ = _aws(moto)
    if "creditrobot" in block:
        _prepare_service(place, environ)
    for command in _commands(block):
        _type(place, command, environ)


def test_examples_of_every_help_work_in_their_order(place: CommandLine) -> None:
    """Somebody asks for help and tries what it shows, verb by verb."""
    helps = [place.run(verb, "--help", expect=0).stdout for verb in _VERBS]
    examples = [_commands(text) for text in helps]
    assert all(examples)
    for command in (each for of_verb in examples for each in of_verb):
        place.run(*command, expect=0)
    assert _commands(place.run("--help", expect=0).stdout)


def test_configuration_in_readme_is_valid(tmp_path: Path) -> None:
    """Copied as it stands."""
    (block,) = re.findall(r"^```toml\n(.*?)^```$", _README, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "backupd.toml").write_text(block)
    finished = CommandLine(tmp_path).run("now")
    assert finished.code == 13  # it is read, and /app/instance is not on this machine
    assert "/app/instance/creditrobot.db" in finished.stderr


def test_make_targets_of_readme_exist() -> None:
    """`make try` and its like are what the front page promises."""
    listed = subprocess.run(
        ["make", "help"], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )
    promised = set(re.findall(r"`?make (\w+)", "\n".join(_SHELL_BLOCKS)))
    assert {"try", "test"} <= promised <= set(re.findall(r"make (\w+)", listed.stdout))


def test_python_dash_m_is_the_same_program(tmp_path: Path) -> None:
    """Both ways of starting it answer alike."""
    script = Path(sys.executable).with_name("backupd")
    outputs = {
        subprocess.run([*command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for command in ([script], [sys.executable, "-m", "backupd"])
    }
    assert len(outputs) == 1
