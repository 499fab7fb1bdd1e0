"""Changing to the user that owns the databases, and giving up root's capabilities, so that one image fits everywhere.

SQLite leaves `-wal` and `-shm` files beside a database, which the application must be able to write; so backupd should
run as the same user. A process that is started as root with `run_as_owner` changes to it before it opens anything.
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
from backupd.system.trust import is_foreign, status_of, way_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backupd.config import Settings
    from backupd.config.databases import DatabaseSettings
    from backupd.system.trust import Way

_ROOT = 0
# The root of a new file system has this directory, and still counts as empty.
_IGNORED_NAMES = {"lost+found"}

# Source: linux/capability.h. The capabilities in the Compose file, and FOWNER, which accompanies CHOWN elsewhere.
_CAPABILITIES = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "SETGID": 6, "SETUID": 7}
_OTHERS_FILES = sum(1 << _CAPABILITIES[name] for name in ("CHOWN", "DAC_OVERRIDE", "FOWNER"))
_CAPABILITY_VERSION = 0x20080522
_SET_NO_NEW_PRIVILEGES = 38
_given_up = 0
"""The capabilities that this process has given up, as bits."""

# Files of `backupd.health`, the more significant first.
_SIGNS_OF_ACTIVITY = ("alive", "status.json")

# A process cannot change back to root, but a new one started in its place is root again.
_WAS_STARTED_AS_ROOT = os.geteuid() == _ROOT


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a database, or of a directory where one may be created."""

    uid: int
    gid: int
    path: Path
    is_of_database: bool = False
    """Whether `path` is a database; otherwise it is a directory."""


def become_owner(settings: Settings) -> Settings:
    """Change to the owner of the first database that exists, if `settings`, fresh from `load`, require it.

    Only root can. It then has that uid and gid, no other groups, no capabilities, and its state directory as home. Any
    other user stays as it is. Until there is a database, the directory where it will be decides; if that belongs to
    root, the process stays root until `must_change_user`. If a database belongs to root, the process stays root, and
    gives up all capabilities but those of `_capabilities_needed`.

    Returns the settings to continue with, as `settings_of_user` does. The state directory, and directories of stores,
    are given to the new user while they are empty, never their content. Raises `UsageError` when the system does not
    let this process change to the owner.
    """
    if not settings.run_as_owner:
        return settings
    owner = owner_of(settings.databases) if os.geteuid() == _ROOT else None
    own = settings_of_user(settings, os.geteuid() if owner is None else owner.uid)
    if owner is not None and owner.uid != _ROOT:
        for directory in _directories_written_to(own):
            # Using the directory will report what is wrong with it.
            with suppress(OSError):
                _hand_over(directory, owner)
        _change_to(owner)
        os.environ["HOME"] = str(own.state_dir)
    elif owner is not None and owner.is_of_database:
        _keep_only(_capabilities_needed(own))
    return own


def why_still_root(settings: Settings) -> str | None:
    """Return why this process is root in spite of `run_as_owner`, and its capabilities; None when it is not root."""
    if not settings.run_as_owner or os.geteuid() != _ROOT:
        return None
    owner = owner_of(settings.databases)
    if owner is None or not owner.is_of_database:
        reason = "there is no database yet whose owner it could change to"
    elif owner.uid != _ROOT:
        return None  # not for long: `must_change_user`
    else:
        reason = f"{owner.path} belongs to root"
    held = _capabilities_held()
    names = [name for name, number in _CAPABILITIES.items() if held >> number & 1]
    names += ["others"] if held & ~sum(1 << number for number in _CAPABILITIES.values()) else []
    return f"{reason}; capabilities: {', '.join(names) or 'none'}"


def settings_of_user(settings: Settings, uid: int) -> Settings:
    """Return `settings`, fresh from `load`, for `uid`: with `run_as_owner`, each user has a state directory of its own.

    Users cannot read each other's state. This function does not change the user.
    """
    if not settings.run_as_owner:
        return settings
    return settings.replaced(state_dir=settings.state_dir / str(uid))


def must_change_user(settings: Settings) -> bool:
    """Whether this process would have another user, or more capabilities, if it were restarted.

    This happens when the application creates its database after the start, or when the database changes its owner.
    """
    if not settings.run_as_owner or not _WAS_STARTED_AS_ROOT:
        return False
    owner = owner_of(settings.databases)
    if owner is not None and owner.uid != os.geteuid():
        return True
    # Root may need capabilities that it gave up: a database of another user has been added.
    return bool(_given_up and _given_up & _capabilities_needed(settings))


def restart(settings: Settings) -> NoReturn:
    """Replace this process by a new one with the same command line, when no work is in progress.

    Root does it by itself. A process that is no longer root, or that has given up capabilities, raises
    `SourceUnusableError`, so that it is started again from outside.
    """
    if os.geteuid() == _ROOT and not _given_up:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  (no shell is wanted)
    owner = owner_of(settings.databases)
    whose = f"{owner.path} now belongs to uid {owner.uid}" if owner else "the database now belongs to another user"
    raise SourceUnusableError(
        f"{whose}, and this process runs as uid {os.geteuid()}",
        hint="start backupd again; Docker does that by itself with `restart: unless-stopped`",
    )


def active_state_dir(state_dir: Path) -> Path:
    """Return the state directory that the daemon uses: `state_dir`, or that of a user in it.

    A health check uses it, which has no time to find the owner of the databases. Without a daemon, it is the directory
    that was written last.
    """
    return max([state_dir, *_user_dirs(state_dir)], key=_activity_times)


def _user_dirs(state_dir: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(each for each in state_dir.iterdir() if each.name.isdecimal())
    return []


def _activity_times(directory: Path) -> list[int]:
    """Return the times of the files that show activity in a state directory; 0 for missing and private ones."""
    times = [0] * len(_SIGNS_OF_ACTIVITY)
    for position, name in enumerate(_SIGNS_OF_ACTIVITY):
        with suppress(OSError):
            times[position] = (directory / name).stat().st_mtime_ns
    return times


def owner_of(entries: Iterable[DatabaseSettings]) -> Owner | None:
    """Return the owner of the first database that exists, or of the nearest directory above; None without entries.

    Paths that root cannot trust do not count: a link out of a pattern's directory, or one that another user made to
    files that are not theirs. A file of one user in the directory of another counts only if there are no others: the
    owner of the directory may have moved it there.
    """
    entries = tuple(entries)
    other: Owner | None = None
    for path, way in _ways_to_databases(entries):
        if way.status is None or not stat.S_ISREG(way.status.st_mode):
            continue  # missing, or not accessible even to root, as in a private directory without capabilities
        owner = Owner(way.status.st_uid, way.status.st_gid, path, is_of_database=True)
        directory = status_of(os.path.dirname(way.real))  # noqa: PTH120  (a plain string)
        if directory is not None and not is_foreign(directory, owner.uid):
            return owner
        other = other or owner
    return other or next(_owners_of_directories(entries), None)


def _ways_to_databases(entries: Iterable[DatabaseSettings]) -> Iterator[tuple[Path, Way]]:
    from backupd.config.discovery import ways_to_databases  # noqa: PLC0415  (a health check imports this, and needs no database)

    return ways_to_databases(entries, _ROOT)


def _owners_of_directories(entries: Iterable[DatabaseSettings]) -> Iterator[Owner]:
    """Yield the owners of the directories above the databases, the nearest first. They may be patterns."""
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
    """Give one directory to `owner` if it is new or empty, never its content, and never through another user's link."""
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
    return not set(os.listdir(directory)) - _IGNORED_NAMES


def _capabilities_needed(settings: Settings) -> int:
    """Return the capabilities that root must keep, as bits: rights over files of others, if it works with any.

    It reads databases of others, gives side files and restored files to their owners, and writes to a state directory
    and stores of others. It never changes to another user again.
    """
    ways = [way.real for _, way in _ways_to_databases(settings.databases)]
    paths = [*ways, *(os.path.dirname(way) for way in ways), *map(str, _directories_written_to(settings))]  # noqa: PTH120
    paths += [str(path) for path in (settings.source, settings.identity_file) if path is not None]
    return 0 if all(map(_is_for_root, paths)) else _OTHERS_FILES


def _is_for_root(path: str) -> bool:
    """Whether root may write a file, or create it, without capabilities."""
    above = (status_of(os.path.realpath(each)) for each in (Path(path), *Path(path).parents))
    status = next(each for each in above if each is not None)
    return status.st_uid == _ROOT and bool(status.st_mode & stat.S_IWUSR)


def _capabilities_held() -> int:
    """Return the effective capabilities of this process, as bits."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))


def _keep_only(kept: int) -> None:
    """Give up all capabilities but `kept` (bits), also for all programs that this process starts.

    The process must have a single thread, as each has its own capabilities. Source: capset(2) and prctl(2).
    """
    global _given_up  # noqa: PLW0603  (one for the process, like its capabilities)
    import ctypes  # noqa: PLC0415  (needed only for databases of root)

    libc = ctypes.CDLL(None, use_errno=True)
    held = _capabilities_held()
    left = held & kept
    low, high = left & 0xFFFFFFFF, left >> 32
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)  # effective, permitted and inheritable, by 32 bits
    # Without this, a program that root starts would regain all of them.
    if libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.capset(header, sets):
        log.warning("root keeps capabilities that it does not need", reason=os.strerror(ctypes.get_errno()))
        return
    _given_up = held & ~left


def _change_to(owner: Owner) -> None:
    try:
        os.setgroups([])
        os.setresgid(owner.gid, owner.gid, owner.gid)
        os.setresuid(owner.uid, owner.uid, owner.uid)
    except PermissionError:
        raise UsageError(
            f"this process may not change to uid {owner.uid}, which owns {owner.path}",
            hint="give the container the capabilities SETUID and SETGID, "
            f'or start it as that user: user: "{owner.uid}:{owner.gid}"',
        ) from None
