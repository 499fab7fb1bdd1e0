"""The state directory: what backupd may lose at any time (caches, locks, spools), kept out of the stores' way.

writer                              id of this installation, told apart in manifests
locks/<digest>.lock                 one run at a time
spool/<run>/  spool/<run>.lock      finished packs on their way to the stores
cache/<repository>-<place>/<database>/  manifests, and the page hashes of the newest snapshot
notes/<digest>                      a few words to a later run
verifications/<digest>.*            what a verification that was broken off has read
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from backupd.errors import AnotherRunError, TargetUnwritableError
from backupd.files import flush_directory, rename_new, try_lock
from backupd.trust import is_anothers, is_writable_for_others, status_of, way_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LOCK_RETRY_SECONDS = 0.05


class StateDirectory:
    """A private directory, made when it is first used. Its methods raise `TargetUnwritableError` when it cannot be."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._trusted: set[Path] = set()

    @property
    def root(self) -> Path:
        """Where it is, or will be."""
        return self._root

    def writer_id(self) -> str:
        """Sixteen random hex digits that stay the same as long as the directory does."""
        file = self._directory() / "writer"
        with self._reporting_errors():
            if not file.exists():
                temporary = file.with_name(f"writer.{secrets.token_hex(4)}")
                try:
                    temporary.write_text(secrets.token_hex(8), encoding="utf-8")
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
        digest = hashlib.sha256(os.fsencode(subject)).hexdigest()[:32]
        file = self._directory("locks") / f"{digest}.lock"
        with self._reporting_errors():
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            give_up_at = time.monotonic() + timeout
            while not self._try_lock(descriptor, file):
                if time.monotonic() > give_up_at:
                    raise AnotherRunError(
                        f"another backupd is at work on {subject}",
                        hint="wait until it has finished; it shares the state directory " + str(self._root),
                    )
                time.sleep(_LOCK_RETRY_SECONDS)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def spool(self) -> Iterator[Path]:
        """An empty directory for one run, gone when the block ends. Spools of runs that were killed go too."""
        directory = self._directory("spool")
        with self._reporting_errors():
            _remove_abandoned_spools(directory)
        run = directory / f"{time.time_ns():x}-{secrets.token_hex(4)}"
        lock_file = run.with_suffix(".lock")
        with self._reporting_errors():
            descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            self._try_lock(descriptor, lock_file)
            with self._reporting_errors():
                run.mkdir(mode=0o700)
            yield run
        finally:
            shutil.rmtree(run, ignore_errors=True)
            lock_file.unlink(missing_ok=True)
            os.close(descriptor)

    def cache(self, repository_id: str, database: str) -> Path:
        """A directory for what is known of one database in one repository."""
        return self._directory("cache", repository_id, database)

    def verifications(self) -> Path:
        """A directory for what verifications have read when they are broken off."""
        return self._directory("verifications")

    def note(self, subject: str, text: str | None, *, is_durable: bool = False) -> None:
        """Leave `text` about `subject`, free text, to later runs, in place of what was there; None takes it away.

        A note that `is_durable` is still there after a loss of power.
        """
        file = self._note_file(subject)
        with self._reporting_errors():
            if text is None:
                file.unlink(missing_ok=True)
                return
            temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
            try:
                with temporary.open("x", encoding="utf-8") as opened:
                    opened.write(text)
                    opened.flush()
                    if is_durable:
                        os.fsync(opened.fileno())
                temporary.rename(file)
                if is_durable:
                    flush_directory(file.parent)
            finally:
                temporary.unlink(missing_ok=True)

    def noted(self, subject: str) -> str | None:
        """What was noted last about `subject`, or None."""
        with self._reporting_errors():
            try:
                return self._note_file(subject).read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                return None

    def _note_file(self, subject: str) -> Path:
        return self._directory("notes") / hashlib.sha256(os.fsencode(subject)).hexdigest()[:32]

    def _directory(self, *parts: str) -> Path:
        path = self._root
        with self._reporting_errors():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._reject_anothers(path)
            for part in parts:  # one by one: the mode does not hold for parents that mkdir makes
                path /= part
                path.mkdir(mode=0o700, exist_ok=True)
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
        if reason is None and way.status is not None and is_anothers(way.status):
            around = status_of(os.path.dirname(way.real))  # noqa: PTH120  (a plain string)
            if around is not None and is_writable_for_others(around, but_group=True):
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
            raise TargetUnwritableError(
                f"the state directory {self._root} cannot be used: {error.strerror} ({error.filename})",
                hint=f"set state_dir (or BACKUPD_STATE_DIR) to a directory that uid {os.geteuid()} may write, "
                "on a disk of this machine",
            ) from error


def _remove_abandoned_spools(directory: Path) -> None:
    """Remove what no living run holds the lock of. A run that is just starting has a lock file and no directory."""
    for lock_file in directory.glob("*.lock"):
        try:
            descriptor = os.open(lock_file, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            run = lock_file.with_suffix("")
            if run.exists() and try_lock(descriptor, lock_file):
                shutil.rmtree(run, ignore_errors=True)
                lock_file.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
