"""The notes in a state directory, as another program sees and changes them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def read_notes(state: Path) -> dict[tuple[str, str], str]:
    """The text of each note, by kind and key; none where there is no state yet."""
    if not (state / ".state.db").exists():
        return {}
    with closing(_connect(state)) as connection:
        has_table = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'notes'").fetchone()
        rows = connection.execute("SELECT kind, key, record FROM notes") if has_table else ()
        return {(kind, key): record for kind, key, record in rows}


def change_notes(state: Path, change: Callable[[str], str | bytes]) -> None:
    """Give each note the text that `change` makes of it. There has to be one."""
    with closing(_connect(state)) as connection:
        found = connection.execute("SELECT kind, key, record FROM notes").fetchall()
        assert found
        for kind, key, record in found:
            row = (change(record), kind, key)
            connection.execute("UPDATE notes SET record = ? WHERE kind = ? AND key = ?", row)


def _connect(state: Path) -> sqlite3.Connection:
    return sqlite3.connect(state / ".state.db", isolation_level=None)
