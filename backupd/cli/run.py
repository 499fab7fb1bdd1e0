"""`backupd run`: look after everything that is configured, until somebody ends it."""

# ruff: noqa: PLC0415  (imports are late: `--help` is to be fast)

from __future__ import annotations

import os
import signal

import click

from backupd.cli.options import Invocation, Verb, global_options
from backupd.errors import ExitCode


@click.command(
    "run",
    cls=Verb,
    short_help="Look after everything by itself, until it is stopped.",
    examples=(
        "backupd run",
        "backupd run --config /etc/backupd/config.toml",
    ),
)
@global_options
@click.pass_obj
def command(invocation: Invocation) -> int:
    """Take snapshots, try restores and remove old snapshots by the schedules of the configuration, until it is stopped.

    A snapshot that should have been taken while this did not run is taken at the start. SIGTERM and Ctrl-C let what is
    going on finish for daemon.stop_timeout, and then give it up cleanly; SIGHUP reads the configuration again, and
    keeps the one before if it is wrong. The log goes to stdout: one JSON object a line, or readable on a terminal.

    `backupd status` shows how things are; `backupd now` may be run beside it at any time.
    """
    from backupd.cli.session import Session
    from backupd.config import load
    from backupd.daemon import serve
    from backupd.logs import log
    from backupd.owner import settings_of_user, start_again

    # From here on, SIGHUP means a reload: one that comes too early must not end what has just been started.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    session = Session(invocation)
    log.configure(is_quiet=invocation.is_quiet, is_daemon=True)
    if serve(session.settings, lambda: settings_of_user(load(invocation.config_file), os.geteuid())):
        start_again(session.settings)
    return ExitCode.DONE
