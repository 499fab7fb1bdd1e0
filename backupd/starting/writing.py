"""The text of a first configuration, in the order and words of config.example.toml, and its way to its place."""

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
from backupd.config.problems import refuse_what_tools_keep, variable_of
from backupd.config.settings import default_state_dir
from backupd.config.values import absolute_path
from backupd.errors import TargetExistsError, TargetUnwritableError, UsageError
from backupd.files import flush_directory, rename_new, set_mode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backupd.config import Settings
    from backupd.starting.entries import Entry

_SECRET_MODE = 0o600
_USUAL_MODE = 0o644
_DIRECTORY_MODE = 0o755


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreWish:
    """One entry under [[stores]]; None for what is not written. `secret_access_key` comes with `access_key_id`."""

    url: str
    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationWish:
    """What the file is to say. None leaves a key at its default."""

    databases: Sequence[Entry]
    stores: Sequence[StoreWish]
    snapshots: str | None = None
    time_zone: str | None = None

    @property
    def has_secret(self) -> bool:
        """Whether nobody else may read the file."""
        return any(store.secret_access_key is not None for store in self.stores)


def usual_place(environ: Mapping[str, str]) -> Path:
    """Where the file belongs by default: where the variable has it, or else in the current directory.

    Raises `UsageError` when the variable has what no path has.
    """
    named = environ.get("BACKUPD_CONFIG", "")
    refuse_what_tools_keep("BACKUPD_CONFIG", named)
    return Path(named or "backupd.toml").absolute()


def state_directory(environ: Mapping[str, str], *, is_root: bool) -> Path:
    """Where backupd keeps its own files under the configuration that is to be written. Raises `UsageError`."""
    if named := environ.get(variable_of("state_dir")):
        refuse_what_tools_keep(variable_of("state_dir"), named)
        return absolute_path(named)
    return default_state_dir(environ, is_root=is_root)


def variables_that_beat(wish: ConfigurationWish, environ: Mapping[str, str]) -> list[str]:
    """The variables that are set and of which every command takes the value in place of what the file says."""
    written = (variable_of(*location) for location in _locations(tomllib.loads(as_toml(wish))))
    return [name for plain in written for name in (plain, f"{plain}_FILE") if environ.get(name)]


def _locations(tree: Any, *outer: int | str) -> Iterator[tuple[int | str, ...]]:
    """Where the values in a tree of tables are."""
    if not isinstance(tree, dict | list):
        yield outer
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _locations(value, *outer, key)


def as_toml(wish: ConfigurationWish) -> str:
    """The whole file. Every text survives, whatever characters it has (no lone surrogates)."""
    return "\n".join(_lines(wish)) + "\n"


def _lines(wish: ConfigurationWish) -> Iterator[str]:
    yield "# What backupd protects, and where to. Written by `backupd init`; every key that there is, with its default,"
    yield "# stands in config.example.toml. Check what you change with: backupd doctor"
    for entry in wish.databases:
        yield from ("", "", *_database_lines(entry))
    for position, store in enumerate(wish.stores):
        yield from ("", "", *_store_lines(store, position))
    if wish.snapshots is not None or wish.time_zone is not None:
        yield from ("", "", "# When `backupd run` does what: an interval, or the five fields of cron.", "[schedule]")
        if wish.snapshots is not None:
            yield f"snapshots = {_quoted(wish.snapshots)}"
        if wish.time_zone is not None:
            yield "# Where the clock shows the times of cron fields."
            yield f"time_zone = {_quoted(wish.time_zone)}"


def _database_lines(entry: Entry) -> Iterator[str]:
    if entry.name is None and len(entry.files) > 1:
        yield "# One entry for many files, each named by the part that varies. New files are picked up as they appear."
    yield "[[databases]]"
    yield f"path = {_quoted(entry.pattern)}"
    if entry.name is not None:
        yield "# What it is called in every store and command. Choose once: under a new name the history starts anew."
        yield f"name = {_quoted(entry.name)}"


def _store_lines(store: StoreWish, position: int) -> Iterator[str]:
    yield "[[stores]]"
    yield f"url = {_quoted(store.url)}"
    if store.endpoint_url is not None:
        yield "# Where the service is, when it is not AWS."
        yield f"endpoint_url = {_quoted(store.endpoint_url)}"
    if store.region is not None:
        yield f"region = {_quoted(store.region)}"
    if store.secret_access_key is not None:
        yield "# Better than a secret in this file, and readable for nobody else:"
        yield f"# BACKUPD_STORES__{position}__SECRET_ACCESS_KEY_FILE=/run/secrets/s3 in the environment."
        yield f"access_key_id = {_quoted(store.access_key_id or '')}"
        yield f"secret_access_key = {_quoted(store.secret_access_key)}"
    elif store.url.startswith("s3://"):
        yield "# Without keys here, those of AWS tools apply (environment, ~/.aws, role of the machine), or those in"
        yield f"# BACKUPD_STORES__{position}__ACCESS_KEY_ID and BACKUPD_STORES__{position}__SECRET_ACCESS_KEY_FILE."


def _quoted(text: str) -> str:
    """A basic string of TOML. JSON's is one too, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def place(file: Path, wish: ConfigurationWish, environ: Mapping[str, str], *, is_forced: bool) -> Settings:
    """Write the file, load it, and only then give it its name; the settings that every command will have from it.

    Atomic. With a secret in it, only its owner may read it. Without `is_forced`, raises `TargetExistsError` when a file
    is there already; `TargetUnwritableError`, and `UsageError` when it is not valid together with the environment.
    """
    if not is_forced and os.path.lexists(file):
        raise exists_already(file)
    text = as_toml(wish)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        _make_directory(file.parent)
        _write(temporary, text.encode(), _SECRET_MODE if wish.has_secret else _USUAL_MODE)
        load(temporary, environ)
        if is_forced:
            temporary.rename(file)
        else:
            rename_new(temporary, file)
        flush_directory(file.parent)
    except UsageError as error:
        # Nobody has ever seen the other name.
        raise UsageError(error.message.replace(str(temporary), str(file)), hint=error.hint) from None
    except FileExistsError as error:
        raise exists_already(file) from error
    except OSError as error:
        raise TargetUnwritableError(
            f"{file} cannot be written: {(error.strerror or str(error)).lower()}",
            hint="name another file with --config, or run this as the user who may write there",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return load(file, environ)


def exists_already(file: Path) -> TargetExistsError:
    """The error for a configuration that nobody allowed to write over."""
    return TargetExistsError(
        f"{file} exists already, and was not changed",
        hint="edit it, or write it anew with --force, or another one with --config FILE",
    )


def _make_directory(directory: Path) -> None:
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        # The command line's umask is for what holds a database's content. By descriptor, as names may be changed.
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
