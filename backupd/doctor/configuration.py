"""Whether the configuration says what is backed up and where to: files, databases, secrets, keys, unlisted files."""

from __future__ import annotations

import glob
import os
import secrets
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backupd.config import discover_databases, no_match_error
from backupd.config.problems import variable_name
from backupd.doctor.findings import Subject, listed
from backupd.encryption import Encryption, read_identities
from backupd.errors import BackupdError, ExitCode, IdentityNeededError
from backupd.privileges import why_still_root
from backupd.setup.search import find_sqlite_files

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from backupd.config import Database, DatabaseSettings, Settings
    from backupd.doctor.findings import Finding
    from backupd.system.mounts import Host

CONFIGURATION = Subject("configuration")
_ENCRYPTION = Subject("encryption")

_SECRET_KEYS = {"secret_access_key", "session_token", "token"}
_TABLES_WITH_SECRET_URLS = {"notifications", "heartbeats"}
_OTHERS = 0o007
_ENTRIES_IN_VARIABLES = (f"{variable_name('databases')}__", f"{variable_name('stores')}__")
_TRIAL_BYTES = 32
_FILES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Protected:
    """The databases that a configuration stands for at one moment. `entries` are by the names of the databases."""

    databases: tuple[Database, ...] = ()
    entries: Mapping[str, DatabaseSettings] = field(default_factory=dict)
    unmatched: tuple[BackupdError, ...] = ()
    """Why patterns match no file."""
    problems: tuple[BackupdError, ...] = ()
    """Why files that patterns match are no databases."""
    paths: frozenset[Path] = frozenset()
    """The files that the entries stand for, whether they are used or not."""


def find_protected(settings: Settings) -> Protected:
    """Find the databases that there are now. Reads directories, which may hang."""
    found = discover_databases(settings.databases)
    return Protected(
        tuple(database for _, database in found.databases),
        {database.name: entry for entry, database in found.databases},
        tuple(no_match_error(pattern) for pattern in found.unmatched_patterns),
        tuple(problem for _, problem in found.problems),
        frozenset((*(database.path for _, database in found.databases), *found.problems_by_path)),
    )


def check_file(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Check where the configuration comes from, and which users may read the secrets in it."""
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
    mode = _mode_open_to_others(source)
    if mode is not None and has_secret(tomllib.loads(source.read_bytes().decode("utf-8-sig"))):
        yield CONFIGURATION.warning(
            "secrets",
            f"{source} contains a secret, and every user of this machine can read it (mode {mode:04o})",
            f"chmod 0600 {source}, or move the secret into a file of its own: BACKUPD_..._FILE names it",
        )


def _mode_open_to_others(file: Path) -> int | None:
    """The permissions of `file`, if users other than its owner and group have any; else None."""
    mode = file.stat().st_mode & 0o777
    return mode if mode & _OTHERS else None


def has_secret(table: Mapping[str, Any]) -> bool:
    """Whether a configuration, as parsed from TOML, has a key whose value is secret."""
    for key, value in table.items():
        inner = value if isinstance(value, list) else [value]
        tables = [each for each in inner if isinstance(each, dict)]
        if key in _SECRET_KEYS or (key in _TABLES_WITH_SECRET_URLS and any("url" in each for each in tables)):
            return True
        if any(has_secret(each) for each in tables):
            return True
    return False


def check_user(settings: Settings) -> Iterator[Finding]:
    """Check whether this process stays root where it should run as the owner of a database."""
    if reason := why_still_root(settings):
        yield CONFIGURATION.note(
            "user", f"backupd stays root: {reason}", "give the database to the user that the application runs as"
        )


def check_secret_files(environ: Mapping[str, str], host: Host) -> Iterator[Finding]:
    """Find files of BACKUPD_..._FILE variables that every user can read. A container has no other users."""
    if host.is_container:
        return
    for name, text in sorted(environ.items()):
        is_ours = name.startswith("BACKUPD_") and name.endswith("_FILE")
        if not is_ours or not os.path.isfile(text):  # noqa: PTH113  (Path.is_file raises where it may not look)
            continue
        if (mode := _mode_open_to_others(Path(text))) is not None:
            yield CONFIGURATION.warning(
                "secrets",
                f"{text} ({name}) can be read by every user of this machine (mode {mode:04o})",
                f"chmod 0600 {text}",
            )


def check_protected(settings: Settings, protected: Protected) -> Iterator[Finding]:
    """Check whether there is a database to back up, and a store to put it in."""
    if not settings.databases:
        yield CONFIGURATION.error(
            "databases",
            "no database is configured: nothing is backed up automatically",
            "list them under [[databases]]: backupd init finds them; in a container, check that the file is mounted",
            ExitCode.USAGE,
        )
    for problem in (*protected.unmatched, *protected.problems):
        yield CONFIGURATION.failed("databases", problem)
    if protected.databases:
        yield CONFIGURATION.ok("databases", f"{len(protected.databases)} to back up")
    if not settings.stores:
        yield CONFIGURATION.warning(
            "stores",
            f"none is configured: snapshots go to {settings.stores_or_default[0].url}, in the current directory",
            "list one or two under [[stores]]",
        )
    else:
        yield CONFIGURATION.ok("stores", f"{len(settings.stores)} to keep snapshots in")


def check_encryption(settings: Settings) -> Iterator[Finding]:
    """Check whether every public key, and the secret keys that are here, can be used. No finding without any key."""
    recipients, identity_file = settings.encryption.recipients, settings.identity_file
    if identity_file is not None:
        yield from _check_identity(recipients, identity_file)
    if not recipients:
        return
    count = f"{len(recipients)} public keys" if len(recipients) > 1 else "one public key"
    yield _ENCRYPTION.ok("recipients", f"snapshots are encrypted to {count}")
    if identity_file is None:
        yield _ENCRYPTION.note(
            "identity",
            "there is no secret key here: a stolen machine cannot read the past, and drills restore nothing: they find "
            "a snapshot `intact` (every stored byte is what was written), and never proven",
            "now and then, where the key is: backupd verify --level drill --identity FILE --store URL",
        )


def _check_identity(recipients: tuple[str, ...], file: Path) -> Iterator[Finding]:
    trial = secrets.token_bytes(_TRIAL_BYTES)
    try:
        read_identities(file)
        can_read = not recipients or any(_decrypts(each, trial, file) for each in recipients)
    except BackupdError as error:
        yield _ENCRYPTION.failed("identity", error)
        return
    if (mode := _mode_open_to_others(file)) is not None:
        message = f"{file} can be read by every user of this machine (mode {mode:04o})"
        yield _ENCRYPTION.warning("identity", message, f"chmod 0600 {file}")
    if can_read:
        yield _ENCRYPTION.ok("identity", f"the keys in {file} can be used; a thief of this machine can read the past")
    else:
        yield _ENCRYPTION.warning(
            "identity",
            f"no key in {file} decrypts what is written now",
            "add the key of one of the recipients to it",
        )


def _decrypts(recipient: str, trial: bytes, file: Path) -> bool:
    try:
        return Encryption([recipient], file).decrypt(Encryption([recipient]).encrypt(trial), what="a trial") == trial
    except IdentityNeededError:
        return False


def find_unlisted(settings: Settings, listed_paths: Collection[Path]) -> tuple[Path, ...]:
    """The SQLite files, in order, that belong to no entry and are directly in a directory that an entry names.

    `listed_paths` are the files that belong to one.

    Reads the beginning of every file there, which may take long or hang.
    """
    directories = {path.parent for path in listed_paths}
    for entry in settings.databases:
        # Also where it matches nothing: the file may have another name.
        directories.update(Path(each) for each in glob.glob(os.path.dirname(entry.path)))  # noqa: PTH207, PTH120  (a pattern is no path)
    known = {os.path.realpath(path) for path in listed_paths}
    # Copies that a restore leaves in the state directory are no databases of an application.
    own = os.path.realpath(settings.state_dir)
    unlisted = {
        os.path.realpath(path): path
        for directory in sorted(directories)
        if os.path.realpath(directory) != own
        for path in find_sqlite_files(directory, most_levels=0).files
    }
    return tuple(sorted(path for real_path, path in unlisted.items() if real_path not in known))


def check_unlisted(unlisted: Sequence[Path]) -> Iterator[Finding]:
    """Warn once of all unlisted files: everything else looks well, and they are not backed up. Pure."""
    if not unlisted:
        return
    yield CONFIGURATION.warning(
        "other files",
        f"no entry has {listed(unlisted, _FILES_SHOWN)}: {'it is' if len(unlisted) == 1 else 'they are'} not backed up",
        "add an entry under [[databases]] for what must be kept, or a pattern that matches it "
        "(BACKUPD_DATABASES__1__PATH, or another ending); move the other files elsewhere",
    )
