"""The verbs, each imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

import click

from backupd import __version__
from backupd.cli.options import global_options

PROGRAM = "backupd"

# In the order of `backupd --help`: what people need first comes first.
_MODULES = {"now": "now", "list": "listing", "show": "show", "restore": "restore", "completion": "completion"}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _MODULES:
            return None
        command: click.Command = import_module(f"backupd.cli.{_MODULES[cmd_name]}").command
        return command


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
@global_options
def backupd() -> None:
    """SQLite backups that you install once, forget for years, and are saved by.

    Without a configuration, `backupd now app.db` stores into ./backups.

    \b
    Examples:
      backupd now app.db
      backupd list
      backupd restore latest --to restored.db
    """
