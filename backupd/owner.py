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
from backupd.logs import log
from backupd.trust import is_anothers, status_of, way_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backupd.config import Settings
    from backupd.config.databases import DatabaseSettings
    from backupd.trust import Way

_ROOT = 0
# A new file system of its own has this directory, and is as good as empty.
_OF_THE_FILE_SYSTEM = {"lost+found"}

# Source: linux/capability.h. Those that the Compose file gives, and FOWNER, which goes with CHOWN elsewhere.
_CAPABILITIES = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "SETGID": 6, "SETUID": 7}
_FILES_OF_OTHERS = sum(1 << _CAPABILITIES[name] for name in ("CHOWN", "DAC_OVERRIDE", "FOWNER"))
_CAPABILITY_VERSION = 0x20080522
_SET_NO_NEW_PRIVILEGES = 38
_given_up = 0
"""The capabilities that this process had, and does not have any more, as bits."""

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
    is_of_database: bool = False
    """Otherwise it is that of a directory, in which there may be a database one day."""


def run_as_owner(settings: Settings) -> Settings:
    """Become the owner of the first database that exists, if `settings`, fresh from `load`, ask for it.

    Only root can, and then has that uid and gid, no other groups, no capabilities, and its state directory as home. Any
    other user stays what it was told to be. As long as there is no database, the directory where it will be counts, and
    when that is root's, so does the process stay: `should_be_another` tells when that has changed. When a database is
    root's, the process stays root, and gives up every capability but those that `_capabilities_needed` has.

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
    elif owner is not None and owner.is_of_database:
        _keep_only(_capabilities_needed(own))
    return own


def why_still_root(settings: Settings) -> str | None:
    """Why this process is root although `run_as_owner` is wanted, and what it may do with that; None when it is not."""
    if not settings.run_as_owner or os.geteuid() != _ROOT:
        return None
    owner = owner_of(settings.databases)
    if owner is None or not owner.is_of_database:
        reason = "there is no database yet whose owner it could become"
    elif owner.uid != _ROOT:
        return None  # not for long: `should_be_another`
    else:
        reason = f"{owner.path} belongs to root"
    held = _capabilities_held()
    names = [name for name, number in _CAPABILITIES.items() if held >> number & 1]
    names += ["others"] if held & ~sum(1 << number for number in _CAPABILITIES.values()) else []
    return f"{reason}; capabilities: {', '.join(names) or 'none'}"


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
    if owner is not None and owner.uid != os.geteuid():
        return True
    # What root had no need of when it started it may need by now: a database of another user has come.
    return bool(_given_up and _given_up & _capabilities_needed(settings))


def start_again(settings: Settings) -> NoReturn:
    """Put a new process with the same command line in this one's place; nothing may be going on in it.

    Root does it by itself. A process that is not root any more, or that has given up rights, ends with
    `SourceUnusableError`, to be started again from outside.
    """
    if os.geteuid() == _ROOT and not _given_up:
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
    """Whom the first database that exists belongs to, else the nearest directory above it; None without entries.

    What root had better not follow does not count: a link out of a pattern's directory, or one that another user made
    to what is not theirs. A file of one user in a directory of another counts only where there are no others: the
    owner of the directory may have moved it there.
    """
    entries = tuple(entries)
    other: Owner | None = None
    for path, way in _ways_to_databases(entries):
        if way.status is None or not stat.S_ISREG(way.status.st_mode):
            continue  # missing, or out of root's reach too, as behind a private directory when root has no capabilities
        owner = Owner(way.status.st_uid, way.status.st_gid, path, is_of_database=True)
        directory = status_of(os.path.dirname(way.real))  # noqa: PTH120  (a plain string)
        if directory is not None and not is_anothers(directory, owner.uid):
            return owner
        other = other or owner
    return other or next(_owners_of_directories(entries), None)


def _ways_to_databases(entries: Iterable[DatabaseSettings]) -> Iterator[tuple[Path, Way]]:
    from backupd.config.discovery import ways_to_databases  # noqa: PLC0415  (a health check imports this: pydantic is slow)

    return ways_to_databases(entries, _ROOT)


def _owners_of_directories(entries: Iterable[DatabaseSettings]) -> Iterator[Owner]:
    """Of the directories that lead to the databases, the nearest first; a path is a pattern, and so are they."""
    for entry in entries:
        fixed = entry.fixed_part()
        within = None if fixed is None else way_of(fixed).real
        for pattern in Path(entry.path).parents:
            for directory in sorted(glob.glob(str(pattern))):  # noqa: PTH207  (a pattern may begin with a slash)
                way = way_of(directory)
                is_below = fixed is not None and directory.startswith(f"{fixed.rstrip('/')}/")
                led_away = way.planted(_ROOT) or (is_below and within is not None and way.leaves(within))
                if way.status is not None and stat.S_ISDIR(way.status.st_mode) and not led_away:
                    yield Owner(way.status.st_uid, way.status.st_gid, Path(directory))


def _directories_written_to(settings: Settings) -> Iterator[Path]:
    yield settings.state_dir
    yield from (store.directory for store in settings.stores_or_default if not store.is_s3)


def _hand_over(directory: Path, owner: Owner) -> None:
    """Give one directory to `owner` if it is new or empty, and never what is in it, nor where another's link leads."""
    way = way_of(directory)
    if way.planted(_ROOT):
        return
    with suppress(FileExistsError):
        os.mkdir(way.real, mode=0o700)  # noqa: PTH102  (a plain string)
    descriptor = os.open(way.real, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != owner.uid and _is_empty(descriptor):
            os.fchown(descriptor, owner.uid, owner.gid)
    finally:
        os.close(descriptor)


def _is_empty(directory: int) -> bool:
    return not set(os.listdir(directory)) - _OF_THE_FILE_SYSTEM


def _capabilities_needed(settings: Settings) -> int:
    """What root has to keep, as bits: the rights over files of others, if there are any among those that it works with.

    It reads databases of others, gives what SQLite makes beside them and what it restores to their owners, and writes
    to state directory and stores of others. It never again becomes another user.
    """
    ways = [way.real for _, way in _ways_to_databases(settings.databases)]
    paths = [*ways, *(os.path.dirname(way) for way in ways), *map(str, _directories_written_to(settings))]  # noqa: PTH120
    paths += [str(path) for path in (settings.source, settings.identity_file) if path is not None]
    return 0 if all(map(_is_for_root, paths)) else _FILES_OF_OTHERS


def _is_for_root(path: str) -> bool:
    """Whether root may write a file, or where it will be, as any owner may."""
    above = (status_of(os.path.realpath(each)) for each in (Path(path), *Path(path).parents))
    status = next(each for each in above if each is not None)
    return status.st_uid == _ROOT and bool(status.st_mode & stat.S_IWUSR)


def _capabilities_held() -> int:
    """The effective capabilities of this process, as bits."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))


def _keep_only(kept: int) -> None:
    """Give up all capabilities but `kept` (bits), for good: no program that this process starts has them again.

    For a process that has one thread yet, as each has its own. Source: capset(2) and prctl(2).
    """
    global _given_up  # noqa: PLW0603  (of the process, as the capabilities are)
    import ctypes  # noqa: PLC0415  (only root needs it, where databases are root's)

    libc = ctypes.CDLL(None, use_errno=True)
    held = _capabilities_held()
    left = held & kept
    low, high = left & 0xFFFFFFFF, left >> 32
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)  # effective, permitted and inheritable, by 32 bits
    # Without this, a program that root starts would have all of them again.
    if libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.capset(header, sets):
        log.warning("root keeps capabilities that it does not need", reason=os.strerror(ctypes.get_errno()))
        return
    _given_up = held & ~left


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
