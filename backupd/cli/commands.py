"""The verbs, each imported when it is asked for."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module

import click

from backupd import __version__
from backupd.cli.options import global_options, write_examples
from backupd.errors import UsageError

PROGRAM = "backupd"

_EXAMPLES = (
    "backupd now app.db",
    "backupd list",
    "backupd restore latest --to restored.db",
)

# In the order of `backupd --help`: what people need first comes first.
_MODULES = {
    "now": "now",
    "list": "listing",
    "status": "status",
    "show": "show",
    "verify": "verify",
    "restore": "restore",
    "undo": "undo",
    "prune": "prune",
    "forget": "forget",
    "undelete": "undelete",
    "init": "init",
    "doctor": "doctor",
    "keygen": "keygen",
    "run": "run",
    "completion": "completion",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _MODULES:
            return None
        command: click.Command = import_module(f"backupd.cli.{_MODULES[cmd_name]}").command
        return command

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        write_examples(_EXAMPLES, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not ctx.resilient_parsing and args[0] not in _MODULES and not args[0].startswith("-"):
            likely = get_close_matches(args[0], _MODULES)
            hint = f"did you mean {' or '.join(likely)}? " if likely else ""
            raise UsageError(f"no such command {args[0]!r}", hint=f"{hint}see: {PROGRAM} --help")
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
@global_options
def backupd() -> None:
    """SQLite backups that you install once, forget for years, and are saved by.

    Without a configuration, `backupd now app.db` stores into ./backups.
    """
