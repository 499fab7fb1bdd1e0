"""Errors in the configuration, in terms of the file or variable that a value came from."""

from __future__ import annotations

import difflib
import os
import re
from typing import TYPE_CHECKING, Any

import msgspec

from backupd.config.settings import ENTRIES, Settings, tables_in
from backupd.config.tables import MissingKeyError, NotATableError, UnknownKeyError
from backupd.config.values import InvalidValueError, stray_characters
from backupd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from backupd.config.tables import Location, Problem, Table

# A list of public keys may have one per line.
_MULTILINE_VARIABLE = "BACKUPD_ENCRYPTION__RECIPIENTS"
# Quotes on both sides; for paths and URLs, which have none at their ends, also on one. Word processors curve them.
_QUOTED = re.compile(r"""(["']).*\1|[\u201c\u201d\u2018\u2019].*""", re.DOTALL)
_HALF_QUOTED = re.compile(r"""["'].*|.*["']""", re.DOTALL)
_LOCATION_KEY = re.compile(r"config|url|path|.*_(url|dir|file|bundle)")
_COMMENT = re.compile(r"\s#(\s|$)")


def variable_name(*location: int | str) -> str:
    """Return the variable of the key at a location: ("stores", 0, "url") gives BACKUPD_STORES__0__URL."""
    return "BACKUPD_" + "__".join(str(part).upper() for part in location)


def check_variable(name: str, value: str) -> None:
    """Raise `InvalidValueError` when quotes, a line break or a comment surround the value of a variable.

    Shells remove them; `docker run --env-file`, lists in Compose files and Kubernetes secrets do not, and a path that
    kept them would become a directory of that name.
    """
    key = name.rpartition("__")[2].removeprefix("BACKUPD_").lower()
    stray = None if name == _MULTILINE_VARIABLE else stray_characters(value)
    if stray and "line break" in stray and not value.endswith("\r"):
        raise InvalidValueError(f"{name}: {key} {stray}", hint="write it with printf, or echo -n: echo appends one")
    if stray:
        hint = "save that file with Unix line endings" if value.endswith("\r") else "write the value alone"
        raise InvalidValueError(f"{name}: {key} {stray}", hint=hint)
    if _QUOTED.fullmatch(value) or (_LOCATION_KEY.fullmatch(key) and _HALF_QUOTED.fullmatch(value)):
        hint = "docker run --env-file and lists in Compose files keep them: write the value alone"
        raise InvalidValueError(f"{name}: {key} must not have quotes around it", hint=hint)
    if _COMMENT.search(value):
        hint = "docker run --env-file takes it as part of the value: move it to a line of its own"
        raise InvalidValueError(f"{name}: {key} must not be followed by a comment", hint=hint)


def permission_hint() -> str:
    """Return the hint for a file that this process may not read; it may have read it as root when it started."""
    uid = os.geteuid()
    restart = f"; or, if backupd was started as root, restart it: it reads its files before it changes to uid {uid}"
    return f"let uid {uid} read it{restart if uid else ''}"


def combined_error(problems: Sequence[UsageError]) -> UsageError:
    """Return all problems (one or more) as one error: the first, with the others in its hint."""
    first, *others = problems
    if not others:
        return UsageError(first.message, hint=first.hint or "config.example.toml shows every key with its default")
    more = [f"{other.message} ({other.hint})" if other.hint else other.message for other in others]
    also = f"also wrong: {'; '.join(more)}"
    return UsageError(first.message, hint=f"{first.hint}; {also}" if first.hint else also)


class Origin(msgspec.Struct, frozen=True):
    """The sources of the values: the file, its content as it was read, and the names of the variables that are set."""

    source: Path | None
    in_file: Mapping[str, Any]
    variables: frozenset[str]

    def error_of(self, problem: Problem) -> InvalidValueError:
        """Return the error of a problem, with the place of its value."""
        location, error = problem
        match error:
            case UnknownKeyError():
                return self._unknown_key(location)
            case MissingKeyError():
                return self._missing_key(location)
            case NotATableError():
                names = (part for part in location if isinstance(part, str))
                return InvalidValueError(f"{self._place(location)}: must be a table, headed {_heading(*names)}")
        return InvalidValueError(f"{self._place(location)}: {error.message}", hint=error.hint)

    def _unknown_key(self, location: Location) -> InvalidValueError:
        *outer, key = location
        names = [str(part) for part in outer if isinstance(part, str)]
        table: type[Table] = Settings
        for name in names:
            table = tables_in(table)[name]
        likely = difflib.get_close_matches(str(key), table.keys, n=1)
        if names and key in Settings.keys:
            hint = f"{key!r} belongs above the first line in brackets"
        elif owners := {*_owners(key, table, *names), *_owners(key, Settings)}:
            hint = f"{key!r} belongs under {' or '.join(sorted(owners))}"
        elif likely:
            hint = f"did you mean {likely[0]!r}?"
        else:
            hint = f"known here: {', '.join(table.keys)}"
        return InvalidValueError(f"unknown key {_key(location)!r} in {self.source}", hint=hint)

    def _missing_key(self, location: Location) -> InvalidValueError:
        *table, key = location
        if self._is_in_file(table):
            return InvalidValueError(f"{_key(table)} in {self.source} has no {key!r}")
        return InvalidValueError(f"{variable_name(*location)} is not set, but other keys of {_key(table)} are")

    def _place(self, location: Location) -> str:
        variable = variable_name(*location) if location else ""
        if variable in self.variables or f"{variable}_FILE" in self.variables:
            return f"{variable}_FILE" if f"{variable}_FILE" in self.variables else variable
        if self._is_in_file(location):
            return f"{_key(location)} in {self.source}" if location else str(self.source)
        return f"{variable}__*" if location else "BACKUPD_*"

    def _is_in_file(self, location: Sequence[int | str]) -> bool:
        value: Any = self.in_file
        for part in location:
            try:
                value = value[part]
            except (LookupError, TypeError):
                return False
        return self.source is not None


def _key(location: Sequence[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _owners(key: int | str, table: type[Table], *names: str) -> list[str]:
    """Return the headings of the tables inside `table`, itself headed by `names`, that have the key."""
    return [_heading(*names, name) for name, inner in tables_in(table).items() if key in inner.keys]


def _heading(*names: str) -> str:
    return f"[[{names[0]}]]" if len(names) == 1 and names[0] in ENTRIES else f"[{'.'.join(names)}]"
