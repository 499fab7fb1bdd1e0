"""The entries of a configuration for SQLite files: one for each file, or one pattern for all tenants. Pure."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backupd.config import DatabaseSettings, check_database_name, discover_databases
from backupd.config.tables import InvalidTableError
from backupd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backupd.config import Settings

_FEWEST_TENANTS = 2
_LONGEST_NAME = 100
_DIGEST_LENGTH = 8
_WILDCARD = re.compile("[*?[]")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry under [[databases]]. `pattern` is absolute; `name` None where it comes from the path.

    `files` are those that it matched when it was made.
    """

    pattern: str
    name: str | None
    files: tuple[Path, ...]

    def names(self) -> list[str]:
        """The names of the databases in `files`."""
        settings = DatabaseSettings(path=self.pattern, name=self.name)
        return [settings.database_at(path).name for path in self.files]


def entries_for(files: Sequence[Path]) -> tuple[list[Entry], list[Path]]:
    """Entries that give each of `files` (absolute) a name of its own, and the files that cannot be written as TOML.

    Files whose paths differ in one directory become one pattern. A path that is not UTF-8 text cannot be written.
    """
    writable = [path for path in files if _is_text(path)]
    entries: list[Entry] = []
    taken: set[str] = set()
    of_a_pattern: set[Path] = set()
    for pattern, group in _groups(writable):
        names = _names_in(pattern, group)
        # Two patterns for the same directories would give two databases one name.
        if len(names) == len(group) and not names & taken and of_a_pattern.isdisjoint(group):
            entries.append(Entry(pattern, None, tuple(group)))
            taken |= names
            of_a_pattern.update(group)
    entries += _single_entries([path for path in writable if path not in of_a_pattern], taken).values()
    entries.sort(key=lambda entry: entry.files)
    return entries, [path for path in files if path not in writable]


def entries_from(texts: Sequence[str]) -> list[Entry]:
    """Entries for paths and patterns that the user wrote, in their order, with a unique name for each.

    Raises `UsageError` for a pattern that cannot be used.
    """
    paths = {text: Path(text).expanduser().absolute() for text in texts}
    patterns = {
        text: _written_pattern(text, path)
        for text, path in paths.items()
        if _WILDCARD.search(text) and not os.path.lexists(path)
    }
    taken = {name for entry in patterns.values() for name in _names_in(entry.pattern, entry.files)}
    singles = _single_entries(list(dict.fromkeys(path for text, path in paths.items() if text not in patterns)), taken)
    entries = [patterns[text] if text in patterns else singles[path] for text, path in paths.items()]
    return list(dict.fromkeys(entries))


def _written_pattern(text: str, path: Path) -> Entry:
    try:
        settings = DatabaseSettings(path=str(path))
    except InvalidTableError as error:
        reason = error.problems[0].error
        raise UsageError(f"{text}: {reason.message}", hint=reason.hint) from None
    return Entry(str(path), None, settings.paths())


def moved_names(entries: Iterable[Entry], settings: Settings) -> list[tuple[str, Path, Path]]:
    """Names that have another file in `entries` than in `settings`: each with its old and its new path."""
    before = {database.name.lower(): database.path for _, database in discover_databases(settings.databases).databases}
    tables = [DatabaseSettings(path=entry.pattern, name=entry.name) for entry in entries]
    databases = [database for _, database in discover_databases(tables).databases]
    return [
        (database.name, before[database.name.lower()], database.path)
        for database in databases
        if before.get(database.name.lower(), database.path) != database.path
    ]


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _groups(files: Sequence[Path]) -> list[tuple[str, list[Path]]]:
    """Patterns with the files that they match, whose paths differ in one directory only.

    The largest groups come first, as tenants are many; of equal ones, the one that differs nearest to the file.
    """
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Path]] = {}
    for path in files:
        parts = path.parts
        for position in range(1, len(parts) - 1):
            # A wildcard does not match hidden names.
            if not parts[position].startswith("."):
                groups.setdefault((parts[:position], parts[position + 1 :]), []).append(path)
    tenants = [(around, group) for around, group in groups.items() if len(group) >= _FEWEST_TENANTS]
    tenants.sort(key=lambda each: (-len(each[1]), -len(each[0][0]), each[0]))
    return [(_tenant_pattern(*around), group) for around, group in tenants]


def _tenant_pattern(before: Sequence[str], after: Sequence[str]) -> str:
    start = glob.escape(str(Path(*before))).rstrip("/")
    return f"{start}/*/{glob.escape(str(Path(*after)))}"


def _names_in(pattern: str, files: Sequence[Path]) -> set[str]:
    """The names, in lower case, that a pattern gives to `files`; none when it cannot name all of them."""
    settings = DatabaseSettings(path=pattern)
    try:
        return {settings.database_at(path).name.lower() for path in files}
    except UsageError:
        return set()


def _single_entries(paths: Iterable[Path], taken: Iterable[str]) -> dict[Path, Entry]:
    """An entry for each path, with a name only where the default name cannot be used."""
    names = _free_names(paths, taken)
    return {
        path: Entry(glob.escape(str(path)), None if name == path.stem else name, (path,))
        for path, name in names.items()
    }


def _free_names(paths: Iterable[Path], taken: Iterable[str]) -> dict[Path, str]:
    """A unique name for each path, and none of `taken` (in lower case); the order of the paths does not matter.

    All files with the same file name get their names in the same way, from their own paths. A name with a counter would
    belong to another file as soon as one more is found, and two histories would become one.
    """
    used = set(taken)
    names: dict[Path, str] = {}
    waiting: dict[str, list[Path]] = {}
    for path in sorted(paths):
        waiting.setdefault(_as_name(path.stem).lower(), []).append(path)
    for way in (_by_file, _by_directory, _by_ending, _by_directories, _by_digest):
        for stem, alike in tuple(waiting.items()):
            made = dict(zip(alike, way(alike), strict=True))
            lowered = {name.lower() for name in made.values()}
            if (len(lowered) == len(alike) and lowered.isdisjoint(used)) or way is _by_digest:
                names |= made
                used |= lowered
                del waiting[stem]
    return names


def _by_file(alike: Sequence[Path]) -> list[str]:
    return [_as_name(path.stem) for path in alike]


def _by_directory(alike: Sequence[Path]) -> list[str]:
    """Names with the first directory in which the paths differ, or the last directory."""
    shared = _shared_length(alike)
    return [_as_name(f"{(path.parent.parts[shared:] or (path.parent.name,))[0]}-{path.stem}") for path in alike]


def _by_ending(alike: Sequence[Path]) -> list[str]:
    return [_as_name(path.name) for path in alike]


def _by_directories(alike: Sequence[Path]) -> list[str]:
    """Names with all directories after those that the paths share."""
    shared = _shared_length(alike)
    return [_as_name("-".join((*path.parent.parts[shared:], path.stem))) for path in alike]


def _by_digest(alike: Sequence[Path]) -> list[str]:
    """Names with the beginning of a digest of the whole path: practically unique."""
    digests = (hashlib.sha256(str(path).encode()).hexdigest()[:_DIGEST_LENGTH] for path in alike)
    names = _by_directory(alike)
    return [
        f"{name[: _LONGEST_NAME - _DIGEST_LENGTH - 1]}-{digest}" for name, digest in zip(names, digests, strict=True)
    ]


def _shared_length(paths: Sequence[Path]) -> int:
    """How many leading directories all paths share."""
    return len(os.path.commonpath([path.parent for path in paths]).rstrip("/").split("/"))


def _as_name(text: str) -> str:
    """The text itself, if it is a valid name for a database, or a similar name."""
    with suppress(UsageError):
        return check_database_name(text)
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:_LONGEST_NAME] or "database"
    try:
        return check_database_name(name)
    except UsageError:
        return f"database-{name}"[:_LONGEST_NAME]
