"""`backupd completion`: the script that turns completion on in a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backupd.cli import output
from backupd.cli.verbs import Invocation, Verb, global_options

if TYPE_CHECKING:
    from click.shell_completion import ShellComplete

_SHELLS = ("bash", "zsh", "fish")


@click.command(
    "completion",
    cls=Verb,
    short_help="Print the script that turns completion on in a shell.",
    examples=(
        "backupd completion bash",
        "backupd completion zsh",
        "backupd completion fish",
    ),
)
@click.argument("shell", type=click.Choice(_SHELLS))
@global_options
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that lets SHELL complete commands, databases and snapshots.

    In ~/.bashrc: eval "$(backupd completion bash)". In ~/.zshrc: eval "$(backupd completion zsh)". For fish: backupd
    completion fish > ~/.config/fish/completions/backupd.fish
    """
    from click.shell_completion import BashComplete, FishComplete, ZshComplete

    completer: type[ShellComplete] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}[shell]
    script = completer(context.find_root().command, {}, "backupd", "_BACKUPD_COMPLETE").source().strip()
    if context.ensure_object(Invocation).is_json:
        output.print_document({"completion": {"shell": shell, "script": script}})
    else:
        output.print_result(script)
