"""Whether a store takes, returns, lists and deletes objects, tried with one object that is removed again."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from backupd.concurrency import Cancellation
from backupd.doctor import buckets
from backupd.doctor.directories import inspect_directory
from backupd.doctor.findings import Finding, Subject
from backupd.errors import (
    BackupdError,
    DamageError,
    ExitCode,
    InterruptedByUserError,
    NoSuchObjectError,
    PutOnlyError,
    StoreError,
    StoreRefusedError,
)
from backupd.repository import Repository
from backupd.store import open_bucket, open_store
from backupd.store.directory import leaving_no_directory
from backupd.store.keys import is_probe_key, probe_key, probes_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.config import StoreSettings
    from backupd.doctor.directories import DirectoryFacts
    from backupd.state import StateDirectory
    from backupd.store import Bucket, Store, StoredObject

_CONTENT_BYTES = 4096
# One that cannot be removed is the same each time, so that there is never more than one of them.
_STAYING_TOKEN = "0" * 32
_STAYING_CONTENT = b"put here by backupd doctor, with keys that may not delete it again\n"
_OTHERS_ARE_DONE_AFTER = timedelta(hours=1)
# The user waits for doctor: a store that needs longer than this is reported as one that does not answer.
_TIME_LIMIT = timedelta(seconds=20)
_ANSWER_LIMIT = timedelta(seconds=10)
_MOST_ATTEMPTS = 2
# Amazon refuses signatures from 15 minutes on; file servers and listings have whole seconds.
_TOLERATED_SKEW = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class StoreResult:
    """The findings from using a store. `directory` is None for a bucket."""

    findings: tuple[Finding, ...]
    directory: DirectoryFacts | None = None


def subject_of(settings: StoreSettings) -> Subject:
    """The subject of findings about a store."""
    return Subject(f"store {settings.url}")


def with_short_limits(settings: StoreSettings) -> StoreSettings:
    """The settings of a store with shorter time limits, so that one that hangs is reported within a minute."""
    if not settings.is_s3:
        return settings
    return settings.replaced(
        time_limit=min(settings.time_limit, _TIME_LIMIT),
        connect_timeout=min(settings.connect_timeout, _ANSWER_LIMIT),
        read_timeout=min(settings.read_timeout, _ANSWER_LIMIT),
        max_attempts=min(settings.max_attempts, _MOST_ATTEMPTS),
    )


class Probe:
    """One object under a random key. Call `remove` whatever the outcome of the other calls.

    One that `stays`, because the store must refuse its removal, always has the same key and content. The methods raise
    the errors of `Store`, and `InterruptedByUserError` after `cancel`.
    """

    def __init__(self, store: Store, *, stays: bool = False) -> None:
        self.key = probe_key(_STAYING_TOKEN if stays else secrets.token_hex(16))
        self._store = store
        self._content = _STAYING_CONTENT if stays else secrets.token_bytes(_CONTENT_BYTES)
        self._may_be_there = False
        self._cancellation = Cancellation()

    def cancel(self) -> None:
        """Make the other methods end soon, from any thread. `remove` still works."""
        self._cancellation.request(InterruptedByUserError("interrupted"))

    def write(self) -> None:
        """Put the object."""
        self._cancellation.check()
        # A put whose answer never came may have been done anyway.
        self._may_be_there = True
        self._store.put(self.key, self._content, sha256=hashlib.sha256(self._content).digest())
        # Another thread may have removed it meanwhile, before it was there.
        self._may_be_there = True

    def read_back(self) -> None:
        """Get the object and compare. Raises `DamageError` for other bytes."""
        self._cancellation.check()
        found = self._store.get(self.key, limit_bytes=_CONTENT_BYTES)
        if found != self._content:
            raise DamageError(
                f"{self._store.url} returned other bytes than were put (object {self.key})",
                hint="do not trust this store: look for a proxy or gateway that changes content, and check its disks",
            )

    def find(self) -> StoredObject:
        """Find the object in a listing. Raises `StoreError` when it is missing there, or has another size."""
        self._cancellation.check()
        for stored in self._store.list(probes_prefix()):
            if stored.key == self.key and stored.size_bytes == len(self._content):
                return stored
        raise StoreError(
            f"{self._store.url} took {self.key}, but its listing does not show it",
            hint="a listing that lags behind is no place for backups: look at the server's documentation and version",
        )

    def remove_older_ones(self, than: StoredObject) -> None:
        """Delete probes that a killed doctor left more than an hour before this one, `than`, was put."""
        for stored in self._store.list(probes_prefix()):
            if is_probe_key(stored.key) and than.modified_at - stored.modified_at > _OTHERS_ARE_DONE_AFTER:
                self._cancellation.check()
                self._store.delete(stored.key)

    def remove(self) -> None:
        """Delete the object if it may be there. Repeatable."""
        if self._may_be_there:
            self._store.delete(self.key)
            self._may_be_there = False

    def is_gone(self) -> bool:
        """Whether the store neither returns nor lists the object any more."""
        try:
            self._store.get(self.key, limit_bytes=_CONTENT_BYTES)
        except NoSuchObjectError:
            return all(stored.key != self.key for stored in self._store.list(self.key))
        return False


class StoreExamination:
    """The examination of one store. Call `run` in a thread of its own; `cancel`, from another thread, ends it soon.

    `store` replaces the one that `settings` name.
    """

    def __init__(self, settings: StoreSettings, state: StateDirectory, *, store: Store | None = None) -> None:
        self._settings = with_short_limits(settings)
        self._subject = subject_of(settings)
        self._store = store or open_store(self._settings)
        self._state = state
        self._probe = Probe(self._store, stays=settings.put_only)

    def run(self) -> StoreResult:
        """Use the store. Leaves nothing in it, and no version, where the keys may delete; elsewhere one object."""
        if self._settings.is_s3:
            return StoreResult(tuple(self._use()))
        directory = self._settings.directory
        facts = inspect_directory(directory)
        with leaving_no_directory(directory):
            return StoreResult(tuple(self._use()), facts)

    def cancel(self) -> None:
        """Make `run` clean up and end, and delete its object here too in case it hangs. For any thread."""
        self._probe.cancel()
        with suppress(StoreError):
            self._probe.remove()

    def _use(self) -> Iterator[Finding]:
        """Take the steps in order, until one fails: each needs those before it."""
        subject, check = self._subject, "write"
        try:
            self._probe.write()
            yield subject.ok(check, "took an object")
            check = "read"
            self._probe.read_back()
            yield subject.ok(check, "gave the same bytes back")
            check = "list"
            stored_ahead = self._list()
            yield subject.ok(check, "shows it, with its size")
            check = "delete"
            yield self._delete()
            check = "repository"
            yield self._repository()
        except BackupdError as error:
            with suppress(StoreError):  # the error of the step is the one that matters
                self._probe.remove()
            yield subject.failed(check, error)
            return
        bucket = open_bucket(self._settings)
        yield self._clock(bucket, stored_ahead)
        if bucket is not None and self._settings.put_only:
            yield buckets.check_reading_packs(self._subject, self._store)
            yield from buckets.check_put_only_bucket(self._subject, bucket, self._probe.key)
        elif bucket is not None:
            with suppress(StoreError):  # many credentials may not, and a lock may forbid it
                bucket.remove_versions(self._probe.key)
            yield from buckets.check_bucket(self._subject, bucket)

    def _list(self) -> timedelta:
        """Find the object, and remove what other runs left; returns how far ahead the time is that it got there."""
        stored = self._probe.find()
        ahead = stored.modified_at - datetime.now(UTC)
        if not self._settings.put_only:
            self._probe.remove_older_ones(stored)
        return ahead

    def _delete(self) -> Finding:
        key = self._probe.key
        try:
            self._probe.remove()
        except PutOnlyError:
            if not self._settings.put_only:
                raise
            return self._subject.ok("delete", f"deleting is refused to these keys, as put_only says: {key} stays there")
        except StoreRefusedError as error:
            if self._settings.put_only:
                raise
            return self._subject.warning(
                "delete",
                f"{error.message}; so {key} stays there, and pruning cannot free space",
                error.hint or "allow deletions, or know that this store only grows",
            )
        if self._settings.put_only:
            return self._subject.warning(
                "delete",
                "put_only is set, and these keys may delete: a thief of them can remove every snapshot",
                buckets.PUT_ONLY_POLICY,
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

    def _clock(self, bucket: Bucket | None, stored_ahead: timedelta) -> Finding:
        """Compare clocks by the `Date` of an answer; a file server shows its time in what it stores."""
        try:
            ahead = stored_ahead if bucket is None else bucket.clock_ahead()
        except StoreError as error:
            return self._subject.note("clock", f"did not say what time it is there: {error.message}")
        if ahead is None:
            return self._subject.note("clock", "did not say what time it is there")
        if abs(ahead) <= _TOLERATED_SKEW:
            return self._subject.ok("clock", f"agrees with this machine's to {_span(ahead)}")
        return self._subject.warning(
            "clock",
            f"this machine's clock is {_span(ahead)} {'behind' if ahead > timedelta() else 'ahead of'} the store's",
            "set this machine's clock, best by NTP: snapshots are named by it, and S3 refuses from 15 min on",
        )


def _span(duration: timedelta) -> str:
    """A duration of either sign, as people say it: `40 s`, `12 min`, `5 h`, `3 days`."""
    elapsed = abs(duration.total_seconds())
    for unit_seconds, unit, most in ((1, "s", 120), (60, "min", 7200), (3600, "h", 172_800)):
        if elapsed < most:
            return f"{elapsed / unit_seconds:.0f} {unit}"
    return f"{elapsed / 86400:.0f} days"
