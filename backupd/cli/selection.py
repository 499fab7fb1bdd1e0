"""Which database somebody means who gives a name or a path."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from backupd.config import check_database_name, database_from_path
from backupd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backupd.config import Database

# Names may have dots too; these endings are nobody's idea of one.
_FILE_SUFFIXES = frozenset({".db", ".db3", ".sqlite", ".sqlite3"})
_NAMES_SHOWN = 8


def select_databases(texts: Sequence[str], configured: Sequence[Database]) -> list[Database]:
    """The databases that `texts` mean, each once, in their order.

    Raises `UsageError` when one is neither a configured name nor a path, or when two files would have one name.
    """
    selected: list[Database] = []
    for text in texts:
        database = _selected(text, configured)
        if database not in selected:
            _reject_shared_name(database, selected)
            selected.append(database)
    return selected


def name_meant(text: str, configured: Sequence[Database]) -> str:
    """The name of the database that `text`, a name in a store or a path, means. Raises `UsageError`.

    The file need not exist any more: that is when people look for its snapshots.
    """
    looks_like_path = "/" in text or Path(text).suffix.lower() in _FILE_SUFFIXES or _is_file(text)
    if looks_like_path and _with_name(text, configured) is None:
        return _at_path(text, configured).name
    return check_database_name(text)


def _selected(text: str, configured: Sequence[Database]) -> Database:
    database = _with_name(text, configured)
    if database is not None:
        return database
    if "/" in text or Path(text).suffix or _is_file(text):
        return _at_path(text, configured)
    raise UsageError(f"no database is called {text!r}", hint=_hint_for_unknown(text, configured))


def _is_file(text: str) -> bool:
    return os.path.isfile(text)  # noqa: PTH113  (Path.is_file raises for a name that is too long)


def _with_name(name: str, databases: Iterable[Database]) -> Database | None:
    return next((database for database in databases if database.name == name), None)


def _at_path(text: str, configured: Sequence[Database]) -> Database:
    """The file at a path, under its configured name if it has one: another name would start another history."""
    given = database_from_path(Path(text))
    same = (database for database in configured if database.path.resolve() == given.path.resolve())
    return next(same, given)


def _reject_shared_name(database: Database, others: Iterable[Database]) -> None:
    for other in others:
        if other.name.lower() == database.name.lower():
            raise UsageError(
                f"two databases with one name: {other.name!r} ({other.path}) and {database.name!r} ({database.path})",
                hint="give each a `name` in the configuration, or back them up into different stores with --store",
            )


def _hint_for_unknown(text: str, configured: Sequence[Database]) -> str:
    names = [database.name for database in configured]
    if likely := difflib.get_close_matches(text, names, n=1):
        return f"did you mean {likely[0]}?"
    if not names:
        return "none is configured; give the path of the database file, such as ./app.db"
    shown = ", ".join(names[:_NAMES_SHOWN]) + (" and more" if len(names) > _NAMES_SHOWN else "")
    return f"configured are: {shown}; a path has a slash or a suffix, such as ./app.db"
