"""`backupd init`: writes a first configuration, from a few questions or options."""

from __future__ import annotations

import os
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from backupd.cli import output
from backupd.cli.verbs import Invocation, Verb, global_options
from backupd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backupd.setup.entries import Entry
    from backupd.setup.initialization import Initialized

_T = TypeVar("_T")
_NAMES_SHOWN = 5
_RANGE = re.compile(r" *([0-9]{1,9}) *(?:- *([0-9]{1,9}) *)?")


@click.command(
    "init",
    cls=Verb,
    short_help="Find databases and write a configuration.",
    examples=(
        "backupd init . --store ./backups",
        "backupd init --database app.db --store ./other-disk --config ./other.toml",
        "backupd init --database app.db --store ./other-disk --config ./other.toml --force --json",
    ),
)
@click.argument(
    "directory", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="[DIRECTORY]"
)
@click.option(
    "--database",
    "databases",
    metavar="PATH",
    multiple=True,
    help="Back up this file, or all that match this pattern, and search none. May be repeated.",
)
@click.option(
    "--store",
    "stores",
    metavar="URL",
    multiple=True,
    help="Where snapshots go: s3://bucket/prefix or a directory. May be repeated.",
)
@click.option("--endpoint-url", metavar="URL", help="Where the S3 service of all buckets above is, unless it is AWS.")
@click.option("--region", metavar="NAME", help="Its region.")
@click.option("--access-key-id", metavar="ID", help="Its access key, written into the configuration.")
@click.option(
    "--secret-access-key-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A file with the secret key, which is written into the configuration too.",
)
@click.option("--snapshots", metavar="TIMES", help='When: "every 15m" (the default), or five fields of cron.')
@click.option("--time-zone", metavar="NAME", help="The time zone of cron fields, such as Europe/Berlin.")
@click.option("--force", is_flag=True, help="Overwrite an existing configuration.")
@click.option("--yes", is_flag=True, help="Ask nothing: take what is found, and defaults for the rest.")
@global_options
@click.pass_obj
def command(invocation: Invocation, /, *, directory: Path | None, force: bool, yes: bool, **given: Any) -> int:
    """Find the SQLite files below DIRECTORY (here, if it is left out), write a configuration, and run doctor on it.

    On a terminal, init asks for what is not given. Without one, or with --yes or --json, it takes everything that it
    finds, and ./backups is the store if none is named. It recognizes files by their content. Where each tenant has a
    directory with a file of the same name, one pattern stands for all of them.

    The file is written to --config FILE, $BACKUPD_CONFIG, or ./backupd.toml, if it is valid. An existing file is
    overwritten with --force only. If the file contains a secret, only its owner may read it.

    The exit code is that of doctor, once the file is written.
    """
    from backupd.setup.initialization import InitOptions, initialize

    console = _Terminal(may_ask=_is_interactive() and not (yes or invocation.is_json))
    options = InitOptions(directory=directory, **given)
    initialized = initialize(options, console, os.environ, file=invocation.config_file, is_forced=force)
    return _examine(invocation, initialized)


def _is_interactive() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


class _Terminal:
    """Asks and reports on the terminal."""

    def __init__(self, *, may_ask: bool) -> None:
        self.may_ask = may_ask

    def ask(self, question: str, default: str, parse: Callable[[str], _T]) -> _T:
        while True:
            text = click.prompt(question, default=default, err=True, show_default=bool(default))
            try:
                return parse(str(text).strip())
            except UsageError as error:
                output.print_error(error)

    def ask_secret(self, question: str) -> str:
        return str(click.prompt(question, hide_input=True, err=True))

    def choose(self, entries: Sequence[Entry]) -> list[Entry]:
        for number, entry in enumerate(entries, start=1):
            output.print_note(f"{number:4}  {_described(entry)}")
        question = "Which of them should be backed up? all, or numbers such as 1,3-5"
        return [entries[number - 1] for number in self.ask(question, "all", partial(_numbers, most=len(entries)))]

    def note(self, message: str) -> None:
        output.print_note(message)

    def warn(self, message: str) -> None:
        output.print_warning(message)


def _described(entry: Entry) -> str:
    from backupd.cli import output
    from backupd.doctor.findings import listed

    if len(entry.files) == 1:
        size = output.size(entry.files[0].stat().st_size)
        return f"{entry.files[0]} ({size}{f', called {entry.name}' if entry.name else ''})"
    count = output.count(len(entry.files), "file")
    return f"{entry.pattern} ({count}: {listed(entry.names(), _NAMES_SHOWN)})"


def _numbers(text: str, most: int) -> list[int]:
    if text == "all":
        return list(range(1, most + 1))
    numbers: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= most:
            raise UsageError(
                f"{text!r} is not a list of numbers from 1 to {most}", hint="write all, or numbers such as 1,3-5"
            )
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def _examine(invocation: Invocation, initialized: Initialized) -> int:
    """Print what was written and what doctor finds; returns doctor's exit code."""
    from backupd.cli.doctor import print_findings, values_of
    from backupd.doctor.examination import examine
    from backupd.doctor.findings import exit_code_of
    from backupd.logs import log
    from backupd.state import StateDirectory

    log.configure(is_quiet=invocation.is_quiet)
    if not invocation.is_json:
        output.print_result(output.printable(_summary(initialized)) + "\n")
    if initialized.overriding:
        output.print_warning(
            f"variables override what {initialized.file} says: {', '.join(initialized.overriding)}; remove them from "
            "the environment, or every command, and doctor now, uses their values"
        )
    findings = examine(initialized.settings, StateDirectory(initialized.settings.state_dir))
    if invocation.is_json:
        output.print_document({"config": _values(initialized), "checks": values_of(findings)})
    else:
        print_findings(findings, is_quiet=invocation.is_quiet)
    _print_hint(initialized.file, is_usual_place=invocation.config_file is None)
    return exit_code_of(findings)


def _print_hint(file: Path, *, is_usual_place: bool) -> None:
    """Say how commands find the configuration, unless they find it anywhere."""
    from backupd.config.loading import first_of_usual_places

    quoted = shlex.quote(str(file))
    options = f"with --config {quoted}, or BACKUPD_CONFIG={quoted}"
    if first_of_usual_places(os.environ) != file:
        output.print_note(f"hint: commands find this configuration {options}")
    elif is_usual_place and not os.environ.get("BACKUPD_CONFIG"):
        output.print_note(f"hint: commands started in {file.parent} find this configuration, others {options}")


def _summary(initialized: Initialized) -> str:
    from backupd.cli import output

    request = initialized.request
    databases = output.count(sum(len(entry.files) for entry in request.databases), "database")
    entries = output.count(len(request.databases), "entry", "entries")
    stores = ", ".join(store.url for store in request.stores)
    return f"wrote {initialized.file}: {databases} in {entries}  -> {stores}"


def _values(initialized: Initialized) -> dict[str, Any]:
    request = initialized.request
    return {
        "path": str(initialized.file),
        "databases": [
            {"path": entry.pattern, "name": entry.name, "files": [str(path) for path in entry.files]}
            for entry in request.databases
        ],
        "stores": [store.url for store in request.stores],
        "skipped": [str(path) for path in request.skipped],
    }
