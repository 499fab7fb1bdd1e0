"""Snapshots on request (`POST /snapshots`), beside those of the timetable."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd.backup import BackupResult, Outcome, SnapshotRequest, exit_code_of
from backupd.concurrency import start_thread
from backupd.daemon.work import log_snapshot, prune_after_snapshot, take_logged_snapshot
from backupd.errors import ExitCode, InterruptedByUserError, LimitReachedError, UsageError
from backupd.logs import log
from backupd.repository.references import is_tag

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backupd.daemon.work import Context
    from backupd.jobs.configured import ConfiguredDatabase, ConfiguredStore

MOST_AT_ONCE = 8
"""How many requests may run, whether their clients wait or not."""
_MOST_OF_ONE = 4  # a database that hangs leaves room for the requests of others
_KEYS = ("database", "tag", "wait")
_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request for a snapshot of one database, or (None) of all that are configured."""

    database: str | None
    tags: tuple[str, ...]
    waits: bool
    """Whether the client waits for the outcome."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request for snapshots. `exit_code` is the one that `backupd now` would have ended with."""

    exit_code: ExitCode
    values: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class _Job:
    """A request, with the databases and stores that it stands for at this moment."""

    request: HttpRequest
    databases: Sequence[ConfiguredDatabase]
    stores: Sequence[ConfiguredStore]
    context: Context


def parse_request(values: Mapping[str, object]) -> HttpRequest:
    """Return the request in `values`: texts by key, and `wait` may be a truth value. Raises `UsageError`."""
    for key in values:
        if key not in _KEYS:
            raise UsageError(f"unknown key {key!r}", hint=f"known here: {', '.join(_KEYS)}")
    database, tag, waits = values.get("database"), values.get("tag"), values.get("wait", True)
    if isinstance(waits, str):
        waits = _WORDS.get(waits.lower(), waits)
    if not isinstance(waits, bool):
        raise UsageError("wait must be true or false")
    if database is not None and not (isinstance(database, str) and database):
        raise UsageError("database must be the name of a configured database")
    if tag is not None and not isinstance(tag, str):
        raise UsageError("a tag must be a text", hint="send: curl -d database=app -d tag=before-upgrade")
    if tag is not None and not is_tag(tag):
        raise UsageError(
            f"{tag!r} cannot be a tag", hint="a tag is a letter, then letters, digits, dots, hyphens and so on"
        )
    return HttpRequest(database, () if tag is None else (tag,), waits)


class Requests:
    """Carries requests out, a few at a time. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[str | None] = []
        self._to_prune: dict[str, tuple[Sequence[BackupResult], _Job]] = {}
        self._is_pruning = False

    def answer(self, request: HttpRequest, context: Context) -> Answer:
        """Have the snapshots taken that are asked for.

        Raises `UsageError` when there is no such database, and `LimitReachedError`, with nothing done, when too many
        requests are running, or a limit of this machine let none of the snapshots begin.
        """
        inventory = context.discovery.now()
        databases = inventory.all_databases if request.database is None else [inventory.database(request.database)]
        job = _Job(request, databases, inventory.stores, context)
        self._enter(request.database)
        if request.waits:
            results = self._carry_out(job)
            limits = [result.error for result in results if isinstance(result.error, LimitReachedError)]
            if limits and len(limits) == len(results):
                raise limits[0]
            return Answer(exit_code_of(results), {"snapshots": [result.values() for result in results]})
        try:
            start_thread(self._carry_out, job, name="requested")
        except LimitReachedError:
            self._leave(request.database)
            raise
        return Answer(ExitCode.DONE, {"accepted": [configured.name for configured in databases]})

    def _enter(self, database: str | None) -> None:
        with self._lock:
            is_full = len(self._running) >= MOST_AT_ONCE
            if is_full or self._running.count(database) >= _MOST_OF_ONE:
                what = "" if is_full else f" for {'all databases' if database is None else database}"
                raise LimitReachedError(
                    f"as many requests{what} are running as may run at once", hint="ask again when one has ended"
                )
            self._running.append(database)

    def _leave(self, database: str | None) -> None:
        with self._lock:
            self._running.remove(database)

    def _carry_out(self, job: _Job) -> list[BackupResult]:
        try:
            return self._take_all(job)
        finally:
            self._leave(job.request.database)

    def _take_all(self, job: _Job) -> list[BackupResult]:
        """Take all snapshots, whatever becomes of each."""
        results = []
        for configured in job.databases:
            try:
                taken = _take(configured, job)
            except Exception as failed:  # noqa: BLE001  (not even a bug costs the others theirs)
                error = log.failure(failed, database=configured.name)
                taken = [
                    BackupResult(database=configured.name, store=store.url, outcome=Outcome.FAILED, error=error)
                    for store in job.stores
                ]
                for result in taken:
                    log_snapshot(result)
            else:
                self._prune_soon(configured.name, taken, job)
            results += taken
        return results

    def _prune_soon(self, database: str, results: Sequence[BackupResult], job: _Job) -> None:
        """Prune in the background, in one thread for all databases. The schedule prunes as well."""
        with self._lock:
            self._to_prune[database] = results, job
            if self._is_pruning:
                return
            try:
                start_thread(self._prune_all, name="requested-prune")
            except LimitReachedError as error:
                self._to_prune.clear()
                log.warning("not pruned after the snapshot", database=database, error=error.values())
            else:
                self._is_pruning = True

    def _prune_all(self) -> None:
        while True:
            with self._lock:
                if not self._to_prune:
                    self._is_pruning = False
                    return
                results, job = self._to_prune.pop(next(iter(self._to_prune)))
            with log.catch():  # the others still have to be pruned
                with suppress(InterruptedByUserError):
                    prune_after_snapshot(results, job.stores, job.context)
                job.context.wake()


def _take(configured: ConfiguredDatabase, job: _Job) -> list[BackupResult]:
    """Take a snapshot into every store.

    It waits for a run of this database, which may have begun before the request, and for no run of any other
    database: the client is about to change this one.
    """
    timeout = job.context.settings.capture.deadline.total_seconds()
    with job.context.runs.turn(configured.name, timeout=timeout):
        request = SnapshotRequest(tags=job.request.tags, must_read=True)
        results = take_logged_snapshot(configured, job.stores, job.context, request)
    job.context.wake()
    return results
