"""Snapshots of an application that books as fast as it can, in a process of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness.ledger import bookkeeper, create_ledger, imbalance

from backupd.backup import Outcome, Wish, back_up
from backupd.config import Database, Settings
from backupd.repository import Repository
from backupd.restore import restore_to_file
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from pathlib import Path

_SNAPSHOTS = 8


@pytest.mark.parametrize("journal_mode", ["wal", "delete", "truncate"])
def test_every_snapshot_under_full_load_is_a_balanced_state(tmp_path: Path, journal_mode: str) -> None:
    """No snapshot fails, none is a mixture of two states, and the application goes on booking between them."""
    path = tmp_path / "ledger.db"
    create_ledger(path, journal_mode=journal_mode)
    store, state = DirectoryStore(tmp_path / "store"), StateDirectory(tmp_path / "state")
    with bookkeeper(path) as application:
        for number in range(_SNAPSHOTS):
            (result,) = back_up(
                Database(name="ledger", path=path),
                [store],
                Settings(),
                state,
                wish=Wish(tags=(f"n{number}",)),
                on_progress=lambda _: None,
            )
            assert result.error is None
            assert result.outcome is Outcome.CREATED
        assert application.poll() is None
    manifests = Repository(store, state).history("ledger").manifests
    assert [manifest.tags for manifest in manifests] == [(f"n{number}",) for number in range(_SNAPSHOTS)]
    assert len({manifest.image_digest for manifest in manifests}) == _SNAPSHOTS
    for manifest in manifests:
        target = tmp_path / f"{manifest.id}.db"
        restore_to_file(
            Repository(store, state), manifest, target, force=False, as_source=False, on_progress=lambda _: None
        )
        assert imbalance(target) == []
