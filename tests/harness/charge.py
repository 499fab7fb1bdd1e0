"""What the daemon is in charge of, without a daemon: databases and directory stores in a place of their own."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from backupd.config import DatabaseSettings, Settings, StoreSettings
from backupd.daemon.charge import Charge
from backupd.daemon.rotations import Rotations
from backupd.daemon.runs import Runs
from backupd.errors import StoreUnavailableError
from backupd.health import StatusFile
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from harness.faults import FaultyStore

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.errors import BackupdError
    from backupd.store import Store

_PATIENCE_SECONDS = 30


class MoodyStore(FaultyStore):
    """A store that is down, or never answers, while it is told to be so."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.is_down = False
        self.answers = threading.Event()
        self.answers.set()

    def _count(self, call: str) -> bool:
        self.calls.append(call)
        assert self.answers.wait(_PATIENCE_SECONDS)
        if self.is_down:
            raise StoreUnavailableError(f"{self.url} is down on purpose")
        return False


class Heard:
    """Heartbeats that are not sent anywhere: what is told, and whether it is an error, in its order."""

    def __init__(self) -> None:
        self.told: list[tuple[str | None, str]] = []

    def started(self, database: str | None) -> None:
        self.told.append((database, "start"))

    def finished(self, database: str | None, error: BackupdError | None) -> None:
        self.told.append((database, "fail" if error else "well"))

    def of(self, database: str | None) -> list[str]:
        """What was told of one database, or (None) of whole rounds."""
        return [what for name, what in self.told if name == database]


def is_idle(runs: Runs) -> bool:
    """Whether nothing waits or runs, and everybody has been told how it ended."""
    return not runs._waiting and not any(thread.name == "run" for thread in threading.enumerate())


class Charged:
    """A charge of what `pattern` finds in `home`, in the stores `home/disk` and `home/bucket`."""

    def __init__(self, home: Path, *, pattern: str = "*.db", **settings: Any) -> None:
        self.home = home
        self.stores = [MoodyStore(DirectoryStore(home / name)) for name in ("disk", "bucket")]
        self.disk, self.bucket = [store.url for store in self.stores]
        self.heard = Heard()
        self.woken = threading.Event()
        state = StateDirectory(home / "state")
        status = StatusFile(state)
        self.charge = Charge(
            settings=Settings(
                state_dir=state.root,
                databases=(DatabaseSettings(path=str(home / pattern)),),
                stores=tuple(StoreSettings(url=store.url) for store in self.stores),
                **settings,
            ),
            state=state,
            status=status,
            runs=Runs(2),
            heartbeats=self.heard,
            repositories=[(StoreSettings(url=store.url), Repository(store, state)) for store in self.stores],
            rotations=Rotations(state, status, patience=timedelta(seconds=1)),
            wake=self.woken.set,
        )

    @property
    def entry(self) -> DatabaseSettings:
        """The only one."""
        return self.charge.settings.databases[0]

    def look_again(self) -> None:
        """What was found a moment ago counts no more."""
        self.charge.sights._last = None

    def close(self) -> None:
        """End what is going on."""
        for store in self.stores:
            store.answers.set()
        self.charge.runs.stop(finish_seconds=_PATIENCE_SECONDS, abandon_seconds=0)
