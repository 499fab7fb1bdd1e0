"""`backupd init`: a first configuration, from a few questions or options."""

# ruff: noqa: PLC0415  (imports are late: `--help` is to be fast)

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output
from backupd.cli.options import Invocation, Verb, global_options

if TYPE_CHECKING:
    from backupd.cli.starting import Answers
    from backupd.config import Settings
    from backupd.starting.writing import ConfigurationWish


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
    help="Back up this file, or what a pattern finds, and look for none. May be repeated.",
)
@click.option(
    "--store",
    "stores",
    metavar="URL",
    multiple=True,
    help="Where snapshots go: s3://bucket/prefix or a directory. May be repeated.",
)
@click.option("--endpoint-url", metavar="URL", help="Where the S3 service of all buckets above is, when it is not AWS.")
@click.option("--region", metavar="NAME", help="Its region.")
@click.option("--access-key-id", metavar="ID", help="Its access key, to be written into the configuration.")
@click.option(
    "--secret-access-key-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A file with the secret key, to be written into the configuration too. Never given as an argument.",
)
@click.option("--snapshots", metavar="TIMES", help='When: "every 15m" (the default), or five fields of cron.')
@click.option("--time-zone", metavar="NAME", help="Where the fields of cron hold, such as Europe/Berlin.")
@click.option("--force", is_flag=True, help="Write over a configuration that is there already.")
@click.option("--yes", is_flag=True, help="Ask nothing: take what is found, and defaults for the rest.")
@global_options
@click.pass_obj
def command(invocation: Invocation, /, *, directory: Path | None, force: bool, yes: bool, **given: Any) -> int:
    """Find the SQLite files below DIRECTORY (here, if it is left out), write a configuration, and run doctor on it.

    What is not given is asked for on a terminal; without one, or with --yes or --json, everything that is found is
    taken, and ./backups is the store if none is named. Files are known by their content. Where each tenant has a
    directory with a file of one name, one pattern stands for all of them.

    The file is written to --config FILE, or $BACKUPD_CONFIG, or else to ./backupd.toml; only if it is valid, and never
    over one that is there, but with --force. With a secret in it, no other user may read it.

    The exit code is that of doctor, once the file is written.
    """
    from backupd.cli.starting import Answers, questions_can_be_asked
    from backupd.starting.writing import place, state_directory, usual_place

    file = invocation.config_file or usual_place(os.environ)
    file = file.expanduser().absolute()
    _reject_existing(file, is_forced=force)
    answers = Answers(
        directory=directory,
        may_ask=questions_can_be_asked() and not (yes or invocation.is_json),
        state_dir=state_directory(os.environ, is_root=os.geteuid() == 0),
        **given,
    )
    wish = answers.wish()
    _warn_of_moved_names(file, wish)
    settings = place(file, wish, os.environ, is_forced=force)
    return _examine(invocation, file, settings, wish, answers)


def _reject_existing(file: Path, *, is_forced: bool) -> None:
    """Before anybody answers questions for nothing."""
    from backupd.starting.writing import exists_already

    if not is_forced and os.path.lexists(file):
        raise exists_already(file)


def _warn_of_moved_names(file: Path, wish: ConfigurationWish) -> None:
    """A name is all that a store knows a database by: of two files under one, the histories become one."""
    from backupd.config import load
    from backupd.errors import UsageError
    from backupd.starting.entries import moved_names

    if not os.path.lexists(file):
        return
    try:
        before = load(file)
    except UsageError:
        return  # nothing has been backed up by what is not valid
    for name, old, new in moved_names(wish.databases, before):
        output.print_warning(
            f"{name} was {old}, and is now {new}, which goes on with the same history: if that is another database, "
            f"change its `name` in {file} before the next snapshot"
        )


def _examine(invocation: Invocation, file: Path, settings: Settings, wish: ConfigurationWish, answers: Answers) -> int:
    """Say what was written, and what doctor finds of it; doctor's exit code."""
    from backupd.cli.checks import print_findings, values_of
    from backupd.config.loading import first_of_usual_places
    from backupd.doctor.examination import examine
    from backupd.doctor.findings import exit_code_of
    from backupd.logs import log
    from backupd.starting.writing import variables_that_beat
    from backupd.state import StateDirectory

    log.configure(is_quiet=invocation.is_quiet)
    if not invocation.is_json:
        stores = ", ".join(store.url for store in wish.stores)
        output.print_result(output.printable(f"wrote {file}: {_told(wish)}  -> {stores}") + "\n")
    if beating := variables_that_beat(wish, os.environ):
        output.print_warning(
            f"variables beat what {file} says: {', '.join(beating)}; take them out of the environment, or every "
            "command, and doctor now, goes by them"
        )
    findings = examine(settings, StateDirectory(settings.state_dir))
    if invocation.is_json:
        output.print_document({"config": _values(file, wish, answers), "checks": values_of(findings)})
    else:
        print_findings(findings, is_quiet=invocation.is_quiet)
    quoted = shlex.quote(str(file))
    named = f"with --config {quoted}, or BACKUPD_CONFIG={quoted}"
    if first_of_usual_places(os.environ) != file:
        output.print_note(f"hint: commands find this configuration {named}")
    elif invocation.config_file is None and not os.environ.get("BACKUPD_CONFIG"):
        output.print_note(f"hint: commands that are started in {file.parent} find this configuration, others {named}")
    return exit_code_of(findings)


def _told(wish: ConfigurationWish) -> str:
    from backupd.cli import quantities

    count = sum(len(entry.files) for entry in wish.databases)
    return f"{quantities.count(count, 'database')} in {quantities.count(len(wish.databases), 'entry', 'entries')}"


def _values(file: Path, wish: ConfigurationWish, answers: Answers) -> dict[str, Any]:
    return {
        "path": str(file),
        "databases": [
            {"path": entry.pattern, "name": entry.name, "files": [str(path) for path in entry.files]}
            for entry in wish.databases
        ],
        "stores": [store.url for store in wish.stores],
        "skipped": [str(path) for path in answers.skipped],
    }
