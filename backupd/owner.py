"""Being the user that the databases belong to: what lets one image fit every web container.

SQLite leaves `-wal` and `-shm` files beside a database, and the application must be able to write them; so backupd had
better be the same user. A process that is started as root with `run_as_owner` becomes it, before it opens anything.
"""

from __future__ import annotations

import glob
import os
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from backupd.errors import SourceUnusableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from backupd.config import Settings
    from backupd.config.databases import DatabaseSettings

_ROOT = 0
# A new file system of its own has this directory, and is as good as empty.
_OF_THE_FILE_SYSTEM = {"lost+found"}

# Files of `backupd.health`, by weight.
_SIGNS_OF_LIFE = ("alive", "status.json")

# A process that has become somebody cannot go back, but one that is started anew in its place can.
_WAS_STARTED_AS_ROOT = os.geteuid() == _ROOT


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom `path` belongs to."""

    uid: int
    gid: int
    path: Path


def run_as_owner(settings: Settings) -> Settings:
    """Become the owner of the first database that exists, if `settings`, fresh from `load`, ask for it.

    Only root can, and then has that uid and gid, no other groups, no capabilities, and its state directory as home. Any
    other user stays what it was told to be. As long as there is no database, the directory where it will be counts, and
    when that is root's, so does the process stay: `should_be_another` tells when that has changed.

    Gives the settings to go on with, as `settings_of_user` does. The state directory, and those of stores that are
    still empty, are handed to the new user; what is in a directory never is. Raises `UsageError` when the system does
    not let this process become the owner.
    """
    if not settings.run_as_owner:
        return settings
    owner = owner_of(settings.databases) if os.geteuid() == _ROOT else None
    own = settings_of_user(settings, os.geteuid() if owner is None else owner.uid)
    if owner is not None and owner.uid != _ROOT:
        for directory in _directories_written_to(own):
            # Whoever uses the directory then says what is wrong with it.
            with suppress(OSError):
                _hand_over(directory, owner)
        _become(owner)
        os.environ["HOME"] = str(own.state_dir)
    return own


def settings_of_user(settings: Settings, uid: int) -> Settings:
    """`settings` for `uid`: with `run_as_owner`, each user's state is in a directory of its own.

    One cannot read what another has left there. For settings that `load` has just read, and without becoming anybody.
    """
    if not settings.run_as_owner:
        return settings
    return settings.model_copy(update={"state_dir": settings.state_dir / str(uid)})


def should_be_another(settings: Settings) -> bool:
    """Whether `run_as_owner` would make another user of this process if it were started once more.

    So it is when the application has made its database only now, or when somebody has given that to another user.
    """
    if not settings.run_as_owner or not _WAS_STARTED_AS_ROOT:
        return False
    owner = owner_of(settings.databases)
    return owner is not None and owner.uid != os.geteuid()


def start_again(settings: Settings) -> NoReturn:
    """Put a new process with the same command line in this one's place; nothing may be going on in it.

    Root does it by itself. Whoever is not root any more ends with `SourceUnusableError`, to be started anew.
    """
    if os.geteuid() == _ROOT:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  (no shell is wanted)
    owner = owner_of(settings.databases)
    whose = f"{owner.path} now belongs to uid {owner.uid}" if owner else "the database now belongs to another user"
    raise SourceUnusableError(
        f"{whose}, and this process runs as uid {os.geteuid()}",
        hint="start backupd again; Docker does that by itself with `restart: unless-stopped`",
    )


def inhabited_state_dir(state_dir: Path) -> Path:
    """Where in `state_dir` the daemon is at home: in the directory of one of its users, or in itself.

    For whoever asks after the daemon in a hurry, as a health check does, and does not find out whose the databases are.
    Without a daemon, where something was noted last.
    """
    return max([state_dir, *_homes_in(state_dir)], key=_signs_of_life)


def _homes_in(state_dir: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(home for home in state_dir.iterdir() if home.name.isdecimal())
    return []


def _signs_of_life(home: Path) -> list[int]:
    """The times of what tells that somebody is, or was, at home; what is missing or private counts as never."""
    times = [0] * len(_SIGNS_OF_LIFE)
    for position, name in enumerate(_SIGNS_OF_LIFE):
        with suppress(OSError):
            times[position] = (home / name).stat().st_mtime_ns
    return times


def owner_of(entries: Iterable[DatabaseSettings]) -> Owner | None:
    """Whom the first database that exists belongs to, else the nearest directory above it; None without entries."""
    entries = tuple(entries)
    databases = (path for entry in entries for path in entry.paths())
    directories = (path for entry in entries for path in _directories_above(entry))
    is_database = (_owner_if(stat.S_ISREG, path) for path in databases)
    is_directory = (_owner_if(stat.S_ISDIR, path) for path in directories)
    return next((owner for found in (is_database, is_directory) for owner in found if owner is not None), None)


def _directories_above(entry: DatabaseSettings) -> Iterator[Path]:
    """The directories that lead to an entry's databases, the nearest first; its path is a pattern, and so are they."""
    for pattern in Path(entry.path).parents:
        yield from map(Path, sorted(glob.glob(str(pattern))))  # noqa: PTH207  (a pattern may begin with a slash)


def _owner_if(is_meant: Callable[[int], bool], path: Path) -> Owner | None:
    try:
        status = path.stat()
    except OSError:
        # Missing, or out of root's reach too, as behind a private directory when root has no capabilities.
        return None
    return Owner(status.st_uid, status.st_gid, path) if is_meant(status.st_mode) else None


def _directories_written_to(settings: Settings) -> Iterator[Path]:
    yield settings.state_dir
    yield from (store.directory for store in settings.stores_or_default if not store.is_s3)


def _hand_over(directory: Path, owner: Owner) -> None:
    """Give one directory to `owner` if it is new or empty, and never what is in it."""
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if os.fstat(descriptor).st_uid != owner.uid and _is_empty(descriptor):
            os.fchown(descriptor, owner.uid, owner.gid)
    finally:
        os.close(descriptor)


def _is_empty(directory: int) -> bool:
    return not set(os.listdir(directory)) - _OF_THE_FILE_SYSTEM


def _become(owner: Owner) -> None:
    try:
        os.setgroups([])
        os.setresgid(owner.gid, owner.gid, owner.gid)
        os.setresuid(owner.uid, owner.uid, owner.uid)
    except PermissionError:
        raise UsageError(
            f"this process may not become uid {owner.uid}, whom {owner.path} belongs to",
            hint="give the container the capabilities SETUID and SETGID, "
            f'or start it as that user: user: "{owner.uid}:{owner.gid}"',
        ) from None
