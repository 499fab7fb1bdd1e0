"""Pruning of databases in the configured stores: by hand, after a snapshot, and with a limit on the wait.

Each outcome is recorded in the status; some of them are reported only once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from backupd.concurrency import has_ended, start_call
from backupd.errors import BackupdError, PutOnlyError, StoreRefusedError, StoreUnavailableError
from backupd.health.recording import is_prune_due, with_prune
from backupd.logs import log
from backupd.prune import PruneOptions, PruneResult, prune
from backupd.state import RefusedDeletion, refused_deletion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from backupd.backup import BackupResult
    from backupd.health import Status, StatusFile
    from backupd.jobs.configured import ConfiguredStore
    from backupd.state import StateDirectory

# Pruning itself stops after some 20 s of work, and leaves the rest to the next time.
_PATIENCE = timedelta(minutes=2)
_CHECK_SECONDS = 0.5


def is_pruned_after(result: BackupResult, store: ConfiguredStore, status: Status) -> bool:
    """Whether a prune follows a snapshot that succeeded, by the policy of its database in that store.

    Never where the keys may not delete: another machine prunes there. A run that found nothing new fills no store: one
    a day is enough, unless the last prune failed or was held.
    """
    policy = store.policy(result.database)
    if result.error is not None or policy is None or not policy.after_snapshot or store.is_put_only:
        return False
    known = status.databases.get(result.database)
    health = known.stores.get(store.url) if known else None
    if result.has_made_snapshot or health is None:
        return True
    is_owed = health.hold is not None or health.prune_failure is not None
    return is_owed or is_prune_due(health, datetime.now(UTC))


def prune_after(result: BackupResult, store: ConfiguredStore, status: StatusFile) -> PruneResult | None:
    """Prune what has just been backed up; None when `is_pruned_after` says no.

    Expected failures are in the result. None is a failure of the snapshot.
    """
    if not is_pruned_after(result, store, status.read()):
        return None
    return prune_database(result.database, store, status)


def prune_database(database: str, store: ConfiguredStore, status: StatusFile) -> PruneResult:
    """Prune a configured database in one store by its policy, and record the outcome. Repeatable, as `prune` is.

    Expected failures are in the result.
    """
    result, unrecorded = _prune(database, store, status, status.read(), PruneOptions())
    return result if unrecorded is None else replace(result, error=result.error or unrecorded)


@dataclass(frozen=True, slots=True)
class Prunable:
    """The databases to prune, each with its store; the keys of foreign objects by store (URL); and stores' errors."""

    databases: list[tuple[ConfiguredStore, str]] = field(default_factory=list)
    foreign_keys: dict[str, list[str]] = field(default_factory=dict)
    problems: list[BackupdError] = field(default_factory=list)


def find_prunable(stores: Sequence[ConfiguredStore], name: str | None) -> Prunable:
    """Find what a prune by hand is about in `stores`: one database, or (None) all of them, and foreign objects too."""
    found = Prunable()
    for store in stores:
        try:
            if not store.repository.exists():
                continue
            if name is not None:
                names = [name] if store.repository.archive(name).listing().manifests else []
            else:
                if keys := store.repository.foreign_objects():
                    found.foreign_keys[store.url] = keys
                names = store.repository.databases()
        except BackupdError as error:
            found.problems.append(error)
        else:
            found.databases.extend((store, each) for each in names)
    return found


def prune_by_hand(
    database: str, store: ConfiguredStore, status: StatusFile, *, is_dry_run: bool, accepts_shrink: bool
) -> tuple[PruneResult, BackupdError | None]:
    """Prune any database in one store, and record that if it is configured; with why it could not be recorded.

    Expected failures are in the result. Raises `PutOnlyError` where the keys may not delete, except in a dry run.
    """
    if store.is_put_only and not is_dry_run:
        raise PutOnlyError(
            f"nothing can be removed from {store.url} by the keys of this machine, which may only put (put_only)",
            hint="run backupd prune elsewhere: same databases and [retention], no put_only, and keys that may delete "
            "(docs/s3-providers.md)",
        )
    try:
        known = status.find()
    except BackupdError:
        known = None  # the records in the stores remain; that the prune cannot be recorded is a warning
    options = PruneOptions(is_dry_run=is_dry_run, accepts_shrink=accepts_shrink)
    return _prune(database, store, status, known, options)


def _prune(
    database: str,
    store: ConfiguredStore,
    status: StatusFile,
    known: Status | None,
    options: PruneOptions,
) -> tuple[PruneResult, BackupdError | None]:
    """Prune by the policy, and record the outcome, so that a hold that it ended alarms no more; with why it was not."""
    now, policy = datetime.now(UTC), store.policy(database)
    options = replace(options, damaged_sources=_damaged_sources(known, database))
    result = prune(store.repository.archive(database), policy, now=now, options=options)
    if options.is_dry_run or policy is None:
        return result, None
    try:
        status.update(lambda found: with_prune(found, result, at=now))
    except BackupdError as error:
        return result, error
    return result, None


def _damaged_sources(status: Status | None, database: str) -> frozenset[str]:
    """Return the ids of the snapshots of a damaged database that the status knows of, in any store.

    They hold pruning in each: one that could not be reached then has no record of it.
    """
    known = status.databases.get(database) if status else None
    stores = known.stores.values() if known else ()
    return frozenset(health.damaged_source_id for health in stores if health.damaged_source_id is not None)


def is_worth_reporting(result: PruneResult, state: StateDirectory) -> bool:
    """Whether a prune's error has to be reported: a bucket's refusal to delete only once, until a prune succeeds.

    Remembers that it is reported now.
    """
    if result.error is None and not result.has_changed_anything:
        return False
    refusal = refused_deletion(state, result.store)
    try:
        if result.error is None:
            refusal.remove()
        elif isinstance(result.error, StoreRefusedError):
            is_reported = refusal.read() is not None
            refusal.write(RefusedDeletion(result.error.message))
            return not is_reported
    except BackupdError:
        pass  # what cannot be remembered is reported again
    return True


class Pruner:
    """Prunes databases in stores, and waits for each only so long. A store that hangs is skipped until it answers.

    Without this, a store that hangs while it is pruned would delay snapshots.
    """

    def __init__(self, state: StateDirectory, status: StatusFile, *, patience: timedelta = _PATIENCE) -> None:
        self._state = state
        self._status = status
        self._patience = patience
        self._hanging: dict[str, Future[PruneResult]] = {}

    def prune(self, database: str, store: ConfiguredStore, check: Callable[[], None]) -> PruneResult | None:
        """Prune a configured database in one store and log the outcome; None when that store still hangs.

        Expected failures are in the result. `check` is called now and then, and may raise to stop the wait.
        """
        hanging = self._hanging.get(store.url)
        if hanging is not None and not hanging.done():
            return None
        call = start_call(partial(self._prune, database, store), name="prune")
        give_up_at = time.monotonic() + self._patience.total_seconds()
        while not has_ended(call, within_seconds=_CHECK_SECONDS):
            check()
            if time.monotonic() > give_up_at and not call.done():
                self._hanging[store.url] = call
                return self._given_up(database, store.url)
        result = call.result()
        self._log(result)
        return result

    def _prune(self, database: str, store: ConfiguredStore) -> PruneResult:
        try:
            return prune_database(database, store, self._status)
        except Exception as bug:  # noqa: BLE001  (no bug may end what waits for this)
            error = log.unexpected(bug, database=database)
            return PruneResult(database=database, store=store.url, error=error)

    def _given_up(self, database: str, url: str) -> PruneResult:
        error = StoreUnavailableError(
            f"{url} has not let {database} be pruned within {self._patience.total_seconds():.0f} s",
            hint="check that it is up and can be reached from here; it is pruned again when it answers",
        )
        result = PruneResult(database=database, store=url, error=error)
        now = datetime.now(UTC)
        self._status.update_or_log(lambda status: with_prune(status, result, at=now))
        self._log(result)
        return result

    def _log(self, result: PruneResult) -> None:
        """Log a prune that removed something, was held, or failed. A bucket's refusal to delete is logged once."""
        is_reported = is_worth_reporting(result, self._state)
        if result.hold is not None or (result.error is not None and is_reported):
            log.warning("prune", **result.values())
        elif result.has_changed_anything:
            log.info("prune", **result.values())
