"""The examination: runs every check of doctor concurrently, and waits for none longer than its time limit."""

from __future__ import annotations

import os
import time
from concurrent.futures import CancelledError, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from backupd.concurrency import start_call, start_calls
from backupd.doctor import configuration, databases, directories, following, stores, unattended
from backupd.doctor.configuration import Protected
from backupd.doctor.stores import StoreExamination
from backupd.errors import BackupdError, BusyError, StoreUnavailableError
from backupd.health import StatusFile
from backupd.system import mounts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from backupd.config import Database, Settings
    from backupd.doctor.databases import DatabaseFacts
    from backupd.doctor.directories import DirectoryFacts, StateFacts
    from backupd.doctor.findings import Finding
    from backupd.doctor.stores import StoreResult
    from backupd.health import DatabaseHealth, Status
    from backupd.state import StateDirectory

_DATABASE_THREADS = 4
_SECONDS_FOR_EACH_DATABASE = 0.2
_CLEANUP_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """The time limits of each part, in seconds, after which it counts as hanging."""

    directory: float = 10.0
    lock: float = 5.0
    database: float = 15.0
    all_databases: float = 60.0
    store: float = 75.0

    def all_seconds(self, count: int) -> float:
        """How long `count` databases may take together."""
        return self.all_databases + count * _SECONDS_FOR_EACH_DATABASE


def examine(
    settings: Settings,
    state: StateDirectory,
    environ: Mapping[str, str] = os.environ,
    *,
    limits: TimeLimits = TimeLimits(),
) -> tuple[Finding, ...]:
    """Every finding, in the order in which people read them, within about two minutes, even if much hangs.

    Expected failures are findings, never exceptions. Changes no database and leaves nothing in a store, even when it is
    interrupted: cleaning up the stores then gets two seconds.
    """
    return _Examination(settings, state, environ, limits).findings()


class _Examination:
    def __init__(
        self, settings: Settings, state: StateDirectory, environ: Mapping[str, str], limits: TimeLimits
    ) -> None:
        self._settings = settings
        self._status = StatusFile(state)
        self._limits = limits
        self._environ = environ
        self._host = mounts.this_host(environ)
        self._stores = settings.stores_or_default
        self._examinations = [StoreExamination(each, state) for each in self._stores]

    def findings(self) -> tuple[Finding, ...]:
        used = [start_call(examination.run, name="doctor-store") for examination in self._examinations]
        stores_end_at = time.monotonic() + self._limits.store
        try:
            state = start_call(lambda: directories.inspect_state(self._settings.state_dir), name="doctor-state")
            reading = start_call(self._status.find, name="doctor-status")
            search = start_call(lambda: configuration.find_protected(self._settings), name="doctor-databases")
            unlisted = start_call(
                lambda: configuration.find_unlisted(self._settings, search.result().paths), name="doctor-unlisted"
            )
            protected, of_configuration = self._check_protected(search)
            facts, of_databases = self._check_databases(protected.databases, reading)
            of_state = self._check_state(state, facts)
            of_configuration += self._check_unlisted(unlisted)
            of_stores = [*self._check_stores(used, stores_end_at, facts)]
        except BaseException:
            self._clean_up(used)
            raise
        now = datetime.now(UTC)
        return (
            *configuration.check_file(self._settings, self._environ),
            *configuration.check_user(self._settings),
            *configuration.check_secret_files(self._environ, self._host),
            *of_configuration,
            *configuration.check_encryption(self._settings),
            *of_state,
            *of_databases,
            *of_stores,
            *unattended.check_schedules(self._settings, protected.entries, now),
            unattended.check_time_zone(self._settings, self._environ, now),
            *unattended.check_notifications(self._settings, [*protected.entries]),
        )

    def _check_protected(self, search: Future[Protected]) -> tuple[Protected, list[Finding]]:
        try:
            protected = search.result(self._limits.directory)
        except TimeoutError:
            error = _hangs("looking for the databases", self._limits.directory)
            return Protected(), [configuration.CONFIGURATION.failed("databases", error)]
        return protected, [*configuration.check_protected(self._settings, protected)]

    def _check_unlisted(self, search: Future[tuple[Path, ...]]) -> list[Finding]:
        try:
            return [*configuration.check_unlisted(search.result(self._limits.directory))]
        except TimeoutError:
            message = "the search for SQLite files without an entry did not end in time"
            return [configuration.CONFIGURATION.note("other files", message)]

    def _check_state(self, inspection: Future[StateFacts], databases: Mapping[str, DatabaseFacts]) -> list[Finding]:
        try:
            state = inspection.result(self._limits.directory)
        except TimeoutError:
            error = _hangs(f"looking at {self._settings.state_dir}", self._limits.directory)
            return [directories.STATE.failed("writable", error)]
        largest_bytes = max((database.image_bytes for database in databases.values()), default=0)
        return [*directories.check_state(state, self._settings, self._host, largest_bytes=largest_bytes)]

    def _check_databases(
        self, found: Sequence[Database], reading: Future[Status | None]
    ) -> tuple[dict[str, DatabaseFacts], list[Finding]]:
        by_name: dict[str, DatabaseFacts] = {}
        findings: list[Finding] = []
        lock_timeout = min(self._settings.capture.lock_timeout.total_seconds(), self._limits.lock)
        max_lock = self._settings.capture.max_lock.total_seconds()
        outcomes = _inspect_all(found, self._limits, lock_timeout=lock_timeout, max_lock=max_lock)
        known = _known_databases(reading, self._limits.directory)
        for database in found:
            try:
                facts = outcomes[database].result(0)
            except (TimeoutError, CancelledError):
                error = _hangs(f"{database.path}: the databases before it", self._limits.all_seconds(len(found)))
                findings.append(databases.subject_of(database).failed("opens", error))
            except BackupdError as error:
                findings.append(databases.subject_of(database).failed("opens", error))
            else:
                if facts.file is not None:
                    by_name[database.name] = facts
                findings += databases.check_database(database, facts, self._settings.capture, self._host)
                of_log = following.check_following(
                    database, facts, self._settings.follow, known.get(database.name), datetime.now(UTC)
                )
                findings += [of_log] if of_log else []
        return by_name, findings

    def _check_stores(
        self, used: Sequence[Future[StoreResult]], end_at: float, databases: Mapping[str, DatabaseFacts]
    ) -> Iterator[Finding]:
        wait(used, timeout=max(0.0, end_at - time.monotonic()))
        done = [each.result() for each in used if each.done()]
        first_at: dict[Path, str] = {}
        for settings, examination, outcome in zip(self._stores, self._examinations, used, strict=True):
            subject = stores.subject_of(settings)
            if not outcome.done():
                start_call(examination.cancel, name="doctor-cancel")
                error = _hangs(f"using {settings.url}", self._limits.store, StoreUnavailableError)
                yield subject.failed("write", error)
                continue
            result = outcome.result()
            yield from result.findings
            if (facts := result.directory) is not None:
                first = first_at.setdefault(facts.real_path, settings.url)
                if first != settings.url:
                    yield directories.shared_place(subject, first)
                has_other_place = any(_is_elsewhere(other, facts) for other in done)
                yield from directories.check_store_directory(
                    subject, facts, self._host, databases, has_other_place=has_other_place
                )

    def _clean_up(self, used: Sequence[Future[StoreResult]]) -> None:
        """Clean up every store, in the thread that uses it or in another; an interrupted process cannot wait longer."""
        running: list[Future[Any]] = [
            start_call(examination.cancel, name="doctor-cancel") for examination in self._examinations
        ]
        wait([*running, *used], timeout=_CLEANUP_SECONDS)


def _known_databases(reading: Future[Status | None], seconds: float) -> Mapping[str, DatabaseHealth]:
    """What the status says of each database; nothing when it cannot be read, which `backupd status` reports."""
    try:
        status = reading.result(seconds)
    except (BackupdError, TimeoutError):
        status = None
    return status.databases if status else {}


def _inspect_all(
    found: Sequence[Database], limits: TimeLimits, *, lock_timeout: float, max_lock: float
) -> dict[Database, Future[DatabaseFacts]]:
    """Inspect all databases, a few at a time. One that is not inspected in time stays without a result."""

    def inspect(database: Database) -> DatabaseFacts:
        return databases.inspect_database(
            database.file(), lock_timeout=lock_timeout, max_lock=max_lock, deadline=limits.database
        )

    calls = {database: partial(inspect, database) for database in found}
    outcomes = start_calls(calls, most=_DATABASE_THREADS, name="doctor-database")
    wait(outcomes.values(), timeout=limits.all_seconds(len(found)))
    for outcome in outcomes.values():
        outcome.cancel()
    return outcomes


def _is_elsewhere(other: StoreResult, directory: DirectoryFacts) -> bool:
    return other.directory is None or other.directory.device != directory.device


def _hangs(what: str, seconds: float, kind: type[BackupdError] = BusyError) -> BackupdError:
    return kind(
        f"{what} did not end within {seconds:g} s",
        hint="the network, a mount or a disk seems to hang: try `ls` there, and look at the system log",
    )
