"""The same keys from BACKUPD_... variables, and secrets from the files that ..._FILE variables name.

Apart from `loading`, because pydantic-settings takes 0.2 s to import and many runs have no such variable.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from backupd.config.problems import hint_to_be_let_in, refuse_what_tools_keep, variable_of
from backupd.config.settings import ENTRIES, Settings, tables_in
from backupd.config.values import InvalidValueError, Table

_POSITION = re.compile(r"(?<=__)(?:0|[1-9][0-9]{0,3})(?=__)")


class _SettingsInVariables(Settings, BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="BACKUPD_", env_nested_delimiter="__", env_ignore_empty=True, enable_decoding=False
    )


class _Variables(EnvSettingsSource):
    """pydantic-settings' reading of nested variables, from a mapping instead of from the process's environment."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(_SettingsInVariables)
        self.env_vars = {name.lower(): value for name, value in variables.items()}


def read_variables(variables: Mapping[str, str]) -> tuple[dict[str, Any], list[InvalidValueError]]:
    """The values of BACKUPD_... variables as a tree of keys, and everything that is wrong with the variables' names.

    Where the file has a list of tables, the tree has a dictionary by position ("0", "1"). The values are not checked.
    """
    problems: list[InvalidValueError] = []
    values: dict[str, str] = {}
    for name, value in variables.items():
        try:
            _refuse_unknown_variable(name)
            refuse_what_tools_keep(name, value)
            if _POSITION.sub("0", name) in _SECRET_FILES:
                values[name.removesuffix("_FILE")] = _secret_in_file(name, value, variables)
            else:
                values[name] = value
        except InvalidValueError as problem:
            problems.append(problem)
    return _Variables(values)(), problems


def _refuse_unknown_variable(name: str) -> None:
    spelled = _POSITION.sub("0", name)
    if spelled in _KNOWN or spelled in _SECRET_FILES:
        return
    likely = difflib.get_close_matches(spelled, [*_KNOWN, *_SECRET_FILES, "BACKUPD_CONFIG"], n=1)
    hint = None
    if likely:
        position = _POSITION.search(name)
        hint = f"did you mean {_POSITION.sub(position[0], likely[0]) if position else likely[0]}?"
    raise InvalidValueError(f"unknown variable {name} in the environment", hint=hint)


def _secret_in_file(name: str, path: str, variables: Mapping[str, str]) -> str:
    plain = name.removesuffix("_FILE")
    if plain in variables:
        raise InvalidValueError(f"{plain} and {name} are both set", hint="keep one of them")
    hint = "put the secret, and nothing else, into that file"
    try:
        secret = Path(path).read_bytes().decode()
    except UnicodeDecodeError:
        problem = "is not UTF-8 text"
    except (OSError, ValueError) as error:
        problem = f"can not be read: {getattr(error, 'strerror', None) or 'not a path'}"
        hint = _how_to_make_readable(error) or hint
    else:
        # Editors and `echo` end a file with one newline that is not part of the secret; more than one may be.
        secret = secret.removesuffix("\n").removesuffix("\r") if secret.endswith("\n") else secret
        if secret:
            return secret
        problem = "is empty"
    raise InvalidValueError(f"{name}: {path} {problem}", hint=hint)


def _how_to_make_readable(error: Exception) -> str | None:
    if isinstance(error, FileNotFoundError):
        return "is it mounted? In Compose: `secrets:` of the service names it, and `secrets:` at the end has its place"
    if isinstance(error, IsADirectoryError):
        return "Docker makes a directory when the file that should be mounted there does not exist"
    return hint_to_be_let_in() if isinstance(error, PermissionError) else None


def _variables(table: type[Table] = Settings, *location: int | str) -> Iterator[tuple[str, FieldInfo]]:
    inner = tables_in(table)
    for key, field in table.model_fields.items():
        if key in inner:
            position = [0] if key in ENTRIES else []
            yield from _variables(inner[key], *location, key, *position)
        else:
            yield variable_of(*location, key), field


_KNOWN = frozenset(name for name, _ in _variables())
_SECRET_FILES = frozenset(
    f"{name}_FILE"
    for name, field in _variables()
    if field.annotation is SecretStr or SecretStr in get_args(field.annotation)
)
