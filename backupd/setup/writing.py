"""The text of a first configuration, in the order and words of config.example.toml, and how it is written."""

from __future__ import annotations

import json
import os
import secrets
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backupd.config import load
from backupd.config.problems import check_variable, variable_name
from backupd.config.settings import default_state_dir
from backupd.config.values import absolute_path
from backupd.errors import TargetExistsError, TargetUnwritableError, UsageError
from backupd.system.files import flush_directory, rename_new, set_mode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backupd.config import Settings
    from backupd.setup.entries import Entry

_SECRET_MODE = 0o600
_USUAL_MODE = 0o644
_DIRECTORY_MODE = 0o755


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRequest:
    """One entry under [[stores]]; None for what is not written. `secret_access_key` comes with `access_key_id`."""

    url: str
    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationRequest:
    """The content of the file. None leaves a key at its default."""

    databases: Sequence[Entry]
    stores: Sequence[StoreRequest]
    snapshots: str | None = None
    time_zone: str | None = None
    skipped: tuple[Path, ...] = ()
    """Databases that were found and that the file cannot name."""

    @property
    def has_secret(self) -> bool:
        """Whether the file contains a secret, so that only its owner may read it."""
        return any(store.secret_access_key is not None for store in self.stores)


def usual_place(environ: Mapping[str, str]) -> Path:
    """Where the file belongs by default: at the path in BACKUPD_CONFIG, or in the current directory.

    Raises `UsageError` when the variable has quotes or other characters that are not part of a path.
    """
    named = environ.get("BACKUPD_CONFIG", "")
    check_variable("BACKUPD_CONFIG", named)
    return Path(named or "backupd.toml").absolute()


def state_directory(environ: Mapping[str, str], *, is_root: bool) -> Path:
    """Where backupd will keep its own files under the new configuration. Raises `UsageError`."""
    if named := environ.get(variable_name("state_dir")):
        check_variable(variable_name("state_dir"), named)
        return absolute_path(named)
    return default_state_dir(environ, is_root=is_root)


def overriding_variables(request: ConfigurationRequest, environ: Mapping[str, str]) -> list[str]:
    """The variables that are set and that override a value of the file in every command."""
    written = (variable_name(*location) for location in _locations(tomllib.loads(as_toml(request))))
    return [name for plain in written for name in (plain, f"{plain}_FILE") if environ.get(name)]


def _locations(tree: Any, *outer: int | str) -> Iterator[tuple[int | str, ...]]:
    """The locations of the values in a tree of tables."""
    if not isinstance(tree, dict | list):
        yield outer
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _locations(value, *outer, key)


def as_toml(request: ConfigurationRequest) -> str:
    """The text of the file. Strings may have any characters except lone surrogates."""
    return "\n".join(_lines(request)) + "\n"


def _lines(request: ConfigurationRequest) -> Iterator[str]:
    yield "# What backupd backs up, and where to. Written by `backupd init`. config.example.toml has every key with its"
    yield "# default. Check your changes with: backupd doctor"
    for entry in request.databases:
        yield from ("", "", *_database_lines(entry))
    for position, store in enumerate(request.stores):
        yield from ("", "", *_store_lines(store, position))
    if request.snapshots is not None or request.time_zone is not None:
        yield from ("", "", "# When `backupd run` does what: an interval, or the five fields of cron.", "[schedule]")
        if request.snapshots is not None:
            yield f"snapshots = {_quoted(request.snapshots)}"
        if request.time_zone is not None:
            yield "# The time zone of cron fields."
            yield f"time_zone = {_quoted(request.time_zone)}"


def _database_lines(entry: Entry) -> Iterator[str]:
    if entry.name is None and len(entry.files) > 1:
        yield "# One entry for many files, each named by the part that varies. New files are picked up as they appear."
    yield "[[databases]]"
    yield f"path = {_quoted(entry.pattern)}"
    if entry.name is not None:
        yield "# What it is called in every store and command. Do not change it: a new name starts a new history."
        yield f"name = {_quoted(entry.name)}"


def _store_lines(store: StoreRequest, position: int) -> Iterator[str]:
    yield "[[stores]]"
    yield f"url = {_quoted(store.url)}"
    if store.endpoint_url is not None:
        yield "# Where the service is, when it is not AWS."
        yield f"endpoint_url = {_quoted(store.endpoint_url)}"
    if store.region is not None:
        yield f"region = {_quoted(store.region)}"
    if store.secret_access_key is not None:
        yield "# Safer than a secret in this file:"
        yield f"# BACKUPD_STORES__{position}__SECRET_ACCESS_KEY_FILE=/run/secrets/s3 in the environment."
        yield f"access_key_id = {_quoted(store.access_key_id or '')}"
        yield f"secret_access_key = {_quoted(store.secret_access_key)}"
    elif store.url.startswith("s3://"):
        yield "# Without keys here, the keys of AWS tools apply (environment, ~/.aws, role of the machine), or those in"
        yield f"# BACKUPD_STORES__{position}__ACCESS_KEY_ID and BACKUPD_STORES__{position}__SECRET_ACCESS_KEY_FILE."


def _quoted(text: str) -> str:
    """A basic string of TOML: a JSON string in which DEL is escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def write_configuration(
    file: Path, request: ConfigurationRequest, environ: Mapping[str, str], *, is_forced: bool
) -> Settings:
    """Write a file, load it, and only then rename it to `file`; returns the settings that commands read from it.

    Atomic. Only its owner may read it when it contains a secret. Raises `TargetExistsError` when a file is there and
    not `is_forced`, `TargetUnwritableError`, and `UsageError` when it is invalid together with the environment.
    """
    if not is_forced and os.path.lexists(file):
        raise exists_already(file)
    text = as_toml(request)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        _make_directory(file.parent)
        _write(temporary, text.encode(), _SECRET_MODE if request.has_secret else _USUAL_MODE)
        load(temporary, environ)
        if is_forced:
            temporary.rename(file)
        else:
            rename_new(temporary, file)
        flush_directory(file.parent)
    except UsageError as error:
        # The user does not know the temporary name.
        raise UsageError(error.message.replace(str(temporary), str(file)), hint=error.hint) from None
    except FileExistsError as error:
        raise exists_already(file) from error
    except OSError as error:
        raise TargetUnwritableError(
            f"{file} cannot be written: {(error.strerror or str(error)).lower()}",
            hint="name another file with --config, or run this as a user who may write there",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return load(file, environ)


def exists_already(file: Path) -> TargetExistsError:
    """The error for a configuration that exists and must not be overwritten."""
    return TargetExistsError(
        f"{file} exists already, and was not changed",
        hint="edit it, or overwrite it with --force, or write another one with --config FILE",
    )


def _make_directory(directory: Path) -> None:
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        # The umask of the process is for files with content of databases. By descriptor, as names may change.
        descriptor = os.open(each, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                set_mode(descriptor, _DIRECTORY_MODE)  # elsewhere the mount decides
        finally:
            os.close(descriptor)


def _write(file: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _SECRET_MODE)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content)
        set_mode(descriptor, mode)
        opened.flush()
        os.fsync(descriptor)
