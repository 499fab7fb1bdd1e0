"""The entries of a configuration that stand for files: one for each, or one pattern for all tenants. Pure."""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from backupd.config import DatabaseSettings, check_database_name, database_from_path
from backupd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_FEWEST_TENANTS = 2
_LONGEST_NAME = 100
_WILDCARD = re.compile("[*?[]")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry under [[databases]]. `pattern` is absolute; `name` None where it comes from the path.

    `files` are what it stood for when it was made.
    """

    pattern: str
    name: str | None
    files: tuple[Path, ...]


def entries_for(files: Sequence[Path]) -> tuple[list[Entry], list[Path]]:
    """Entries for all of `files` (absolute) under names of their own, and the files that none can be written for.

    Files of one name in directories side by side become one pattern. A path that is not UTF-8 text cannot be written.
    """
    writable = [path for path in files if _is_text(path)]
    entries: list[Entry] = []
    taken: set[str] = set()
    for group in _groups(writable):
        names = _names_in(group)
        # Two patterns for the same directories would give two databases one name.
        if len(names) == len(group) and not names & taken:
            entries.append(Entry(_tenant_pattern(group), None, tuple(group)))
            taken |= names
    by_pattern = {path for entry in entries for path in entry.files}
    single = [path for path in writable if path not in by_pattern]
    shared = Counter(path.stem.lower() for path in single)
    for path in single:
        name = _free_name(path, taken, is_shared=shared[path.stem.lower()] > 1)
        taken.add((name or path.stem).lower())
        entries.append(Entry(glob.escape(str(path)), name, (path,)))
    entries.sort(key=lambda entry: entry.files)
    return entries, [path for path in files if path not in writable]


def entry_for(text: str, taken: Iterable[str] = ()) -> Entry:
    """The entry for a path or a pattern that somebody wrote, under a name that is not among `taken`.

    Raises `UsageError` for a pattern that cannot be used.
    """
    path = Path(text).expanduser().absolute()
    if os.path.lexists(path) or not _WILDCARD.search(text):
        return Entry(glob.escape(str(path)), _free_name(path, {name.lower() for name in taken}), (path,))
    try:
        settings = DatabaseSettings(path=str(path))
    except ValidationError as error:
        reason = error.errors()[0].get("ctx", {}).get("error")
        raise UsageError(f"{text}: {reason}", hint=getattr(reason, "hint", None)) from None
    return Entry(str(path), None, settings.paths())


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _groups(files: Sequence[Path]) -> list[list[Path]]:
    """Groups of files whose paths differ in the directory that they are in, and in nothing else."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path in files:
        # A wildcard does not find what is hidden.
        if not path.parent.name.startswith("."):
            groups.setdefault((path.parent.parent, path.name), []).append(path)
    return [group for group in groups.values() if len(group) >= _FEWEST_TENANTS]


def _names_in(group: Sequence[Path]) -> set[str]:
    """The names, in lower case, that a pattern gives the files of the group; none when it cannot name them all."""
    settings = DatabaseSettings(path=_tenant_pattern(group))
    try:
        return {settings.database_at(path).name.lower() for path in group}
    except UsageError:
        return set()


def _tenant_pattern(group: Sequence[Path]) -> str:
    first = group[0]
    parent = str(first.parent.parent).rstrip("/")
    return f"{glob.escape(parent)}/*/{glob.escape(first.name)}"


def _free_name(path: Path, taken: Iterable[str], *, is_shared: bool = False) -> str | None:
    """A name that is not taken; None when that is the one which the path gives by itself, and no other path does."""
    used = set(taken)
    try:
        own = database_from_path(path).name
    except UsageError:
        own = ""
    if own and own.lower() not in used and not is_shared:
        return None
    wanted = _as_name(f"{path.parent.name}-{path.stem}" if own else path.stem)
    numbered = (f"{wanted[: _LONGEST_NAME - 6]}-{number}" for number in count(2))
    return next(name for name in chain([wanted], numbered) if name.lower() not in used)


def _as_name(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:_LONGEST_NAME] or "database"
    try:
        return check_database_name(name)
    except UsageError:
        return f"database-{name}"[:_LONGEST_NAME]
