"""Whether a store takes, gives back, shows and deletes objects, and what it says of itself."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from backupd.doctor import buckets, figures, put_only
from backupd.doctor.directories import look_at
from backupd.doctor.findings import Finding, Subject
from backupd.doctor.probe import Probe
from backupd.errors import BackupdError, ExitCode, StoreError, StoreRefusedError
from backupd.repository import Repository
from backupd.store import open_bucket, open_store
from backupd.store.directory import leaving_no_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.config import StoreSettings
    from backupd.doctor.directories import DirectoryLook
    from backupd.state import StateDirectory
    from backupd.store import Bucket, Store

# Doctor is looked at while it runs: a store that needs longer than this is told as one that does not answer.
_TIME_LIMIT = timedelta(seconds=20)
_ANSWER_LIMIT = timedelta(seconds=10)
_MOST_ATTEMPTS = 2
# Amazon refuses signatures from 15 minutes on; file servers and listings have whole seconds.
_TOLERATED_SKEW = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class StoreLook:
    """What came of using a store; `directory` is None for a bucket."""

    settings: StoreSettings
    findings: tuple[Finding, ...]
    directory: DirectoryLook | None = None


def subject_of(settings: StoreSettings) -> Subject:
    """What findings about a store are called."""
    return Subject(f"store {settings.url}")


def impatient(settings: StoreSettings) -> StoreSettings:
    """The same store with shorter limits, so that one that hangs is told within a minute."""
    if not settings.is_s3:
        return settings
    return settings.model_copy(
        update={
            "time_limit": min(settings.time_limit, _TIME_LIMIT),
            "connect_timeout": min(settings.connect_timeout, _ANSWER_LIMIT),
            "read_timeout": min(settings.read_timeout, _ANSWER_LIMIT),
            "max_attempts": min(settings.max_attempts, _MOST_ATTEMPTS),
        }
    )


class StoreExamination:
    """The examination of one store. `run` is for a thread of its own; `cancel`, from another, ends it soon.

    `store` stands in for the one that `settings` name.
    """

    def __init__(self, settings: StoreSettings, state: StateDirectory, *, store: Store | None = None) -> None:
        self._settings = impatient(settings)
        self._subject = subject_of(settings)
        self._store = store or open_store(self._settings)
        self._state = state
        self._probe = Probe(self._store, stays=settings.put_only)
        self._stored_ahead = timedelta()

    def run(self) -> StoreLook:
        """Use the store. Leaves nothing in it, also no version where that is permitted; where it is not, one object."""
        if self._settings.is_s3:
            return StoreLook(self._settings, tuple(self._use()))
        directory = self._settings.directory
        look = look_at(directory)
        with leaving_no_directory(directory):
            return StoreLook(self._settings, tuple(self._use()), look)

    def cancel(self) -> None:
        """Have `run` clean up and end; what it has put is deleted here too, should it be held up. From any thread."""
        self._probe.cancel()
        with suppress(StoreError):
            self._probe.remove()

    def _use(self) -> Iterator[Finding]:
        """Each step builds on those before it: the first that fails is the last, but for the removal."""
        steps = {
            "write": self._write,
            "read": self._read,
            "list": self._list,
            "delete": self._delete,
            "repository": self._repository,
        }
        for check, step in steps.items():
            try:
                yield step()
            except BackupdError as error:
                with suppress(StoreError):  # the error that is told is the one that matters
                    self._probe.remove()
                yield self._subject.failed(check, error)
                return
        bucket = open_bucket(self._settings)
        yield self._clock(bucket)
        if bucket is not None and self._settings.put_only:
            yield put_only.packs(self._subject, self._store)
            yield from put_only.bucket_findings(self._subject, bucket, self._probe.key)
        elif bucket is not None:
            with suppress(StoreError):  # many credentials may not, and a lock may forbid it
                bucket.remove_versions(self._probe.key)
            yield from buckets.findings(self._subject, bucket)

    def _write(self) -> Finding:
        self._probe.write()
        return self._subject.ok("write", "took an object")

    def _read(self) -> Finding:
        self._probe.read_back()
        return self._subject.ok("read", "gave the same bytes back")

    def _list(self) -> Finding:
        stored = self._probe.find()
        self._stored_ahead = stored.modified_at - datetime.now(UTC)
        if not self._settings.put_only:
            self._probe.remove_older_ones(stored)
        return self._subject.ok("list", "shows it, with its size")

    def _delete(self) -> Finding:
        if self._settings.put_only:
            return put_only.deletion(self._subject, self._probe)
        key = self._probe.key
        try:
            self._probe.remove()
        except StoreRefusedError as error:
            return self._subject.warning(
                "delete",
                f"{error.message}; so {key} stays there, and pruning cannot free space",
                error.hint or "allow deletions, or know that this store only grows",
            )
        if not self._probe.is_gone():
            return self._subject.error(
                "delete",
                f"said that {key} was deleted, and still has it: pruning would free no space",
                "delete that object by hand; look for a lock of the bucket, and for a cache in front of it",
                ExitCode.STORE_UNAVAILABLE,
            )
        return self._subject.ok("delete", "deleted it, and it is gone")

    def _repository(self) -> Finding:
        if Repository(self._store, self._state).exists():
            return self._subject.ok("repository", "is one that this version reads")
        return self._subject.note("repository", "there is none yet: the first snapshot makes it")

    def _clock(self, bucket: Bucket | None) -> Finding:
        """By the `Date` of an answer; a directory's file server shows its time in what it stores."""
        try:
            ahead = self._stored_ahead if bucket is None else bucket.clock_ahead()
        except StoreError as error:
            return self._subject.note("clock", f"did not say what time it is there: {error.message}")
        if ahead is None:
            return self._subject.note("clock", "did not say what time it is there")
        if abs(ahead) <= _TOLERATED_SKEW:
            return self._subject.ok("clock", f"agrees with this machine's to {figures.span(abs(ahead))}")
        return self._subject.warning(
            "clock",
            f"this machine's clock is {figures.span(ahead)} {'behind' if ahead > timedelta() else 'ahead of'} the "
            "store's",
            "set this machine's clock, best by NTP: snapshots are named by it, and S3 refuses from 15 min on",
        )
