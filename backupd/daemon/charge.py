"""What the daemon is in charge of under one configuration; a reload makes another."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from backupd.daemon.asking import Questions
from backupd.daemon.sight import Sights
from backupd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backupd.config import DatabaseSettings, Settings, StoreSettings
    from backupd.daemon.runs import Runs
    from backupd.daemon.sight import Sight
    from backupd.errors import BackupdError
    from backupd.health import Status, StatusFile
    from backupd.health.heartbeats import Heartbeats
    from backupd.repository import Repository
    from backupd.state import StateDirectory
    from backupd.upkeep.configured import Configured
    from backupd.upkeep.stores import RotatedStore


@dataclass(frozen=True, slots=True)
class Charge:
    """A configuration, the repositories that it names, and what all that is done for them shares."""

    settings: Settings
    state: StateDirectory
    status: StatusFile
    runs: Runs
    heartbeats: Heartbeats
    repositories: Sequence[tuple[StoreSettings, Repository]]
    wake: Callable[[], None]
    """To be called when the status has changed, for those who are to be told of it."""
    questions: Questions = field(default_factory=Questions)
    sights: Sights = field(default_factory=Sights)
    is_over: threading.Event = field(default_factory=threading.Event)
    """Set when another configuration has taken its place: what goes on may finish, and nothing more is planned."""

    def look(self) -> Sight:
        """What is there at this moment, or was a second ago: entries that have their rounds together look once."""
        return self.sights.now(self.settings, self.repositories)

    def stores(self) -> list[RotatedStore]:
        """The stores with the policies that hold at this moment. Their repositories are always the same."""
        return self.look().stores

    def databases(self, entry: DatabaseSettings) -> tuple[list[Configured], BackupdError | None]:
        """The databases of an entry at this moment, and why it lacks one, or gives none at all."""
        return self.look().databases(entry)

    def all_databases(self) -> list[Configured]:
        """Every configured database at this moment."""
        return self.look().all_databases

    def database(self, name: str) -> Configured:
        """The configured database of this name. Raises `UsageError` when there is none."""
        for configured in self.all_databases():
            if configured.name == name:
                return configured
        raise UsageError(f"no database {name!r} is configured", hint="backupd status shows those that are")


def vanished(entry: DatabaseSettings, databases: Sequence[Configured], status: Status) -> list[str]:
    """Names of what the pattern of `entry` found before, and which is not among `databases`: the file is gone."""
    if not entry.is_glob:
        return []
    names = {each.name for each in databases}
    return [
        name
        for name, known in status.databases.items()
        if known.is_scheduled
        and known.vanished_at is None
        and name not in names
        and not os.path.exists(known.path)  # noqa: PTH110  (Path.exists raises)
        and _could_find(entry, Path(known.path))
    ]


def _could_find(entry: DatabaseSettings, path: Path) -> bool:
    try:
        entry.database_at(path)
    except UsageError:
        return False
    return True
