"""Reachability: which stores answer before a round, and what each database then needs."""

from __future__ import annotations

from concurrent.futures import wait
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from backupd.capture.unlocked import fingerprint
from backupd.concurrency import PendingCalls, worker_threads
from backupd.errors import BackupdError, LimitReachedError, StoreUnavailableError
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from backupd.health import Status, StoreHealth
    from backupd.jobs.configured import ConfiguredDatabase, ConfiguredStore

_SEEN_COUNTS_FOR = timedelta(hours=1)
_MANIFEST_THREADS = 8
_PATIENCE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of the stores, by URL: the id of the repository, None when there is none, or an error."""

    ids: Mapping[str, str | None]
    errors: Mapping[str, BackupdError]


@dataclass(slots=True)
class RoundPlan:
    """The work that one round has to do for its databases, by their names."""

    unchanged: dict[str, list[str]] = field(default_factory=dict)
    """Stores (URLs) that have the present state."""
    seen: dict[str, list[str]] = field(default_factory=dict)
    """By store (URL), the databases whose newest manifest was seen there just now."""
    wanting: dict[str, list[ConfiguredStore]] = field(default_factory=dict)
    """Stores that may need a snapshot."""
    down: dict[str, list[tuple[str, BackupdError]]] = field(default_factory=dict)
    """Stores (URLs) that could not be asked, and why."""

    def error_of(self, name: str) -> BackupdError | None:
        """Return why a database could not be backed up in one of its stores: the first reason of several."""
        return next((error for _, error in self.down.get(name, ())), None)


class Reachability:
    """Asks stores whether they answer. A store that hangs delays a round for a bounded time, and uses one thread."""

    def __init__(self, *, patience: timedelta = _PATIENCE) -> None:
        self._patience_seconds = patience.total_seconds()
        self._pending: PendingCalls[str | None] = PendingCalls("ask")

    def ask(self, stores: Sequence[ConfiguredStore]) -> Answers:
        """Ask all stores at once for `backupd.json`, and wait half a minute at most.

        Without that bound, a store that hangs would delay the databases of the others for its whole time limit.
        """
        calls, ids = {}, {}
        errors: dict[str, BackupdError] = {}
        for store in stores:
            try:
                calls[store.url] = self._pending.start(store.url, partial(_repository_id, store))
            except LimitReachedError as error:
                errors[store.url] = error
        wait(calls.values(), timeout=self._patience_seconds)
        for url, call in calls.items():
            try:
                ids[url] = call.result(timeout=0)
            except TimeoutError:
                errors[url] = StoreUnavailableError(
                    f"{url} has not answered for {self._patience_seconds:.0f} s",
                    hint="check that it is up and can be reached from here; the next round asks again",
                )
            except Exception as error:  # noqa: BLE001  (no store may end the round of the others)
                errors[url] = log.failure(error, store=url)
        return Answers(ids, errors)


def _repository_id(store: ConfiguredStore) -> str | None:
    return store.repository.id if store.repository.exists() else None


def plan_round(
    databases: Sequence[ConfiguredDatabase],
    stores: Sequence[ConfiguredStore],
    answers: Answers,
    known_ids: Mapping[str, str],
    status: Status,
    *,
    now: datetime,
) -> RoundPlan:
    """Decide what `databases` need: nothing, where `stat` and the store both show that nothing has changed.

    A store is asked for the newest manifest of a database when it has not shown it for an hour, and when its repository
    has another id than in the last round (`known_ids`).
    """
    plan = RoundPlan()
    doubtful: list[tuple[ConfiguredDatabase, ConfiguredStore, str]] = []
    directories: dict[str, str] = {}
    for configured in databases:
        looks_like = fingerprint(configured.database.path, now=now, directories=directories)
        known = status.databases.get(configured.name)
        for store in stores:
            if store.url in answers.errors:
                plan.down.setdefault(configured.name, []).append((store.url, answers.errors[store.url]))
                continue
            health = known.stores.get(store.url) if known else None
            repository_id = answers.ids[store.url]
            if repository_id is None or health is None or not _looks_unchanged(health, looks_like):
                plan.wanting.setdefault(configured.name, []).append(store)
            elif repository_id == known_ids.get(store.url) and _was_seen_lately(health, now):
                plan.unchanged.setdefault(configured.name, []).append(store.url)
            else:
                doubtful.append((configured, store, str(health.snapshot_id)))
    _ask_for_manifests(doubtful, plan)
    return plan


def _looks_unchanged(health: StoreHealth, looks_like: str | None) -> bool:
    return (
        looks_like is not None
        and health.fingerprint == looks_like
        and health.snapshot_id is not None
        and not health.is_damaged
    )


def _was_seen_lately(health: StoreHealth, now: datetime) -> bool:
    if health.failure is not None or health.seen_at is None:
        return False
    return timedelta(0) <= now - health.seen_at < _SEEN_COUNTS_FOR


def _ask_for_manifests(doubtful: Sequence[tuple[ConfiguredDatabase, ConfiguredStore, str]], plan: RoundPlan) -> None:
    down: dict[str, BackupdError] = {}

    def is_shown(asked: tuple[ConfiguredDatabase, ConfiguredStore, str]) -> bool | BackupdError:
        configured, store, snapshot_id = asked
        if store.url in down:  # or a thousand databases would wait for its time limit one after the other
            return down[store.url]
        try:
            return store.repository.archive(configured.name).shows(snapshot_id)
        except BackupdError as error:
            return down.setdefault(store.url, error)

    with worker_threads(_MANIFEST_THREADS) as threads:
        answers = list(threads.map(is_shown, doubtful))
    for (configured, store, _), answer in zip(doubtful, answers, strict=True):
        if isinstance(answer, BackupdError):
            plan.down.setdefault(configured.name, []).append((store.url, answer))
        elif answer:
            plan.unchanged.setdefault(configured.name, []).append(store.url)
            plan.seen.setdefault(store.url, []).append(configured.name)
        else:
            plan.wanting.setdefault(configured.name, []).append(store)
