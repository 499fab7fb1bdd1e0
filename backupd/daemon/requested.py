"""Snapshots on request: what `POST /snapshots` asks for, beside what the timetable does."""

from __future__ import annotations

import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd.backup import BackupResult, Outcome, Wish, exit_code_of
from backupd.daemon.outcomes import log_result
from backupd.errors import BackupdError, ExitCode, InterruptedByUserError, UsageError
from backupd.logs import log
from backupd.reference import is_tag
from backupd.upkeep.rotation import is_rotated_after
from backupd.upkeep.snapshots import take_snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backupd.daemon.charge import Charge
    from backupd.upkeep.configured import Configured
    from backupd.upkeep.stores import RotatedStore

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
    if tag is not None and not (isinstance(tag, str) and is_tag(tag)):
        raise UsageError(
            f"{tag!r} can not be a tag", hint="a tag is a letter, then letters, digits, dots, hyphens and so on"
        )
    return Request(database, () if tag is None else (str(tag),), waits)


def answer(request: Request, charge: Charge) -> Answer:
    """Have the snapshots taken that are asked for. Raises `UsageError` when there is no such database."""
    wanted = charge.all_databases() if request.database is None else [charge.database(request.database)]
    if not request.waits:
        threading.Thread(target=_take_all, args=(wanted, request, charge), name="requested", daemon=True).start()
        return Answer(ExitCode.DONE, {"accepted": [configured.name for configured in wanted]})
    results = _take_all(wanted, request, charge)
    return Answer(exit_code_of(results), {"snapshots": [result.values() for result in results]})


def _take_all(wanted: list[Configured], request: Request, charge: Charge) -> list[BackupResult]:
    """All of them, whatever becomes of each."""
    results = []
    for configured in wanted:
        try:
            results += _take(configured, request, charge)
        except Exception as failed:  # noqa: BLE001  (one database costs no other its snapshot, not even by a bug)
            error = failed if isinstance(failed, BackupdError) else _logged_bug(configured, failed)
            refused = [_not_taken(configured, rotated, error) for rotated in charge.stores()]
            for result in refused:
                log_result(result)
            results += refused
    return results


def _logged_bug(configured: Configured, bug: Exception) -> BackupdError:
    log.error("this is a bug in backupd", database=configured.name, error=repr(bug), traceback=traceback.format_exc())
    return BackupdError(f"this is a bug in backupd: {bug!r}", hint="please report it, with its log")


def _not_taken(configured: Configured, rotated: RotatedStore, error: BackupdError) -> BackupResult:
    return BackupResult(database=configured.name, store=rotated.url, outcome=Outcome.FAILED, error=error)


def _take(configured: Configured, request: Request, charge: Charge) -> list[BackupResult]:
    """A snapshot in every store, after the run that may be going on: that one may have begun before what is asked for.

    It waits for no other database: whoever asks is about to change this one.
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
    # Whoever asks waits for the snapshot, and not for old ones to go.
    pairs = list(zip(results, stores, strict=True))
    threading.Thread(target=_rotate, args=(pairs, charge), name="requested", daemon=True).start()
    return results


def _rotate(pairs: Sequence[tuple[BackupResult, RotatedStore]], charge: Charge) -> None:
    with suppress(InterruptedByUserError):
        for result, rotated in pairs:
            if is_rotated_after(result, rotated):
                charge.rotations.rotate(result.database, rotated, charge.runs.go_on)
    charge.wake()
