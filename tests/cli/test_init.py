from __future__ import annotations

import os
import pty
import select
import stat
import subprocess
import tomllib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from harness.command_line import COMMAND

if TYPE_CHECKING:
    from pathlib import Path

    from harness.command_line import CommandLine
    from harness.s3_server import S3Server

_CONFIG = ("--config", "backupd.toml")


def _written(cli: CommandLine, name: str = "backupd.toml") -> dict[str, Any]:
    return tomllib.loads((cli.directory / name).read_text())


def _typed(cli: CommandLine, arguments: tuple[str, ...], answers: dict[str, str]) -> str:
    """Run a command to its good end on a terminal, and type each answer when its question is there; what was shown.

    What is typed before a secret is asked for, the terminal throws away.
    """
    ours, theirs = pty.openpty()
    environment = {**cli.environment, "TERM": "dumb"}
    shown, waiting = "", dict(answers)
    with subprocess.Popen(
        [*COMMAND, *arguments], cwd=cli.directory, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        with suppress(OSError):  # the end of a terminal
            while select.select([ours], [], [], 30)[0] and (block := os.read(ours, 4096)):
                shown += block.decode()
                question = next(iter(waiting), None)
                if question is not None and question in shown and shown.endswith(": "):
                    os.write(ours, f"{waiting.pop(question)}\n".encode())
        os.close(ours)
    assert process.returncode == 0, shown
    assert not waiting
    return shown


def test_without_a_terminal_nothing_is_asked(cli: CommandLine) -> None:
    """Everything that is found is taken, the file is valid, and doctor has run."""
    cli.create_database("tenants/a/data.db", rows=1)
    cli.create_database("tenants/b/data.db", rows=1)
    finished = cli.run("init", *_CONFIG, expect=0)
    assert finished.lines[0] == (
        f"wrote {cli.directory}/backupd.toml: 3 databases in 2 entries  -> {cli.directory}/backups"
    )
    assert "database app" in finished.lines
    assert _written(cli)["databases"] == [
        {"path": f"{cli.directory}/app.db"},
        {"path": f"{cli.directory}/tenants/*/data.db"},
    ]
    assert {line.split()[0] for line in cli.run("now", expect=0).lines} == {"app", "a", "b"}


def test_json_has_what_was_written_and_checked(cli: CommandLine) -> None:
    """`init --json` prints one document with what was written and what doctor found."""
    document = cli.run("init", ".", *_CONFIG, "--store", "other", "--json", expect=0).document
    assert set(document) == {"config", "checks"}
    assert document["config"] == {
        "path": f"{cli.directory}/backupd.toml",
        "databases": [{"path": f"{cli.directory}/app.db", "name": None, "files": [f"{cli.directory}/app.db"]}],
        "stores": [f"{cli.directory}/other"],
        "skipped": [],
    }
    assert {check["subject"] for check in document["checks"]} >= {"configuration", "database app"}


def test_options_replace_search_and_questions(cli: CommandLine) -> None:
    """With all options, `init` searches nothing and asks nothing."""
    cli.create_database("other.db", rows=1)
    cli.run(
        *("init", *_CONFIG, "--database", "app.db", "--store", "a", "--store", "./b", "--store", "a"),
        *("--snapshots", "0 3 * * *", "--time-zone", "Europe/Berlin"),
        expect=0,
    )
    assert _written(cli) == {
        "databases": [{"path": f"{cli.directory}/app.db"}],
        "stores": [{"url": f"{cli.directory}/a"}, {"url": f"{cli.directory}/b"}],
        "schedule": {"snapshots": "0 3 * * *", "time_zone": "Europe/Berlin"},
    }


def test_the_secret_of_a_bucket_is_private(cli: CommandLine, moto: S3Server) -> None:
    """The secret comes from a file, goes into one that only its owner can read, and is not printed."""
    (cli.directory / "secret").write_text(f"{moto.secret_access_key}\n")
    url = f"s3://{moto.new_bucket()}/app"
    finished = cli.run(
        *("init", *_CONFIG, "--store", url, "--endpoint-url", moto.endpoint_url),
        *("--access-key-id", moto.access_key_id, "--secret-access-key-file", "secret"),
        expect=0,
    )
    assert moto.secret_access_key not in finished.stdout + finished.stderr
    assert _written(cli)["stores"][0]["secret_access_key"] == moto.secret_access_key
    assert stat.S_IMODE((cli.directory / "backupd.toml").stat().st_mode) == 0o600
    assert f"-> {url}" in cli.run("now", expect=0).stdout


def test_init_writes_into_the_current_directory(cli: CommandLine) -> None:
    """`init` writes into the current directory, even as root, and says from where commands find the file."""
    finished = cli.run("init", expect=0)
    file = cli.directory / "backupd.toml"
    assert finished.lines[0].startswith(f"wrote {file}: ")
    assert (
        f"hint: commands started in {cli.directory} find this configuration, others with --config {file}"
        in finished.stderr
    )
    cli.run("now", "app", expect=0)
    assert cli.run("init", expect=2).stderr.startswith(f"error: {file} exists already")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_root_neither_writes_nor_reads_the_configuration_of_another_user(cli: CommandLine) -> None:
    """Root replaces another user's configuration by one of its own, without the names in it."""
    file = cli.directory / "backupd.toml"
    file.write_text("[[databases]]\nname = 'app'\npath = '/elsewhere.db'\n")
    os.chown(file, 4711, 4711)
    os.chown(cli.directory, 4711, 4711)
    cli.run("init", "--force", expect=0)
    assert file.stat().st_uid == 0
    assert _written(cli)["databases"] == [{"path": f"{cli.directory}/app.db"}]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--store", "ftp://host"), "'ftp:' is not a kind of store"),
        (("--snapshots", "every blue moon"), "every blue moon"),
        (("--time-zone", "Europe/Berln"), "Europe/Berln"),
        (("--store", "s3://bucket/x", "--endpoint-url", "s3.example.org"), "URL of the service must be an http:// or"),
        (("--store", "s3://bucket/x", "--access-key-id", "KEY"), "need each other"),
        (("--store", "s3://bucket/x", "--secret-access-key-file", "nowhere"), "cannot be read from nowhere"),
        (("--database", "a/**/b.db"), "'**' is not supported"),
        (("empty",), "no SQLite database was found below"),
        (("state",), "is where backupd keeps files of its own"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_written(
    cli: CommandLine, arguments: tuple[str, ...], expected: str
) -> None:
    """An impossible request is one error with a hint, and no file is written."""
    (cli.directory / "empty").mkdir()
    cli.create_database("state/restored.db", rows=1)
    finished = cli.run("init", *arguments, *_CONFIG, expect=2)
    assert finished.stderr.startswith("error: ")
    assert expected in finished.stderr.splitlines()[0]
    assert "\nhint: " in finished.stderr
    assert not list(cli.directory.glob("*backupd.toml*"))


def test_an_existing_file_stays_without_force(cli: CommandLine) -> None:
    """The refusal comes before the first question."""
    (cli.directory / "backupd.toml").write_text("# precious\n")
    finished = cli.run("init", *_CONFIG, expect=2)
    assert "exists already" in finished.stderr
    assert "--force" in finished.stderr
    assert (cli.directory / "backupd.toml").read_text() == "# precious\n"
    cli.run("init", *_CONFIG, "--force", expect=0)
    assert _written(cli)["databases"]


def test_the_exit_code_is_that_of_doctor(cli: CommandLine) -> None:
    """The file is written anyway, because it says what was requested."""
    (cli.directory / "in-the-way").touch()
    cli.run("init", *_CONFIG, "--store", "in-the-way/backups", expect=10)
    assert _written(cli)["stores"]


def test_questions_are_asked_on_a_terminal(cli: CommandLine) -> None:
    """Directory, databases, stores and schedule; after a wrong answer the question is asked again."""
    cli.create_database("b/b.db", rows=1)
    cli.create_database("c/c.db", rows=1)
    answers = ".\n1,9\n1,3\nftp://x\n./disk\n\nevery 5 bananas\nevery 5m\n"
    finished = cli.run_on_terminal("init", *_CONFIG, answer=answers)
    assert finished.code == 0, finished
    assert "'1,9' is not a list of numbers from 1 to 3" in finished.stdout
    assert _written(cli) == {
        "databases": [{"path": f"{cli.directory}/app.db"}, {"path": f"{cli.directory}/c/c.db"}],
        "stores": [{"url": f"{cli.directory}/disk"}],
        "schedule": {"snapshots": "every 5m"},
    }


def test_a_pattern_is_shown_with_the_names_that_it_gives(cli: CommandLine) -> None:
    """Wherever the paths differ."""
    for tenant in ("acme", "beta"):
        cli.create_database(f"multi/{tenant}/data/app.db", rows=1)
    finished = cli.run_on_terminal(
        *("init", "multi", *_CONFIG, "--store", "disk", "--snapshots", "@hourly"), answer="all\n"
    )
    assert finished.code == 0, finished
    assert f"{cli.directory}/multi/*/data/app.db (2 files: acme, beta)" in finished.stdout


def test_databases_are_chosen_by_ranges_of_numbers(cli: CommandLine) -> None:
    """Databases are chosen by numbers and ranges; after an invalid range the question is asked again."""
    for number in range(1, 7):
        cli.create_database(f"d{number}/f{number}.db", rows=1)
    answers = "3-1\n0-2\n1-99\n1,-3\n1, 3 - 5,4,7\n"
    finished = cli.run_on_terminal(
        *("init", ".", *_CONFIG, "--store", "disk", "--snapshots", "@hourly"), answer=answers
    )
    assert finished.code == 0, finished
    assert finished.stdout.count("is not a list of numbers from 1 to 7") == 4
    names = [entry["path"].rpartition("/")[2] for entry in _written(cli)["databases"]]
    assert names == ["app.db", "f2.db", "f3.db", "f4.db", "f6.db"]


def test_a_wrong_option_is_refused_before_questions(cli: CommandLine) -> None:
    """The user does not answer questions in vain."""
    for option, value in (
        ("--endpoint-url", "s3.example.org"),
        ("--time-zone", "Europe/Berln"),
        ("--store", "ftp://x"),
    ):
        finished = cli.run_on_terminal("init", *_CONFIG, option, value)
        assert finished.code == 2, finished
        assert "In which directory" not in finished.stdout


def test_files_of_backupd_itself_are_not_found(cli: CommandLine) -> None:
    """A database that was restored into the state directory is a copy."""
    cli.create_database("state/restored.db", rows=1)
    cli.run("init", *_CONFIG, expect=0)
    assert _written(cli)["databases"] == [{"path": f"{cli.directory}/app.db"}]


def test_a_name_that_changes_its_file_is_a_warning(cli: CommandLine) -> None:
    """A new configuration must not continue the history of one database with another unnoticed."""
    cli.run("init", *_CONFIG, "--database", "app.db", expect=0)
    assert "warning: app was" not in cli.run("init", *_CONFIG, "--force", "--database", "app.db", expect=0).stderr
    cli.create_database("other/app.db", rows=1)
    finished = cli.run("init", *_CONFIG, "--force", "--database", "other/app.db", expect=0)
    assert f"warning: app was {cli.directory}/app.db, and is now {cli.directory}/other/app.db" in finished.stderr


def test_variables_that_override_the_file_are_a_warning(cli: CommandLine) -> None:
    """Variables that change a value of the new file are a warning; variables that add to it are not."""
    variables = {
        "BACKUPD_DATABASES__0__PATH": f"{cli.directory}/*.sqlite",
        "BACKUPD_STORES__0__URL": f"{cli.directory}/elsewhere",
        "BACKUPD_SCHEDULE__JITTER": "3s",
        "BACKUPD_STORES__0__RETENTION__DAILY": "3",
    }
    cli.create_database("other.sqlite", rows=1)
    finished = cli.run("init", *_CONFIG, "--database", "app.db", environ=variables, expect=0)
    (warning,) = [line for line in finished.stderr.splitlines() if line.startswith("warning: variables override")]
    assert warning.startswith(
        f"warning: variables override what {cli.directory}/backupd.toml says: "
        "BACKUPD_DATABASES__0__PATH, BACKUPD_STORES__0__URL; remove them"
    )
    assert "override" not in cli.run("init", *_CONFIG, "--force", expect=0).stderr


def test_the_secret_of_a_bucket_is_typed_without_being_shown(cli: CommandLine, moto: S3Server) -> None:
    """The secret access key is asked for and not shown while it is typed."""
    url = f"s3://{moto.new_bucket()}/app"
    shown = _typed(
        cli,
        ("init", *_CONFIG, "--database", "app.db", "--store", url, "--snapshots", "@hourly"),
        {
            "URL of the service": moto.endpoint_url,
            "access key id": moto.access_key_id,
            "secret access key": moto.secret_access_key,
        },
    )
    assert moto.secret_access_key not in shown
    assert _written(cli)["stores"] == [
        {
            "url": url,
            "endpoint_url": moto.endpoint_url,
            "access_key_id": moto.access_key_id,
            "secret_access_key": moto.secret_access_key,
        }
    ]


def test_the_url_of_a_service_is_checked_when_it_is_typed(cli: CommandLine) -> None:
    """A service URL without its scheme is asked for again, and no other answer is lost."""
    answers = "s3.example.org\nhttp://127.0.0.1:9\n\n"
    finished = cli.run_on_terminal(
        *("init", *_CONFIG, "--database", "app.db", "--store", "s3://bucket/x", "--snapshots", "@hourly"),
        answer=answers,
    )
    assert "the URL of the service must be an http:// or https:// URL with a host" in finished.stdout
    assert finished.code == 10, finished  # nothing listens there, as doctor finds
    assert _written(cli)["stores"] == [{"url": "s3://bucket/x", "endpoint_url": "http://127.0.0.1:9"}]


def test_yes_asks_nothing_on_a_terminal(cli: CommandLine) -> None:
    """`init --yes` asks nothing on a terminal, as in a script."""
    finished = cli.run_on_terminal("init", *_CONFIG, "--yes")
    assert finished.code == 0, finished
    assert "Which of them" not in finished.stdout


def test_end_of_input_at_a_question_writes_nothing(cli: CommandLine) -> None:
    """Ctrl-D is an interruption."""
    finished = cli.run_on_terminal("init", *_CONFIG, answer="\x04")
    assert finished.code == 130, finished
    assert not list(cli.directory.glob("*backupd.toml*"))


def test_a_configuration_in_an_unusual_place_gives_a_hint(cli: CommandLine, tmp_path: Path) -> None:
    """Commands without --config would read another file, or none."""
    finished = cli.run("init", "--config", "elsewhere.toml", expect=0)
    assert f"hint: commands find this configuration with --config {tmp_path}/elsewhere.toml" in finished.stderr
    assert "hint:" not in cli.run("init", *_CONFIG, expect=0).stderr
    finished = cli.run("init", "--config", "some where.toml", expect=0)
    assert f"--config '{tmp_path}/some where.toml', or BACKUPD_CONFIG='{tmp_path}/some where.toml'" in finished.stderr
