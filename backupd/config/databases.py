"""Database entries of the configuration: paths, patterns, and the name of each database."""

import glob
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from backupd.config.policies import RetentionSettings, ScheduleSettings
from backupd.config.tables import Table
from backupd.config.values import InvalidValueError, absolute_path
from backupd.errors import MissingDatabaseError, SourceUnusableError, UsageError, missing_database
from backupd.system.trust import Way, way_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Every store has these files beside the directories of the databases.
_RESERVED_NAMES = frozenset({"backupd.json", "restore.md", "rescue.py"})
_SIDECARS = ("-wal", "-shm", "-journal")
# A single wildcard in brackets stands for that character itself, as `glob.escape` writes it.
_WILDCARD = re.compile(r"\[(?P<escaped>[*?[])\]|(?P<run>(?:\*|\?|\[(?![*?[]\])!?\]?[^]/]*\])+)")


@dataclass(frozen=True, slots=True)
class Database:
    """One SQLite file to back up. `path` is absolute, with symbolic links unresolved; the file need not exist.

    `within` is the directory, without symbolic links, that the file must be in because a pattern found it there; None
    for a path without wildcards.
    """

    name: str
    path: Path
    within: Path | None = field(default=None, compare=False)

    def file(self) -> Path:
        """Return the file that `path` leads to now, without symbolic links: SQLite keeps its log beside that one.

        `path` itself when nothing is there. Raises `SourceUnusableError` when another user may have made `path` lead to
        a file that is not theirs. Names change: call it again right before the file is opened.
        """
        way = way_of(self.path)
        reject_led_away(self.path, way, self.within)
        return self.path if way.status is None else Path(way.real)


def reject_led_away(path: Path, way: Way, within: Path | None, uid: int | None = None) -> None:
    """Raise `SourceUnusableError` when `way`, where `path` leads, is outside `within` or was planted by another user.

    `uid` is the user that must be able to trust it; None is that of this process.
    """
    if within is not None and way.leaves(str(within)):
        raise SourceUnusableError(
            f"{path} leads to {way.real}, outside {within}: a pattern does not follow such links",
            hint="if this is intended, give that file its own entry with `path` and `name`; if not, remove the link",
        )
    if reason := way.planted(uid):
        raise SourceUnusableError(
            f"{path} is not followed: {reason}",
            hint="if this is intended, name the file itself, or let root make the link; if not, find out who made it",
        )


def check_database_name(name: str) -> str:
    """Return `name` if it is a valid name of a database, or raise `InvalidValueError`.

    Valid are up to 100 letters, digits, dots, hyphens and underscores that begin with a letter or digit, except the
    names of files that every store has.
    """
    if not _NAME.fullmatch(name):
        raise InvalidValueError(
            f"{name!r} cannot be the name of a database",
            hint="use up to 100 letters, digits, dots, hyphens and underscores, with a letter or digit first",
        )
    if name.lower() in _RESERVED_NAMES:
        raise InvalidValueError(
            f"{name!r} cannot be the name of a database", hint="every store has a file of that name; choose another"
        )
    return name


def _absolute_pattern(value: object) -> str:
    path = absolute_path(value)
    text = str(value)
    if Path(text).is_absolute() or text.startswith("~"):
        return str(path)
    return f"{glob.escape(str(Path.cwd()))}/{Path(text)}"


class DatabaseSettings(Table):
    """An entry for one file, or for all files that match a pattern with `*`, `?` or `[...]`. `path` is absolute.

    `name` is None when it comes from the path. A wildcard character that stands for itself is in brackets: `[[]`.
    """

    path: Annotated[str, _absolute_pattern]
    name: str | None = None
    retention: RetentionSettings | None = None
    schedule: ScheduleSettings | None = None

    @property
    def is_glob(self) -> bool:
        """Whether `path` is a pattern, which may match several files."""
        return _has_wildcard(self.path)

    def check(self) -> None:
        """Raise `InvalidValueError` for a pattern that cannot be used, or a file that cannot be named."""
        if self.is_glob and "**" in self.path:
            raise InvalidValueError("'**' is not supported in a path", hint="write one entry for each depth")
        if self.is_glob and self.name is not None:
            raise InvalidValueError(
                "a path with wildcards cannot have a name",
                hint="remove `name`: the part of the path that varies names each database",
            )
        if not self.is_glob:
            self.database_at(*self.paths())

    @property
    def shown_path(self) -> str:
        """The path by which the status knows this entry: its one file, or the pattern."""
        return self.path if self.is_glob else str(*self.paths())

    def paths(self) -> tuple[Path, ...]:
        """Return the files that this entry stands for now, in order; for a path without wildcards always that one.

        Directories and SQLite's own `-wal`, `-shm` and `-journal` files are left out. A path that cannot be examined
        counts as a file: its run fails and reports why.
        """
        if not self.is_glob:
            return (Path(_WILDCARD.sub(r"\g<escaped>", self.path)),)
        found = sorted(glob.glob(self.path))  # noqa: PTH207  (Path.glob finds hidden files too)
        # Path.is_dir raises where permission is missing: one tenant would stop all others.
        return tuple(Path(path) for path in found if not path.endswith(_SIDECARS) and not os.path.isdir(path))  # noqa: PTH112

    def database_at(self, path: Path, within: Path | None = None) -> Database:
        """Return the database at one of `paths`. Raises `UsageError` when the varying part of the path is no name."""
        if not self.is_glob:
            return database_from_path(path, name=self.name)
        return Database(_name_that_varies(self.path, path), path, within)

    def fixed_part(self) -> str | None:
        """Return the directory before the first wildcard, as it is written; None for a path without wildcards."""
        first = next((wildcard for wildcard in _WILDCARD.finditer(self.path) if wildcard["run"]), None)
        if first is None:
            return None
        return os.path.dirname(_WILDCARD.sub(r"\g<escaped>", self.path[: first.start()]))  # noqa: PTH120  (of a pattern)


def _has_wildcard(pattern: str) -> bool:
    return any(wildcard["run"] for wildcard in _WILDCARD.finditer(pattern))


def database_from_path(path: Path, *, name: str | None = None) -> Database:
    """Return the database at exactly this path (no wildcards), named `name` or after the file without its last suffix.

    A relative path starts at the current directory. Raises `UsageError` when the name is not valid.
    """
    path = absolute_path(path)
    if name is not None:
        return Database(check_database_name(name), path)
    return Database(
        _checked_name_from_path(path.stem, path, "set `name` in its entry under [[databases]], or rename the file"),
        path,
    )


def missing_file_error(entry: DatabaseSettings) -> MissingDatabaseError | None:
    """Return the error for an entry without wildcards whose file does not exist; None when it may exist."""
    if entry.is_glob:
        return None
    (path,) = entry.paths()
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return missing_database(path)
    except OSError:
        return None  # its run fails, and reports why
    return None


def no_match_error(*patterns: str) -> SourceUnusableError:
    """Return the error for patterns that match no file, with the reason if this process may not search for any."""
    message = f"no file matches {' or '.join(patterns)}"
    closed = next(filter(None, map(_closed_directory, patterns)), None)
    if closed is None:
        return MissingDatabaseError(
            message,
            hint="check the path, whether the file has another name and, in a container, whether the volume is "
            "mounted there",
        )
    directory, owner = closed
    uid = os.geteuid()
    as_owner = f"run backupd as uid {owner}, or " if owner != uid else ""
    return SourceUnusableError(
        f"{message}: uid {uid} may not search {directory}",
        hint=f"{as_owner}let uid {uid} read and enter that directory",
    )


def _closed_directory(pattern: str) -> tuple[str, int] | None:
    """Return the nearest directory above matches of `pattern` that this process may not search, and its owner."""
    inner = pattern
    while (directory := os.path.dirname(inner)) != inner:  # noqa: PTH120  (a pattern is no path: it may end in a slash)
        # A known name can be looked up where names cannot be listed.
        needed = os.X_OK | (os.R_OK if _has_wildcard(os.path.basename(inner)) else 0)  # noqa: PTH119  (as above)
        found = [each for each in sorted(glob.glob(directory)) if os.path.isdir(each)]  # noqa: PTH112, PTH207  (as in `paths`)
        closed = next((each for each in found if not os.access(each, needed)), None)
        if closed is not None:
            with suppress(FileNotFoundError):  # removed since
                return closed, Path(closed).stat().st_uid
        if found:
            return None
        inner = directory
    return None


def _name_that_varies(pattern: str, path: Path) -> str:
    match = _capturing(pattern).fullmatch(str(path))
    return _checked_name_from_path(
        "-".join(match.groups()) if match else "",
        path,
        "give this file an entry of its own with `path` and `name`, or rename what varies",
    )


@lru_cache(maxsize=64)
def _capturing(pattern: str) -> re.Pattern[str]:
    """Return an expression with a group for each part of a path that varies: one for all matches of a pattern."""
    expression, position = "", 0
    for wildcard in _WILDCARD.finditer(pattern):
        expression += re.escape(pattern[position : wildcard.start()])
        expression += re.escape(wildcard["escaped"]) if wildcard["escaped"] else _captured(wildcard["run"])
        position = wildcard.end()
    return re.compile(expression + re.escape(pattern[position:]))


def _captured(run: str) -> str:
    # glob has matched the path already: which characters a bracket allows does not matter, only that it is one.
    one_by_one = re.sub(r"\[!?\]?[^]]*\]", "?", run)
    return "(" + one_by_one.replace("?", "[^/]").replace("*", "[^/]*") + ")"


def _checked_name_from_path(name: str, path: Path, hint: str) -> str:
    try:
        return check_database_name(name)
    except UsageError as error:
        raise InvalidValueError(f"{error.message} ({path})", hint=hint) from None
