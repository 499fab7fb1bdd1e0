"""Which database somebody means who gives a name or a path."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from backupd.config import check_database_name, database_from_path
from backupd.config.values import absolute_path
from backupd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backupd.config import Database

# Names may have dots too; these endings are nobody's idea of one.
_FILE_SUFFIXES = frozenset({".db", ".db3", ".sqlite", ".sqlite3"})
_NAMES_SHOWN = 8


def select_databases(texts: Sequence[str], configured: Sequence[Database]) -> list[Database]:
    """The databases that `texts` mean, each once, in their order: configured names, paths, or `NAME=PATH`.

    Raises `UsageError` when one is none of these, or when two files would have one name.
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
    looks_like_path = "/" in text or "=" in text or Path(text).suffix.lower() in _FILE_SUFFIXES or _is_file(text)
    if looks_like_path and _with_name(text, configured) is None:
        return _at_path(text, configured).name
    return check_database_name(text)


def _selected(text: str, configured: Sequence[Database]) -> Database:
    database = _with_name(text, configured)
    if database is not None:
        return database
    if "/" in text or "=" in text or Path(text).suffix or _is_file(text):
        return _at_path(text, configured)
    raise UsageError(f"no database is called {text!r}", hint=_hint_for_unknown(text, configured))


def _is_file(text: str) -> bool:
    return os.path.isfile(text)  # noqa: PTH113  (Path.is_file raises for a name that is too long)


def _with_name(name: str, databases: Iterable[Database]) -> Database | None:
    return next((database for database in databases if database.name == name), None)


def _at_path(text: str, configured: Sequence[Database]) -> Database:
    """The file at a path, under its configured name if it has one: another name would start another history."""
    name, path = _named_path(text)
    same = (each for each in configured if each.path.resolve() == absolute_path(path).resolve())
    known = next(same, None)
    if known is not None:
        if name not in {None, known.name}:
            raise UsageError(
                f"{known.path} is configured as {known.name}, and {name} would begin another history",
                hint=f"leave the name out: {quote(str(path))}",
            )
        return known
    try:
        return database_from_path(path, name=name)
    except UsageError as error:
        if name is not None:
            raise
        likely = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "app"
        raise UsageError(
            error.message,
            hint=f"give it a name: {quote(f'{likely}={text}')}; or set `name` in an entry for it under [[databases]]",
        ) from error


def _named_path(text: str) -> tuple[str | None, Path]:
    """Name and path of `NAME=PATH`. What is a file as it stands, and what has no name there, is a path alone."""
    name, sign, path = text.partition("=")
    if not sign or not path or "/" in name or _is_file(text):
        return None, Path(text)
    return name, Path(path)


def _reject_shared_name(database: Database, others: Iterable[Database]) -> None:
    for other in others:
        if other.name.lower() == database.name.lower():
            raise UsageError(
                f"two databases with one name: {other.name!r} ({other.path}) and {database.name!r} ({database.path})",
                hint=f"give one another name: {quote(f'NAME={database.path}')}; or set `name` under [[databases]]",
            )


def _hint_for_unknown(text: str, configured: Sequence[Database]) -> str:
    names = [database.name for database in configured]
    if likely := difflib.get_close_matches(text, names, n=1):
        return f"did you mean {likely[0]}?"
    if not names:
        return "none is configured; give the path of the database file, such as ./app.db"
    shown = ", ".join(names[:_NAMES_SHOWN]) + (" and more" if len(names) > _NAMES_SHOWN else "")
    return f"configured are: {shown}; a path has a slash or a suffix, such as ./app.db"
