"""What pydantic found wrong, told in the words of the file or variable that it came from."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backupd.config.settings import ENTRIES, Settings, tables_in
from backupd.config.values import InvalidValueError, stray_characters
from backupd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pydantic_core import ErrorDetails

    from backupd.config.values import Table

Location = tuple[int | str, ...]

# A list of public keys may have one a line.
_OF_SEVERAL_LINES = "BACKUPD_ENCRYPTION__RECIPIENTS"
# Both quotes, or one of them where a place is meant, which has none at its ends; word processors make the curved ones.
_QUOTED = re.compile(r"""(["']).*\1|[\u201c\u201d\u2018\u2019].*""", re.DOTALL)
_HALF_QUOTED = re.compile(r"""["'].*|.*["']""", re.DOTALL)
_OF_A_PLACE = re.compile(r"config|url|path|.*_(url|dir|file|bundle)")
_COMMENT = re.compile(r"\s#(\s|$)")


def variable_of(*location: int | str) -> str:
    """The variable for a key at its location: ("stores", 0, "url") is BACKUPD_STORES__0__URL."""
    return "BACKUPD_" + "__".join(str(part).upper() for part in location)


def refuse_what_tools_keep(name: str, value: str) -> None:
    """Raise `InvalidValueError` for quotes, line ends and comments around the value of a variable.

    Shells take them away; `docker run --env-file`, lists in Compose files and Kubernetes secrets do not. A path with
    them would be a directory of that name.
    """
    key = name.rpartition("__")[2].removeprefix("BACKUPD_").lower()
    stray = None if name == _OF_SEVERAL_LINES else stray_characters(value)
    if stray and "line break" in stray and not value.endswith("\r"):
        raise InvalidValueError(f"{name}: {key} {stray}", hint="make it with printf, or echo -n: echo appends one")
    if stray:
        hint = "save that file with the line ends of Unix" if value.endswith("\r") else "write the value alone"
        raise InvalidValueError(f"{name}: {key} {stray}", hint=hint)
    if _QUOTED.fullmatch(value) or (_OF_A_PLACE.fullmatch(key) and _HALF_QUOTED.fullmatch(value)):
        hint = "docker run --env-file and lists in Compose files keep them: write the value alone"
        raise InvalidValueError(f"{name}: {key} must not have quotes around it", hint=hint)
    if _COMMENT.search(value):
        hint = "docker run --env-file takes it for part of the value: give it a line of its own"
        raise InvalidValueError(f"{name}: {key} must not have a comment behind it", hint=hint)


def hint_to_be_let_in() -> str:
    """What to do about a file that this process may not read, which it may have read as root when it started."""
    uid = os.geteuid()
    restart = f"; or, if backupd was started as root, restart it: it reads its files before it becomes uid {uid}"
    return f"let uid {uid} read it{restart if uid else ''}"


def one_error(problems: Sequence[UsageError]) -> UsageError:
    """All problems (one or more) as one: the first, with the others in its hint."""
    first, *others = problems
    if not others:
        return UsageError(first.message, hint=first.hint or "config.example.toml shows every key with its default")
    told = [f"{other.message} ({other.hint})" if other.hint else other.message for other in others]
    also = f"also wrong: {'; '.join(told)}"
    return UsageError(first.message, hint=f"{first.hint}; {also}" if first.hint else also)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where values came from: the file with its content as it was read, and the names of the variables that are set."""

    source: Path | None
    in_file: Mapping[str, Any]
    variables: frozenset[str]

    def problem(self, details: ErrorDetails) -> InvalidValueError:
        """One of pydantic's errors in our words. It repeats a value only where a rule of ours put it into its text."""
        location = details["loc"]
        if details["type"] == "extra_forbidden":
            return self._unknown_key(location)
        if details["type"] == "missing":
            return self._missing_key(location)
        if isinstance(own := details.get("ctx", {}).get("error"), UsageError):
            return InvalidValueError(f"{self._place(location)}: {own.message}", hint=own.hint)
        return InvalidValueError(f"{self._place(location)}: {_rule(details)}")

    def _unknown_key(self, location: Location) -> InvalidValueError:
        *outer, key = location
        names = [str(part) for part in outer if isinstance(part, str)]
        table: type[Table] = Settings
        for name in names:
            table = tables_in(table)[name]
        likely = difflib.get_close_matches(str(key), table.model_fields, n=1)
        if names and key in Settings.model_fields:
            hint = f"{key!r} belongs above the first line in brackets"
        elif owners := {*_owners(key, table, *names), *_owners(key, Settings)}:
            hint = f"{key!r} belongs under {' or '.join(sorted(owners))}"
        elif likely:
            hint = f"did you mean {likely[0]!r}?"
        else:
            hint = f"known here: {', '.join(table.model_fields)}"
        return InvalidValueError(f"unknown key {_key(location)!r} in {self.source}", hint=hint)

    def _missing_key(self, location: Location) -> InvalidValueError:
        *table, key = location
        if self._is_in_file(table):
            return InvalidValueError(f"{_key(table)} in {self.source} has no {key!r}")
        return InvalidValueError(f"{variable_of(*location)} is not set, but other keys of {_key(table)} are")

    def _place(self, location: Location) -> str:
        variable = variable_of(*location) if location else ""
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
    """The headings of those tables in `table`, which is headed by `names`, that have the key."""
    return [_heading(*names, name) for name, inner in tables_in(table).items() if key in inner.model_fields]


def _heading(*names: str) -> str:
    return f"[[{names[0]}]]" if len(names) == 1 and names[0] in ENTRIES else f"[{'.'.join(names)}]"


def _rule(details: ErrorDetails) -> str:
    if details["type"] in {"tuple_type", "model_type"}:
        names = (part for part in details["loc"] if isinstance(part, str))
        return f"must be a table, headed {_heading(*names)}"
    if details["type"] in {"string_too_short", "too_short"}:
        return "must not be empty"
    return details["msg"].replace("Input should be", "must be")
