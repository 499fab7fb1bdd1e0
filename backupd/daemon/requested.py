"""Snapshots on request: what `POST /snapshots` asks for, beside what the timetable does."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd.backup import BackupResult, Outcome, Wish, exit_code_of
from backupd.daemon.outcomes import log_result
from backupd.errors import BackupdError, ExitCode, InterruptedByUserError, LimitReachedError, UsageError
from backupd.logs import log
from backupd.reference import is_tag
from backupd.threads import start_thread
from backupd.upkeep.rotation import is_rotated_after
from backupd.upkeep.snapshots import take_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backupd.daemon.charge import Charge
    from backupd.upkeep.configured import Configured
    from backupd.upkeep.stores import RotatedStore

    _Pairs = Sequence[tuple[BackupResult, RotatedStore]]

MOST_AT_ONCE = 8
"""Requests that are under way, whether their clients wait or not."""
_MOST_OF_ONE = 4  # a database that hangs leaves room for the requests of others
_KEYS = ("database", "tag", "wait")
_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True)
class Request:
    """What is wanted: a snapshot of one database, or (None) of all that are configured."""

    database: str | None
    tags: tuple[str, ...]
    waits: bool
    """Whether whoever asks waits for the outcome."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of it. `exit_code` is what `backupd now` would have ended with."""

    exit_code: ExitCode
    values: Mapping[str, object]


def parse_request(values: Mapping[str, object]) -> Request:
    """The request in `values`: texts by key, and `wait` may be a truth value. Raises `UsageError`."""
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
        raise UsageError("what is no text can not be a tag", hint="send: curl -d database=app -d tag=before-upgrade")
    if tag is not None and not is_tag(tag):
        raise UsageError(
            f"{tag!r} can not be a tag", hint="a tag is a letter, then letters, digits, dots, hyphens and so on"
        )
    return Request(database, () if tag is None else (tag,), waits)


class Requests:
    """Carries requests out, a few at a time. Threads may use all of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: list[str | None] = []
        self._to_prune: dict[str, tuple[_Pairs, Charge]] = {}
        self._is_pruning = False

    def answer(self, request: Request, charge: Charge) -> Answer:
        """Have the snapshots taken that are asked for.

        Raises `UsageError` when there is no such database, and `LimitReachedError`, with nothing done, when too many
        requests are under way, or a limit of this machine let none of the snapshots begin.
        """
        wanted = charge.all_databases() if request.database is None else [charge.database(request.database)]
        self._enter(request.database)
        if request.waits:
            with self._leaving(request.database):
                results = self._take_all(wanted, request, charge)
            limits = [result.error for result in results if isinstance(result.error, LimitReachedError)]
            if limits and len(limits) == len(results):
                raise limits[0]
            return Answer(exit_code_of(results), {"snapshots": [result.values() for result in results]})
        try:
            start_thread(self._take_unwaited, wanted, request, charge, name="requested")
        except LimitReachedError:
            self._leave(request.database)
            raise
        return Answer(ExitCode.DONE, {"accepted": [configured.name for configured in wanted]})

    def _enter(self, database: str | None) -> None:
        with self._lock:
            is_full = len(self._under_way) >= MOST_AT_ONCE
            if is_full or self._under_way.count(database) >= _MOST_OF_ONE:
                what = "" if is_full else f" for {'all databases' if database is None else database}"
                raise LimitReachedError(
                    f"as many requests{what} are under way as may be at once", hint="ask again when one has ended"
                )
            self._under_way.append(database)

    def _leave(self, database: str | None) -> None:
        with self._lock:
            self._under_way.remove(database)

    @contextmanager
    def _leaving(self, database: str | None) -> Iterator[None]:
        try:
            yield
        finally:
            self._leave(database)

    def _take_unwaited(self, wanted: Sequence[Configured], request: Request, charge: Charge) -> None:
        with self._leaving(request.database):
            self._take_all(wanted, request, charge)

    def _take_all(self, wanted: Sequence[Configured], request: Request, charge: Charge) -> list[BackupResult]:
        """All of them, whatever becomes of each."""
        results = []
        for configured in wanted:
            try:
                pairs = _take(configured, request, charge)
            except Exception as failed:  # noqa: BLE001  (not even a bug costs the others theirs)
                error = failed if isinstance(failed, BackupdError) else log.unexpected(failed, database=configured.name)
                refused = [_not_taken(configured, rotated, error) for rotated in charge.stores()]
                for result in refused:
                    log_result(result)
                results += refused
            else:
                self._prune_soon(configured.name, pairs, charge)
                results += [result for result, _ in pairs]
        return results

    def _prune_soon(self, database: str, pairs: _Pairs, charge: Charge) -> None:
        """Have old snapshots go, without a wait for that, in one thread for all: the schedule prunes besides."""
        with self._lock:
            self._to_prune[database] = pairs, charge
            if self._is_pruning:
                return
            try:
                start_thread(self._prune, name="requested-prune")
            except LimitReachedError as error:
                self._to_prune.clear()
                log.warning("not pruned after the snapshot", database=database, error=error.values())
            else:
                self._is_pruning = True

    def _prune(self) -> None:
        while True:
            with self._lock:
                if not self._to_prune:
                    self._is_pruning = False
                    return
                pairs, charge = self._to_prune.pop(next(iter(self._to_prune)))
            try:
                _rotate(pairs, charge)
            except Exception as error:  # noqa: BLE001  (the others are still to be pruned)
                log.unexpected(error)


def _not_taken(configured: Configured, rotated: RotatedStore, error: BackupdError) -> BackupResult:
    return BackupResult(database=configured.name, store=rotated.url, outcome=Outcome.FAILED, error=error)


def _take(configured: Configured, request: Request, charge: Charge) -> _Pairs:
    """A snapshot in every store, with that store.

    It comes after the run that may be going on: that one may have begun before what is asked for. It waits for no other
    database: the caller is about to change this one.
    """
    stores = charge.stores()
    settings = charge.settings
    timeout = settings.capture.deadline.total_seconds()
    with charge.runs.turn(configured.name, timeout=timeout):
        results = take_snapshot(
            configured,
            stores,
            settings,
            charge.state,
            charge.status,
            wish=Wish(tags=request.tags),
            on_progress=charge.runs.go_on,
        )
    for result in results:
        log_result(result)
    charge.wake()
    return list(zip(results, stores, strict=True))


def _rotate(pairs: _Pairs, charge: Charge) -> None:
    with suppress(InterruptedByUserError):
        for result, rotated in pairs:
            if is_rotated_after(result, rotated):
                charge.rotations.rotate(result.database, rotated, charge.runs.go_on)
    charge.wake()
