"""A store in a directory: a second disk, a mounted share, or a directory that another tool copies elsewhere."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import threading
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from backupd.errors import (
    DamageError,
    NoSuchObjectError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
    StoreUnavailableError,
    limit_reached,
)
from backupd.store import ObjectFacts, StoredObject
from backupd.store.keys import require_safe_key, require_safe_prefix
from backupd.system.files import create_with_parents, flush_names, read_at, write_durably
from backupd.system.trust import way_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_INCOMING = ".incoming"
_STALE_AFTER_SECONDS = 3600
_LATEST_SECONDS = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
_IN_THE_WAY = {errno.ENOTDIR, errno.ELOOP, errno.EISDIR}


class DirectoryStore:
    """Implements `Store` under `root`, with files of mode 0600 and directories of mode 0700.

    The first `put` creates `root`; nothing else creates anything. Symbolic links below `root` are not followed, so that
    no key leads out of it, and only regular files are objects. `put` does not compare `sha256`: nothing between this
    process and the file system could change the content.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._lock = threading.Lock()
        self._has_put = False
        self._is_trusted = False
        self._durable: set[str] = set()

    @property
    def url(self) -> str:
        """The absolute path of the directory."""
        return str(self._root)

    def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:  # noqa: ARG002
        """Write one object into a temporary file, flush it, and rename it into place.

        Raises OSError when `content` is a file that cannot be opened: that is not the store's doing.
        """
        if not isinstance(content, Path):
            self._put(key, content)
            return
        with content.open("rb", buffering=0) as source:
            self._put(key, source.fileno())

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """Return the whole object."""
        with self._opened(key) as (file, size_bytes):
            if size_bytes > limit_bytes:
                raise DamageError(f"{self._root / key} has {size_bytes} bytes where at most {limit_bytes} can be right")
            return read_at(file, 0, size_bytes)

    def get_range(self, key: str, *, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, fewer at the object's end."""
        with self._opened(key) as (file, size_bytes):
            return read_at(file, offset, min(length, max(0, size_bytes - offset)))

    def facts(self, key: str) -> ObjectFacts:
        """Return the size of one object; a file system keeps no checksum."""
        with self._opened(key) as (_, size_bytes):
            return ObjectFacts(size_bytes, None)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """List all objects whose key begins with `prefix`, in the order of the keys' UTF-8 bytes."""
        for stored in self.survey(prefix, is_known=_is_known_by_none):
            if not isinstance(stored, str):
                yield stored

    def survey(self, prefix: str, *, is_known: Callable[[str], bool]) -> Iterator[StoredObject | str]:
        """List all objects whose key begins with `prefix`; those that are known by their keys alone."""
        require_safe_prefix(prefix)
        with self._translated(prefix):
            yield from self._walk(prefix[: prefix.rfind("/") + 1], prefix, is_known)

    def look(self, key: str) -> StoredObject | None:
        """Return one object as a listing shows it now; None when it does not exist."""
        with self._translated(key):
            try:
                with self._parent(key) as parent:
                    status = os.stat(_name(key), dir_fd=parent, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                return None
            return _as_listed(key, status) if stat.S_ISREG(status.st_mode) else None

    def delete(self, key: str) -> None:
        """Remove one object; nothing happens when it is not there."""
        with (
            self._translated(key),
            suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError),
            self._parent(key) as parent,
        ):
            os.unlink(_name(key), dir_fd=parent)

    def _put(self, key: str, content: bytes | int) -> None:
        with self._translated(key), self._parent(key, create=True) as parent, self._incoming() as incoming:
            temporary = f"{os.getpid()}-{secrets.token_hex(8)}"
            try:
                write_durably(temporary, incoming, content)
                os.rename(temporary, _name(key), src_dir_fd=incoming, dst_dir_fd=parent)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=incoming)
                raise
            flush_names(parent)

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, int]]:
        """Open an object's file, with its size; raise `NoSuchObjectError` for everything that `list` hides."""
        with self._translated(key), ExitStack() as opened:
            try:
                with self._parent(key) as parent:
                    # O_NONBLOCK because opening a named pipe would wait for its writer.
                    file = os.open(_name(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
            except OSError as error:
                if error.errno == errno.ENOENT or error.errno in _IN_THE_WAY:
                    raise self._no_such_object(key) from error
                raise
            opened.callback(os.close, file)
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise self._no_such_object(key)
            yield file, status.st_size

    @contextmanager
    def _parent(self, key: str, *, create: bool = False) -> Iterator[int]:
        """Open the directory that contains `key`."""
        require_safe_key(key)
        parts = key.split("/")
        if parts[0] == _INCOMING:
            raise ValueError(f"{key!r} is not an object's key")
        with self._directory(parts[:-1], create=create) as directory:
            yield directory

    @contextmanager
    def _incoming(self) -> Iterator[int]:
        """Open the directory for temporary files, which the first `put` cleans."""
        with self._directory([_INCOMING], create=True) as incoming:
            with self._lock:
                is_first_put, self._has_put = not self._has_put, True
            if is_first_put:
                _remove_stale(incoming)
            yield incoming

    @contextmanager
    def _directory(self, parts: Sequence[str], *, create: bool = False) -> Iterator[int]:
        """Open a directory below the root without following links."""
        with ExitStack() as opened:
            directory = self._open_root(create=create)
            opened.callback(os.close, directory)
            for depth, part in enumerate(parts):
                if create:
                    self._create_directory(part, directory, path="/".join(parts[: depth + 1]))
                directory = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                opened.callback(os.close, directory)
            yield directory

    def _open_root(self, *, create: bool) -> int:
        if not self._is_trusted and (reason := way_of(self._root).planted()):
            raise StoreRefusedError(
                f"store {self._root} is not used: {reason}", hint="name the directory itself in the store's `url`"
            )
        self._is_trusted = True
        if create and not self._root.exists():
            create_with_parents(self._root)
        try:
            return os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        except NotADirectoryError as error:
            raise StoreRefusedError(
                f"store {self._root} is not a directory", hint="name a directory in the store's `url`"
            ) from error

    def _create_directory(self, name: str, parent: int, *, path: str) -> None:
        with suppress(FileExistsError):
            os.mkdir(name, mode=0o700, dir_fd=parent)
        # Once, even if it existed: a process may have been killed between creating it and flushing its name.
        if path not in self._durable:
            flush_names(parent)
            self._durable.add(path)

    def _walk(self, directory: str, prefix: str, is_known: Callable[[str], bool]) -> Iterator[StoredObject | str]:
        """List the objects below `directory` ("" or a path that ends with `/`) whose keys begin with `prefix`."""
        if directory.startswith(f"{_INCOMING}/"):
            return
        try:
            with self._directory(directory.split("/")[:-1]) as descriptor:
                entries = _sorted_entries(descriptor, directory, is_known)
        except (FileNotFoundError, NotADirectoryError):
            return
        is_all = directory.startswith(prefix)
        for key, stored in entries:
            if not is_all and not key.startswith(prefix):
                continue
            if stored is not None:
                yield stored
            elif key.endswith("/"):
                yield from self._walk(key, prefix, is_known)
            else:
                yield key

    def _no_such_object(self, key: str) -> NoSuchObjectError:
        return NoSuchObjectError(f"there is no {key} in {self._root}")

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Translate each OSError into a `StoreError` with a hint."""
        try:
            yield
        except OSError as error:
            raise _translate(error, self._root, self._root / key) from error


@contextmanager
def leaving_no_directory(root: Path) -> Iterator[None]:
    """Remove the empty directories that the block created for the store at `root`."""
    # Path.exists raises where permission is missing.
    missing = [each for each in (root / _INCOMING, root, *root.parents) if not os.path.lexists(each)]
    try:
        yield
    finally:
        for directory in missing:
            # Not empty: another process has begun to use it.
            with suppress(OSError):
                directory.rmdir()


def _sorted_entries(
    directory: int, begins: str, is_known: Callable[[str], bool]
) -> list[tuple[str, StoredObject | None]]:
    """Return regular files and directories, which have a `/` at the end, so that they sort like whole keys.

    Each name follows `begins`. Python compares code points, which is the order of UTF-8 bytes. Links, pipes, names that
    are not UTF-8, and files that vanish in between are left out. Files that are known, and directories, are keys alone.
    """
    entries: list[tuple[str, StoredObject | None]] = []
    with os.scandir(directory) as found:
        for entry in found:
            name = entry.name
            try:
                if not name.isascii():
                    name.encode()
                if entry.is_file(follow_symlinks=False):
                    key = begins + name
                    is_shown = not is_known(key)
                    entries.append((key, _as_listed(key, entry.stat(follow_symlinks=False)) if is_shown else None))
                elif entry.is_dir(follow_symlinks=False):
                    entries.append((f"{begins}{name}/", None))
            except (FileNotFoundError, UnicodeEncodeError):
                continue
    entries.sort(key=itemgetter(0))
    return entries


def _is_known_by_none(_key: str) -> bool:
    return False


def _remove_stale(directory: int) -> None:
    """Remove files that a killed process left, but no recent ones, which another process may be writing."""
    stale_before = datetime.now(UTC) - timedelta(seconds=_STALE_AFTER_SECONDS)
    for name, stored in _sorted_entries(directory, "", _is_known_by_none):
        if stored is not None and stored.modified_at < stale_before:
            with suppress(OSError):
                os.unlink(name, dir_fd=directory)


def _translate(error: OSError, root: Path, path: Path) -> StoreError:
    if limit := limit_reached(error):
        return StoreUnavailableError(f"{path}: {limit.message}", hint=limit.hint)
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _NO_SPACE:
        return StoreFullError(
            f"no space left for {path}: {reason.lower()}, {_free_space(root)}",
            hint="free space or enlarge the disk or quota; backupd needs space for what changes between two snapshots",
        )
    if error.errno in _NO_PERMISSION:
        return StoreRefusedError(
            f"{path}: {reason.lower()}",
            hint=f"let uid {os.geteuid()} read and write {root}, and check that it is not mounted read-only",
        )
    if error.errno == errno.EXDEV:
        return StoreRefusedError(
            f"{path}: it is on another file system than {root / _INCOMING}, and files cannot be renamed into it",
            hint=f"keep all of {root} on one file system, without mounts and quotas of directories below it",
        )
    if error.errno in _IN_THE_WAY:
        return StoreRefusedError(
            f"{path}: something that is not a plain directory or file is in the way",
            hint=f"move it aside; symbolic links are not followed below {root}",
        )
    return StoreUnavailableError(f"{path}: {reason.lower()}", hint=f"check the disk or mount that holds {root}")


def _free_space(root: Path) -> str:
    try:
        status = os.statvfs(root)
    except OSError:
        return "free space unknown"
    return f"{status.f_bavail * status.f_frsize / 2**20:.1f} MiB and {status.f_favail} files free"


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _as_listed(key: str, status: os.stat_result) -> StoredObject:
    return StoredObject(key, status.st_size, _moment(status.st_mtime))


def _moment(seconds: float) -> datetime:
    """Return a file's time; one outside the calendar, which a file system may have, as a very early or late one."""
    within = seconds if 0 <= seconds <= _LATEST_SECONDS else min(max(seconds, 0), _LATEST_SECONDS)
    return datetime.fromtimestamp(within, UTC)
