"""Small changes of a status, which what happened and what is planned are made of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from backupd.errors import StoreRefusedError
from backupd.health.values import Failure, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from backupd.errors import BackupdError
    from backupd.health.values import DatabaseHealth, Status, StoreHealth


class _Told(Protocol):
    @property
    def message(self) -> str: ...

    @property
    def hint(self) -> str | None: ...


class _Held(_Told, Protocol):
    @property
    def ends_by_itself(self) -> bool: ...


def with_database(status: Status, name: str, change: Callable[[DatabaseHealth], DatabaseHealth]) -> Status:
    """Change one database, if it is known."""
    database = status.databases.get(name)
    return status if database is None else with_databases(status, {name: change(database)})


def with_databases(status: Status, changed: Mapping[str, DatabaseHealth]) -> Status:
    """Put these in the place of those of the same name, or add them."""
    return replace(status, databases={**status.databases, **changed}) if changed else status


def with_stores(status: Status, urls: Mapping[str, str], change: Callable[[StoreHealth], StoreHealth]) -> Status:
    """Change one store's health of each database in `urls` that is known there."""
    changed = {}
    for name, url in urls.items():
        database = status.databases.get(name)
        if database is not None and url in database.stores:
            changed[name] = replace(database, stores={**database.stores, url: change(database.stores[url])})
    return with_databases(status, changed)


def next_failure(earlier: Failure | None, error: BackupdError | None, at: datetime) -> Failure | None:
    """What is remembered after one more attempt, which failed with `error`, or succeeded (None)."""
    if error is None:
        return None
    return Failure(
        since=earlier.since if earlier else at,
        count=earlier.count + 1 if earlier else 1,
        last_at=at,
        message=error.message,
        hint=error.hint,
        exit_code=int(error.exit_code),
        is_transient=error.retry_can_help,
        is_refusal=isinstance(error, StoreRefusedError),
    )


def next_problem(earlier: Problem | None, found: _Told, at: datetime) -> Problem:
    """`found`, since the time when it, or another before it, was found first."""
    return Problem(since=earlier.since if earlier else at, message=found.message, hint=found.hint)


def next_hold(earlier: Problem | None, found: _Held, at: datetime) -> Problem:
    """The same for what holds pruning."""
    return replace(next_problem(earlier, found, at), ends_by_itself=found.ends_by_itself)
