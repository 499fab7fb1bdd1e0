"""The state of a database in one word, by its alarms: in one store, or the worst of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from backupd.health.values import DaemonHealth, DatabaseHealth, StoreHealth

_WORDS = {
    "stale": "late",
    "damaged": "damaged",
    "damaged-source": "source damaged",
    "failing": "failing",
    "drill-failed": "drill failed",
    "unproven": "unproven",
}
"""What the state is called while an alarm of a kind is on; the worst first."""


def state_of(database: DatabaseHealth, health: StoreHealth, daemon: DaemonHealth | None, kinds: Collection[str]) -> str:
    """Return the state of a database in a store in one word: the worst that is true.

    `kinds` are those of the alarms that are on for the database there.
    """
    if database.vanished_at is not None:
        return "vanished"
    if daemon is not None and database.path in daemon.entry_problems:
        return "missing"
    for kind, word in _WORDS.items():
        if kind in kinds:
            return word
    if database.running_since is not None:
        return "running"
    if health.failure is not None:
        return "retrying"
    return "waiting" if health.current_at is None else "current"
