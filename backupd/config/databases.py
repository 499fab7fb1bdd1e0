"""Which SQLite files are protected, and what each is called."""

import glob
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, model_validator

from backupd.config.retention import RetentionSettings
from backupd.config.schedule import ScheduleSettings
from backupd.config.values import InvalidValueError, Table, absolute_path
from backupd.errors import MissingDatabaseError, SourceUnusableError, UsageError, missing_database
from backupd.trust import Way, way_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# A store keeps these files beside the databases' directories.
_NAMES_OF_THE_STORE = frozenset({"backupd.json", "restore.md", "rescue.py"})
_SIDECARS = ("-wal", "-shm", "-journal")
# A bracket that holds one wildcard is how a pattern spells that character itself, as `glob.escape` does.
_WILDCARD = re.compile(r"\[(?P<escaped>[*?[])\]|(?P<run>(?:\*|\?|\[(?![*?[]\])!?\]?[^]/]*\])+)")


@dataclass(frozen=True, slots=True)
class Database:
    """One file to protect. `path` is absolute, with its symbolic links unresolved; nothing says that it exists.

    `within` is the directory, without symbolic links, that the pattern which found the file may not be led out of; None
    for a path that is written as it is.
    """

    name: str
    path: Path
    within: Path | None = field(default=None, compare=False)

    def file(self) -> Path:
        """The file that `path` leads to at this moment, without symbolic links; SQLite keeps its log beside that.

        What is not there goes by `path`. Raises `SourceUnusableError` when another user may have
        led `path` to what is not theirs: call it again right before the file is opened, as names change.
        """
        way = way_of(self.path)
        reject_led_away(self.path, way, self.within)
        return self.path if way.status is None else Path(way.real)


def reject_led_away(path: Path, way: Way, within: Path | None, uid: int | None = None) -> None:
    """Raise `SourceUnusableError` when `way`, that of `path`, leaves `within`, or another user may have laid it.

    As a process of `uid` sees that; None is this one's.
    """
    if within is not None and way.leaves(str(within)):
        raise SourceUnusableError(
            f"{path} leads to {way.real}, out of {within}: a pattern follows no link that far",
            hint="if it is meant, give that file an entry of its own with `path` and `name`; if not, remove the link",
        )
    if reason := way.planted(uid):
        raise SourceUnusableError(
            f"{path} is not followed: {reason}",
            hint="if it is meant, name the file itself, or have root make the link; if not, look who made it",
        )


def check_database_name(name: str) -> str:
    """Give `name` back when a database can be called that, else raise `InvalidValueError`.

    Up to 100 letters, digits, dots, hyphens and underscores, the first a letter or digit, and no name of a file that
    the store keeps for itself.
    """
    if not _NAME.fullmatch(name):
        raise InvalidValueError(
            f"{name!r} can not be a database's name",
            hint="use up to 100 letters, digits, dots, hyphens and underscores, with a letter or digit first",
        )
    if name.lower() in _NAMES_OF_THE_STORE:
        raise InvalidValueError(
            f"{name!r} can not be a database's name", hint="every store has a file of that name; choose another name"
        )
    return name


def _absolute_pattern(value: object) -> str:
    path = absolute_path(value)
    text = str(value)
    if Path(text).is_absolute() or text.startswith("~"):
        return str(path)
    return f"{glob.escape(str(Path.cwd()))}/{Path(text)}"


class DatabaseSettings(Table):
    """One file, or every file that a pattern with `*`, `?` or `[...]` finds. `path` is an absolute pattern.

    `name` is None when it comes from the path. A wildcard character that is meant as itself stands in brackets: `[[]`.
    """

    path: Annotated[str, BeforeValidator(_absolute_pattern)]
    name: str | None = None
    retention: RetentionSettings | None = None
    schedule: ScheduleSettings | None = None

    @property
    def is_glob(self) -> bool:
        """Whether `path` may find several files."""
        return _has_wildcard(self.path)

    @model_validator(mode="after")
    def _check_the_name(self) -> Self:
        if self.is_glob and "**" in self.path:
            raise InvalidValueError("'**' is not supported in a path", hint="write one entry for each depth")
        if self.is_glob and self.name is not None:
            raise InvalidValueError(
                "a path with wildcards can not have a name",
                hint="take `name` out: the part of the path that varies names each database",
            )
        if not self.is_glob:
            self.database_at(*self.paths())
        return self

    @property
    def shown_path(self) -> str:
        """What the status knows this entry by: its one file, or the pattern."""
        return self.path if self.is_glob else str(*self.paths())

    def paths(self) -> tuple[Path, ...]:
        """The files that this entry stands for now, in order; for a path without wildcards always that one.

        Directories and SQLite's own `-wal`, `-shm` and `-journal` files are left out. What cannot be looked at
        counts as a file: its run fails, and says why.
        """
        if not self.is_glob:
            return (Path(_WILDCARD.sub(r"\g<escaped>", self.path)),)
        found = sorted(glob.glob(self.path))  # noqa: PTH207  (Path.glob finds hidden files too)
        # Path.is_dir raises where something may not be looked at: one tenant would stop all others.
        return tuple(Path(path) for path in found if not path.endswith(_SIDECARS) and not os.path.isdir(path))  # noqa: PTH112

    def database_at(self, path: Path, within: Path | None = None) -> Database:
        """One of `paths` with its name. Raises `UsageError` when the part of the path that varies can not be a name."""
        if not self.is_glob:
            return database_from_path(path, name=self.name)
        return Database(_name_that_varies(self.path, path), path, within)

    def fixed_part(self) -> str | None:
        """The directory before the first wildcard, as it is written; None for a path without wildcards."""
        first = next((wildcard for wildcard in _WILDCARD.finditer(self.path) if wildcard["run"]), None)
        if first is None:
            return None
        return os.path.dirname(_WILDCARD.sub(r"\g<escaped>", self.path[: first.start()]))  # noqa: PTH120  (of a pattern)


def _has_wildcard(pattern: str) -> bool:
    return any(wildcard["run"] for wildcard in _WILDCARD.finditer(pattern))


def database_from_path(path: Path, *, name: str | None = None) -> Database:
    """The database at exactly this path (no wildcards), named `name` or by the file's name without its last suffix.

    A relative path is taken from the current directory. Raises `UsageError` when the name can not be used.
    """
    path = absolute_path(path)
    if name is not None:
        return Database(check_database_name(name), path)
    return Database(
        _checked_name_from_path(path.stem, path, "set `name` in its entry under [[databases]], or rename the file"),
        path,
    )


def missing_file(entry: DatabaseSettings) -> MissingDatabaseError | None:
    """That the one file of an entry without wildcards is not there; None when it is, or cannot be looked at."""
    if entry.is_glob:
        return None
    (path,) = entry.paths()
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return missing_database(path)
    except OSError:
        return None  # its run fails, and says why
    return None


def nothing_found(*patterns: str) -> SourceUnusableError:
    """The error for patterns that find no file. Looks whether that is because this process may not look for any."""
    told = f"no file matches {' or '.join(patterns)}"
    closed = next(filter(None, map(_closed_directory, patterns)), None)
    if closed is None:
        return MissingDatabaseError(
            told,
            hint="check the path, whether the file is called otherwise and, in a container, whether the volume is "
            "mounted there",
        )
    directory, owner = closed
    uid = os.geteuid()
    as_owner = f"run backupd as uid {owner}, or " if owner != uid else ""
    return SourceUnusableError(
        f"{told}: uid {uid} may not look into {directory}",
        hint=f"{as_owner}let uid {uid} read and enter that directory",
    )


def _closed_directory(pattern: str) -> tuple[str, int] | None:
    """The nearest directory on the way to what `pattern` finds that this process may not look into, and its owner."""
    inner = pattern
    while (directory := os.path.dirname(inner)) != inner:  # noqa: PTH120  (a pattern is no path: it may end in a slash)
        # A name can be asked for where the others cannot be listed.
        needed = os.X_OK | (os.R_OK if _has_wildcard(os.path.basename(inner)) else 0)  # noqa: PTH119  (as above)
        found = [each for each in sorted(glob.glob(directory)) if os.path.isdir(each)]  # noqa: PTH112, PTH207  (as in `paths`)
        closed = next((each for each in found if not os.access(each, needed)), None)
        if closed is not None:
            with suppress(FileNotFoundError):  # gone meanwhile
                return closed, Path(closed).stat().st_uid
        if found:
            return None
        inner = directory
    return None


def unmatched_patterns(entries: Iterable[DatabaseSettings]) -> tuple[str, ...]:
    """The patterns among `entries` that find no file now."""
    return tuple(entry.path for entry in entries if not entry.paths())


def _name_that_varies(pattern: str, path: Path) -> str:
    expression, position = "", 0
    for wildcard in _WILDCARD.finditer(pattern):
        expression += re.escape(pattern[position : wildcard.start()])
        expression += re.escape(wildcard["escaped"]) if wildcard["escaped"] else _captured(wildcard["run"])
        position = wildcard.end()
    match = re.fullmatch(expression + re.escape(pattern[position:]), str(path))
    return _checked_name_from_path(
        "-".join(match.groups()) if match else "",
        path,
        "give this file an entry of its own with `path` and `name`, or rename what varies",
    )


def _captured(run: str) -> str:
    # glob has chosen the path already, so which characters a bracket allows does not matter here: only that it is one.
    one_by_one = re.sub(r"\[!?\]?[^]]*\]", "?", run)
    return "(" + one_by_one.replace("?", "[^/]").replace("*", "[^/]*") + ")"


def _checked_name_from_path(name: str, path: Path, hint: str) -> str:
    try:
        return check_database_name(name)
    except UsageError as error:
        raise InvalidValueError(f"{error.message} ({path})", hint=hint) from None
