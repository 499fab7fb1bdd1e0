"""The command `backupd`, where its verbs are, the options and arguments that several have, and their completion."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from backupd import __version__
from backupd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from click.shell_completion import CompletionItem

PROGRAM = "backupd"
_INDENT = "  "
_WORDS = ("latest", "latest~1")
_Command = TypeVar("_Command", bound="Callable[..., Any]")

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
    "query": "query",
    "dump": "dump",
    "diff": "diff",
    "recover": "recover",
    "report": "report",
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


@dataclass(slots=True)
class Invocation:
    """The values of the options that every verb has, given before or after the verb."""

    config_file: Path | None = None
    identity_file: Path | None = None
    is_json: bool = False
    is_quiet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InPlaceOptions:
    """The options of a restore into the configured database."""

    is_yes: bool = False
    is_dry_run: bool = False
    must_replace: bool = False
    is_app_stopped: bool = False
    allows_revision_change: bool = False
    wants_safety_snapshot: bool = True


class Verb(click.Command):
    """A command whose help ends with `examples`, command lines that work as they stand."""

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the examples."""
        write_examples(self.examples, formatter)


def write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    """Write a block of command lines, none of which is wrapped."""
    with formatter.section("Examples"):
        formatter.write("".join(f"{_INDENT}{example}\n" for example in examples))


def _invocation_option(attribute: str, *names: str, **settings: Any) -> Callable[[_Command], _Command]:
    """An option whose value goes into an attribute of the context's `Invocation`."""

    def remember(context: click.Context, _: click.Parameter, value: Any) -> None:
        invocation = context.ensure_object(Invocation)
        if value:  # an option that is not given after the verb keeps its value from before it
            setattr(invocation, attribute, value)

    return click.option(*names, expose_value=False, callback=remember, **settings)


def global_options(command: _Command) -> _Command:
    """Add the options of every verb; their values go into the context's `Invocation`."""
    for option in (
        _invocation_option(
            "is_quiet",
            "-q",
            "--quiet",
            is_flag=True,
            help="No progress and no notes: only results, warnings and errors.",
        ),
        _invocation_option(
            "is_json", "--json", is_flag=True, help="One JSON object on stdout, everything else on stderr."
        ),
        _invocation_option(
            "config_file",
            "--config",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="Configuration to use instead of the usual places.",
        ),
    ):
        command = option(command)
    return command


def identity_option(command: _Command) -> _Command:
    """Add --identity, for verbs that read encrypted snapshots; its value goes into the context's `Invocation`."""
    return _invocation_option(
        "identity_file",
        "--identity",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="The age or SSH key that decrypts, instead of identity_file of the configuration.",
    )(command)


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


def in_place_options(command: _Command) -> _Command:
    """Add the options of a restore into the configured database: the arguments of `InPlaceOptions`."""
    for option in (
        click.option(
            "--no-safety-snapshot",
            "wants_safety_snapshot",
            flag_value=False,
            default=True,
            type=bool,
            help="Do not first save what is there now: the restore cannot be undone.",
        ),
        click.option(
            "--allow-revision-change",
            "allows_revision_change",
            is_flag=True,
            help="Restore even if the Alembic revision differs from that of now.",
        ),
        click.option("--app-stopped", "is_app_stopped", is_flag=True, help="Confirm that the application is stopped."),
        click.option(
            "--replace",
            "must_replace",
            is_flag=True,
            help="Put another file in place instead, and keep the old one; needs --app-stopped.",
        ),
        click.option("--yes", "is_yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", "is_dry_run", is_flag=True, help="Show what would change, and change nothing."),
    ):
        command = option(command)
    return command


def complete_databases(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a database: configured names that begin with `incomplete`, or files when there are none."""
    from click.shell_completion import CompletionItem

    fitting = _completions(incomplete, lambda: _database_names(context))
    return fitting or [CompletionItem(incomplete, type="file")]


def complete_snapshots(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a reference: words such as `latest`, and ids in the configured directories; no bucket is asked."""
    return _completions(incomplete, lambda: [*_WORDS, *_newest_first(_snapshot_ids(context))], _WORDS)


def complete_removed_snapshots(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the id of a removed snapshot: those in the trash of the configured directories, the newest first."""
    return _completions(incomplete, lambda: _newest_first(_removed_ids(context)))


def _completions(
    incomplete: str, texts: Callable[[], Iterable[str]], otherwise: Iterable[str] = ()
) -> list[CompletionItem]:
    """Give the `texts` that begin with `incomplete`, or those of `otherwise` when `texts` cannot be found."""
    from click.shell_completion import CompletionItem

    try:
        found = list(texts())
    except Exception:  # noqa: BLE001  (a broken configuration is reported by commands, not while a user types)
        found = list(otherwise)
    return [CompletionItem(text) for text in found if text.startswith(incomplete)]


def _newest_first(ids: Iterable[str]) -> list[str]:
    return sorted(set(ids), reverse=True)


def _database_names(context: click.Context) -> Iterator[str]:
    from backupd.cli.session import Session

    return (database.name for database in Session(context.ensure_object(Invocation)).databases())


def _snapshot_ids(context: click.Context) -> Iterator[str]:
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

    for repository in Session(context.ensure_object(Invocation)).repositories(None):
        if isinstance(repository.store, DirectoryStore):
            yield from (found.key for found in repository.store.list(""))


snapshot_argument = click.argument("snapshot", shell_complete=complete_snapshots)

database_option = click.option(
    "--database",
    metavar="NAME",
    shell_complete=complete_databases,
    help="Whose snapshot, if a store has several databases.",
)

store_option = click.option("--store", metavar="URL", help="Use only this store: s3://bucket/prefix or a directory.")
