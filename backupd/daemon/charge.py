"""What the daemon is in charge of under one configuration; a reload makes another."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from backupd.config import look_for_databases
from backupd.daemon.asking import Questions
from backupd.errors import SourceUnusableError, UsageError
from backupd.upkeep.configured import Configured
from backupd.upkeep.stores import rotated_stores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backupd.config import DatabaseSettings, Settings, StoreSettings
    from backupd.daemon.runs import Runs
    from backupd.errors import BackupdError
    from backupd.health import Status, StatusFile
    from backupd.health.heartbeats import Heartbeats
    from backupd.repository import Repository
    from backupd.state import StateDirectory
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
    is_over: threading.Event = field(default_factory=threading.Event)
    """Set when another configuration has taken its place: what goes on may finish, and nothing more is planned."""

    def stores(self) -> list[RotatedStore]:
        """The stores with the policies that hold at this moment. Their repositories are always the same."""
        return rotated_stores(self.repositories, self.settings)

    def databases(self, entry: DatabaseSettings) -> tuple[list[Configured], BackupdError | None]:
        """The databases of an entry at this moment, and why it lacks one, or gives none at all."""
        found = look_for_databases(self.settings.databases)
        schedule = self.settings.schedule_of(entry)
        databases = [Configured(database, schedule) for owner, database in found.databases if owner is entry]
        problem: BackupdError | None = next((problem for owner, problem in found.problems if owner is entry), None)
        if not databases and problem is None:
            problem = SourceUnusableError(
                f"no file matches {entry.path}",
                hint="check the path and, in a container, that the volume is mounted there",
            )
        return databases, problem

    def all_databases(self) -> list[Configured]:
        """Every configured database at this moment."""
        found = look_for_databases(self.settings.databases).databases
        return [Configured(database, self.settings.schedule_of(entry)) for entry, database in found]

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
        and not Path(known.path).exists()
        and _could_find(entry, Path(known.path))
    ]


def _could_find(entry: DatabaseSettings, path: Path) -> bool:
    try:
        entry.database_at(path)
    except UsageError:
        return False
    return True
