"""Restore one snapshot to a file: fetch its packs in parallel, prove the image, put it in place in one step."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backupd.capture.image import why_unreadable
from backupd.errors import BackupdError, BusyError, DamageError, TargetExistsError, TargetUnwritableError
from backupd.format.pack import page_hash
from backupd.format.pagemap import image_digest, page_hashes
from backupd.logs import log
from backupd.repository import pack_key, snapshots_that_need
from backupd.store.keys import REPOSITORY_KEY
from backupd.threads import worker_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from backupd.format.manifest import Manifest, PackEntry
    from backupd.format.pack import PackIndex
from backupd.repository import Repository

_FETCHERS = 4
_FLUSHED_AT_ONCE_BYTES = 128 << 20
_PRIVATE_MODE = 0o600
_PERMISSIONS = 0o777
_SNAPSHOTS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of the image has been written, in bytes, and how many bytes of packs that took."""

    restored_bytes: int
    image_bytes: int
    fetched_bytes: int


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """A restored file."""

    target: Path
    image_bytes: int
    fetched_bytes: int
    duration_seconds: float


def reject_unusable_target(target: Path, *, force: bool) -> None:
    """Refuse to overwrite a file, or to come beside a leftover that SQLite would apply to it.

    Raises `TargetExistsError`, `TargetUnwritableError`. Changes nothing.
    """
    with _reporting_errors(target):  # even asking whether it exists may be forbidden
        _reject_unusable(target, force=force)


def _reject_unusable(target: Path, *, force: bool) -> None:
    if target.exists() and not target.is_file():
        what = "a directory" if target.is_dir() else "not a regular file"
        raise TargetUnwritableError(f"{target} is {what}", hint="give the file to restore to: --to FILE")
    if not target.parent.is_dir():
        raise TargetUnwritableError(f"the directory {target.parent} does not exist", hint="make it first, or use --to")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise TargetUnwritableError(
            f"the directory {target.parent} cannot be written by uid {os.geteuid()}",
            hint="restore elsewhere with --to FILE, or run as its owner",
        )
    _reject_store(target)
    if force:
        _reject_parting_from_log(target)
        return
    if target.exists() or target.is_symlink():
        raise TargetExistsError(
            f"{target} exists already",
            hint="restore beside it with --to FILE, or replace it with --force after stopping the application",
        )
    for leftover in _side_files(target):
        raise TargetExistsError(
            f"{leftover} is left from another database, and SQLite would apply it to the restored one",
            hint="move it away, or let --force do so after stopping the application",
        )


def _reject_store(target: Path) -> None:
    for directory in target.absolute().parents:
        if (directory / REPOSITORY_KEY).is_file():
            raise TargetUnwritableError(
                f"{target} is inside the store {directory}", hint="restore to a file elsewhere: --to FILE"
            )


def _reject_parting_from_log(target: Path) -> None:
    """Refuse to replace a file whose log holds changes: a crash between the two would lose them."""
    leftovers = _side_files(target)
    if leftovers and target.exists():
        raise TargetExistsError(
            f"{target} cannot be replaced: {leftovers[0]} holds changes that are not in it yet",
            hint=f"stop the application, move all of it away (mkdir old; mv {target.name}* old/), and restore again",
        )


def restore_to_file(
    repository: Repository,
    manifest: Manifest,
    target: Path,
    *,
    force: bool,
    as_source: bool,
    on_progress: Callable[[Progress], None],
) -> RestoreResult:
    """Write the image of `manifest` to `target`, which appears complete or not at all.

    Each pack's SHA-256 and zstd checksum and the image digest are checked, and SQLite opens the image, before it gets
    its name. Mode 0600, or with `as_source` the owner and mode of the file that was backed up. Repeatable. Raises
    `DamageError`, `StoreError`, `TargetExistsError`, `TargetUnwritableError`, and `BusyError` when another restore to
    the same file is running.
    """
    started = time.monotonic()
    reject_unusable_target(target, force=force)
    if force:
        target = _led_to(target)
        reject_unusable_target(target, force=force)
    _reject_small_disk(target.parent, manifest.image_bytes)
    with _reporting_errors(target), _partial_file(target) as (partial, descriptor):
        fetch = _Fetch(repository, manifest, descriptor, on_progress)
        fetch.run()
        os.fsync(descriptor)
        _prove_by_sqlite(repository, manifest, partial)
        if as_source:
            _give_back_ownership(descriptor, manifest, target.parent)
        reject_unusable_target(target, force=force)
        _put_in_place(partial, target)
    return RestoreResult(target, manifest.image_bytes, fetch.fetched_bytes, time.monotonic() - started)


class _Fetch:
    """Packs on their way into the image file, several at once."""

    def __init__(
        self, repository: Repository, manifest: Manifest, descriptor: int, on_progress: Callable[[Progress], None]
    ) -> None:
        self.fetched_bytes = 0
        self._repository = repository
        self._manifest = manifest
        self._descriptor = descriptor
        self._on_progress = on_progress
        self._page_map = repository.checked_map(manifest)
        self._restored_bytes = 0
        self._flushed_bytes = 0
        self._lock = threading.Lock()
        self._hashes = np.zeros((manifest.page_count, 2), dtype=np.uint64)
        self._hashes[self._page_map == 0] = page_hashes(page_hash(bytes(manifest.page_size)))

    def run(self) -> None:
        """Fetch everything and compare the image digest. Stops at the first damage or failure."""
        os.truncate(self._descriptor, self._manifest.image_bytes)
        with worker_threads(_FETCHERS, name="fetch") as threads:
            futures = [
                threads.submit(self._fetch, position, pack) for position, pack in enumerate(self._manifest.packs, 1)
            ]
            for future in futures:
                future.result()
        if image_digest(self._hashes) != self._manifest.image_digest:
            raise DamageError(
                f"the packs of snapshot {self._manifest.id} in {self._repository.url} do not make up its image",
                hint="restore another snapshot, or this one from another store with --store",
            )

    def _fetch(self, position: int, pack: PackEntry) -> None:
        try:
            index, images = self._repository.read_pack(self._manifest.database, pack)
            pages = self._place(position, pack, index, images)
        except DamageError as error:
            raise self._with_victims(error, pack) from error
        with self._lock:
            self.fetched_bytes += pack.stored_bytes
            self._restored_bytes += pages * self._manifest.page_size
            self._on_progress(Progress(self._restored_bytes, self._manifest.image_bytes, self.fetched_bytes))
            needs_flush = self._restored_bytes - self._flushed_bytes >= _FLUSHED_AT_ONCE_BYTES
            if needs_flush:
                self._flushed_bytes = self._restored_bytes
        if needs_flush:
            os.fdatasync(self._descriptor)  # the disk works while the others decompress, not only at the end

    def _place(self, position: int, pack: PackEntry, index: PackIndex, images: bytes) -> int:
        """Write the live pages of one pack where they belong; how many that were."""
        key = pack_key(self._manifest.database, pack)
        if index.page_size != self._manifest.page_size:
            raise DamageError(f"pack {key} in {self._repository.url} holds pages of another size")
        indices = np.frombuffer(index.page_numbers, dtype="<u4").astype(np.int64) - 1
        within = np.flatnonzero(indices < len(self._page_map))
        live = within[self._page_map[indices[within]] == position]
        if len(live) != np.count_nonzero(self._page_map == position):
            raise DamageError(f"pack {key} in {self._repository.url} lacks pages that the snapshot has in it")
        self._hashes[indices[live]] = page_hashes(index.hashes)[live]
        _write_runs(self._descriptor, images, live, indices[live], self._manifest.page_size)
        return len(live)

    def _with_victims(self, error: DamageError, pack: PackEntry) -> DamageError:
        """`error` with the snapshots that need the same pack, and the newest that does not."""
        try:
            needing, spared = snapshots_that_need(self._repository, self._manifest.database, pack)
        except BackupdError:
            needing, spared = [self._manifest.id], None  # the damage is what the user has to hear of
        rest = len(needing) - _SNAPSHOTS_SHOWN
        shown = ", ".join(str(each) for each in needing[-_SNAPSHOTS_SHOWN:]) + (f" and {rest} more" if rest > 0 else "")
        other = f"restore {spared}, the newest that does not need it, or use" if spared else "use"
        return DamageError(
            f"{error.message}; it is needed by {shown}", hint=f"{other} another store with --store; nothing was written"
        )


def _write_runs(
    descriptor: int,
    images: bytes,
    positions: npt.NDArray[np.intp],
    indices: npt.NDArray[np.int64],
    page_size: int,
) -> None:
    """Write the pages at `positions` of a pack to `indices` of the file: one call for each run of neighbours."""
    if not len(positions):
        return
    view = memoryview(images)
    breaks = np.flatnonzero((np.diff(positions) != 1) | (np.diff(indices) != 1)) + 1
    starts = [0, *breaks.tolist()]
    ends = [*breaks.tolist(), len(positions)]
    for start, end in zip(starts, ends, strict=True):
        first = int(positions[start]) * page_size
        _write_all(descriptor, view[first : first + (end - start) * page_size], int(indices[start]) * page_size)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


@contextmanager
def _partial_file(target: Path) -> Iterator[tuple[Path, int]]:
    """A private file beside `target` and its descriptor; gone at the end unless it was renamed.

    Its name is always the same, so that the next restore takes over what a killed one left.
    """
    partial = target.with_name(f".{target.name}.backupd-partial")
    descriptor = _open_locked(partial, target)
    try:
        os.fchmod(descriptor, _PRIVATE_MODE)
        os.truncate(descriptor, 0)
        yield partial, descriptor
    finally:
        # After the rename the name may be another restore's already.
        if _is_named(descriptor, partial):
            partial.unlink()
        os.close(descriptor)


def _open_locked(partial: Path, target: Path) -> int:
    """The partial file, open and locked, and still the one of that name: another restore may just have renamed it."""
    while True:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _PRIVATE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(descriptor, partial):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise BusyError(f"another restore to {target} is running", hint="wait for it, or choose --to") from error
        os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        named = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)


@contextmanager
def _reporting_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TargetUnwritableError(
            f"{target} cannot be written: {error.strerror}",
            hint="check the space and the permissions of its directory, or restore elsewhere with --to FILE",
        ) from error


def _led_to(target: Path) -> Path:
    """What a symbolic link leads to, as the application sees it: that is replaced, not the link."""
    try:
        return target.resolve()
    except (OSError, RuntimeError) as error:
        raise TargetUnwritableError(
            f"{target} is a symbolic link that leads nowhere", hint="remove it, or restore elsewhere with --to FILE"
        ) from error


def _reject_small_disk(directory: Path, image_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < image_bytes:
        raise TargetUnwritableError(
            f"{directory} has {free >> 20} MiB free, the restored database needs {image_bytes >> 20} MiB",
            hint="free some space, or restore to another disk with --to FILE",
        )


def _prove_by_sqlite(repository: Repository, manifest: Manifest, partial: Path) -> None:
    if manifest.page_count == 0:
        return
    reason = why_unreadable(partial, manifest.page_count, needs_schema=manifest.source.tables is not None)
    if reason is not None:
        raise DamageError(
            f"snapshot {manifest.id} in {repository.url} is complete, but SQLite does not open it: {reason}",
            hint="the database was damaged when it was taken; restore an older snapshot",
        )


def _give_back_ownership(descriptor: int, manifest: Manifest, directory: Path) -> None:
    """Owner and mode as the manifest recorded them, else the owner of the directory: the application must open it."""
    writer, around = manifest.writer, directory.stat()
    _change_first_permitted(descriptor, [(writer.uid, -1), (around.st_uid, -1)])
    _change_first_permitted(descriptor, [(-1, writer.gid), (-1, around.st_gid)])
    os.fchmod(descriptor, writer.mode & _PERMISSIONS)
    if os.fstat(descriptor).st_uid not in {writer.uid, around.st_uid}:
        log.warning(
            "the restored file keeps the owner of this process",
            uid=os.geteuid(),
            wanted_uid=writer.uid,
            hint="chown it, or the application may not be able to open it",
        )


def _change_first_permitted(descriptor: int, owners: list[tuple[int, int]]) -> None:
    for uid, gid in owners:
        with suppress(PermissionError):
            os.fchown(descriptor, uid, gid)
            return


def _side_files(target: Path) -> list[Path]:
    """Files beside `target` that SQLite would apply to it: an empty log and its index hold nothing to apply."""
    candidates = [target.with_name(target.name + suffix) for suffix in ("-wal", "-journal")]
    return [file for file in candidates if file.is_symlink() or (file.exists() and file.stat().st_size)]


def _put_in_place(partial: Path, target: Path) -> None:
    """Give the finished file its name, after leftovers of a file that is gone have moved out of SQLite's sight."""
    for file in _side_files(target):
        aside = _free_name(file)
        file.rename(aside)
        log.warning("a leftover was moved aside", file=str(aside), hint="remove it when nobody needs it any more")
    partial.rename(target)
    _fsync_directory(target.parent)


def _free_name(target: Path) -> Path:
    numbers = itertools.count(1)
    names = (target.with_name(f"{target.name}.before-restore-{number}") for number in numbers)
    return next(name for name in names if not os.path.lexists(name))


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
