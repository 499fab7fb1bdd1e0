"""The state directory: what is known of the stores, notes, locks, spools. Losing it never loses a snapshot.

writer                              id of this installation, which manifests record
locks/<digest>.lock                 one run at a time
spool/<run>/  spool/<run>.lock      finished packs on their way to the stores
.state.db                           what is known of the stores, notes for later runs, and past runs: see `Catalog`,
                                    `Note` and `Run`
cache/<repository>-<place>/<database>/  the page hashes of the newest snapshot, and what a capture left beside them
verifications/<digest>.*            what an interrupted verification has read
reading/                            parts of packs that were read in a bucket: see `CachedStore`
"""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import msgspec

from backupd.errors import AnotherRunError, LimitReachedError, TargetUnwritableError, limit_reached
from backupd.store import canonical_url
from backupd.system.files import belong_to_owner, rename_new, try_lock
from backupd.system.trust import is_foreign, is_writable_by_others, status_of, way_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backupd.state.database import StateDatabase

_LOCK_RETRY_SECONDS = 0.05

UNUSABLE_STATE = (TargetUnwritableError, AnotherRunError, LimitReachedError)
"""What a note raises when it can be neither read nor written: a full disk, another process, too many open files."""


class StateDirectory:
    """A private directory, made when it is first used.

    Its methods raise `TargetUnwritableError` when it cannot be, and `LimitReachedError` without a file left to open.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._trusted: set[Path] = set()
        self._lock = threading.Lock()
        self._database: StateDatabase | None = None

    @property
    def root(self) -> Path:
        """The path of the directory, whether it exists yet or not."""
        return self._root

    @property
    def database(self) -> StateDatabase:
        """What one run leaves for later ones, opened when it is first used."""
        from backupd.state.database import StateDatabase  # noqa: PLC0415  (`status --check` starts without SQLite)

        with self._lock:
            if self._database is None:
                self._database = StateDatabase(self._root, self._directory)
            return self._database

    def writer_id(self) -> str:
        """Sixteen random hex digits that stay the same as long as the directory does."""
        file = self._directory() / "writer"
        with self._reporting_errors():
            if not file.exists():
                temporary = file.with_name(f"writer.{os.urandom(4).hex()}")
                try:
                    temporary.write_text(os.urandom(8).hex(), encoding="utf-8")
                    with suppress(FileExistsError):
                        rename_new(temporary, file)
                finally:
                    temporary.unlink(missing_ok=True)
            return file.read_text(encoding="utf-8", errors="replace")[:64]

    @contextmanager
    def lock(self, subject: str, *, timeout: float) -> Iterator[None]:
        """Hold the lock on `subject`, free text, against other processes. Waits at most `timeout` seconds.

        Raises `AnotherRunError`. The kernel drops the lock when the process ends, however it ends.
        """
        import hashlib  # noqa: PLC0415  (as above)

        digest = hashlib.sha256(os.fsencode(subject)).hexdigest()[:32]
        file = self._directory("locks") / f"{digest}.lock"
        with self._reporting_errors():
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            belong_to_owner(descriptor, file.parent)
        try:
            give_up_at = time.monotonic() + timeout
            while not self._try_lock(descriptor, file):
                if time.monotonic() > give_up_at:
                    raise AnotherRunError(
                        f"another backupd is working on {subject}",
                        hint="wait until it has finished; it shares the state directory " + str(self._root),
                    )
                time.sleep(_LOCK_RETRY_SECONDS)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def spool(self) -> Iterator[Path]:
        """An empty directory for one run, removed when the block ends, with the spools of runs that were killed."""
        import shutil  # noqa: PLC0415  (as above)

        directory = self._directory("spool")
        with self._reporting_errors():
            _remove_abandoned_spools(directory)
        run, lock_file, descriptor = self._new_spool(directory)
        try:
            with self._reporting_errors():
                run.mkdir(mode=0o700)
            yield run
        finally:
            shutil.rmtree(run, ignore_errors=True)
            lock_file.unlink(missing_ok=True)
            os.close(descriptor)

    def _new_spool(self, directory: Path) -> tuple[Path, Path, int]:
        """The path of a spool that does not exist yet, its lock file, and the descriptor that holds the lock."""
        while True:
            run = directory / f"{time.time_ns():x}-{os.urandom(4).hex()}"
            lock_file = run.with_suffix(".lock")
            with self._reporting_errors():
                descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with ExitStack() as undone:
                undone.callback(os.close, descriptor)
                undone.callback(lock_file.unlink, missing_ok=True)
                # Between the two, another run may have taken the file for one that was left by a kill.
                if self._try_lock(descriptor, lock_file) and lock_file.exists():
                    undone.pop_all()
                    return run, lock_file, descriptor

    def cache(self, repository_id: str, database: str) -> Path:
        """A directory for what is known of one database in one repository."""
        return self._directory("cache", repository_id, database)

    def followed(self, database: str) -> Path:
        """A directory for the segments of a followed database, until every store has them."""
        return self._directory("followed", database)

    def all_followed(self) -> list[Path]:
        """Such directories of all databases that were ever followed; none where they cannot be listed."""
        with suppress(OSError):
            return [*(self._root / "followed").iterdir()]
        return []

    def verifications(self) -> Path:
        """A directory for what interrupted verifications have read."""
        return self._directory("verifications")

    def reading(self) -> Path:
        """A directory for what was read inside of snapshots, and for what SQLite sorts meanwhile."""
        return self._directory("reading")

    def _directory(self, *parts: str) -> Path:
        path = self._root
        with self._reporting_errors():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._reject_anothers(path)
            for part in parts:  # one by one: the mode does not hold for parents that mkdir makes
                path /= part
                _make_directory(path)
                self._reject_anothers(path)
        return path

    def _try_lock(self, descriptor: int, file: Path) -> bool:
        with self._reporting_errors():
            return try_lock(descriptor, file)

    def _reject_anothers(self, path: Path) -> None:
        """Raise `TargetUnwritableError` for a directory that another user may have made for backupd to find."""
        if path in self._trusted:
            return
        way = way_of(path)
        reason = way.planted()
        if reason is None and way.status is not None and is_foreign(way.status):
            around = status_of(os.path.dirname(way.real))  # noqa: PTH120  (a plain string)
            if around is not None and is_writable_by_others(around, but_group=True):
                reason = f"it belongs to uid {way.status.st_uid}, where every user may make one"
        if reason is not None:
            raise TargetUnwritableError(
                f"{path} is not used for state: {reason}",
                hint="set state_dir (or BACKUPD_STATE_DIR) to a directory that no other user may write",
            )
        self._trusted.add(path)

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if limit := limit_reached(error):
                raise limit from error
            raise TargetUnwritableError(
                f"the state directory {self._root} cannot be used: {error.strerror} ({error.filename})",
                hint=f"set state_dir (or BACKUPD_STATE_DIR) to a directory that uid {os.geteuid()} may write, "
                "on a disk of this machine",
            ) from error


def _make_directory(path: Path) -> None:
    """Make a private directory if it is missing, of its parent's owner."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        belong_to_owner(descriptor, path.parent)
    finally:
        os.close(descriptor)


def _remove_abandoned_spools(directory: Path) -> None:
    """Remove spools whose lock no living run holds, and lock files of runs that were killed before or after theirs."""
    import shutil  # noqa: PLC0415  (as above)

    for lock_file in directory.glob("*.lock"):
        try:
            descriptor = os.open(lock_file, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if try_lock(descriptor, lock_file):
                shutil.rmtree(lock_file.with_suffix(""), ignore_errors=True)
                lock_file.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


class _Record(Protocol):
    """A value that a note can hold: a frozen struct of values that JSON can hold."""

    kind: ClassVar[str]
    __struct_fields__: ClassVar[tuple[str, ...]]


_R = TypeVar("_R", bound=_Record)


class Note(Generic[_R]):
    """A small typed record that one run leaves for later runs. Its methods raise the errors in `UNUSABLE_STATE`.

    It is found by the `kind` of its class and a key of strings. What is damaged, or was written for another version of
    the record, counts as absent: losing a note costs a repeated warning or some work, never a backup.
    """

    def __init__(self, state: StateDirectory, record: type[_R], *key: str) -> None:
        self._database = state.database
        self._record = record
        self._place = (record.kind, json.dumps(key))

    def read(self) -> _R | None:
        """The record that was written last, or None."""
        select = "SELECT record FROM notes WHERE kind = ? AND key = ?"
        row = self._database.read(lambda connection: connection.execute(select, self._place).fetchone())
        if row is None:
            return None
        try:
            record = msgspec.convert(json.loads(row[0]), self._record, dec_hook=lambda kind, text: kind(text))
        except (ValueError, TypeError, RecursionError, msgspec.ValidationError):
            return None
        return record if all(map(_is_comparable, _values(record))) else None

    def write(self, record: _R, *, is_durable: bool = False) -> None:
        """Leave `record` in place of what was there. With `is_durable`, it survives a loss of power."""
        values = msgspec.to_builtins(record, enc_hook=str)
        # In ASCII: a path or a message may have bytes that are no text.
        row = (*self._place, json.dumps(values))
        self._database.write(
            lambda connection: connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", row),
            is_durable=is_durable,
        )

    def remove(self) -> None:
        """Remove the note, if there is one."""
        if self.read() is not None:
            delete = "DELETE FROM notes WHERE kind = ? AND key = ?"
            self._database.write(lambda connection: connection.execute(delete, self._place))


def _values(record: _Record) -> list[Any]:
    return [getattr(record, name) for name in record.__struct_fields__]


def _is_comparable(value: object) -> bool:
    """Whether a value can be compared with aware times: a time without a zone cannot."""
    return not isinstance(value, datetime) or value.tzinfo is not None


class FailedSnapshot(msgspec.Struct, frozen=True):
    """The last snapshot of a database in a store has failed, or has been interrupted."""

    kind: ClassVar[str] = "failed-snapshot"

    failed_at: datetime
    message: str


class RefusedDeletion(msgspec.Struct, frozen=True):
    """A store has refused to delete, and this was reported."""

    kind: ClassVar[str] = "refused-deletion"

    message: str


def failed_snapshot(state: StateDirectory, database: str, store: str) -> Note[FailedSnapshot]:
    """The note about the last snapshot of `database` in `store`, a URL: absent when it succeeded."""
    return Note(state, FailedSnapshot, database, canonical_url(store))


def refused_deletion(state: StateDirectory, store: str) -> Note[RefusedDeletion]:
    """The note about deletions in `store`, a URL: absent when the last prune was not refused."""
    return Note(state, RefusedDeletion, canonical_url(store))
