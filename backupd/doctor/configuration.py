"""What is configured, and the directory that backupd keeps its state in."""

from __future__ import annotations

import os
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backupd.config import look_for_databases, nothing_found, unmatched_patterns
from backupd.config.problems import variable_of
from backupd.doctor import figures
from backupd.doctor.findings import Subject
from backupd.errors import ExitCode
from backupd.files import free_bytes, try_lock
from backupd.owner import why_still_root

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backupd.config import Database, DatabaseSettings, Settings
    from backupd.doctor.findings import Finding
    from backupd.doctor.mounts import Host
    from backupd.errors import BackupdError

CONFIGURATION = Subject("configuration")
STATE = Subject("state directory")

_SECRET_KEYS = {"secret_access_key", "session_token", "token"}
_TABLES_WITH_SECRET_URLS = {"notifications", "heartbeats"}
_OTHERS = 0o007
_ENTRIES_IN_VARIABLES = (f"{variable_of('databases')}__", f"{variable_of('stores')}__")


@dataclass(frozen=True, slots=True)
class StateLook:
    """What was found of the state directory. `problem` says why it cannot be used, or is None."""

    path: Path
    real_path: Path
    exists: bool
    problem: str | None
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class Protected:
    """What the configuration stands for at this moment. `entries` are by the names of the databases."""

    databases: tuple[Database, ...] = ()
    entries: Mapping[str, DatabaseSettings] = field(default_factory=dict)
    unmatched: tuple[BackupdError, ...] = ()
    """Why patterns find no file."""
    problems: tuple[BackupdError, ...] = ()
    """Why files that patterns find are no databases."""


def find_protected(settings: Settings) -> Protected:
    """What there is now. Looks into directories, which may hang."""
    found = look_for_databases(settings.databases)
    return Protected(
        tuple(database for _, database in found.databases),
        {database.name: entry for entry, database in found.databases},
        tuple(nothing_found(pattern) for pattern in unmatched_patterns(settings.databases)),
        tuple(problem for _, problem in found.problems),
    )


def judge_file(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Where the configuration comes from, and who may read the secrets in it."""
    source = settings.source
    if source is None and any(value and name.startswith(_ENTRIES_IN_VARIABLES) for name, value in environ.items()):
        yield CONFIGURATION.ok("file", "there is none: variables say what to do, and they are valid")
        return
    if source is None:
        yield CONFIGURATION.note(
            "file", "there is no file: variables and defaults hold", "write one with: backupd init, or mount it"
        )
        return
    yield CONFIGURATION.ok("file", f"{source} is valid")
    mode = source.stat().st_mode & 0o777
    if mode & _OTHERS and has_secret(tomllib.loads(source.read_bytes().decode("utf-8-sig"))):
        yield CONFIGURATION.warning(
            "secrets",
            f"{source} has a secret in it, and everybody on this machine may read it (mode {mode:04o})",
            f"chmod 0600 {source}, or move the secret into a file of its own: BACKUPD_..._FILE names it",
        )


def has_secret(table: Mapping[str, Any]) -> bool:
    """Whether a configuration, as TOML gives it, has a key whose value is nobody's business."""
    for key, value in table.items():
        inner = value if isinstance(value, list) else [value]
        tables = [each for each in inner if isinstance(each, dict)]
        if key in _SECRET_KEYS or (key in _TABLES_WITH_SECRET_URLS and any("url" in each for each in tables)):
            return True
        if any(has_secret(each) for each in tables):
            return True
    return False


def judge_user(settings: Settings) -> Iterator[Finding]:
    """Whether this process is root where it had better be the owner of a database."""
    if reason := why_still_root(settings):
        yield CONFIGURATION.note(
            "user", f"backupd stays root: {reason}", "give the database to the user that the application runs as"
        )


def judge_secret_files(environ: Mapping[str, str], host: Host) -> Iterator[Finding]:
    """Files that BACKUPD_..._FILE variables name, and that everybody may read. A container has no others."""
    if host.is_container:
        return
    for name, text in sorted(environ.items()):
        is_meant = name.startswith("BACKUPD_") and name.endswith("_FILE")
        if not is_meant or not os.path.isfile(text):  # noqa: PTH113  (Path.is_file raises what cannot be looked at)
            continue
        mode = Path(text).stat().st_mode & 0o777
        if mode & _OTHERS:
            yield CONFIGURATION.warning(
                "secrets",
                f"{text} ({name}) can be read by everybody on this machine (mode {mode:04o})",
                f"chmod 0600 {text}",
            )


def judge_protected(settings: Settings, protected: Protected) -> Iterator[Finding]:
    """Whether there is anything to back up, and anywhere to put it."""
    if not settings.databases:
        yield CONFIGURATION.error(
            "databases",
            "no database is configured: nothing is backed up by itself",
            "list them under [[databases]]: backupd init finds them; in a container, look whether the file is mounted",
            ExitCode.USAGE,
        )
    for problem in (*protected.unmatched, *protected.problems):
        yield CONFIGURATION.failed("databases", problem)
    if protected.databases:
        yield CONFIGURATION.ok("databases", f"{len(protected.databases)} to back up")
    if not settings.stores:
        yield CONFIGURATION.warning(
            "stores",
            f"none is configured: snapshots go to {settings.stores_or_default[0].url}, wherever backupd is started",
            "list one or two under [[stores]]",
        )
    else:
        yield CONFIGURATION.ok("stores", f"{len(settings.stores)} to keep snapshots in")


def look_at_state(directory: Path) -> StateLook:
    """Whether the state directory can be written, by writing where it exists. Makes no directory, and leaves nothing.

    A doctor that is run by root must not make what the daemon of another user then cannot use.
    """
    real_path = Path(os.path.realpath(directory))
    there = next(each for each in (real_path, *real_path.parents) if os.path.lexists(each))
    problem = None
    try:
        room = free_bytes(there)
        if there == real_path:
            with tempfile.NamedTemporaryFile(dir=there, prefix=".doctor-") as opened:
                try_lock(opened.fileno(), Path(opened.name))
        elif not os.access(there, os.W_OK | os.X_OK):
            problem = f"{there} cannot be written by uid {os.geteuid()}"
    except OSError as error:
        return StateLook(directory, real_path, there == real_path, (error.strerror or str(error)).lower(), None)
    return StateLook(directory, real_path, there == real_path, problem, room)


def judge_state(look: StateLook, settings: Settings, host: Host, *, largest_bytes: int) -> Iterator[Finding]:
    """Whether it can be used, lasts, and has room for packs on their way and for a restore. Pure."""
    if look.problem is not None:
        yield STATE.error(
            "writable",
            f"{look.path} cannot be used: {look.problem}",
            "set state_dir (or BACKUPD_STATE_DIR) to a directory that backupd may write",
            ExitCode.USAGE,
        )
        return
    yield STATE.ok("writable", f"{look.path}" if look.exists else f"{look.path} will be made when it is needed")
    mount = host.mount_of(look.real_path)
    blind = _why_packs_are_not_read_back(settings)
    if mount is not None and (mount.is_in_memory or host.loses(mount)):
        told = f"{mount.kind} at {mount.point}: goes with the {'container' if host.loses(mount) else 'next start'}; "
        if blind:
            yield STATE.warning(
                "mount", f"{told}after that, every page is stored again, because {blind}", "put it on a volume"
            )
        else:
            yield STATE.note(
                "mount",
                f"{told}backups do not need it, but alarms that were told are told again, and `undo` knows less",
                "put it on a volume",
            )
    elif blind:
        yield STATE.note(
            "lasts",
            f"without {look.path}, the next snapshot stores every page again, because {blind}",
            "keep it: it alone knows the hashes of the pages that the stores have",
        )
    if look.free_bytes is not None:
        yield _space(look.free_bytes, settings.packs.spool_limit, largest_bytes)


def _why_packs_are_not_read_back(settings: Settings) -> str | None:
    """Why what is lost here is not found in the stores again; None when it is, in all of them."""
    if settings.encryption.recipients and settings.identity_file is None:
        return "packs are encrypted, and there is no key here to read what is in them"
    put_only = [store.url for store in settings.stores if store.put_only]
    return f"the keys for {', '.join(put_only)} may not read packs (put_only)" if put_only else None


def _space(free_bytes: int, spool_bytes: int, largest_bytes: int) -> Finding:
    told = f"{figures.size(free_bytes)} free"
    if not free_bytes:
        return STATE.error("space", told, "free some, or set state_dir to another disk", ExitCode.USAGE)
    if free_bytes < spool_bytes:
        return STATE.warning(
            "space",
            f"{told}, and packs on their way to a store may need {figures.size(spool_bytes)} (packs.spool_limit)",
            "free some, lower packs.spool_limit, or set state_dir to another disk",
        )
    if free_bytes < largest_bytes:
        return STATE.warning(
            "space",
            f"{told}, and a restore in place needs {figures.size(largest_bytes)} there",
            "free some, or set state_dir to another disk; a restore to a file with --to needs nothing here",
        )
    return STATE.ok("space", told)
