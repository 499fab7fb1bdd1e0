"""Databases with snapshots in a directory store, to be verified and damaged."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from backupd.backup import SnapshotRequest, back_up
from backupd.config import Database, Settings
from backupd.format.records import Drill
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from backupd.verify import Verification, VerifyRequest, verify
from harness.checks import check_context
from harness.faults import FaultyStore
from harness.kept_workers import kept_workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backupd.format import SnapshotId
    from backupd.store import Store

_ROW_BYTES = 3000


class Stored:
    """Databases with snapshots in a store, and all that a verification of it needs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store_root = root / "store"
        self.store: Store = DirectoryStore(self.store_root)
        self.state = StateDirectory(root / "state")
        self.notes: list[str] = []

    def back_up(self, *, rows: int = 20, name: str = "app", is_full: bool = False) -> SnapshotId:
        """Add rows that cannot be compressed to a database, and take a snapshot; its id."""
        path = self.root / f"{name}.db"
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS t (a)")
            connection.executemany("INSERT INTO t VALUES (?)", ((os.urandom(_ROW_BYTES),) for _ in range(rows)))
        (result,) = back_up(
            Database(name, path),
            [Repository(self.store, self.state)],
            Settings(),
            request=SnapshotRequest(is_full=is_full),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
        assert result.error is None
        assert result.id is not None
        return result.id

    def repository(self, store: Store | None = None) -> Repository:
        """Another repository over the same store, or over `store`."""
        return Repository(store or self.store, self.state)

    def verify(
        self, *stores: Store, rate: float | None = None, should_stop: Callable[[], None] = lambda: None, **request: Any
    ) -> Verification:
        """Verify in `stores`, or in the own one."""
        self.notes = []
        return verify(
            [self.repository(store) for store in stores or (self.store,)],
            VerifyRequest(most_bytes_per_second=rate, **request),
            check_context(on_note=self.notes.append, should_stop=should_stop),
        )

    def counting(self) -> FaultyStore:
        """The store with an account of its calls."""
        return FaultyStore(self.store)

    def packs(self, name: str = "app") -> list[Path]:
        """Files of all packs, the largest first."""
        return sorted((self.store_root / name / "packs").iterdir(), key=lambda file: -file.stat().st_size)

    def manifest(self, snapshot: SnapshotId, name: str = "app") -> Path:
        """The file of a manifest."""
        return self.store_root / name / "snapshots" / f"{snapshot}.json"

    def recorded(self, snapshot: SnapshotId, name: str = "app") -> Drill | None:
        """What the store knows of a snapshot."""
        file = self.store_root / name / "drills" / f"{snapshot}.json"
        return Drill.decode(file.read_bytes()) if file.exists() else None
