"""Everything is looked at side by side, and nothing is waited for longer than it may take."""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from backupd.doctor import configuration, databases, directories, stores, times
from backupd.doctor.configuration import Protected, find_protected, look_at_state
from backupd.doctor.encryption import judge_encryption
from backupd.doctor.looking import look_at
from backupd.doctor.mounts import this_host
from backupd.doctor.stores import StoreExamination
from backupd.doctor.unlisted import find_unlisted, judge_unlisted
from backupd.doctor.unwaited import started
from backupd.errors import BackupdError, BusyError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from backupd.config import Database, Settings
    from backupd.doctor.configuration import StateLook
    from backupd.doctor.directories import DirectoryLook
    from backupd.doctor.findings import Finding
    from backupd.doctor.look import DatabaseLook
    from backupd.doctor.stores import StoreLook
    from backupd.state import StateDirectory

_LOOKERS = 4
_SECONDS_FOR_EACH_DATABASE = 0.2
_CLEANUP_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How many seconds each part may take, before it counts as hanging."""

    directory: float = 10.0
    lock: float = 5.0
    database: float = 15.0
    all_databases: float = 60.0
    store: float = 75.0

    def all_seconds(self, count: int) -> float:
        """For `count` databases together."""
        return self.all_databases + count * _SECONDS_FOR_EACH_DATABASE


def examine(
    settings: Settings,
    state: StateDirectory,
    environ: Mapping[str, str] = os.environ,
    *,
    patience: Patience = Patience(),
) -> tuple[Finding, ...]:
    """Every finding, in the order in which people read them, within about two minutes, however much hangs.

    Expected failures are findings, never exceptions. Changes no database and leaves nothing in a store, also when it is
    interrupted: then the stores get two seconds to be cleaned up.
    """
    return _Run(settings, state, environ, patience).findings()


class _Run:
    def __init__(
        self, settings: Settings, state: StateDirectory, environ: Mapping[str, str], patience: Patience
    ) -> None:
        self._settings = settings
        self._patience = patience
        self._environ = environ
        self._host = this_host(environ)
        self._stores = settings.stores_or_default
        self._examinations = [StoreExamination(each, state) for each in self._stores]

    def findings(self) -> tuple[Finding, ...]:
        used = [started(examination.run) for examination in self._examinations]
        stores_end_at = time.monotonic() + self._patience.store
        try:
            looked_at_state = started(lambda: look_at_state(self._settings.state_dir))
            looked_for_unlisted = started(lambda: find_unlisted(self._settings))
            protected, of_configuration = self._protected()
            looks, of_databases = self._of_databases(protected.databases)
            of_state = self._of_state(looked_at_state, looks)
            of_configuration += self._of_unlisted(looked_for_unlisted)
            of_stores = [*self._of_stores(used, stores_end_at, looks)]
        except BaseException:
            self._clean_up(used)
            raise
        now = datetime.now(UTC)
        return (
            *configuration.judge_file(self._settings, self._environ),
            *configuration.judge_user(self._settings),
            *configuration.judge_secret_files(self._environ, self._host),
            *of_configuration,
            *judge_encryption(self._settings),
            *of_state,
            *of_databases,
            *of_stores,
            *times.judge_schedules(self._settings, protected.entries, now),
            times.judge_time_zone(self._settings, self._environ, now),
            *times.judge_listeners(self._settings, [*protected.entries]),
        )

    def _protected(self) -> tuple[Protected, list[Finding]]:
        finding = started(lambda: find_protected(self._settings))
        try:
            protected = finding.result(self._patience.directory)
        except TimeoutError:
            error = _hangs("looking for the databases", self._patience.directory)
            return Protected(), [configuration.CONFIGURATION.failed("databases", error)]
        return protected, [*configuration.judge_protected(self._settings, protected)]

    def _of_unlisted(self, looked: Future[tuple[Path, ...]]) -> list[Finding]:
        try:
            return [*judge_unlisted(looked.result(self._patience.directory))]
        except TimeoutError:
            told = "looking for SQLite files that no entry has did not end in time"
            return [configuration.CONFIGURATION.note("other files", told)]

    def _of_state(self, looked: Future[StateLook], looks: Mapping[str, DatabaseLook]) -> list[Finding]:
        try:
            look = looked.result(self._patience.directory)
        except TimeoutError:
            error = _hangs(f"looking at {self._settings.state_dir}", self._patience.directory)
            return [configuration.STATE.failed("writable", error)]
        largest_bytes = max((look.image_bytes for look in looks.values()), default=0)
        return [*configuration.judge_state(look, self._settings, self._host, largest_bytes=largest_bytes)]

    def _of_databases(self, found: Sequence[Database]) -> tuple[dict[str, DatabaseLook], list[Finding]]:
        looks: dict[str, DatabaseLook] = {}
        findings: list[Finding] = []
        lock_timeout = min(self._settings.capture.lock_timeout.total_seconds(), self._patience.lock)
        max_lock = self._settings.capture.max_lock.total_seconds()
        outcomes = _look_at_all(found, self._patience, lock_timeout=lock_timeout, max_lock=max_lock)
        for database in found:
            try:
                look = outcomes[database].result(0)
            except TimeoutError:
                error = _hangs(f"{database.path}: the databases before it", self._patience.all_seconds(len(found)))
                findings.append(databases.subject_of(database).failed("opens", error))
            except BackupdError as error:
                findings.append(databases.subject_of(database).failed("opens", error))
            else:
                if look.file is not None:
                    looks[database.name] = look
                findings += databases.judge(database, look, self._settings.capture, self._host)
        return looks, findings

    def _of_stores(
        self, used: Sequence[Future[StoreLook]], end_at: float, looks: Mapping[str, DatabaseLook]
    ) -> Iterator[Finding]:
        wait(used, timeout=max(0.0, end_at - time.monotonic()))
        done = [each.result() for each in used if each.done()]
        first_at: dict[Path, str] = {}
        for settings, examination, outcome in zip(self._stores, self._examinations, used, strict=True):
            subject = stores.subject_of(settings)
            if not outcome.done():
                started(examination.cancel)
                yield subject.failed(
                    "write", _hangs(f"using {settings.url}", self._patience.store, StoreUnavailableError)
                )
                continue
            look = outcome.result()
            yield from look.findings
            if look.directory is not None:
                first = first_at.setdefault(look.directory.real_path, settings.url)
                if first != settings.url:
                    yield directories.twin(subject, first)
                has_other_place = any(_is_elsewhere(other, look.directory) for other in done)
                yield from directories.judge(
                    subject, look.directory, self._host, looks, has_other_place=has_other_place
                )

    def _clean_up(self, used: Sequence[Future[StoreLook]]) -> None:
        """Have every store cleaned up, by who uses it or besides; a process that was interrupted has no more time."""
        running: list[Future[Any]] = [started(examination.cancel) for examination in self._examinations]
        wait([*running, *used], timeout=_CLEANUP_SECONDS)


def _look_at_all(
    found: Sequence[Database], patience: Patience, *, lock_timeout: float, max_lock: float
) -> dict[Database, Future[DatabaseLook]]:
    """A look at each database, a few at a time. One that has not come in time stays without a result."""
    outcomes: dict[Database, Future[DatabaseLook]] = {database: Future() for database in found}
    waiting = deque(outcomes.items())

    def work() -> None:
        while waiting:
            try:
                database, outcome = waiting.popleft()
            except IndexError:
                return  # another took the last
            try:
                look = look_at(
                    database.file(), lock_timeout=lock_timeout, max_lock=max_lock, deadline=patience.database
                )
                outcome.set_result(look)
            except Exception as error:  # noqa: BLE001  (raised again where the result is asked for)
                outcome.set_exception(error)

    for _ in range(min(_LOOKERS, len(found))):
        started(work)
    wait(outcomes.values(), timeout=patience.all_seconds(len(found)))
    waiting.clear()
    return outcomes


def _is_elsewhere(other: StoreLook, directory: DirectoryLook) -> bool:
    return other.directory is None or other.directory.device != directory.device


def _hangs(what: str, seconds: float, kind: type[BackupdError] = BusyError) -> BackupdError:
    return kind(
        f"{what} did not end within {seconds:g} s",
        hint="the network, a mount or a disk seems to hang: try `ls` there, and look at the system log",
    )
