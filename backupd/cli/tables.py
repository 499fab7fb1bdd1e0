"""Tables on stdout: drawn by rich on a terminal, else aligned columns. No cell is ever cut."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, TypeAlias

from backupd.cli.output import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNBOUNDED = 100_000

Cells: TypeAlias = tuple[str, ...]
Group: TypeAlias = tuple[str, "Sequence[Cells]"]


def render(headings: Sequence[str], groups: Sequence[Group]) -> str:
    """Rows under the title of their group. A heading that begins with `>` has its column aligned to the right."""
    clean = [(printable(title), [tuple(map(printable, row)) for row in rows]) for title, rows in groups]
    if sys.stdout is not None and sys.stdout.isatty():
        return _drawn(headings, clean)
    return _aligned(headings, clean)


def _aligned(headings: Sequence[str], groups: Sequence[Group]) -> str:
    heading = tuple(text.removeprefix(">") for text in headings)
    rows = [heading, *(row for _, rows in groups for row in rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Cells) -> str:
        cells = (
            cell.rjust(width) if text.startswith(">") else cell.ljust(width)
            for cell, width, text in zip(row, widths, headings, strict=True)
        )
        return "  ".join(cells).rstrip()

    blocks = ("\n".join([title, line(heading), *map(line, rows)]) for title, rows in groups)
    return "\n\n".join(blocks)


def _drawn(headings: Sequence[str], groups: Sequence[Group]) -> str:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415  (only on a terminal)
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    terminal = Console()
    tables = []
    for title, rows in groups:
        table = Table(title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
        for text in headings:
            justify = "right" if text.startswith(">") else "left"
            table.add_column(text.removeprefix(">"), justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for row in rows:
            table.add_row(*map(Text, row))
        tables.append(table)
    unbounded = terminal.options.update(max_width=_UNBOUNDED)
    widest = max(terminal.measure(table, options=unbounded).maximum for table in tables)
    # Wider than the terminal breaks lines, which is ugly; rich's alternative would be to cut ids, which is useless.
    console = Console(
        file=io.StringIO(), width=max(terminal.width, widest), force_terminal=True, no_color=terminal.no_color
    )
    with console.capture() as captured:
        for table in tables:
            console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())
