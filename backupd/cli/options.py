"""Options and arguments that several verbs have. Declared once, so that they mean the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_INDENT = "  "
_Command = TypeVar("_Command", bound="Callable[..., Any]")


@dataclass(slots=True)
class Invocation:
    """What the options that every verb has were set to, before or after the verb."""

    config_file: Path | None = None
    identity_file: Path | None = None
    is_json: bool = False
    is_quiet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InPlaceWish:
    """How a restore into the configured database is wanted."""

    is_yes: bool = False
    is_dry_run: bool = False
    must_replace: bool = False
    is_app_stopped: bool = False
    allows_revision_change: bool = False
    wants_safety_snapshot: bool = True


class Verb(click.Command):
    """A command whose help ends with `examples`: command lines that work as they stand."""

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


def _remember(attribute: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def remember(context: click.Context, _: click.Parameter, value: Any) -> None:
        # Not given after the verb leaves what was given before it.
        if value:
            setattr(context.ensure_object(Invocation), attribute, value)
        else:
            context.ensure_object(Invocation)

    return remember


def global_options(command: _Command) -> _Command:
    """Add the options of every verb; they end in the context's `Invocation`."""
    for option in (
        click.option(
            "-q",
            "--quiet",
            is_flag=True,
            expose_value=False,
            callback=_remember("is_quiet"),
            help="No progress and no notes: only results, warnings and errors.",
        ),
        click.option(
            "--json",
            is_flag=True,
            expose_value=False,
            callback=_remember("is_json"),
            help="One JSON object on stdout, everything else on stderr.",
        ),
        click.option(
            "--config",
            metavar="FILE",
            type=click.Path(path_type=Path),
            expose_value=False,
            callback=_remember("config_file"),
            help="Configuration to use instead of the usual places.",
        ),
    ):
        command = option(command)
    return command


def identity_option(command: _Command) -> _Command:
    """Add --identity, for what reads encrypted snapshots; it ends in the context's `Invocation`."""
    return click.option(
        "--identity",
        metavar="FILE",
        type=click.Path(path_type=Path),
        expose_value=False,
        callback=_remember("identity_file"),
        help="The age or SSH key that decrypts; else identity_file of the configuration.",
    )(command)


def in_place_options(command: _Command) -> _Command:
    """Add the options of a restore into the configured database; they are the arguments of `InPlaceWish`."""
    for option in (
        click.option(
            "--no-safety-snapshot",
            "wants_safety_snapshot",
            flag_value=False,
            default=True,
            type=bool,
            help="Do not save first what is there now: there will be no way back.",
        ),
        click.option(
            "--allow-revision-change",
            "allows_revision_change",
            is_flag=True,
            help="Restore even if the Alembic revision differs from that of now.",
        ),
        click.option("--app-stopped", "is_app_stopped", is_flag=True, help="Say that the application is stopped."),
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


def complete_databases(context: click.Context, _: click.Parameter, incomplete: str) -> list[Any]:
    """Configured names, or else files."""
    from backupd.cli import completion  # noqa: PLC0415  (late: `--help` is to be fast)

    return completion.databases(context, incomplete)


def complete_snapshots(context: click.Context, _: click.Parameter, incomplete: str) -> list[Any]:
    """What can be told quickly: words, and the ids in directory stores."""
    from backupd.cli import completion  # noqa: PLC0415  (as above)

    return completion.snapshots(context, incomplete)


snapshot_argument = click.argument("snapshot", shell_complete=complete_snapshots)

database_option = click.option(
    "--database", metavar="NAME", shell_complete=complete_databases, help="Whose snapshot, if a store has several."
)

store_option = click.option("--store", metavar="URL", help="Look only there: s3://bucket/prefix or a directory.")
