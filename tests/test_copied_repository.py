"""A store that began as a copy of another one: the same id, and from then on another history."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from harness.extent import sampled
from harness.kept_workers import kept_workers

from backupd.backup import Outcome, SnapshotRequest, back_up
from backupd.config import Database, Settings
from backupd.encryption import generate_identity
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.backup import BackupResult


def taken(root: Path, settings: Settings, *stores: str) -> list[BackupResult]:
    """A snapshot with one more row in each of `stores`."""
    with closing(sqlite3.connect(root / "app.db")) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS t (a)")
        connection.executemany("INSERT INTO t VALUES (?)", ((os.urandom(3000),) for _ in range(50)))
    return list(
        back_up(
            Database("app", root / "app.db"),
            [
                Repository(store, StateDirectory(root / "state"), settings.open_encryption())
                for store in [DirectoryStore(root / name) for name in stores]
            ],
            settings,
            request=SnapshotRequest(),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
    )


@pytest.mark.parametrize("is_encrypted", sampled([False, True]), ids=["plain", "encrypted"])
def test_copy_of_a_store_continues_with_a_history_of_its_own(tmp_path: Path, *, is_encrypted: bool) -> None:
    """What is known of one is never taken for what is known of the other, and neither has everything stored again."""
    recipients = [generate_identity(datetime.now(UTC))[0]] if is_encrypted else []
    settings = Settings.read({"encryption": {"recipients": recipients}})
    taken(tmp_path, settings, "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    taken(tmp_path, settings, "first")
    after_copying = taken(tmp_path, settings, "first", "second")
    assert [each.outcome for each in after_copying] == [Outcome.CREATED] * 2
    for _ in range(3):
        again = taken(tmp_path, settings, "first", "second")
        assert [(each.outcome, each.warnings) for each in again] == [(Outcome.CREATED, ())] * 2
        assert max(each.changed_pages for each in again) < 70
