"""`backupd run`: the daemon, which backs up everything that is configured until it is stopped."""

from __future__ import annotations

import os
import signal

import click

from backupd.cli.verbs import Invocation, Verb, global_options
from backupd.errors import ExitCode


@click.command(
    "run",
    cls=Verb,
    short_help="Back up everything on schedule, until it is stopped.",
    examples=(
        "backupd run",
        "backupd run --config /etc/backupd/config.toml",
    ),
)
@global_options
@click.pass_obj
def command(invocation: Invocation) -> int:
    """Take snapshots, test-restore them and remove old ones, by the configured schedules, until it is stopped.

    A snapshot that was missed while this did not run is taken at the start. SIGTERM and Ctrl-C let running
    work finish for daemon.stop_timeout, and then end it cleanly. SIGHUP reads the configuration again, and keeps the
    previous one if it is wrong. The log goes to stdout: one JSON object a line, or readable on a terminal.

    `backupd status` shows the state of everything; `backupd now` may be run beside it at any time.
    """
    from backupd.cli.session import Session
    from backupd.config import load
    from backupd.daemon import serve
    from backupd.logs import log
    from backupd.privileges import restart, settings_of_user
    from backupd.system.processes import use_one_heap

    # From here on, SIGHUP means a reload: one that comes too early must not end the daemon.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    use_one_heap()
    session = Session(invocation)
    log.configure(is_quiet=invocation.is_quiet, is_daemon=True)
    if serve(session.settings, lambda: settings_of_user(load(invocation.config_file), os.geteuid())):
        restart(session.settings)
    return ExitCode.DONE
