"""Completion by the shell: the script that turns it on, and what it offers."""

# ruff: noqa: PLC0415  (imports are late: `--help` is to be fast)

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backupd.cli import output
from backupd.cli.options import Invocation, Verb, global_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.shell_completion import CompletionItem

_SHELLS = ("bash", "zsh", "fish")
_WORDS = ("latest", "latest~1")


@click.command(
    "completion",
    cls=Verb,
    short_help="Print what turns completion on in a shell.",
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
    from click.shell_completion import get_completion_class

    completer = get_completion_class(shell)
    assert completer is not None  # noqa: S101
    script = completer(context.find_root().command, {}, "backupd", "_BACKUPD_COMPLETE").source().strip()
    if context.ensure_object(Invocation).is_json:
        output.print_document({"completion": {"shell": shell, "script": script}})
    else:
        output.print_result(script)


def databases(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """Configured names that begin like this; files, when there are none."""
    from click.shell_completion import CompletionItem

    try:
        from backupd.cli.session import Session

        names = [database.name for database in Session(context.ensure_object(Invocation)).databases()]
    except Exception:  # noqa: BLE001  (a broken configuration is reported by commands, not while somebody types)
        names = []
    fitting = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return fitting or [CompletionItem(incomplete, type="file")]


def snapshots(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """Words, and the ids that the configured directories show by their names; no bucket is asked."""
    from click.shell_completion import CompletionItem

    try:
        found = sorted(set(_ids(context)), reverse=True)
    except Exception:  # noqa: BLE001  (as above)
        found = []
    return [CompletionItem(text) for text in (*_WORDS, *found) if text.startswith(incomplete)]


def removed_snapshots(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """The ids in the trash of the configured directories, the newest first."""
    from click.shell_completion import CompletionItem

    try:
        found = sorted(set(_removed_ids(context)), reverse=True)
    except Exception:  # noqa: BLE001  (as above)
        found = []
    return [CompletionItem(text) for text in found if text.startswith(incomplete)]


def _ids(context: click.Context) -> Iterator[str]:
    from backupd.store.keys import SnapshotKey

    for key in _keys_in_directories(context):
        if snapshot := SnapshotKey.parse(key):
            yield snapshot.snapshot_id


def _removed_ids(context: click.Context) -> Iterator[str]:
    from backupd.store.keys import RecordKey, RecordKind

    for key in _keys_in_directories(context):
        if (record := RecordKey.parse(key)) and record.kind is RecordKind.TRASH:
            yield record.id


def _keys_in_directories(context: click.Context) -> Iterator[str]:
    from backupd.cli.session import Session
    from backupd.store.directory import DirectoryStore

    for store in Session(context.ensure_object(Invocation)).stores([]):
        if isinstance(store, DirectoryStore):
            yield from (found.key for found in store.list(""))
