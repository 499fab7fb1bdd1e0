from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from harness.command_line import COMMAND

from backupd import __version__
from backupd.cli import reported
from backupd.errors import LimitReachedError, as_backupd_error
from backupd.logs import log

if TYPE_CHECKING:
    from harness.command_line import CommandLine

SLOW_TO_IMPORT = {"apsw", "blake3", "boto3", "msgspec", "numpy", "rich", "structlog", "zstandard", "backupd.config"}
LIBRARIES = {
    *("apprise", "apscheduler", "apsw", "blake3", "boto3", "click", "msgspec", "numpy", "prometheus_client", "pyrage"),
    *("rich", "structlog", "tzdata", "waitress", "zstandard"),
    # Parts of Python that take as long as a library.
    *("asyncio", "importlib.metadata", "sqlite3", "ssl", "zoneinfo"),
}
CAPTURING = ("-P", "-m", "backupd.system.processes", "backupd.capture.child")
VERBS = ("now", "list", "status", "show", "restore", "init", "doctor", "run", "completion")


@pytest.mark.parametrize("verb", [(), *((verb,) for verb in VERBS)], ids=["backupd", *VERBS])
def test_help_imports_nothing_slow_and_has_examples(cli: CommandLine, verb: tuple[str, ...]) -> None:
    """Help is there at once, whatever the verb itself needs, and its examples are lines of their own."""
    command = [sys.executable, "-X", "importtime", *COMMAND[1:], *verb, "--help"]
    shown = subprocess.run(command, env=cli.environment, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "click" in imported
    assert not imported & SLOW_TO_IMPORT
    examples = shown.stdout.partition("\nExamples:\n")[2].splitlines()
    assert examples
    assert all(line.startswith(" ".join(("  backupd", *verb))) for line in examples)


@pytest.mark.parametrize(
    ("arguments", "used"),
    [
        (("-m", "backupd", "status", "--check"), {"click", "msgspec"}),
        (("-m", "backupd", "list"), {"blake3", "click", "msgspec", "sqlite3", "zstandard"}),
        (("-m", "backupd", "now", "app.db"), {"blake3", "click", "msgspec", "sqlite3", "zstandard"}),
        (CAPTURING, {"apsw", "blake3", "zstandard"}),
    ],
    ids=["status --check", "list", "now", "the process that captures"],
)
def test_program_imports_only_the_libraries_that_it_uses(
    cli: CommandLine, arguments: tuple[str, ...], used: set[str]
) -> None:
    """A library that takes a tenth of a second is not imported at each start by a program that does not need it."""
    cli.run("now", "app.db", expect=0)
    command = [sys.executable, "-X", "importtime", *arguments]
    ran = subprocess.run(
        command,
        cwd=cli.directory,
        env=cli.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert imported & {"backupd.cli.session", "backupd.health", "backupd.capture.output"}
    assert imported & LIBRARIES == used


def test_version_is_one_line_with_the_name(cli: CommandLine) -> None:
    """Option --version prints one line with the name and the version."""
    assert cli.run("--version", expect=0).stdout == f"backupd {__version__}\n"


def test_command_line_without_a_verb_shows_the_help_and_is_an_error(cli: CommandLine) -> None:
    """A cron job that lost its arguments must not look like one that worked."""
    result = cli.run(expect=2)
    assert result.stdout == ""
    assert "Commands:" in result.stderr


def test_unknown_verb_is_an_error_that_names_the_likely_one(cli: CommandLine) -> None:
    """The likely verb is named; with --json, wherever it stands, the error is an object on stdout."""
    assert cli.run("restoree", expect=2).stderr == (
        "error: no such command 'restoree'\nhint: did you mean restore? see: backupd --help\n"
    )
    result = cli.run("restoree", "--json", expect=2)
    assert result.document == {
        "error": {
            "message": "no such command 'restoree'",
            "hint": "did you mean restore? see: backupd --help",
            "exit_code": 2,
        }
    }
    assert result.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [("--config", "none.toml", "--json", "list"), ("list", "--json", "--config", "none.toml")],
    ids=["before the verb", "after the verb"],
)
def test_options_of_every_verb_stand_on_either_side(cli: CommandLine, arguments: tuple[str, ...]) -> None:
    """--config and --json mean the same before and after the verb; a configuration that is not there is an error."""
    error = cli.run(*arguments, expect=2).document["error"]
    assert error["message"] == f"no such configuration file: {cli.directory}/none.toml"


def test_broken_configuration_is_one_error(cli: CommandLine) -> None:
    """A misspelled key is refused with the likely one."""
    (cli.directory / "backupd.toml").write_text("[capture]\nmax_lok = '3s'\n")
    result = cli.run("list", expect=2)
    assert result.stderr.splitlines()[1] == "hint: did you mean 'max_lock'?"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_calls_backupd_back(cli: CommandLine, shell: str) -> None:
    """Each shell gets a script that calls `backupd` back."""
    script = cli.run("completion", shell, expect=0).stdout
    assert f"_BACKUPD_COMPLETE={shell}_complete" in script


def test_verbs_databases_and_snapshots_are_completed(stored: CommandLine, snapshots: list[dict[str, Any]]) -> None:
    """What the shell asks for is answered from the configuration and the directory store."""
    configured = {"BACKUPD_DATABASES__0__PATH": str(stored.directory / "app.db")}

    def completed(words: str, position: int) -> list[str]:
        asked = {"_BACKUPD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(position)}
        return stored.run(environ={**configured, **asked}, expect=0).lines

    assert completed("backupd res", 1) == ["plain,restore"]
    assert completed("backupd now a", 2) == ["plain,app"]
    assert completed("backupd now z", 2) == ["file,z"]
    ids = [snapshot["id"] for snapshot in snapshots]
    offered = completed("backupd restore ", 2)
    assert offered == ["plain,latest", "plain,latest~1", *(f"plain,{snapshot_id}" for snapshot_id in reversed(ids))]


def test_reader_that_goes_away_is_no_error(stored: CommandLine) -> None:
    """`backupd list | true` says nothing and ends well."""
    with stored.started("list") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == ""


def test_stdout_that_is_full_is_an_error(stored: CommandLine) -> None:
    """The result did not reach its reader, and the exit code must show that."""
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        result = subprocess.run(
            [*COMMAND, "list", "--json"],
            cwd=stored.directory,
            env=stored.environment,
            stdout=full,
            stderr=-1,
            check=False,
        )
    assert result.returncode == 2
    assert result.stderr.startswith(b"error: standard output cannot be written: No space left on device\n")


def test_file_name_that_is_not_text_stays_on_one_line(cli: CommandLine) -> None:
    """Line breaks and other bytes of a name can neither forge a line nor break the output."""
    result = subprocess.run(
        [*COMMAND, "now", b"./no\nsuch\xff\x1b[2J.db"],
        cwd=cli.directory,
        env=cli.environment,
        capture_output=True,
        check=False,
    )
    assert result.returncode in {2, 13}
    assert len(result.stderr.splitlines()) == 2
    assert b"\x1b" not in result.stderr


def test_bug_is_reported_as_a_bug(cli: CommandLine) -> None:
    """An unexpected exception: traceback, one error line, code 1, also as JSON."""
    program = (
        "import sys, pathlib, backupd.cli as cli\n"
        "pathlib.Path.resolve = None\n"
        f"sys.argv = ['backupd', 'now', {str(cli.directory / 'app.db')!r}, '--json']\n"
        "sys.argv += ['--config', 'c.toml']\n"
        "cli.run_and_exit()\n"
    )
    (cli.directory / "c.toml").write_text('[[databases]]\npath = "app.db"\n')
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=cli.directory,
        env=cli.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr
    error = json.loads(result.stdout)["error"]
    assert error["message"].startswith("this is a bug in backupd: TypeError: ")
    assert error["exit_code"] == 1


@pytest.mark.parametrize(
    ("loader", "limit"),
    [
        ("failed to map segment from shared object", "memory"),
        ("cannot open shared object file: Cannot allocate memory", "memory"),
        ("cannot open shared object file: Too many open files", "limit of open files"),
        ("cannot open shared object file: Too many open files in system", "this machine has reached"),
    ],
)
def test_a_library_that_reaches_a_limit_is_no_broken_installation(loader: str, limit: str) -> None:
    """A library that a limit keeps from being loaded is reported as that limit, not as a broken installation."""
    error = reported(ImportError(f"_core.so: {loader}", name="_core"))
    assert isinstance(error, LimitReachedError)
    assert limit in error.message


def test_interruption_that_a_library_swallows_is_no_bug(cli: CommandLine) -> None:
    """A signal within a library ends its call with another error; the run was interrupted all along."""
    program = (
        "import os, signal, sys, pathlib, backupd.cli as cli\n"
        "def resolve(*_, **__):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n"
        "        pass\n"
        "    raise TypeError('swallowed')\n"
        "pathlib.Path.resolve = resolve\n"
        f"sys.argv = ['backupd', 'now', {str(cli.directory / 'app.db')!r}, '--config', 'c.toml']\n"
        "cli.run_and_exit()\n"
    )
    (cli.directory / "c.toml").write_text('[[databases]]\npath = "app.db"\n')
    command = [sys.executable, "-c", program]
    result = subprocess.run(
        command, cwd=cli.directory, env=cli.environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr.startswith("error: interrupted\n")


def test_bug_is_reported_in_the_same_words_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    """A bug is reported in the same words by a command and by the daemon, each beside its traceback."""
    bug = KeyError("app")
    error = reported(bug)
    assert "KeyError: 'app'" in capsys.readouterr().err
    assert error.values() == as_backupd_error(bug).values() == log.unexpected(bug).values()
