"""What the stores say before a round: whether each is there, and whether the newest manifests still are."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from backupd.capture.unchanged import fingerprint
from backupd.errors import BackupdError, LimitReachedError, StoreUnavailableError
from backupd.logs import log
from backupd.threads import start_thread, worker_threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from backupd.health import Status, StoreHealth
    from backupd.upkeep.configured import Configured
    from backupd.upkeep.stores import RotatedStore

_SEEN_COUNTS_FOR = timedelta(hours=1)
_ASKERS = 8
_PATIENCE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Answers:
    """What each store, by its URL, said: the id of its repository, None when it has none, or an error."""

    ids: Mapping[str, str | None]
    errors: Mapping[str, BackupdError]


@dataclass(slots=True)
class Round:
    """What is to be done for the databases of one round, by their names."""

    unchanged: dict[str, list[str]] = field(default_factory=dict)
    """Stores (URLs) that have this state."""
    seen: dict[str, list[str]] = field(default_factory=dict)
    """By store, the databases whose newest manifest was seen there just now."""
    wanting: dict[str, list[RotatedStore]] = field(default_factory=dict)
    """Stores that may need a snapshot."""
    down: dict[str, list[tuple[str, BackupdError]]] = field(default_factory=dict)
    """Stores (URLs) that could not be asked, and why."""

    def error_of(self, name: str) -> BackupdError | None:
        """Why a database could not be looked after in one of its stores; the first of several."""
        return next((error for _, error in self.down.get(name, ())), None)


class Questions:
    """Asks stores whether they are there. One that hangs costs a round little, and is asked once at a time."""

    def __init__(self, *, patience: timedelta = _PATIENCE) -> None:
        self._patience_seconds = patience.total_seconds()
        self._lock = threading.Lock()
        self._pending: dict[str, Future[str | None]] = {}

    def ask(self, stores: Sequence[RotatedStore]) -> Answers:
        """Ask all stores at once for `backupd.json`, and wait half a minute at most for their answers.

        A store that hangs would else hold up the databases of the others for its whole time limit, or for ever.
        """
        asked = {rotated.url: self._asked(rotated) for rotated in stores}
        wait(asked.values(), timeout=self._patience_seconds)
        ids: dict[str, str | None] = {}
        errors: dict[str, BackupdError] = {}
        for url, answer in asked.items():
            try:
                ids[url] = answer.result(timeout=0)
            except TimeoutError:
                errors[url] = StoreUnavailableError(
                    f"{url} has not answered for {self._patience_seconds:.0f} s",
                    hint="check that it is up and can be reached from here; the next round asks again",
                )
            except BackupdError as error:
                errors[url] = error
            except Exception as bug:  # noqa: BLE001  (no store may end the round of the others)
                errors[url] = log.unexpected(bug, store=url)
        return Answers(ids, errors)

    def _asked(self, rotated: RotatedStore) -> Future[str | None]:
        with self._lock:
            pending = self._pending.get(rotated.url)
            if pending is None:
                pending = Future()
                self._pending[rotated.url] = pending
                try:
                    start_thread(self._ask, rotated, pending, name="ask")
                except LimitReachedError as error:
                    del self._pending[rotated.url]
                    pending.set_exception(error)
            return pending

    def _ask(self, rotated: RotatedStore, answer: Future[str | None]) -> None:
        try:
            found = rotated.repository.id if rotated.repository.exists() else None
        except BaseException as error:  # noqa: BLE001  (raised again where it is waited for)
            self._forget(rotated.url)
            answer.set_exception(error)
        else:
            self._forget(rotated.url)
            answer.set_result(found)

    def _forget(self, url: str) -> None:
        with self._lock:
            del self._pending[url]


def plan_round(
    databases: Sequence[Configured],
    stores: Sequence[RotatedStore],
    answers: Answers,
    known_ids: Mapping[str, str],
    status: Status,
    *,
    now: datetime,
) -> Round:
    """What is to be done for `databases`: nothing, where `stat` and the store both say that nothing has changed.

    A store that has not shown the newest manifest of a database for an hour is asked for it, and so is one that this
    daemon did not know yet by its id: `known_ids` are those of the last round.
    """
    plan = Round()
    doubtful: list[tuple[Configured, RotatedStore, str]] = []
    for configured in databases:
        looks_like = fingerprint(configured.database.path, now=now)
        known = status.databases.get(configured.name)
        for rotated in stores:
            if rotated.url in answers.errors:
                plan.down.setdefault(configured.name, []).append((rotated.url, answers.errors[rotated.url]))
                continue
            health = known.stores.get(rotated.url) if known else None
            repository_id = answers.ids[rotated.url]
            if repository_id is None or health is None or not _looks_unchanged(health, looks_like):
                plan.wanting.setdefault(configured.name, []).append(rotated)
            elif repository_id == known_ids.get(rotated.url) and _was_seen_lately(health, now):
                plan.unchanged.setdefault(configured.name, []).append(rotated.url)
            else:
                doubtful.append((configured, rotated, str(health.snapshot_id)))
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


def _ask_for_manifests(doubtful: Sequence[tuple[Configured, RotatedStore, str]], plan: Round) -> None:
    down: dict[str, BackupdError] = {}

    def is_shown(asked: tuple[Configured, RotatedStore, str]) -> bool | BackupdError:
        configured, rotated, snapshot_id = asked
        if rotated.url in down:  # a thousand databases are not to wait for its time limit one after the other
            return down[rotated.url]
        try:
            return rotated.repository.shows(configured.name, snapshot_id)
        except BackupdError as error:
            return down.setdefault(rotated.url, error)

    with worker_threads(_ASKERS) as threads:
        answers = list(threads.map(is_shown, doubtful))
    for (configured, rotated, _), answer in zip(doubtful, answers, strict=True):
        if isinstance(answer, BackupdError):
            plan.down.setdefault(configured.name, []).append((rotated.url, answer))
        elif answer:
            plan.unchanged.setdefault(configured.name, []).append(rotated.url)
            plan.seen.setdefault(rotated.url, []).append(configured.name)
        else:
            plan.wanting.setdefault(configured.name, []).append(rotated)
