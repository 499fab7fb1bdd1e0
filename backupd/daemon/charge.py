"""What the daemon is in charge of under one configuration; a reload makes another."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from backupd.daemon.asking import Questions
from backupd.daemon.sight import Sights
from backupd.errors import BackupdError, UsageError
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backupd.config import DatabaseSettings, Settings, StoreSettings
    from backupd.daemon.rotations import Rotations
    from backupd.daemon.runs import Runs
    from backupd.daemon.sight import Sight
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
    rotations: Rotations
    questions: Questions = field(default_factory=Questions)
    sights: Sights = field(default_factory=Sights)
    is_over: threading.Event = field(default_factory=threading.Event)
    """Set when another configuration has taken its place: what goes on may finish, and nothing more is planned."""

    def note(self, change: Callable[[Status], Status]) -> Status:
        """Change the status, if it can be written; what is remembered then."""
        try:
            return self.status.update(change)
        except BackupdError as error:
            log.error("the status cannot be written", error=error.values())
            return self.status.read()

    def look(self) -> Sight:
        """What is there at this moment, or was a second ago: entries that have their rounds together look once."""
        return self.sights.now(self.settings, self.repositories, lambda: self.status.read().paths)

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


def missing(
    entry: DatabaseSettings, databases: Sequence[Configured], status: Status, *, with_vanished: bool = False
) -> dict[str, OSError | None]:
    """What the pattern of `entry` found before, and which is not among `databases`; by name, why it cannot be reached.

    None: the file is gone. Anything else may only be in the way, and the application may be writing it. What is
    known to have vanished is left out, unless it is asked for.
    """
    if not entry.is_glob:
        return {}
    names = {each.name for each in databases}
    found: dict[str, OSError | None] = {}
    for name, known in status.databases.items():
        is_meant = known.vanished_at is None or with_vanished
        if known.is_scheduled and is_meant and name not in names:
            reason = _why_missing(Path(known.path))
            if not isinstance(reason, _StillThere) and _finds(entry, name, Path(known.path)):
                found[name] = reason
    return found


class _StillThere:
    """It is where it was: another entry has it, or none any more."""


def _why_missing(path: Path) -> OSError | _StillThere | None:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return error
    return _StillThere()


def _finds(entry: DatabaseSettings, name: str, path: Path) -> bool:
    try:
        return entry.database_at(path).name == name
    except UsageError:
        return False
