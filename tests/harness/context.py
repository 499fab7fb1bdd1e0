"""A daemon's context without a daemon: databases and directory stores in a place of their own."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from backupd.config import DatabaseSettings, Settings, StoreSettings
from backupd.daemon.discovery import Discovery, Inventory
from backupd.daemon.runs import Runs
from backupd.daemon.work import Context
from backupd.errors import StoreUnavailableError
from backupd.health import StatusFile
from backupd.jobs.prunes import Pruner
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from harness.faults import FaultyStore
from harness.kept_workers import kept_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backupd.errors import BackupdError
    from backupd.store import Store

_PATIENCE_SECONDS = 30


class MoodyStore(FaultyStore):
    """A store that is down, or never answers, while a test wants that."""

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
    """Heartbeats that are recorded and not sent: for what, and whether it is an error, in their order."""

    def __init__(self) -> None:
        self.reported: list[tuple[str | None, str]] = []

    def started(self, database: str | None) -> None:
        self.reported.append((database, "start"))

    def finished(self, database: str | None, error: BackupdError | None) -> None:
        self.reported.append((database, "fail" if error else "well"))

    def of(self, database: str | None) -> list[str]:
        """Return the heartbeats of one database, or (None) of whole rounds."""
        return [what for name, what in self.reported if name == database]


def is_idle(runs: Runs) -> bool:
    """Whether nothing waits or runs, and every end was reported."""
    return not runs._waiting and not any(thread.name == "run" for thread in threading.enumerate())


class PlacedContext:
    """A context of what `pattern` finds in `home`, in the stores `home/disk` and `home/bucket`."""

    def __init__(self, home: Path, *, pattern: str = "*.db", **settings: Any) -> None:
        self.home = home
        self.stores = [MoodyStore(DirectoryStore(home / name)) for name in ("disk", "bucket")]
        self.disk, self.bucket = [store.url for store in self.stores]
        self.heard = Heard()
        self.woken = threading.Event()
        state = StateDirectory(home / "state")
        status = StatusFile(state)
        self.repositories = [Repository(store, state) for store in self.stores]
        configured = Settings(
            state_dir=state.root,
            databases=(DatabaseSettings(path=str(home / pattern)),),
            stores=tuple(StoreSettings(url=store.url) for store in self.stores),
            **settings,
        )
        self.context = Context(
            settings=configured,
            state=state,
            status=status,
            discovery=self.discovery(configured, status),
            runs=Runs(2),
            heartbeats=self.heard,
            pruner=Pruner(state, status, patience=timedelta(seconds=1)),
            wake=self.woken.set,
            workers=kept_workers(),
        )

    @classmethod
    @contextmanager
    def making(cls, home: Path) -> Iterator[Callable[..., Self]]:
        """Give a function that makes one in `home`; the runs of all that it made end with the block."""
        made: list[Self] = []

        def make(*names: str, **options: Any) -> Self:
            made.append(cls(home, *names, **options))
            return made[-1]

        yield make
        for each in made:
            each.close()

    def discovery(self, settings: Settings, status: StatusFile) -> Discovery:
        """Return a discovery for `settings` that searches each time."""
        repositories = [*zip(settings.stores, self.repositories, strict=True)]
        return Discovery(settings, repositories, status, reuse_seconds=0)

    def with_settings(self, **changes: Any) -> Context:
        """The context under a configuration that differs in these keys."""
        settings = self.context.settings.replaced(**changes)
        return replace(self.context, settings=settings, discovery=self.discovery(settings, self.context.status))

    @property
    def inventory(self) -> Inventory:
        """The databases and stores that exist now."""
        return self.context.discovery.now()

    @property
    def entry(self) -> DatabaseSettings:
        """The only one."""
        return self.context.settings.databases[0]

    def close(self) -> None:
        """End what is going on."""
        for store in self.stores:
            store.answers.set()
        self.context.runs.stop(finish_seconds=_PATIENCE_SECONDS, abandon_seconds=0)
