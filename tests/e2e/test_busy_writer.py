"""Snapshots of an application that books as fast as it can, in a process of its own."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from harness.extent import sampled, slow
from harness.faults import BlockedStore
from harness.ledger import bookkeeper, create_ledger, imbalance

from backupd.backup import Outcome, SnapshotRequest, back_up
from backupd.config import CaptureSettings, Database, PackSettings, Settings
from backupd.repository import Repository
from backupd.repository.moments import RestorePoint
from backupd.restore import restore_to_file
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("journal_mode", "bulk_megabytes", "snapshots"),
    sampled(
        [
            *(("wal", 0, 4), ("delete", 0, 4), ("persist", 60, 2)),
            *(("wal", 0, 8), ("delete", 0, 8), ("truncate", 0, 8)),
            *(("delete", 60, 8), ("persist", 60, 8), ("truncate", 60, 8)),
        ],
        fast=[("delete", 0, 4), ("persist", 60, 2)],
    ),
)
def test_every_snapshot_under_full_load_is_a_balanced_state(
    tmp_path: Path, journal_mode: str, bulk_megabytes: int, snapshots: int
) -> None:
    """Under full load every snapshot is one balanced state, and the application continues to book.

    In rollback mode a larger database is not copied under one lock.
    """
    path = tmp_path / "ledger.db"
    create_ledger(path, journal_mode=journal_mode)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE bulk (content)")
        connection.executemany("INSERT INTO bulk VALUES (zeroblob(1000000))", [()] * bulk_megabytes)
    store, state = DirectoryStore(tmp_path / "store"), StateDirectory(tmp_path / "state")
    with bookkeeper(path) as application:
        for number in range(snapshots):
            (result,) = back_up(
                Database(name="ledger", path=path),
                [Repository(store, state)],
                Settings(),
                request=SnapshotRequest(tags=(f"n{number}",)),
                on_progress=lambda _: None,
            )
            assert result.error is None
            assert result.outcome is Outcome.CREATED
        assert application.poll() is None
    manifests = Repository(store, state).archive("ledger").history().manifests
    assert [manifest.tags for manifest in manifests] == [(f"n{number}",) for number in range(snapshots)]
    assert len({manifest.image_digest for manifest in manifests}) == snapshots
    for manifest in manifests:
        target = tmp_path / f"{manifest.id}.db"
        archive = Repository(store, state).archive("ledger")
        restore_to_file(
            RestorePoint(archive, archive.manifest(manifest.id)),
            target,
            force=False,
            as_source=False,
            on_progress=lambda _: None,
        )
        assert imbalance(target) == []


@slow
@pytest.mark.parametrize("blocked_stores", sampled([1, 0, 2]))
def test_growing_log_ends_the_patience_with_a_store_that_hangs(tmp_path: Path, blocked_stores: int) -> None:
    """The application's disk is worth more than a slow store: that one fails, and the others get their snapshot."""
    path = tmp_path / "ledger.db"
    create_ledger(path, journal_mode="wal")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE bulk (content)")
        connection.executemany("INSERT INTO bulk VALUES (zeroblob(1000000))", [()] * 220)  # 27 packs
    state = StateDirectory(tmp_path / "state")
    blocked = [BlockedStore(DirectoryStore(tmp_path / f"blocked {number}")) for number in range(blocked_stores)]
    good = DirectoryStore(tmp_path / "good")
    settings = Settings(
        capture=CaptureSettings(max_wal_growth=1_000_000),
        # 16 packs: a store that works has fewer than half of them waiting, however busy the machine is.
        packs=PackSettings(spool_limit=16 << 23, compression_level=1),
    )
    with bookkeeper(path):
        results = back_up(
            Database(name="ledger", path=path),
            [Repository(store, state) for store in (*blocked, good)],
            settings,
            request=SnapshotRequest(),
            on_progress=lambda _: None,
        )
    for store in blocked:
        store.release()
    *failed, created = results
    assert created.error is None
    assert all("is too slow" in str(result.error) for result in failed)
    assert len(failed) == blocked_stores
    (manifest,) = Repository(good, state).archive("ledger").history().manifests
    restored = tmp_path / "restored.db"
    archive = Repository(good, state).archive("ledger")
    restore_to_file(
        RestorePoint(archive, archive.manifest(manifest.id)),
        restored,
        force=False,
        as_source=False,
        on_progress=lambda _: None,
    )
    assert imbalance(restored) == []
